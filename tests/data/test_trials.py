"""Lists of trials from manifests: the pairs that qualify, each once, as an evaluation reads them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from wavcse.data import trials
from wavcse.data.trials import main, make_pairs
from wavcse.eval.task import load_task
from wavcse.eval.tasks import TASKS

CLIPS = pd.DataFrame(
    [(f"{s}{v}{n}.wav", s, "f" if s in "ab" else "m", f"{s}{v}", "test") for s in "abcd" for v in (1, 2) for n in range(2)]
    + [(f"{s}.wav", s, "f", "x", split) for s, split in zip("pqrs", ("train", "train", "validation", "validation"))],
    columns=["file_name", "speaker_id", "gender", "session", "split"],
)


@pytest.fixture
def manifest(tmp_path) -> Path:
    for number, name in enumerate(CLIPS["file_name"]):
        soundfile.write(tmp_path / name, np.full(800, 0.01 * (number + 1)), 16_000)
    CLIPS.to_csv(tmp_path / "m.csv", index=False)
    return tmp_path / "m.csv"


def test_the_command_lists_all_pairs_that_qualify_and_an_evaluation_reads_them(manifest, capsys):
    assert main([str(manifest), "--same", "gender", "--across", "session"]) == 0
    out = manifest.with_name("m_trials.csv")
    found = {(int(t.label), t.enrolment, t.test) for t in pd.read_csv(out).itertuples()}
    test = CLIPS[CLIPS["split"] == "test"].itertuples()
    expected = {
        (int(one.speaker_id == other.speaker_id), one.file_name, other.file_name)
        for one, other in combinations(test, 2)
        if (one.session != other.session if one.speaker_id == other.speaker_id else one.gender == other.gender)
    }
    assert found == expected
    assert capsys.readouterr().out == f"{out}: 48 trials, 16 of one speaker and 32 of two\n"
    data = load_task(TASKS["verification"], [manifest], trials=out)
    assert (len(data.trials.labels), int(data.trials.labels.sum())) == (48, 16)


def test_drawn_pairs_are_some_of_all_and_follow_from_the_seed(manifest):
    out = manifest.with_name("some.csv")

    def drawn(seed: int) -> pd.DataFrame:
        command = [str(manifest), "--across", "session", "--positives", "5", "--negatives", "7"]
        assert main([*command, "--seed", str(seed), "--out", str(out)]) == 0
        return pd.read_csv(out)

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first["label"].tolist() == [1] * 5 + [0] * 7
    assert not first.duplicated(["enrolment", "test"]).any()
    assert all(t.enrolment[:2] != t.test[:2] and t.enrolment[0] == t.test[0] for t in first[:5].itertuples())
    assert first.equals(again)
    assert not first.equals(other)


def test_pairs_that_are_too_many_to_list_are_drawn_one_by_one_with_equal_chances(monkeypatch):
    """Of 40 clips of 10 speakers in two groups: each of the 320 negative pairs as often as any other."""
    monkeypatch.setattr(trials, "ALL_PAIRS", 0)
    monkeypatch.setattr(trials, "BLOCK", 50)
    speakers, groups = np.arange(40) % 10, np.arange(40) % 2
    counts = np.zeros((40, 40))
    for seed in range(150):
        _, negatives = make_pairs(speakers, [groups], negatives=32, seed=seed)
        assert len(np.unique(negatives, axis=0)) == 32
        counts[negatives[:, 0], negatives[:, 1]] += 1
    admissible = (speakers[:, None] != speakers) & (groups[:, None] == groups) & np.triu(np.ones((40, 40), dtype=bool), 1)
    assert admissible.sum() == 320
    assert counts[~admissible].sum() == 0
    assert counts[admissible].min() > 2  # 15 expected, standard deviation 3.7
    assert counts[admissible].std() == pytest.approx(np.sqrt(150 * 0.1 * 0.9), rel=0.15)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, ["--positives", "17", "--across", "session"], "16 pairs of one speaker that qualify, fewer than the 17"),
        ({}, ["--same", "accent"], "has no column 'accent'"),
        ({"session": ""}, ["--across", "session"], "16 clips of the split 'test' have no 'session'.*the first: a10.wav"),
        ({"speaker_id": "a"}, [], "there are 0 pairs of two speakers that qualify"),
        ({"split": "train"}, [], "no clip of the split 'test'"),
        ({}, ["--out", "elsewhere/t.csv"], "must lie beside"),
    ],
)
def test_what_cannot_be_listed_is_refused(manifest, capsys, change, options, message):
    CLIPS.assign(**change).to_csv(manifest, index=False)
    assert main([str(manifest), *options]) == 2
    error = capsys.readouterr().err
    assert pd.Series([error]).str.contains(message).all(), error
    assert not manifest.with_name("m_trials.csv").exists()
