"""Tasks and composite sets: labels, splits, and every leak that must be refused."""

from dataclasses import replace

import numpy as np
import pytest

from wavcse.data.composite import TaskSource, class_counts, load_composite, load_task_clips
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.pretraining.arguments import ClipSource
from wavcse.pretraining.clips import load_clips

HEADER = "file_name,keyword,speaker_id,split_ks,split_sid\n"
ROWS = (
    "a0.wav,yes,ann,train,\n"
    "a1.wav,no,ann,train,train\n"
    "b0.wav,yes,bob,validation,\n"
    "b1.wav,no,bob,validation,\n"
    "c0.wav,no,cid,test,\n"
    "d0.wav,yes,dan,,train\n"
    "d1.wav,,dan,,validation\n"
    "a2.wav,,ann,,validation\n"
    "a3.wav,,ann,,test\n"
    "d2.wav,,dan,,test\n"
)


def source(tmp_path, rows=ROWS, label="keyword", split="split_ks", disjoint_by="speaker_id", name="m.csv"):
    (tmp_path / name).write_text(HEADER + rows, encoding="utf-8")
    return TaskSource((str(tmp_path / name),), label, (split,), disjoint_by)


def test_a_task_takes_its_labelled_rows_and_numbers_the_training_labels(tmp_path):
    task = load_task_clips("keyword", source(tmp_path))
    assert [clip.clip_id for clip in task.clips] == ["a0.wav", "a1.wav", "b0.wav", "b1.wav", "c0.wav"]
    assert task.classes == ["no", "yes"]
    assert task.targets.tolist() == [1, 0, 1, 0, 0]
    assert task.rows("validation").tolist() == [2, 3]
    assert task.groups.tolist() == ["ann", "ann", "bob", "bob", "cid"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("c0.wav,no,cid,test", "c0.wav,no,ann,test", r"speaker_id \['ann'\] occur in both train and test"),
        ("c0.wav,no,cid,test", "c0.wav,no,,test", "c0.wav has no 'speaker_id'"),
        ("c0.wav,no,cid,test", "c0.wav,no,cid,", "the test split has no clips"),
        ("c0.wav,no,cid,test", "c0.wav,stop,cid,test", r"labels \['stop'\] occur in validation or test but never"),
        ("a1.wav,no,ann,train,train", "a1.wav,yes,ann,train,train", r"only the label\(s\) \['yes'\]"),
        ("yes,bob,validation", "yes,bob,later", r"holds \['later'\]"),
    ],
)
def test_a_split_that_leaks_or_cannot_be_scored_is_refused(tmp_path, old, new, message):
    assert old in ROWS
    with pytest.raises(ValueError, match=message):
        load_task_clips("keyword", source(tmp_path, ROWS.replace(old, new)))


def test_a_head_may_have_a_class_that_no_clip_trains(tmp_path):
    task = load_task_clips("keyword", replace(source(tmp_path), classes=("yes", "_silence_", "no")))
    assert task.classes == ["yes", "_silence_", "no"]
    assert task.targets.tolist() == [0, 2, 0, 2, 2]


@pytest.mark.parametrize(
    ("classes", "rows", "message"),
    [
        (("yes", "up"), ROWS, r"missing are \['no'\]"),
        (("yes", "no", "yes"), ROWS, "name every label once"),
        (
            ("yes", "no", "stop"),
            ROWS.replace("c0.wav,no", "c0.wav,stop"),
            r"labels \['stop'\] occur in",
        ),
    ],
)
def test_classes_that_do_not_fit_the_labels_are_refused(tmp_path, classes, rows, message):
    with pytest.raises(ValueError, match=message):
        load_task_clips("keyword", replace(source(tmp_path, rows), classes=classes))


def test_a_clip_on_two_sides_across_manifests_is_refused(tmp_path):
    first = source(tmp_path)
    source(tmp_path, "c0.wav,no,cid,train,\n", name="n.csv")
    both = TaskSource((*first.manifests, str(tmp_path / "n.csv")), "keyword", ("split_ks",))
    with pytest.raises(ValueError, match=r"c0\.wav of .*n\.csv \(train\) and c0\.wav of .*m\.csv \(test\) are the same clip"):
        load_task_clips("keyword", both)


def test_missing_columns_and_missing_labels_are_named(tmp_path):
    with pytest.raises(ValueError, match="no column 'emotion'"):
        load_task_clips("emotion", source(tmp_path, label="emotion"))
    with pytest.raises(ValueError, match=r"none of the split columns \['split_er'\]"):
        load_task_clips("keyword", source(tmp_path, split="split_er"))
    with pytest.raises(ValueError, match="no row of .* has both a 'keyword' and a 'split_ks'"):
        load_task_clips("keyword", source(tmp_path, "a0.wav,,ann,train,\n"))


def sources(tmp_path, rows=ROWS):
    keyword = source(tmp_path, rows)
    return {"keyword": keyword, "speaker": source(tmp_path, rows, "speaker_id", "split_sid", None)}


def test_the_composite_is_the_union_with_absent_labels_marked(tmp_path):
    composite = load_composite(sources(tmp_path))
    names = [clip.clip_id for clip in composite.clips]
    assert len(names) == len(set(names)) == 10
    row = {name: i for i, name in enumerate(names)}
    train = composite.targets["train"]
    assert {name: train["keyword"][i] for name, i in row.items() if train["keyword"][i] != IGNORED_LABEL} == {
        "a0.wav": 1,
        "a1.wav": 0,
    }
    assert train["speaker"][row["a1.wav"]] == 0  # ann; labelled for both tasks
    assert train["speaker"][row["d0.wav"]] == 1  # dan; for one
    assert train["speaker"][row["a0.wav"]] == IGNORED_LABEL
    assert sorted(names[i] for i in composite.rows("train")) == ["a0.wav", "a1.wav", "d0.wav"]
    assert np.all(composite.targets["test"]["keyword"][composite.rows("train")] == IGNORED_LABEL)


def test_a_clip_that_one_task_holds_out_may_not_train_another(tmp_path):
    leaking = ROWS.replace("a3.wav,,ann,,test", "a3.wav,no,ann,train,test")
    told = (
        r"a3\.wav of .* is in training for task 'keyword', a3\.wav of .* in the test split of task 'speaker', .* the same clip"
    )
    with pytest.raises(ValueError, match=told):
        load_composite(sources(tmp_path, leaking))


def test_no_tasks_is_an_error():
    with pytest.raises(ValueError, match="tasks is empty"):
        load_composite({})


def test_the_classes_of_every_task_are_told_with_their_counts(tmp_path):
    assert load_composite(sources(tmp_path)).class_counts().splitlines() == [
        "keyword: 2 classes of 2 training clips: no 1, yes 1",
        "speaker: 2 classes of 2 training clips: ann 1, dan 1",
    ]
    many = [f"w{number:02}" for number in range(14)]
    assert class_counts("word", many, np.array([0, 0, 13])).endswith(
        "w00 2, w01 0, " + ", ".join(f"w{number:02} 0" for number in range(2, 12)) + ", ... (2 more)"
    )
    assert class_counts("word", ["a\nb", "\u200d"], np.array([0, 1])).endswith("'a\\nb' 1, '\\u200d' 1")


def test_a_row_that_names_no_clip_is_refused_where_a_task_uses_it(tmp_path):
    header, rows = HEADER.replace("file_name", "file_name,start"), ROWS.replace(".wav,", ".wav,,")
    for faulty, is_used in (("e0.wav,nan,no,eva,train,\n", True), ("e0.wav,nan,,eva,train,\n", False)):
        (tmp_path / "m.csv").write_text(header + rows + faulty, encoding="utf-8")
        tasks = {"keyword": TaskSource((str(tmp_path / "m.csv"),), "keyword", ("split_ks",), "speaker_id")}
        if is_used:
            with pytest.raises(ValueError, match=r"task 'keyword': 1 rows .*; the first: e0\.wav#nan-: its start is 'nan'"):
                load_composite(tasks)
        else:
            assert len(load_composite(tasks).clips) == 5
    (tmp_path / "m.csv").write_text(header + rows.replace("a0.wav,", "a0.wav,-1"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.x: 1 rows of .*; the first: a0\.wav#-1-: its start is '-1'"):
        load_clips({"x": ClipSource(str(tmp_path / "m.csv"))}, "keyword")
