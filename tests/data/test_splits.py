"""Folds: they partition the groups, validation is drawn by hash and shared by all tables, no tested speaker trains."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from wavcse.data.composite import TaskSource, read_task
from wavcse.data.inspection import Inspector
from wavcse.data.leaks import inspected, refuse_leaks
from wavcse.data.manifest import Manifest
from wavcse.data.splits import folds

SPEAKERS = [f"s{number:02d}" for number in range(12)]


def manifest_of(folder, name="m.csv", prefix="audio/", speakers=SPEAKERS, take=range(30), **columns):
    """Clips without audio: 30 of each speaker, two speakers to a session."""
    rows = [(f"{prefix}{speaker}_{number}.wav", speaker) for speaker in speakers for number in take]
    table = pd.DataFrame(rows, columns=["file_name", "speaker_id"])
    table["session"] = table["speaker_id"].str[1:].astype(int).floordiv(2).add(1).astype(str)
    table["emotion"] = np.tile(["sad", "happy", ""], len(table) // 3)
    table.assign(**columns).to_csv(folder / name, index=False)
    return Manifest(folder / name)


@pytest.mark.parametrize(("column", "groups", "count"), [("session", None, 6), ("speaker_id", 5, 5), ("speaker_id", None, 12)])
def test_folds_partition_the_speakers(tmp_path, column, groups, count):
    manifest = manifest_of(tmp_path)
    speakers = manifest.column("speaker_id")
    found = folds([manifest], column, groups)
    assert len(found) == count
    tested = [set(speakers[fold.splits(manifest) == "test"]) for fold in found]
    assert set().union(*tested) == set(SPEAKERS)
    assert sum(map(len, tested)) == len(SPEAKERS)  # no one is tested twice
    assert max(map(len, tested)) - min(map(len, tested)) <= 1
    for fold, own in zip(found, tested):
        splits = fold.splits(manifest)
        assert own == set(speakers) - set(speakers[splits != "test"])
        assert set(splits) == {"train", "validation", "test"}


def test_a_tenth_validates_drawn_by_hash_alike_in_all_tables(tmp_path):
    manifest = manifest_of(tmp_path, take=range(99))
    (tmp_path / "elsewhere").mkdir()
    other = manifest_of(tmp_path / "elsewhere", prefix="../audio/", speakers=SPEAKERS[3:8], take=range(30))
    all_folds = folds([manifest, other], "session")
    assert all_folds == folds([manifest], "session")
    first = all_folds[0].splits(manifest)
    assert np.mean(first[first != "test"] == "validation") == pytest.approx(0.1, abs=0.025)
    for fold in all_folds:
        split_of = {clip.path.name: split for clip, split in zip(manifest.clips, fold.splits(manifest))}
        assert [split_of[clip.path.name] for clip in other.clips] == fold.splits(other).tolist()
        for clip, session in zip(manifest.clips, manifest.column("session")):
            drawn = int.from_bytes(hashlib.sha1(f"{session}/{clip.path.name}".encode()).digest()[:6], "big") / 2**48
            known = "test" if session in fold.tested else "validation" if drawn < 0.1 else "train"
            assert split_of[clip.path.name] == known


def test_clips_without_a_group_or_a_label_take_no_part(tmp_path):
    manifest = manifest_of(tmp_path)
    fold = folds([manifest], "session", labelled="emotion")[2]
    assert ((fold.splits(manifest) == "") == (manifest.column("emotion") == "")).all()
    manifest = manifest_of(tmp_path, session=np.where(np.arange(360) < 60, "", "a").tolist())
    with pytest.raises(ValueError, match=r"column 'session' has 1 values \(a\); 2 folds need as many"):
        folds([manifest], "session")
    with pytest.raises(ValueError, match=r"column 'speaker_id' has 12 values \(s00, .*\.\.\.\); 13 folds"):
        folds([manifest], "speaker_id", 13)
    with pytest.raises(ValueError, match="has no column 'dialog'"):
        folds([manifest], "dialog")


def test_a_tested_speaker_may_train_no_task_but_validation_shares_them(tmp_path):
    manifest_of(tmp_path)
    fold = folds([Manifest(tmp_path / "m.csv")], "session")[0]

    def uses_of(column, path="m.csv", fold=fold):
        source = TaskSource((str(tmp_path / path),), column, disjoint_by="speaker_id", fold=fold, closed_set=False)
        return read_task(column, source)[1]

    def refuse(*uses):
        refuse_leaks(uses, inspected(uses, Inspector()), train_together=True)

    refuse(uses_of("emotion"), uses_of("speaker_id"))
    splits, speakers = uses_of("emotion").splits, uses_of("emotion").column("speaker_id")
    assert set(speakers[splits == "validation"]) <= set(speakers[splits == "train"])  # which is no leak here
    # a speaker who spoke in two sessions is tested and trains
    manifest_of(tmp_path, "moved.csv", session=["1"] * 45 + ["2"] * 315)
    with pytest.raises(ValueError, match=r"speaker_id \['s01'\] occur in both train and test"):
        refuse(uses_of("emotion", "moved.csv"))
    # an auxiliary task on other clips of a tested speaker
    manifest_of(tmp_path, "main.csv", corpus="c")
    manifest_of(tmp_path, "more.csv", prefix="more/", speakers=["s00", "s01"], session=["2"] * 30 + ["1"] * 30, corpus="c")
    with pytest.raises(ValueError, match=r"speaker_id \['s00'\] train task 'speaker_id' .* whose speakers are held out"):
        refuse(uses_of("emotion", "main.csv"), uses_of("speaker_id", "more.csv"))
