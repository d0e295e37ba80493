"""Sentences, small models of words, analyses: the way of `make analysis-synthetic` in small, killed twice."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from wavcse.analysis.__main__ import main
from wavcse.data.synthetic import plan_twin, write_plan
from wavcse.data.synthetic.sentences import SENTENCES
from wavcse.tests.helpers.killed import exit_code, started
from wavcse.words.__main__ import main as train_words

PROBES = {"learning_rates": (1e-2,), "max_epochs": 5}
CLIPS = 160  # every word of validation and test is in training
RECIPE = """
encoders:
  siamese: {{model: {place}/siamese/model, words: {words}, language: en}}
  lee: {{model: {place}/lee/model, words: {words}, language: en}}
  mfcc:
tasks:
  word: {{task: keyword, label_column: word, split_column: split, language: en, manifest: {words}}}
  emotion: {{split_column: split, manifest: {utterances}}}
analyses:
  layers:
  discrimination: {{per_anchor: 1, most_pairs: 1000}}
  geometry: {{most_clips: 40}}
  sequence: {{tasks: [emotion], epochs: 2, together: 8}}
  robustness: {{tasks: [word, emotion], changes: [noise 0 dB], most_clips: 6}}
  maps: {{methods: pca, most_clips: 60}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Two models that have hardly learnt, and what is to be done with them."""
    place = tmp_path_factory.mktemp("words")
    utterances = write_plan(plan_twin(SENTENCES, CLIPS, seed=0), place / "sentences")
    words = utterances.parent / "words.csv"
    small = ["--hidden_size", "8", "--max_frames", "20", "--num_epochs", "1", "--tokens_per_word", "2"]
    for kind in ("siamese", "lee"):
        assert train_words(["--manifest", str(words), "--kind", kind, "--out", str(place / kind), *small]) == 0
    path = place / "analysis.yaml"
    path.write_text(RECIPE.format(place=place, words=words, utterances=utterances))
    return path


def records(folder: Path) -> dict[str, dict]:
    return {
        f"{path.parent.name}/{path.stem}": json.loads(path.read_text())["found"]
        for path in sorted((folder / "records").glob("*/*.json"))
    }


@pytest.mark.slow
def test_killed_twice_it_finds_the_same(recipe, quick_probes, tmp_path):
    def line(name: str, workers: int) -> list[str]:
        return [str(recipe), "--out", str(tmp_path / name), "--device", "cpu", "--workers", str(workers)]

    assert main(line("whole", 1)) == 0
    for least in (2, 9):  # records that are there when it is killed
        pid = started(main, line("killed", 2))
        while len(list((tmp_path / "killed/records").glob("*/*.json"))) < least:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            time.sleep(0.02)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert exit_code(started(main, line("killed", 2))) == 0
    whole = records(tmp_path / "whole")
    assert records(tmp_path / "killed") == whole
    assert whole["sequence/emotion__lee"]["view"] == "embedding"
    assert whole["sequence/emotion__lee"]["frames"] < whole["sequence/emotion__mfcc"]["frames"] / 10  # words, not frames
    assert "robustness/word__lee" in whole
    assert "robustness/emotion__lee" not in whole  # of a changed utterance the words are not known
    text = (tmp_path / "killed/report.md").read_text()
    form = "spelling (hashed character n-grams: the form of a word, how it is written, not what it means)"
    for path in (tmp_path / "whole/records").glob("*/*.json"):
        record = json.loads(path.read_text())
        expected = {"lee": form} if "lee" in record["about"].values() else None
        assert record.get("targets") == expected, path.name
    assert "learnt to name `spelling`: hashed character n-grams: the form of a word" in text
    assert len([line for line in text.partition("\n## ")[0].splitlines() if line.startswith("- ")]) <= 10
    assert "| words | siamese | en | en | matched | word |" in text
