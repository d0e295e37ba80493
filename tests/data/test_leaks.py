"""One check against leaks for all that learns: what is the same audio and the same speaker, and every program that asks."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from wavcse import train_accelerate
from wavcse.data.composite import TaskSource, load_composite, load_task_clips
from wavcse.data.files import write_json
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip, Manifest
from wavcse.eval.__main__ import main as evaluate_main
from wavcse.eval.task import load_task
from wavcse.eval.tasks import TASKS
from wavcse.finetuning.__main__ import main as finetune_main
from wavcse.pretraining.arguments import ClipSource
from wavcse.pretraining.clips import load_clips
from wavcse.search.table import read_table
from wavcse.training.arguments import RunArguments

RATE = 16_000


@pytest.fixture
def audio(tmp_path) -> Path:
    """A folder with seven files of half a second, no two alike: a.wav to g.wav."""
    for seed, name in enumerate("abcdefg"):
        samples = 0.1 * np.random.default_rng(seed).standard_normal(RATE // 2)
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
    (tmp_path / "sub").mkdir()
    return tmp_path


def manifest(folder: Path, rows: str, header: str = "file_name,start,end,word,speaker_id,split", name: str = "m.csv") -> str:
    (folder / name).write_text("\n".join([header, *rows.split()]) + "\n", encoding="utf-8")
    return str(folder / name)


SOUND = "a.wav,,,yes,ann,train b.wav,,,no,ann,train c.wav,,,yes,bob,validation d.wav,,,no,cid,test "


def word(path: str, disjoint_by: str | None = None) -> TaskSource:
    return TaskSource((path,), "word", disjoint_by=disjoint_by)


def copied(folder: Path, source: str, target: str) -> None:
    shutil.copy(folder / source, folder / target)


def linked(folder: Path, source: str, target: str) -> None:
    os.link(folder / source, folder / target)


def pointed(folder: Path, source: str, target: str) -> None:
    (folder / target).symlink_to(folder / source)


SAME_AUDIO = {
    "parts overlap": ("e.wav,0,0.3,yes,ann,train e.wav,0.2,0.4,yes,dan,test", "overlap in the same file"),
    "one part within the other": ("e.wav,0.1,0.2,yes,dan,test e.wav,0,0.4,yes,ann,train", "overlap in the same file"),
    "the longest of three": (
        "e.wav,0,0.5,yes,ann,train e.wav,0.1,0.2,yes,ann,train e.wav,0.3,0.4,yes,dan,test",
        "#0-0.5 of .* overlap in the same file",
    ),
    "the whole beside its part": ("e.wav,,,yes,ann,train e.wav,0.1,0.2,yes,dan,validation", "overlap in the same file"),
    "to the end": ("e.wav,0.2,,yes,ann,train e.wav,0.4,0.5,yes,dan,test", "overlap in the same file"),
    "another way to the file": ("e.wav,,,yes,ann,train sub/../e.wav,,,yes,dan,test", "are the same clip"),
    "a copy of a test clip validates": ("d.copy.wav,,,no,bob,validation", "are the same audio under two names"),
    "a part of a copy": ("a.copy.wav,0.1,0.2,yes,dan,test", "are the same audio under two names"),
}


@pytest.mark.parametrize("case", SAME_AUDIO)
def test_audio_in_two_splits_is_refused_in_training_and_evaluation(case, audio):
    rows, message = SAME_AUDIO[case]
    copied(audio, "d.wav", "d.copy.wav")
    copied(audio, "a.wav", "a.copy.wav")
    path = manifest(audio, SOUND + rows)
    for load in (
        lambda: load_composite({"word": word(path)}),
        lambda: load_task_clips("word", word(path)),
        lambda: load_task(TASKS["keyword"], [manifest(audio, SOUND + rows, HEADER_KEYWORD, "k.csv")]),
    ):
        with pytest.raises(
            ValueError, match=rf"task '(word|keyword)': .*{message}; audio may be in one split only\. Empty 'split'"
        ):
            load()


HEADER_KEYWORD = "file_name,start,end,keyword,speaker_id,split"


@pytest.mark.parametrize("make", [copied, linked, pointed])
def test_copies_and_links_are_the_same_audio(make, audio):
    make(audio, "a.wav", "sub/other.wav")
    message = r"a\.wav of .*m\.csv \(train\) and sub/other\.wav of .*m\.csv \(test\) are the same"
    with pytest.raises(ValueError, match=message):
        load_composite({"word": word(manifest(audio, SOUND + "sub/other.wav,,,yes,dan,test"))})


def test_every_pair_is_counted_and_the_first_are_named(audio):
    for name in "abcdefg":
        copied(audio, f"{name}.wav", f"sub/{name}.wav")
    rows = SOUND + " ".join(f"{name}.wav,,,yes,ann,train sub/{name}.wav,,,yes,dan,test" for name in "efg")
    with pytest.raises(ValueError, match=r"The same holds of \['f\.wav and sub/f\.wav', 'g\.wav and sub/g\.wav'\]\."):
        load_task_clips("word", word(manifest(audio, rows)))


@pytest.mark.parametrize(
    "rows",
    [
        "e.wav,0,0.2,yes,ann,train e.wav,0.2,0.4,yes,dan,test",  # one ends where the other begins
        "e.wav,0,0.3,yes,ann,train e.wav,0.2,0.4,no,ann,train",  # overlapping parts of one split may differ
        "a.copy.wav,,,yes,ann,train",  # a copy in the same split under the same label
        "sub/../a.wav,,,yes,ann,train",
        "missing1.wav,,,yes,ann,train missing2.wav,,,yes,dan,test",  # what cannot be read is known by its path
    ],
)
def test_what_is_no_leak_is_read(rows, audio):
    copied(audio, "a.wav", "a.copy.wav")
    task = load_task_clips("word", word(manifest(audio, SOUND + rows), "speaker_id"))
    assert len(task.clips) == 4 + len(rows.split())


def test_a_clip_that_is_listed_twice_alike_trains_once(audio):
    composite = load_composite({"word": word(manifest(audio, SOUND + "sub/../a.wav,,,yes,ann,train"))})
    assert len(composite.rows("train")) == 2
    assert composite.digests == [fact.digest for fact in Inspector().inspect(composite.clips)]


@pytest.mark.parametrize(
    ("rows", "other"),
    [
        ("sub/../a.wav,,,no,ann,train", "a.wav"),
        ("a.copy.wav,,,no,ann,train", "a.wav"),
        ("a.wav,0,0.5,no,ann,train", "a.wav"),  # the whole file, said otherwise
        ("e.wav,0.1,0.3,yes,ann,train sub/../e.wav,0.10,0.30,no,ann,train", "e.wav#0.1-0.3"),
    ],
)
def test_a_clip_with_two_labels_is_refused(rows, other, audio):
    copied(audio, "a.wav", "a.copy.wav")
    message = (
        rf"task 'word': .* is labelled 'no' in column 'word', and {other} of .*, which is the same audio, 'yes'\. Correct"
    )
    path = manifest(audio, SOUND + rows)
    for load in (lambda: load_composite({"word": word(path)}), lambda: load_task_clips("word", word(path))):
        with pytest.raises(ValueError, match=message):
            load()


NUMBERS = "file_name,start,end,valence,activation,dominance,speaker_id,split"
RATED = "a.wav,,,1,2,3,ann,train c.wav,,,2,2,2,bob,validation d.wav,,,3,3,3,cid,test "


def test_numbers_are_compared_as_numbers_and_in_every_column(audio):
    copied(audio, "a.wav", "a.copy.wav")
    load_task(TASKS["affect"], [manifest(audio, RATED + "a.copy.wav,,,1.0,2.00,3,ann,train", NUMBERS)])
    with pytest.raises(ValueError, match=r"labelled '2\.5' in column 'activation', .* the same audio, '2\.0'"):
        load_task(TASKS["affect"], [manifest(audio, RATED + "a.copy.wav,,,1,2.5,3,ann,train", NUMBERS)])


def test_a_trial_does_not_compare_audio_with_itself(audio):
    header = "file_name,start,end,speaker_id,enrolment_id,split"
    copied(audio, "d.wav", "d.copy.wav")
    rows = "a.wav,,,ann,,train b.wav,,,bob,,validation c.wav,,,cid,,test"
    path = manifest(audio, rows + " d.wav,,,dan,,test d.copy.wav,,,dan,,test e.wav,,,dan,,test", header)
    trials = audio / "trials.csv"
    trials.write_text("label,enrolment,test\n1,d.wav,e.wav\n0,d.wav,c.wav\n")
    assert len(load_task(TASKS["verification"], [path], trials).trials.labels) == 2
    trials.write_text("label,enrolment,test\n1,d.wav,e.wav\n0,d.wav,c.wav\n1,d.wav,d.copy.wav\n")
    with pytest.raises(
        ValueError, match=r"trial of 'd\.wav' and 'd\.copy\.wav' compares audio with itself: 'd\.wav', which is"
    ):
        load_task(TASKS["verification"], [path], trials)


# Between tasks that train layers in common

HEADER = "file_name,word,speaker_id,corpus,split,split_sid"
TWO_TASKS = (
    "a.wav,yes,ann,,train, b.wav,no,ann,,train, c.wav,yes,bob,,validation, d.wav,no,cid,,test, "
    "e.wav,,eve,,,train f.wav,,eve,,,validation g.wav,,eve,,,test x.wav,,fay,,,train"
)


def two_tasks(path: str, speakers: str | None = None, disjoint_by: str | None = "speaker_id") -> dict[str, TaskSource]:
    """A task that holds its speakers out, and one that knows them."""
    return {"word": word(path, disjoint_by), "speaker": TaskSource((speakers or path,), "speaker_id", ("split_sid", "split"))}


def test_tasks_of_other_clips_and_speakers_train_together(audio):
    assert len(load_composite(two_tasks(manifest(audio, TWO_TASKS, HEADER))).clips) == 8


def test_audio_that_another_task_holds_out_is_refused_by_content(audio):
    copied(audio, "d.wav", "x.wav")
    message = (
        r"x\.wav of .* is in training for task 'speaker', d\.wav of .* in the test split of task 'word', and the two are the "
        r"same audio under two names: the shared layers would see what is held out\. Empty 'split_sid' or 'split' there"
    )
    with pytest.raises(ValueError, match=message):
        load_composite(two_tasks(manifest(audio, TWO_TASKS, HEADER)))


HELD_OUT = (
    r"speaker_id \['{}'\] train task 'speaker' \(such as x\.wav of .*\) and are in the {} split of task 'word' .* held out"
)


@pytest.mark.parametrize(("speaker", "split"), [("cid", "test"), ("bob", "validation")])
def test_a_speaker_whom_another_task_holds_out_is_refused(speaker, split, audio):
    path = manifest(audio, TWO_TASKS.replace("x.wav,,fay", f"x.wav,,{speaker}"), HEADER)
    with pytest.raises(ValueError, match=HELD_OUT.format(speaker, split)):
        load_composite(two_tasks(path))
    load_composite(two_tasks(path, disjoint_by=None))  # the recipe does not hold speakers out


OWN_SPEAKERS = "e.wav,{0},eve,{1},train f.wav,{0},eve,{1},validation g.wav,{0},eve,{1},test x.wav,{0},cid,{1},train"


def test_equal_names_of_two_manifests_are_two_people_unless_the_corpus_is_one(audio):
    words = manifest(audio, TWO_TASKS[: TWO_TASKS.index(" e.wav")].replace(",,", ",gsc,"), HEADER)
    header = "file_name,word,speaker_id,corpus,split"
    for corpus in ("", "ravdess"):
        load_composite(two_tasks(words, manifest(audio, OWN_SPEAKERS.format("", corpus), header, "n.csv")))
    with pytest.raises(ValueError, match=HELD_OUT.format("cid", "test")):
        load_composite(two_tasks(words, manifest(audio, OWN_SPEAKERS.format("", "gsc"), header, "n.csv")))


@pytest.mark.parametrize("make", [pointed, copied])
def test_a_file_that_two_manifests_list_tells_who_is_the_same(make, audio):
    """x.wav trains; that its speaker `n7` is `cid` is told by a test clip that both manifests have."""
    words = manifest(audio, TWO_TASKS[: TWO_TASKS.index(" e.wav")], HEADER)
    make(audio, "d.wav", "sub/d.wav")
    rows = "e.wav,eve,train f.wav,eve,validation g.wav,eve,test x.wav,n7,train sub/d.wav,n7,test"
    with pytest.raises(ValueError, match=HELD_OUT.format("cid", "test")):
        load_composite(two_tasks(words, manifest(audio, rows, "file_name,speaker_id,split", "n.csv")))


def test_a_file_with_several_speakers_tells_them_apart(audio):
    """In a.wav ann speaks first and trains, then cid, who is tested: n7 of another manifest is the one whose time it is."""
    header = "file_name,start,end,word,speaker_id,split"
    words = manifest(
        audio, "a.wav,0,0.2,yes,ann,train a.wav,0.3,0.5,no,cid,test b.wav,,,no,ann,train c.wav,,,yes,bob,validation"
    )
    rows = "e.wav,,,,eve,train f.wav,,,,eve,validation g.wav,,,,eve,test d.wav,,,,n7,train a.wav,{0},{1},,n7,{2}"
    others = partial(manifest, audio, header=header, name="n.csv")
    assert len(load_composite(two_tasks(words, others(rows=rows.format(0, 0.2, "train")))).clips) == 8
    with pytest.raises(ValueError, match=HELD_OUT.replace(r"x\.wav", r"d\.wav").format("cid", "test")):
        load_composite(two_tasks(words, others(rows=rows.format(0.3, 0.5, "test"))))


# The programs


def leaking_recipe(search_recipe: dict, tmp_path: Path) -> dict:
    """The toy recipe where a copy of a training clip is tested under another name."""
    table = Manifest(search_recipe["tasks"]["keyword"]["manifest"])
    train = table.clips[int(np.flatnonzero(table.column("split_ks") == "train")[0])]
    tested = int(np.flatnonzero(table.column("split_ks") == "test")[0])
    rows = table.table.assign(file_name=[str(clip.path) for clip in table.clips])
    shutil.copy(train.path, tmp_path / "copy.flac")
    rows.loc[len(rows)] = {**rows.iloc[tested], "file_name": "copy.flac"}
    rows.to_csv(tmp_path / "leaking.csv", index=False)
    keyword = {**search_recipe["tasks"]["keyword"], "manifest": str(tmp_path / "leaking.csv")}
    return {**search_recipe, "tasks": {**search_recipe["tasks"], "keyword": keyword}}


COPY = r"\.flac of .*leaking\.csv \(train\) and copy\.flac of .*leaking\.csv \(test\) are the same audio under two names"


def test_training_and_search_refuse_a_copy_before_anything_is_written(search_recipe, tmp_path, capsys):
    recipe = {**leaking_recipe(search_recipe, tmp_path), "output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert train_accelerate.main([str(tmp_path / "recipe.yaml")]) == 2
    message = capsys.readouterr().err
    assert "copy.flac of" in message
    assert "are the same audio under two names" in message
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=COPY):
        read_table(RunArguments(**recipe))


def test_evaluation_and_fine_tuning_refuse_a_copy(audio, capsys):
    copied(audio, "a.wav", "a.copy.wav")
    path = manifest(audio, SOUND + "a.copy.wav,,,yes,dan,test", HEADER_KEYWORD)
    out = audio / "out"
    arguments = ["--manifest", path, "--tasks", "keyword", "--baselines", "mfcc", "--output_dir", str(out), "--device", "cpu"]
    assert evaluate_main(arguments) == 2
    assert "a.copy.wav of" in capsys.readouterr().err
    recipe = {"task": {"task": "keyword", "manifest": path}, "upstreams": {"none": "there is none"}, "output_dir": str(out)}
    (audio / "finetune.yaml").write_text(yaml.safe_dump({**recipe, "audio_dir": str(audio / "decoded")}))
    assert finetune_main([str(audio / "finetune.yaml")]) == 2
    assert "a.copy.wav of" in capsys.readouterr().err
    assert not out.exists()


def test_evaluation_reads_no_file_twice(audio, monkeypatch):
    path = manifest(audio, SOUND, HEADER_KEYWORD)
    arguments = ["--manifest", path, "--tasks", "keyword", "--baselines", "majority", "--device", "cpu"]
    assert evaluate_main([*arguments, "--output_dir", str(audio / "out")]) == 0
    assert len(Inspector(audio / "out/embeddings").memo) == 4
    assert str(audio) not in (audio / "out/embeddings/digests.json").read_text()
    monkeypatch.setattr("wavcse.data.inspection.AudioFile", None)
    facts = Inspector(audio / "out/embeddings").inspect([Clip("a.wav", audio / "a.wav")])
    assert facts == Inspector(audio / "out/embeddings").inspect([Clip("a.wav", audio / "sub/../a.wav")])
    assert facts[0].duration_s == 0.5


def test_a_memo_by_whole_paths_of_an_older_version_is_read(audio):
    clips = [Clip("a.wav", audio / "a.wav")]
    inspector = Inspector(audio / "cache")
    facts = inspector.inspect(clips)
    (known,) = inspector.memo.values()
    write_json(audio / "cache/digests.json", {str(audio / "a.wav"): {**known, "digest": "as remembered"}})
    assert facts[0].digest != "as remembered"
    assert Inspector(audio / "cache").inspect(clips)[0].digest == "as remembered"


# Pre-training

LANGUAGES = "file_name,start,end,language,speaker_id,split"


def pretraining(folder: Path, rows: str, **held_out) -> list[str]:
    """The names of the clips that are heard."""
    sources = {"one": ClipSource(manifest(folder, rows, LANGUAGES, "one.csv"), {"split": ("train",)})}
    return load_clips(sources, "language", **held_out).names


HELD = "a.wav,,,en,ann,validation b.wav,0.1,0.3,en,bob,test b.wav,0.4,0.5,en,bob,train c.wav,,,en,cid,train"


@pytest.mark.parametrize(
    "rows",
    [
        "a.wav,,,en,,train",
        "a.copy.wav,,,en,dan,train",  # a copy of a validation clip, under another speaker's name
        "a.copy.wav,0.2,0.3,en,,train",
        "b.wav,0,0.2,en,dan,train",
        "b.wav,,,en,dan,train",
        "b.wav,0.45,0.5,en,dan,train",  # another clip of a speaker of the test, without that name
        "e.wav,,,en,ann,train",
    ],
)
def test_pre_training_hears_nothing_of_what_is_held_out(rows, audio):
    copied(audio, "a.wav", "a.copy.wav")
    held_out = manifest(audio, HELD, LANGUAGES, "held.csv")
    heard = "c.wav,,,en,cid,train b.wav,0.3,0.4,en,dan,train"
    names = ["one/c.wav", "one/b.wav#0.3-0.4"]
    assert pretraining(audio, f"{heard} {rows}", exclude_speakers_of=[held_out]) == names
    assert len(pretraining(audio, f"{heard} {rows}")) == 3


def test_pre_training_refuses_two_labels_of_one_clip(audio):
    copied(audio, "a.wav", "a.copy.wav")
    with pytest.raises(
        ValueError, match=r"data: a\.copy\.wav of .*one\.csv is labelled 'de' in column 'language', and a\.wav"
    ):
        pretraining(audio, "a.wav,,,en,ann,train a.copy.wav,,,de,ann,train")
    sources = {
        "one": ClipSource(manifest(audio, "a.wav,,,en,ann,train", LANGUAGES, "one.csv")),
        "two": ClipSource(manifest(audio, "a.wav,,,,ann,train", LANGUAGES, "two.csv")),
    }
    assert load_clips(sources, "language").names == ["one/a.wav", "two/a.wav"]  # without a label it contradicts none
    assert pd.read_csv(audio / "one.csv")["language"].tolist() == ["en"]
