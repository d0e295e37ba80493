"""Loading a task: what is read, and every unsound split that is refused with a message of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wavcse.eval.task import TaskData, load_task
from wavcse.eval.tasks import TASKS

KEYWORD, SPEAKER, EMOTION, AFFECT = (TASKS[name] for name in ("keyword", "speaker", "emotion", "affect"))
VERIFICATION = TASKS["verification"]
COLUMNS = ("file_name", "keyword", "speaker_id", "split_ks", "split_sid")
ROWS = [
    ("a0.wav", "yes", "ann", "train", "train"),
    ("a1.wav", "no", "ann", "train", "validation"),
    ("a2.wav", "yes", "ann", "train", "test"),
    ("b0.wav", "yes", "bob", "validation", "train"),
    ("b1.wav", "no", "bob", "validation", "validation"),
    ("c0.wav", "no", "bea", "test", ""),
    ("b2.wav", "", "bob", "", "test"),
    ("d0.wav", "yes", "dan", "", ""),
]


@pytest.fixture
def manifest(tmp_path) -> Callable[..., Path]:
    """Factory: writes ROWS as a manifest; `change={row: {column: value}}`, `drop=[column]`, more `rows`."""

    def write(name: str = "m.csv", change: dict | None = None, drop: tuple = (), rows: tuple = (), only: bool = False) -> Path:
        table = pd.DataFrame([*([] if only else ROWS), *rows], columns=COLUMNS, dtype=str)
        for row, values in (change or {}).items():
            for column, value in values.items():
                table.loc[row, column] = value
        table.drop(columns=list(drop)).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write


def clip_ids(data: TaskData, split: str) -> list[str]:
    return [data.table.clips[row].clip_id for row in data.table.rows(split)]


def test_reads_labelled_rows_of_each_split(manifest):
    data = load_task(KEYWORD, [manifest()])
    assert [clip_ids(data, split) for split in ("train", "validation", "test")] == [
        ["a0.wav", "a1.wav", "a2.wav"],
        ["b0.wav", "b1.wav"],
        ["c0.wav"],
    ]
    assert data.table.classes == ["no", "yes"]
    np.testing.assert_array_equal(data.table.targets, [1, 0, 1, 1, 0, 0])
    assert list(data.speakers) == ["ann"] * 3 + ["bob"] * 2 + ["bea"]
    assert not data.has_known_speakers
    assert [(record.path.name, record.split_column) for record in data.manifests] == [("m.csv", "split_ks")]


def test_speaker_identification_shares_speakers_between_splits(manifest):
    data = load_task(SPEAKER, [manifest()])
    assert data.table.classes == ["ann", "bob"]
    assert clip_ids(data, "test") == ["a2.wav", "b2.wav"]
    assert data.has_known_speakers


def test_a_manifest_without_the_label_column_takes_no_part(manifest):
    data = load_task(KEYWORD, [manifest(), manifest("emotions.csv", drop=("keyword",))])
    assert [record.path.name for record in data.manifests] == ["m.csv"]
    assert len(data.table.clips) == 6


def test_a_clip_that_two_manifests_list_alike_counts_once(manifest):
    assert len(load_task(KEYWORD, [manifest(), manifest("copy.csv")]).table.clips) == 6


def test_the_stamp_follows_the_audio(manifest, tmp_path):
    (tmp_path / "a0.wav").write_bytes(b"first")
    before = load_task(KEYWORD, [manifest()]).audio_stamp
    assert load_task(KEYWORD, [manifest()]).audio_stamp == before
    (tmp_path / "a0.wav").write_bytes(b"other audio")
    changed = load_task(KEYWORD, [manifest()]).audio_stamp
    (tmp_path / "b0.wav").write_bytes(b"a file that was missing")
    assert len({before, changed, load_task(KEYWORD, [manifest()]).audio_stamp}) == 3


REFUSED = {
    "speaker on both sides": ({5: {"speaker_id": "ann"}}, KEYWORD, r"speaker_id \['ann'\] occur in both train and test"),
    "speaker unknown": ({0: {"speaker_id": ""}}, KEYWORD, "a0.wav has no 'speaker_id'"),
    "unknown label": ({5: {"keyword": "maybe"}}, KEYWORD, r"\['maybe'\] occur in validation or test but never in training"),
    "empty split": ({5: {"split_ks": ""}}, KEYWORD, "the test split has no clips"),
    "one class": ({row: {"keyword": "yes"} for row in range(6)}, KEYWORD, "two are needed"),
    "no label at all": ({row: {"keyword": ""} for row in range(8)}, KEYWORD, "no row of .* has both a 'keyword' and"),
    "unknown split name": ({5: {"split_ks": "trial"}}, KEYWORD, r"holds \['trial'\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case, manifest):
    change, task, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        load_task(task, [manifest(change=change)])


def test_refuses_a_missing_label_column_and_names_those_that_exist(manifest):
    with pytest.raises(ValueError, match=r"no column 'emotion' in .*m.csv; the columns are \['file_name', 'keyword'"):
        load_task(EMOTION, [manifest()])


@pytest.mark.parametrize(("task", "column"), [(KEYWORD, "speaker_id"), (SPEAKER, "split_sid")])
def test_refuses_a_missing_column_and_names_those_that_exist(task, column, manifest):
    with pytest.raises(ValueError, match=rf"{column}.*columns are \['file_name', 'keyword'"):
        load_task(task, [manifest(drop=(column,))])


def test_refuses_a_clip_in_two_splits_of_two_manifests(manifest):
    other = manifest("other.csv", rows=[("a0.wav", "yes", "eve", "test", "")], only=True)
    with pytest.raises(ValueError, match=r"a0.wav of .*m.csv \(train\) and a0.wav of .*other.csv \(test\) are the same clip"):
        load_task(KEYWORD, [manifest(), other])


def test_refuses_a_clip_with_two_labels(manifest):
    other = manifest("other.csv", rows=[("a0.wav", "no", "ann", "train", "")], only=True)
    with pytest.raises(
        ValueError, match=r"a0.wav of .*other.csv is labelled 'no' in column 'keyword', and a0.wav of .*m.csv, .*, 'yes'"
    ):
        load_task(KEYWORD, [manifest(), other])


PARTS = "file_name,start,end,keyword,split\nlong.wav,0,2,yes,train\nlong.wav,2,4,no,train\nv.wav,,,yes,validation\n"


@pytest.mark.parametrize(("start", "is_sound"), [("4", True), ("3.9", False), ("0.5", False)])
def test_refuses_overlapping_parts_of_one_file_in_two_splits(start, is_sound, tmp_path):
    (tmp_path / "m.csv").write_text(f"{PARTS}long.wav,{start},6,no,test\n")
    task = replace(KEYWORD, disjoint_by=None)
    if is_sound:
        data = load_task(task, [tmp_path / "m.csv"])
        assert clip_ids(data, "test") == ["long.wav#4-6"]
        assert set(data.speakers) == {""}
    else:
        with pytest.raises(ValueError, match="overlap in the same file"):
            load_task(task, [tmp_path / "m.csv"])


def test_keep_leaves_clips_out(manifest):
    data = load_task(KEYWORD, [manifest()])
    kept = data.keep(np.array([True, True, False, True, True, True]))
    assert clip_ids(kept, "train") == ["a0.wav", "a1.wav"]
    assert list(kept.table.targets) == [1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("lost", "message"),
    [((5,), "1 of 6 clips .* leaves the test split empty"), ((1,), r"validation split with labels .* training: \['no'\]")],
)
def test_keep_refuses_to_go_on_without_a_split(lost, message, manifest):
    data = load_task(KEYWORD, [manifest()])
    mask = np.ones(6, dtype=bool)
    mask[list(lost)] = False
    with pytest.raises(ValueError, match=message):
        data.keep(mask)


RATINGS = """file_name,speaker_id,valence,activation,dominance,split
a.wav,ann,1.5,2,3,train
b.wav,bob,4,2.5,1,validation
c.wav,cid,3,3,3.5,test
d.wav,cid,,3,3,test
"""


def test_numbers_are_read_for_all_targets_and_rows_without_the_first_are_left_out(tmp_path):
    (tmp_path / "m.csv").write_text(RATINGS)
    data = load_task(AFFECT, [tmp_path / "m.csv"])
    np.testing.assert_array_equal(data.values, np.array([[1.5, 2, 3], [4, 2.5, 1], [3, 3, 3.5]], dtype=np.float32))
    assert data.classes == []
    np.testing.assert_array_equal(data.keep(np.array([True, True, True])).values, data.values)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2.5,1", "high,1", r"b.wav has activation = 'high'; a number is needed"),
        ("3,3.5", ",3.5", r"c.wav has activation = ''"),
        ("4,2.5", "nan,2.5", r"b.wav has valence = 'nan'"),
        ("c.wav,cid", "c.wav,ann", r"speaker_id \['ann'\] occur in both train and test"),
        ("c.wav,cid", "./b.wav,cid", r"b.wav of .* \(validation\) and ./b.wav of .* \(test\) are the same clip"),
    ],
)
def test_numbers_that_are_none_and_leaks_are_refused(old, new, message, tmp_path):
    assert old in RATINGS
    (tmp_path / "m.csv").write_text(RATINGS.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_task(AFFECT, [tmp_path / "m.csv"])


SPEAKERS = """file_name,speaker_id,enrolment_id,split,corpus
a0.wav,ann,,train,first
a1.wav,ann,,train,first
b0.wav,bob,,validation,first
b1.wav,bob,,validation,first
c0.wav,cid,cid-model,test,second
c1.wav,cid,cid-model,test,second
c2.wav,cid,,test,second
d0.wav,dan,,test,second
d1.wav,dan,,test,second
"""
TRIALS = "label,enrolment,test\n1,cid-model,c2.wav\n0,cid-model,d0.wav\n0,c2.wav,d0.wav\n"


def verification(folder: Path, speakers: str = SPEAKERS, trials: str = TRIALS) -> TaskData:
    (folder / "m.csv").write_text(speakers)
    (folder / "trials.csv").write_text(trials)
    return load_task(VERIFICATION, [folder / "m.csv"], folder / "trials.csv")


def test_trials_are_read_in_terms_of_the_clips_that_stay(tmp_path):
    data = verification(tmp_path)
    assert clip_ids(data, "test") == ["c0.wav", "c1.wav", "c2.wav", "d0.wav"]  # d1.wav is in no trial
    names = [clip.clip_id for clip in data.table.clips]
    enrolled = [[names[row] for row in rows] for rows in data.trials.enrolments]
    found = [(enrolled[i], names[data.trials.tests[j]]) for i, j in data.trials.pairs]
    assert found == [(["c0.wav", "c1.wav"], "c2.wav"), (["c0.wav", "c1.wav"], "d0.wav"), (["c2.wav"], "d0.wav")]
    assert list(data.trials.labels) == [1, 0, 0]
    assert data.corpus == "second"
    assert not data.has_known_speakers


def test_a_lost_clip_takes_its_trials_along(tmp_path):
    data = verification(tmp_path)
    names = np.array([clip.clip_id for clip in data.table.clips])
    kept = data.keep(names != "c0.wav")
    assert [len(rows) for rows in kept.trials.enrolments] == [1, 1]
    assert len(kept.trials.labels) == 3
    with pytest.raises(ValueError, match="too few trials"):
        data.keep(names != "d0.wav")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d0.wav,dan", "d0.wav,ann", r"speaker_id \['ann'\] occur in both train and test"),
        ("b1.wav,bob", "b1.wav,cid", r"speaker_id \['cid'\] occur in both validation and test"),
        ("d0.wav,dan,,test", "d0.wav,eve,,train", r"d0.wav of speaker 'eve' is in a trial and in the train split"),
        ("c2.wav,cid", "c2.wav,dan", r"trials contradict the speakers of their clips; the first has label 1 for cid-model"),
        ("c1.wav,cid", "c1.wav,dan", r"enrolment 'cid-model' has clips of 2 speakers"),
        ("d0.wav,dan", "d9.wav,dan", r"'d0.wav' is neither a clip nor an enrolment_id"),
    ],
)
def test_trials_that_leak_or_contradict_are_refused(old, new, message, tmp_path):
    assert old in SPEAKERS
    with pytest.raises(ValueError, match=message):
        verification(tmp_path, SPEAKERS.replace(old, new))


def test_trials_belong_to_verification_and_lie_beside_its_manifest(tmp_path, manifest):
    with pytest.raises(ValueError, match="needs a list of trials"):
        load_task(VERIFICATION, [manifest()])
    with pytest.raises(ValueError, match="takes no trials"):
        load_task(KEYWORD, [manifest()], tmp_path / "trials.csv")
    (tmp_path / "sub").mkdir()
    (tmp_path / "m.csv").write_text(SPEAKERS)
    with pytest.raises(ValueError, match="lies beside none of the manifests"):
        load_task(VERIFICATION, [tmp_path / "m.csv"], tmp_path / "sub" / "trials.csv")
