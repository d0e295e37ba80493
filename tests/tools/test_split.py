"""Splits of a corpus that has none: every speaker in each of them, the same whatever else is in the table."""

from __future__ import annotations

import pandas as pd
import pytest

from wavcse.data.manifest import Manifest
from wavcse.data.splits import folds
from wavcse.tools.split import COLUMN, main, split_clips, split_labels


@pytest.fixture
def corpus(tmp_path) -> pd.DataFrame:
    """Twenty clips of one speaker, seven of another in another language, two of a third, three of nobody known."""
    speakers = ["a"] * 20 + ["b"] * 7 + ["c"] * 2 + [""] * 3
    table = pd.DataFrame({"file_name": [f"{i}.flac" for i in range(32)], "speaker_id": speakers})
    table["language"] = ["en"] * 20 + ["fr"] * 12
    (tmp_path / "corpus").mkdir()
    table.to_csv(tmp_path / "corpus/metadata.csv", index=False)
    return table


def test_every_speaker_is_in_every_split(corpus):
    counts = pd.crosstab(corpus["speaker_id"], split_clips(corpus, "speaker_id", 0.15))
    assert counts.loc["a", ["train", "validation", "test"]].tolist() == [14, 3, 3]
    assert counts.loc["b", ["train", "validation", "test"]].tolist() == [5, 1, 1]
    assert counts.loc["c", ""] == 2  # too few
    assert counts.loc["", ""] == 3


def test_the_order_and_other_speakers_change_nothing(corpus):
    whole = split_clips(corpus, "speaker_id", 0.2)
    shuffled = corpus.sample(frac=1, random_state=0)
    pd.testing.assert_series_equal(split_clips(shuffled, "speaker_id", 0.2).sort_index(), whole)
    alone = corpus[corpus["speaker_id"] == "b"]
    pd.testing.assert_series_equal(split_clips(alone, "speaker_id", 0.2), whole[alone.index])


def test_the_command_writes_a_manifest_that_finds_the_audio(corpus, tmp_path, capsys):
    out = tmp_path / "runs/here/speakers.csv"
    options = ["--out", str(out), "--where", '{"language": ["fr"]}']
    assert main([str(tmp_path / "corpus/metadata.csv"), *options]) == 0
    assert "1 of speaker_id; clips: 5 train, 1" in capsys.readouterr().out
    manifest = Manifest(out)
    assert len(manifest) == 7
    assert {clip.path.resolve().parent for clip in manifest.clips} == {tmp_path / "corpus"}
    assert sorted(manifest.split(COLUMN)) == ["test"] + ["train"] * 5 + ["validation"]


def test_speakers_are_held_out_with_all_their_clips(tmp_path, capsys):
    table = pd.DataFrame({"file_name": [f"{i}.flac" for i in range(60)], "speaker_id": [f"s{i % 20}" for i in range(60)]})
    table.to_csv(tmp_path / "m.csv", index=False)
    assert main([str(tmp_path / "m.csv"), "--out", str(tmp_path / "out.csv"), "--disjoint", "--share", "0.1"]) == 0
    assert "20 of speaker_id; clips: 48 train, 6" in capsys.readouterr().out
    manifest = Manifest(tmp_path / "out.csv")
    counts = pd.crosstab(manifest.column("speaker_id"), manifest.split("split")).gt(0)
    assert counts.sum().to_dict() == {"test": 2, "train": 16, "validation": 2}
    assert (counts.sum(axis=1) == 1).all()
    shuffled = table.sample(frac=1, random_state=0)
    assert split_labels(shuffled, "speaker_id", 0.1).sort_index().tolist() == manifest.split("split").tolist()


def test_labels_of_many_clips_train_where_that_is_asked_for():
    clips = ["often"] * 30 + [f"s{i // 3}" for i in range(30)]
    table = pd.DataFrame({"file_name": [f"{i}.flac" for i in range(60)], "speaker_id": clips})
    seldom = table["speaker_id"] != "often"
    splits = split_labels(table, "speaker_id", 0.2, most=3)
    assert set(splits[~seldom]) == {"train"}
    assert splits[seldom].value_counts().to_dict() == {"train": 18, "validation": 6, "test": 6}
    assert splits[seldom].tolist() == split_labels(table[seldom], "speaker_id", 0.2).tolist()  # as without it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--most", "3"], "most is given without disjoint"),
        (["--label_column", "voice"], "has no column 'voice'"),
        (["--where", '{"language": "ar"}'], "no speaker_id has 3 clips"),
        (["--share", "0.5"], "share"),
        (["--disjoint", "--where", '{"language": "fr"}'], "there are 2 of speaker_id; 3 are needed"),
    ],
)
def test_what_is_refused(corpus, tmp_path, capsys, options, words):
    assert main([str(tmp_path / "corpus/metadata.csv"), "--out", str(tmp_path / "out.csv"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_folds_test_every_speaker_once_as_a_fine_tuning_divides_them(tmp_path, capsys):
    speakers = [f"s{i % 12:02d}" for i in range(240)]
    table = pd.DataFrame({"file_name": [f"{i}.flac" for i in range(240)], "speaker_id": speakers})
    table.to_csv(tmp_path / "m.csv", index=False)
    assert main([str(tmp_path / "m.csv"), "--out", str(tmp_path / "out.csv"), "--folds", "5"]) == 0
    assert "out.csv: 12 of speaker_id; clips: " in capsys.readouterr().out
    manifest, folded = Manifest(tmp_path / "out.csv"), folds([Manifest(tmp_path / "m.csv")], "speaker_id", 5)
    tested = []
    for number, fold in enumerate(folded, start=1):
        splits = manifest.split(f"split_fold{number}")
        assert splits.tolist() == fold.splits(Manifest(tmp_path / "m.csv")).tolist()
        assert set(manifest.column("speaker_id")[splits == "test"]) == fold.tested
        tested += sorted(fold.tested)
    assert sorted(tested) == sorted(set(speakers))
    assert main([str(tmp_path / "m.csv"), "--out", str(tmp_path / "out.csv"), "--folds", "5", "--disjoint"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
