"""`wavcse analyze` on a corpus of tones: one command, a report; the same numbers after a kill; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

from wavcse.analysis.__main__ import asked_analyses, main
from wavcse.analysis.analyses import ANALYSES
from wavcse.analysis.analyses.sequence import SIZES, SIZES_OF_WORDS, SequenceProbe, Sequences
from wavcse.analysis.arguments import ABOUT, ANALYZE, AnalyzeArguments, EncoderSettings
from wavcse.analysis.encoders import View, build_encoder
from wavcse.analysis.frames import frames_of, remove_others, stem_of
from wavcse.data.manifest import Manifest
from wavcse.settings.fields import read_settings
from wavcse.tests.helpers.tiny_families import ROWS, feature_extractor

PROBES = {"learning_rates": (1e-2,), "max_epochs": 5}


QUICK = """
analyses:
  layers:
  prosody: {measures: pitch}
  discrimination: {per_anchor: 1}
  dimensions: {draws: 2, seeds: 2, curve: [0.5]}
  overlap:
  geometry: {most_clips: 30}
  sequence: {epochs: 2}
  robustness: {changes: [noise 0 dB, Opus], most_clips: 6}
  maps: {methods: pca}
  cost: {clips: 4, repeats: 1}
"""


@pytest.fixture(scope="module")
def command(toy_corpus, upstream_folder, quick_probes, tmp_path_factory) -> list[str]:
    """Without --out and --analyses."""
    recipe = tmp_path_factory.mktemp("recipe") / "analysis.yaml"
    recipe.write_text(QUICK)
    return [
        *(str(recipe), "--encoders", f"{upstream_folder},mfcc", "--manifest", str(toy_corpus)),
        *("--label", "keyword,speaker_id", "--language", "en", "--device", "cpu", "--workers", "1", "--every", "2"),
    ]


@pytest.fixture(scope="module")
def study_folder(command, tmp_path_factory) -> Path:
    """A study with all analyses that need no optional library."""
    folder, names = tmp_path_factory.mktemp("study"), set(ANALYSES) - {"dimensions", "overlap"}
    assert main([*command, "--out", str(folder), "--analyses", ",".join(sorted(names))]) == 0
    return folder


def records(folder: Path) -> dict[str, dict]:
    found = {}
    for path in sorted((folder / "records").glob("*/*.json")):
        record = json.loads(path.read_text())
        found[f"{path.parent.name}/{path.stem}"] = record["found"]
    return found


def test_one_command_leaves_a_report_with_pictures(study_folder):
    text = (study_folder / "report.md").read_text()
    assert text.startswith("# What the embeddings hold\n\n![")
    assert "(pictures/layers_keyword.png)" in text
    assert (study_folder / "report.html").read_text().count("data:image/svg+xml;base64,") == text.count("](pictures/")
    assert {path.split("/")[0] for path in records(study_folder)} == set(ANALYSES) - {"dimensions", "overlap", "phones"}
    assert "## Phones" not in text  # without a manifest of phones


def test_every_figure_of_layers_has_its_interval_its_n_and_its_floors(study_folder):
    found = records(study_folder)["layers/speaker_id__mfcc"]["test"]
    assert (found["n"], found["unit"], set(found["floor"])) == (12, "clip", {"chance", "shuffled"})
    assert found["interval"][0] <= found["value"] <= found["interval"][1]
    assert found["floor"]["chance"]["value"] == 0.25  # one of four speakers


def test_no_file_names_a_place_on_this_machine(study_folder, upstream_folder):
    texts = [path.read_text() for path in study_folder.rglob("*.json")] + [(study_folder / "report.md").read_text()]
    assert any(upstream_folder.name in text for text in texts)
    assert not any(str(upstream_folder.parent) in text for text in texts)


def test_what_is_lost_is_computed_again_and_is_the_same(command, study_folder, capsys):
    before = records(study_folder)
    for lost in ("records/layers/keyword__mfcc.json", "records/discrimination"):
        path = study_folder / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept = (study_folder / "records/cost/mfcc.json").read_bytes()
    assert main([*command, "--out", str(study_folder), "--analyses", "layers,discrimination,cost"]) == 0
    assert records(study_folder) == before
    assert (study_folder / "records/cost/mfcc.json").read_bytes() == kept
    assert "vectors on validation (so many others cannot be told from it): keyword " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--analyses", "layer"], "an analysis is 'layer' (did you mean layers?)"),
        (["--tasks", "verification"], "is a verification task; these analyses read classification or regression"),
        (["--encoders", '{"a": {"modle": "b"}}'], "encoders.a: unknown fields ['modle'] (did you mean model?)"),
        (["--tables", '{"Table I": {"tasks": ["keyword"]}}'], "tables.Table I: a task is 'keyword'; allowed: "),
    ],
)
def test_what_cannot_be_done_is_refused_at_the_door(words, message, capsys):
    line = ["--encoders", "mfcc", "--label", "emotion", "--manifest", __file__, "--out", "o"]
    assert ANALYZE.refusal([*line, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_setting_of_an_analysis_and_a_budget_are_refused_before_anything_is_computed(command, tmp_path, capsys):
    wrong = [*command, "--out", str(tmp_path / "o")]
    assert main([*wrong, "--analyses", '{"cost": {"clip": 3}}']) == 2
    assert "analyses.cost: unknown fields ['clip'] (did you mean clips?)" in capsys.readouterr().err
    assert main([*wrong, "--analyses", "cost", "--disk_gb", "1e-6"]) == 2
    assert "more than --disk_gb 1e-06: keep fewer layers" in capsys.readouterr().err
    assert not (tmp_path / "o/embeddings").exists() or not list((tmp_path / "o/embeddings").glob("*/*.safetensors"))


def test_a_dry_run_names_what_is_missing(tmp_path, capsys):
    encoders = {"gone": {"model": "./gone", "optional": True}, "mfcc": {}}
    tables = {"Table I": {"section": "layers", "tasks": ["emotion"], "missing": "FESC"}}
    line = ["--encoders", json.dumps(encoders), "--tasks", "emotion", "--manifest", str(tmp_path / "m.csv"), "--out", "o"]
    assert main([*line, "--dry_run", "--tables", json.dumps(tables), "--analyses", "layers"]) == 0
    shown = capsys.readouterr().out
    assert "gone: ./gone, layers every 1; MISSING: not on this machine" in shown
    assert f"MISSING: {tmp_path / 'm.csv'}" in shown
    assert "Table I: section layers" in shown
    assert "MISSING: FESC" in shown


def test_the_recipe_in_the_help_is_taken():
    example = ABOUT.split("options win:\n")[1].split("\nExit codes")[0]
    args = AnalyzeArguments(**yaml.safe_load(example))
    analyses, _ = asked_analyses(args)
    assert set(analyses) == {"layers", "sequence"}
    assert args.every == 2


def test_the_report_has_a_folder_where_none_is_named():
    line = ["--encoders", "facebook/hubert-base-ls960", "--manifest", "M.csv", "--label", "emotion"]
    assert read_settings(AnalyzeArguments, line).output_dir == "runs/analysis"
    with pytest.raises(ValueError, match="--out is empty"):
        read_settings(AnalyzeArguments, [*line, "--out", ""])


def test_frames_are_kept_once_and_within_the_budget(toy_corpus, upstream_folder, tmp_path):
    encoder = build_encoder("u", EncoderSettings(model=str(upstream_folder)), 1, 0, "cpu")
    clips, view = Manifest(toy_corpus).clips[:3], encoder.view("layer 2")
    own = frames_of(encoder, view, clips, tmp_path, "key", 1.0, show_progress=False)
    again = frames_of(encoder, view, clips, tmp_path, "key", 1e-9, show_progress=False)  # read, not computed
    for row, clip in enumerate(clips):
        (expected,) = encoder.frames([clip.load(16_000)], view)
        np.testing.assert_array_equal(own[row], expected)
        np.testing.assert_array_equal(again[row], expected)
    with pytest.raises(ValueError, match="take more than --disk_gb 1e-09"):
        frames_of(encoder, view, clips, tmp_path, "another", 1e-9, show_progress=False)


class StubEncoder:
    """Frames of 400 bytes a clip; calls `then` after so many clips."""

    sampling_rate = 16_000

    def __init__(self, name: str, after: int = 0, then: Callable[[], None] = lambda: None):
        self.name, self.left, self.then = name, after, then

    def frames(self, waveforms, view):
        self.left -= 1
        if not self.left:
            self.then()
        return [np.zeros((10, 10), np.float32) for _ in waveforms]


def test_workers_do_not_exceed_the_budget_together(toy_corpus, tmp_path):
    clips, view, how = Manifest(toy_corpus).clips[:3], View("layer 1", 0, layer=1), {"show_progress": False}
    refused = []

    def another():  # while the first one computes its last clip
        with pytest.raises(ValueError, match=r"of second take more than --disk_gb 1\.9e-06 after 3 of 3") as error:
            frames_of(StubEncoder("second"), view, clips, tmp_path, "key", 1.9e-6, **how)
        refused.append(error)

    assert len(frames_of(StubEncoder("first", 3, another), view, clips, tmp_path, "key", 1.9e-6, **how)) == 3
    assert refused
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json"}
    with pytest.raises(ValueError, match="after 2 of 3"):
        frames_of(StubEncoder("second"), view, clips, tmp_path, "key", 1.9e-6, **how)
    assert len(frames_of(StubEncoder("second"), view, clips, tmp_path, "key", 3e-6, **how)) == 3


def test_frames_that_nothing_wants_any_more_do_not_count(toy_corpus, tmp_path):
    clips, view, how = Manifest(toy_corpus).clips[:3], View("layer 1", 0, layer=1), {"show_progress": False}
    encoder = StubEncoder("own")
    frames_of(encoder, view, clips, tmp_path, "before", 2e-6, **how)
    (tmp_path / "killed.layer_1.key.reserved").write_bytes(bytes(2000))
    with pytest.raises(ValueError, match="after 1 of 3"):
        frames_of(encoder, view, clips, tmp_path, "now", 2e-6, **how)
    remove_others(tmp_path, [stem_of(encoder, view, "now")])
    assert not list(tmp_path.iterdir())
    frames_of(encoder, view, clips, tmp_path, "now", 2e-6, **how)
    remove_others(tmp_path, [stem_of(encoder, view, "now")])
    assert len(frames_of(encoder, view, clips, tmp_path, "now", 1e-9, **how)) == 3  # read


def test_a_study_removes_frames_of_what_it_was(command, tmp_path):
    line = [*command, "--out", str(tmp_path), "--analyses", "sequence"]
    assert main(line) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "frames").iterdir()}
    shutil.rmtree(tmp_path / "records/sequence")
    assert main(line) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "frames").iterdir()} == before
    assert main([*line, "--first_s", "0.2"]) == 0
    names = {path.name for path in (tmp_path / "frames").iterdir()}
    assert len(names) == len(before)
    assert not names & set(before)


def test_padding_does_not_reach_the_sequence_probe():
    torch.manual_seed(0)
    clips = [torch.randn(length, 5) for length in (3, 9, 6)]
    for size in (SIZES["small"], SIZES["small"]._replace(layers=2, hidden=(7,), sums=True)):
        probe = SequenceProbe(size, 5, 4, 0.5).eval()
        together = probe(Sequences(clips))
        alone = torch.cat([probe(Sequences([clip])) for clip in clips])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_size_of_the_paper_is_that_of_the_authors():
    with torch.device("meta"):
        probe = SequenceProbe(SIZES["paper"], 768, 4, 0.3)
    assert (probe.lstm.num_layers, probe.lstm.hidden_size, probe.lstm.dropout) == (4, 512, 0.0)
    assert [type(own).__name__ for own in probe.head] == ["Dropout", *["Linear", "ReLU"] * 3, "Linear"]
    assert probe.head[0].p == 0.3
    assert [own.weight.shape for own in probe.head if isinstance(own, torch.nn.Linear)] == [(1024, 1024)] * 3 + [(4, 1024)]
    assert probe.head[-1].bias is None
    small, words = SIZES["small"], SIZES_OF_WORDS["paper"]
    assert [own.sums for own in (SIZES["paper"], words, small, SIZES_OF_WORDS["small"])] == [False, True, False, False]
    assert SequenceProbe(small, 8, 4, 0.2).head[-1].bias is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", ["WavLM, large", "wav2vec 2.0, base", "HuBERT, large", "Whisper, `context: clip`", "data2vec-audio"]
)
def test_an_encoder_and_a_label_alone_give_a_report(row, toy_corpus, quick_probes, tmp_path, monkeypatch):
    model_type, fields = ROWS[row]
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(model_type, **fields)).save_pretrained(tmp_path / "model")
    feature_extractor(model_type).save_pretrained(tmp_path / "model")
    folder = toy_corpus.parent.as_posix()
    lines = toy_corpus.read_text().replace("split_ks", "split").replace("keyword", "emotion").splitlines()
    (tmp_path / "m.csv").write_text("\n".join([lines[0], *(f"{folder}/{line}" for line in lines[1:])]) + "\n")
    monkeypatch.chdir(tmp_path)
    assert main(["--encoders", "./model", "--manifest", "m.csv", "--label", "emotion"]) == 0
    text = (tmp_path / "runs/analysis/report.md").read_text()
    assert all(f"## {title}" in text for title in ("Layers", "Discrimination", "Geometry", "Cost"))
