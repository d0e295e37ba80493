"""EER of every layer's mean: by the transformers module and the plain formula, through the command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, Wav2Vec2FeatureExtractor

from wavcse.data.trials import main as make_trials
from wavcse.eval.layers import main
from wavcse.eval.metrics import METRICS

RATE = 16_000


def model_in(folder, upstream_config, seed: int) -> str:
    torch.manual_seed(seed)
    AutoModel.from_config(AutoConfig.for_model(**upstream_config("wav2vec2", "group"))).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path):
    """Six speakers of a pitch each with four clips, one of which is no audio."""
    rng, rows = np.random.default_rng(0), []
    for number in range(6):
        for take in range(4):
            time_s = np.arange(rng.integers(8000, 12_000)) / RATE
            wave = np.sin(2 * np.pi * 150 * 1.4**number * time_s) + 0.7 * rng.standard_normal(len(time_s))
            soundfile.write(tmp_path / f"{number}{take}.wav", 0.1 * wave, RATE, subtype="FLOAT")
            rows.append((f"{number}{take}.wav", f"s{number}", "test"))
    pd.DataFrame(rows, columns=["file_name", "speaker_id", "split"]).to_csv(tmp_path / "m.csv", index=False)
    assert make_trials([str(tmp_path / "m.csv")]) == 0
    (tmp_path / "53.wav").write_bytes(b"RIFF, but broken")
    return tmp_path


def test_the_curves_are_the_modules_and_the_plain_cosine(corpus, upstream_config, tmp_path, capsys):
    models = {name: model_in(tmp_path / name, upstream_config, seed) for seed, name in enumerate(("before", "after"))}
    where = ["--manifest", str(corpus / "m.csv"), "--trials", str(corpus / "m_trials.csv"), "--out", str(tmp_path / "out")]
    assert main(["--models", json.dumps(models), *where, "--device", "cpu", "--workers", "1"]) == 3
    assert "1 clips were skipped" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/layers.json").read_text())
    assert list(record["models"]) == ["before", "after"]
    trials = pd.read_csv(corpus / "m_trials.csv")
    trials = trials[(trials.enrolment != "53.wav") & (trials.test != "53.wav")]
    assert record["trials"]["same"] == trials.label.sum() == 5 * 6 + 3
    assert record["trials"]["different"] == len(trials) - 33
    for name, folder in models.items():
        means = layer_means(folder, corpus, sorted({*trials.enrolment, *trials.test}))
        found = record["models"][name]["layers"]
        assert [own["layer"] for own in found] == [0, 1, 2, 3, 4]
        for layer, own in enumerate(found):
            scores = [cosine(means[t.enrolment][layer], means[t.test][layer]) for t in trials.itertuples()]
            assert own["eer"] == pytest.approx(METRICS["eer"].compute(trials.label.to_numpy(), np.array(scores)), abs=1e-6)
            assert own["interval"][0] <= own["eer"] <= own["interval"][1]
    assert {path.name for path in (tmp_path / "out/pictures").iterdir()} == {"layers.svg", "layers.png"}


def layer_means(folder: str, corpus, names) -> dict[str, np.ndarray]:
    """Mean over time of all hidden states of transformers' own module, `[L, D]` by clip."""
    model, extractor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    means = {}
    for name in names:
        waveform, _ = soundfile.read(corpus / name, dtype="float32")
        inputs = extractor(waveform, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            states = model(inputs["input_values"], output_hidden_states=True).hidden_states
        means[name] = torch.stack(states)[:, 0].mean(dim=1).double().numpy()
    return means


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_what_is_refused(corpus, tmp_path, capsys):
    where = ["--manifest", str(corpus / "m.csv"), "--trials", str(corpus / "m_trials.csv"), "--out", str(tmp_path / "out")]
    assert main(["--models", "{}", *where]) == 2
    assert "name at least one" in capsys.readouterr().err
    assert main(["--models", json.dumps({"a/b": "x"}), *where]) == 2
    assert "a name in models" in capsys.readouterr().err
