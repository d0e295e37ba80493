"""Verification and regression through the command line, on tones: pitch tells the speaker, noise the ratings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import audmetric
import numpy as np
import pandas as pd
import pytest
import soundfile
from safetensors import safe_open

from wavcse.data.inspection import ClipFacts, Inspector
from wavcse.data.manifest import Clip
from wavcse.eval.__main__ import main
from wavcse.eval.metrics import METRICS

SAMPLING_RATE = 16_000
NUM_SPEAKERS = {"train": 12, "validation": 4, "test": 6}
CLIPS = 6


def write_clip(path: Path, rng: np.random.Generator, pitch_hz: float, noise: float) -> None:
    """A tone with two overtones in noise."""
    time_s = np.arange(rng.integers(5000, 7000)) / SAMPLING_RATE
    tone = sum(np.sin(2 * np.pi * k * pitch_hz * time_s) / k for k in (1, 2, 3))
    soundfile.write(path, 0.1 * (tone + noise * rng.standard_normal(len(time_s))), SAMPLING_RATE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Folder of metadata.csv and trials.csv: test speakers enrol with their first two clips, the others are tried."""
    folder, rng, rows = tmp_path_factory.mktemp("verification"), np.random.default_rng(0), []
    for split, num_speakers in NUM_SPEAKERS.items():
        for number in range(num_speakers):
            pitch_hz = 200 * 1.35 ** (10 * (number + 0.5) / num_speakers)
            for take in range(CLIPS):
                level = rng.uniform()
                name, speaker = f"{split}{number}_{take}.wav", f"{split}{number}"
                write_clip(folder / name, rng, pitch_hz * rng.uniform(0.98, 1.02), noise=10 ** (1.5 * level - 1.5))
                ratings = [1 + 4 * level, 5 - 4 * level, 1 + 4 * level + rng.normal(0, 0.1)]
                enrolment = f"{speaker}-model" if split == "test" and take < 2 else ""
                rows.append([name, speaker, split, enrolment, "tones", 20 + 50 * level, *ratings])
    columns = ["file_name", "speaker_id", "split", "enrolment_id", "corpus", "age", "valence", "activation", "dominance"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(folder / "metadata.csv", index=False)
    test = table[table["split"] == "test"]
    models = sorted(set(test["enrolment_id"]) - {""})
    probes = test[test["enrolment_id"] == ""]
    trials = [(int(model == f"{s}-model"), model, f) for model in models for f, s in zip(probes.file_name, probes.speaker_id)]
    pd.DataFrame(trials, columns=["label", "enrolment", "test"]).to_csv(folder / "trials.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def results(corpus, quick_probes, tmp_path_factory) -> Path:
    """Output of one evaluation of MFCC statistics and of the trivial predictor on three tasks."""
    out = tmp_path_factory.mktemp("out")
    (out / "eval.yaml").write_text(
        f"output_dir: {out}\nbaselines: [mfcc, majority]\nmanifest: {corpus}/metadata.csv\ndevice: cpu\n"
        f"tasks:\n  verification: {{trials: {corpus}/trials.csv}}\n  age:\n  affect:\n"
    )
    assert main([str(out / "eval.yaml")]) == 0
    return out


def record_of(out: Path, row: str, encoder: str) -> dict:
    return json.loads((out / f"results/{row}__{encoder}.json").read_text())


def test_five_rows_for_each_encoder(results):
    rows = ("activation", "age", "dominance", "valence", "verification")
    names = [f"{row}__{encoder}" for row in rows for encoder in ("majority", "mfcc")]
    assert sorted(path.stem for path in (results / "results").iterdir()) == names
    assert sorted(path.stem for path in (results / "predictions").iterdir()) == names


def test_verification_counts_trials_and_finds_the_speakers(results):
    record = record_of(results, "verification", "mfcc")
    assert record["counts"]["trials"] == {"test": 144, "same": 24, "different": 120}
    assert record["counts"]["clips"] == {"train": 72, "validation": 24, "test": 36}
    assert record["counts"]["speakers"] == {"train": 12, "validation": 4, "test": 6}
    assert (record["interval"]["unit"], record["interval"]["units"]) == ("speaker", 6)
    assert list(record["metrics"]) == ["eer", "min_dcf_01", "min_dcf_05", "eer_cosine", "eer_cosine_raw"]
    assert record["metrics"]["eer"]["value"] < 0.15
    assert record["probe"]["kind"] == "PLDA"
    assert record["probe"]["validation_eer"] == min(record["probe"]["validation_eers"].values())
    assert record["task"]["corpus"] == "tones"
    assert record["task"]["disjoint_by"] == "speaker_id"


def test_the_equal_error_rate_is_that_of_the_kept_scores(results):
    table = pd.read_parquet(results / "predictions/verification__mfcc.parquet")
    assert list(table.columns) == ["enrolment", "test", "group_a", "group_b", "label", "prediction_0"]
    assert ((table["group_a"] == table["group_b"]) == (table["label"] == 1)).all()
    value = record_of(results, "verification", "mfcc")["metrics"]["eer"]["value"]
    expected = audmetric.equal_error_rate(table["label"].astype(bool), table["prediction_0"])[0]
    assert value == pytest.approx(expected, abs=1 / 24)
    curve = record_of(results, "verification", "mfcc")["figures"]["det"]
    crossing = np.argmin(np.abs(np.subtract(curve["false_acceptance"], curve["false_rejection"])))
    assert curve["false_acceptance"][crossing] == pytest.approx(value, abs=1 / 24)


def test_an_encoder_without_dimensions_scores_all_alike(results):
    record = record_of(results, "verification", "majority")
    assert {record["metrics"][name]["value"] for name in ("eer", "eer_cosine", "eer_cosine_raw")} == {0.5}
    assert record["metrics"]["min_dcf_01"]["value"] == 1
    assert record["probe"] == {"kind": "constant score"}


def test_ages_are_found_in_years_and_the_median_is_the_baseline(results, corpus):
    table = pd.read_csv(corpus / "metadata.csv")
    truth = table.loc[table["split"] == "test", "age"]
    median = table.loc[table["split"] == "train", "age"].median()
    trivial, found = (record_of(results, "age", encoder)["metrics"]["mae"] for encoder in ("majority", "mfcc"))
    assert trivial["value"] == pytest.approx((truth - median).abs().mean(), rel=1e-5)
    assert trivial["unit"] == "years"
    assert not trivial["greater_is_better"]
    assert found["value"] < trivial["value"] / 2
    assert found["interval"][0] < found["value"] < found["interval"][1]


def test_ratings_are_found_together_and_measured_on_their_own_scale(results, corpus):
    for target in ("valence", "activation", "dominance"):
        record = record_of(results, target, "mfcc")
        table = pd.read_parquet(results / f"predictions/{target}__mfcc.parquet")
        expected = audmetric.concordance_cc(table["label"], table["prediction_0"])
        assert record["metrics"]["ccc"]["value"] == pytest.approx(expected, abs=1e-5)
        assert record["metrics"]["ccc"]["value"] > 0.8
        assert record_of(results, target, "majority")["metrics"]["ccc"]["value"] == pytest.approx(0, abs=1e-6)
        assert record["task"]["title"] == f"Affect: {target}"
        assert (record["task"]["task"], record["task"]["target"]) == ("affect", target)
        assert record["probe"]["runs"][0]["validation_ccc"] > 0.8
        assert record["figures"]["scatter"]["true"] == pytest.approx(table["label"].tolist(), abs=1e-3)


def test_too_few_training_speakers_are_refused_and_other_tasks_written(corpus, tmp_path, capsys):
    table = pd.read_csv(corpus / "metadata.csv", dtype=str, keep_default_na=False)
    table.loc[(table["split"] == "train") & (table["speaker_id"] != "train0"), "split"] = ""
    table["file_name"] = [f"{corpus}/{name}" for name in table["file_name"]]
    table.to_csv(tmp_path / "metadata.csv", index=False)
    trials = pd.read_csv(corpus / "trials.csv")
    trials["test"] = [f"{corpus}/{name}" for name in trials["test"]]
    trials.to_csv(tmp_path / "trials.csv", index=False)
    (tmp_path / "eval.yaml").write_text(
        f"output_dir: {tmp_path}/out\nbaselines: [mfcc]\nmanifest: {tmp_path}/metadata.csv\ndevice: cpu\n"
        f"tasks:\n  verification: {{trials: {tmp_path}/trials.csv}}\n  age:\n"
    )
    assert main([str(tmp_path / "eval.yaml")]) == 2
    assert "task 'verification':" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out/results").iterdir()] == ["age__mfcc.json"]


def test_the_raw_cosine_is_that_of_the_kept_embeddings(results, corpus):
    """From the files of embeddings, by the names of their clips' contents, without any of the evaluation's own scoring."""
    vectors = {}
    for path in (results / "embeddings").glob("mfcc.*/*.safetensors"):
        with safe_open(path, "np") as file:
            vectors |= dict(zip(json.loads(file.metadata()["digests"]), file.get_tensor("embeddings").astype(np.float64)))
    of_clip = {path.name: vectors[fact.digest] for path, fact in facts_of(corpus).items()}
    table, trials = (pd.read_csv(corpus / name).fillna("") for name in ("metadata.csv", "trials.csv"))
    unit = {name: vector / np.linalg.norm(vector) for name, vector in of_clip.items()}
    models = {
        model: np.mean([unit[name] for name in own], axis=0) for model, own in table.groupby("enrolment_id").file_name if model
    }
    scores = [models[t.enrolment] @ unit[t.test] / np.linalg.norm(models[t.enrolment]) for t in trials.itertuples()]
    expected = METRICS["eer"].compute(trials["label"].to_numpy(), np.array(scores))
    found = record_of(results, "verification", "mfcc")["metrics"]["eer_cosine_raw"]["value"]
    assert found == pytest.approx(expected)
    assert found != record_of(results, "verification", "mfcc")["metrics"]["eer_cosine"]["value"]


def facts_of(corpus: Path) -> dict[Path, ClipFacts]:
    paths = sorted(corpus.glob("*.wav"))
    return dict(zip(paths, Inspector().inspect([Clip(path.name, path) for path in paths])))


def test_only_the_first_seconds_are_heard_and_the_table_says_so(results, corpus, tmp_path):
    """In a copy of the folder: other results than those of whole clips, which are not taken for them."""
    shutil.copytree(results, tmp_path / "out")
    manifest, recipe = f"{corpus}/metadata.csv", tmp_path / "eval.yaml"
    recipe.write_text(f"tasks:\n  verification: {{manifest: {manifest}, trials: {corpus}/trials.csv}}\n")
    options = ["--baselines", "mfcc", "--first_s", "0.2", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([str(recipe), *options]) == 0
    whole, cut = (record_of(out, "verification", "mfcc") for out in (results, tmp_path / "out"))
    assert cut["first_s"] == 0.2
    assert "first_s" not in whole
    scores = [pd.read_parquet(out / "predictions/verification__mfcc.parquet") for out in (results, tmp_path / "out")]
    assert not np.allclose(scores[0]["prediction_0"], scores[1]["prediction_0"])
    table = (tmp_path / "out/results.md").read_text()
    assert "Only the first 0.2 s of every clip: Speaker verification." in table
    assert "the encoders were tested on different clips" in table  # majority was tested on whole ones
