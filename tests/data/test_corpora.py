"""Public corpora: miniature trees in the official layouts, with lines in the real formats, and with faults in them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from wavcse.data.composite import TaskSource, load_task_clips
from wavcse.data.corpora import CORPORA
from wavcse.data.corpora.__main__ import main
from wavcse.data.corpora.hub import write_hub_copy
from wavcse.data.corpora.speech_commands import official_split
from wavcse.data.corpus_facts import FACTS
from wavcse.data.manifest import Manifest
from wavcse.eval.__main__ import main as evaluate
from wavcse.eval.task import load_task
from wavcse.eval.tasks import TASKS
from wavcse.tests.helpers.corpus_trees import RATE, manifest_of, table_of, write_text, write_wav
from wavcse.tests.helpers.iemocap_tree import ER_COUNTS, HEADER, evaluation, write_iemocap, write_transcriptions
from wavcse.tests.helpers.processes import run_python

# Codes of real speakers with the split that the lists of the corpus give them.
SPEAKERS = {"0a7c2a8d": "train", "7846fd85": "train", "026290a7": "validation", "a69b9b3e": "validation", "0c40e715": "test"}


# --- Speech Commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def commands(tmp_path) -> Path:
    """v0.01 with the words yes, go, bed and bird, each spoken by five speakers, two noises, and the test archive."""
    archive, test = tmp_path / "gsc/speech_commands_v0.01", tmp_path / "gsc/speech_commands_test_set_v0.01"
    lists: dict[str, list[str]] = {"validation": [], "test": [], "train": []}
    for word in ("yes", "go", "bed", "bird"):
        for speaker, split in SPEAKERS.items():
            write_wav(archive / word / f"{speaker}_nohash_0.wav")
            lists[split].append(f"{word}/{speaker}_nohash_0.wav")
    write_text(archive / "validation_list.txt", *lists["validation"])
    write_text(archive / "testing_list.txt", *lists["test"])
    write_text(archive / "README.md", "words")
    write_wav(archive / "_background_noise_/pink_noise.wav", 11.9)
    write_wav(archive / "_background_noise_/dude_miaowing.wav", 2.0)
    write_text(archive / "_background_noise_/README.md", "noise")
    for name in (
        "yes/0c40e715_nohash_0.wav",
        "_unknown_/backward_0c40e715_nohash_1.wav",
        "_silence_/1.wav",
        "_silence_/2.wav",
    ):
        write_wav(test / name)
    return archive.parent


def test_the_papers_keyword_protocol_uses_the_lists_and_makes_every_other_word_unknown(commands, tmp_path):
    counts = {"train": 8, "validation": 8, "test": 4, "words": 4}
    table = manifest_of("speech_commands_v0.01", commands, tmp_path / "lists/m.csv", "wavcse-paper", counts)
    assert len(table) == 20
    bed = table.loc["../gsc/speech_commands_v0.01/bed/0c40e715_nohash_0.wav"]
    assert bed.to_dict() == {
        **{"word": "bed", "keyword": "_unknown_", "speaker_id": "0c40e715", "split_ks": "test"},
        **{"corpus": "speech_commands_v0.01", "protocol": "wavcse-paper"},
    }
    assert set(table["keyword"]) == {"yes", "go", "_unknown_"}
    assert dict(zip(table["speaker_id"], table["split_ks"])) == SPEAKERS
    task = load_task_clips("keyword", TaskSource((str(tmp_path / "lists/m.csv"),), "keyword", ("split_ks",), "speaker_id"))
    assert [len(task.rows(split)) for split in ("train", "validation", "test")] == [8, 8, 4]
    assert all(clip.path.is_file() for clip in task.clips)


def test_superbs_keyword_protocol_tests_on_the_other_archive_and_cuts_silence_from_noise(commands, tmp_path):
    (commands / "speech_commands_v0.01/testing_list.txt").unlink()  # superb needs no list
    counts = {"train": 8, "validation": 8, "test": 4, "words": 4, "noise files": 2}
    table = manifest_of("speech_commands_v0.01", commands, tmp_path / "m.csv", "superb", counts).reset_index()
    clips = table["file_name"].str.removeprefix("gsc/speech_commands_")
    test = dict(zip(clips[table["split_ks"] == "test"], table["keyword"][table["split_ks"] == "test"]))
    assert test == {
        "test_set_v0.01/yes/0c40e715_nohash_0.wav": "yes",
        "test_set_v0.01/_unknown_/backward_0c40e715_nohash_1.wav": "_unknown_",
        "test_set_v0.01/_silence_/1.wav": "_silence_",
        "test_set_v0.01/_silence_/2.wav": "_silence_",
    }
    unused = table["split_ks"] == ""
    assert set(table["speaker_id"][unused]) == {"0c40e715"}
    assert unused.sum() == 4
    noise = table[clips.str.startswith("v0.01/_background_noise_")]
    pieces = [(Path(row.file_name).stem, row.start, row.end, row.split_ks) for row in noise.itertuples()]
    assert pieces == [
        *[("dude_miaowing", str(i), str(i + 1), "train") for i in range(2)],
        *[("pink_noise", str(i), str(i + 1), "validation" if i == 9 else "train") for i in range(11)],
    ]
    task = load_task(TASKS["keyword"], [tmp_path / "m.csv"])  # no speaker in two splits
    assert [len(task.table.rows(split)) for split in ("train", "validation", "test")] == [8 + 12, 8 + 1, 4]
    assert task.table.classes == ["_silence_", "_unknown_", "go", "yes"]
    assert task.manifests[0].protocol == "superb"
    silence = next(clip for clip in task.table.clips if clip.start_s == 9)
    assert len(silence.load(RATE)) == RATE


def test_the_hash_split_is_that_of_the_corpus():
    """Independent: the hash in base 16 by hand, and its share in whole numbers instead of floating point."""
    assert {speaker: official_split(speaker) for speaker in SPEAKERS} == SPEAKERS
    for code in (f"{number:08x}" for number in range(2000)):
        residue = 0
        for digit in hashlib.sha1(code.encode("ascii")).digest():
            residue = (residue * 256 + digit) % 134_217_728
        tenth = residue * 10 // 134_217_727
        assert official_split(code) == {0: "validation", 1: "test"}.get(tenth, "train")


def test_version_2_has_all_words_or_ten_commands(commands, tmp_path):
    (commands / "speech_commands_v0.01").rename(commands / "speech_commands_v0.02")
    counts = {"train": 8, "validation": 8, "test": 4, "words": 4}
    words = manifest_of("speech_commands_v0.02", commands, tmp_path / "m.csv", "official-35", counts)
    assert set(words["keyword"]) == {"yes", "go", "bed", "bird"}
    ten = manifest_of("speech_commands_v0.02", commands, tmp_path / "m.csv", "official-12", counts)
    assert set(ten["keyword"]) == {"yes", "go", "_unknown_"}
    assert ten["split_ks"].tolist() == words["split_ks"].tolist()


def break_commands(root: Path, fault: str) -> None:
    archive = root / "speech_commands_v0.01"
    if fault == "missing file":
        (archive / "bed/026290a7_nohash_0.wav").unlink()
    elif fault == "missing word":
        for path in [*(archive / "bed").iterdir(), archive / "bed"]:
            path.unlink() if path.is_file() else path.rmdir()
    elif fault == "missing list":
        (archive / "testing_list.txt").unlink()
    elif fault == "duplicate":
        with open(archive / "testing_list.txt", "a") as file:
            file.write("bed/026290a7_nohash_0.wav\n")  # validates already
    elif fault == "broken noise":
        (archive / "_background_noise_/pink_noise.wav").write_bytes(b"RIFF, but broken")
    elif fault == "missing archive":
        (root / "speech_commands_test_set_v0.01").rename(root / "elsewhere")
    elif fault == "strange name":
        write_wav(archive / "yes/recording.wav")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "missing file",
            "validation_list.txt names clips that are not there, 1: speech_commands_v0.01/bed/026290a7_nohash_0.wav",
        ),
        ("missing word", "words without a clip, 1: bed"),
        ("missing list", "speech_commands_v0.01/testing_list.txt is not there"),
        (
            "duplicate",
            "testing_list.txt: names clips twice, or clips of the other list, 1: speech_commands_v0.01/bed/026290a7",
        ),
        ("strange name", "not of the form CODE_nohash_N.wav, 1: speech_commands_v0.01/yes/recording.wav"),
        (
            "few clips",
            "train: 8 instead of 51,088; validation: 8 instead of 6,798; test: 4 instead of 6,835; words: 4 instead of 30",
        ),
    ],
)
def test_a_faulty_speech_commands_is_refused_with_what_is_wrong(commands, tmp_path, capsys, fault, message):
    break_commands(commands, fault)
    assert main(["speech_commands_v0.01", "--root", str(commands), "--out", str(tmp_path / "m.csv")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m.csv").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing archive", "speech_commands_test_set_v0.01 is not there"),
        ("broken noise", "pink_noise.wav: cannot be read as audio"),
        ("few clips", "test: 4 instead of 3,081; words: 4 instead of 30; noise files: 2 instead of 6"),
    ],
)
def test_a_faulty_speech_commands_is_refused_for_superb_too(commands, tmp_path, capsys, fault, message):
    break_commands(commands, fault)
    arguments = ["--root", str(commands), "--out", str(tmp_path / "m.csv"), "--protocol", "superb"]
    assert main(["speech_commands_v0.01", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_part_of_a_corpus_is_written_on_demand_and_said_to_be_one(commands, tmp_path, capsys):
    break_commands(commands, "missing file")
    arguments = ["speech_commands_v0.01", "--root", str(commands), "--out", str(tmp_path / "m.csv"), "--allow_partial"]
    assert main(arguments) == 3
    output = capsys.readouterr()
    assert "bed/026290a7_nohash_0.wav" in output.err
    assert "19 clips of Speech Commands v0.01 (train 8, validation 7, test 4, words 4); licence: CC BY 4.0" in output.out
    assert len(table_of(tmp_path / "m.csv")) == 19
    assert set(table_of(tmp_path / "m.csv")["protocol"]) == {"wavcse-paper-partial"}


# --- VoxCeleb1 -------------------------------------------------------------------------------------------------------

UTTERANCES = {
    "id10001/1zcIwhmdeo4/00001.wav": 1,
    "id10001/7w0IBEWc9Qw/00001.wav": 2,
    "id10001/y6zUMfEgXBI/00001.wav": 3,
    "id10270/5r0dWxy17C8/00001.wav": 1,
    "id10270/8jEAjG6SegY/00012.wav": 1,
    "id10270/GWXujl-xAVM/00003.wav": 2,
    "id10270/na8-QEFmj44/00003.wav": 3,
}


@pytest.fixture
def voxceleb(tmp_path) -> Path:
    """Two speakers in the layout of the archives unpacked together."""
    root = tmp_path / "vox"
    for name in UTTERANCES:
        write_wav(root / "wav" / name)
    write_text(root / "iden_split.txt", *(f"{split} {name}" for name, split in UTTERANCES.items()))
    return root


VOX_COUNTS = {"train": 3, "validation": 2, "test": 2, "speakers": 2}


@pytest.mark.parametrize("protocol", ["wavcse-paper", "superb"])
def test_voxcelebs_identification_split_is_read_from_its_list(voxceleb, tmp_path, protocol):
    table = manifest_of("voxceleb1", voxceleb, tmp_path / "m.csv", protocol, VOX_COUNTS)
    assert table.loc["vox/wav/id10270/na8-QEFmj44/00003.wav"].to_dict() == {
        **{"speaker_id": "id10270", "split_sid": "test", "corpus": "voxceleb1", "protocol": protocol}
    }
    expected = {f"vox/wav/{name}": ("train", "validation", "test")[split - 1] for name, split in UTTERANCES.items()}
    assert table["split_sid"].to_dict() == expected
    task = load_task(TASKS["speaker"], [tmp_path / "m.csv"])
    assert task.table.classes == ["id10001", "id10270"]
    assert task.has_known_speakers


def test_results_name_the_corpus_and_the_protocol(voxceleb, tmp_path):
    manifest_of("voxceleb1", voxceleb, tmp_path / "m.csv", "superb", VOX_COUNTS)
    arguments = ["--manifest", str(tmp_path / "m.csv"), "--tasks", "speaker", "--baselines", "majority", "--device", "cpu"]
    assert evaluate([*arguments, "--output_dir", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out/results/speaker__majority.json").read_text())
    assert [manifest["protocol"] for manifest in record["manifests"]] == ["superb"]
    assert (record["task"]["corpus"], record["task"]["protocols"]) == ("voxceleb1", ["superb"])


def test_voxcelebs_archives_may_lie_in_folders_of_their_own(voxceleb, tmp_path):
    for folder, speaker in (("dev", "id10001"), ("test", "id10270")):
        (voxceleb / folder / "wav").mkdir(parents=True)
        (voxceleb / "wav" / speaker).rename(voxceleb / folder / "wav" / speaker)
    (voxceleb / "wav").rmdir()
    table = manifest_of("voxceleb1", voxceleb, tmp_path / "m.csv", "superb", VOX_COUNTS)
    assert "vox/test/wav/id10270/na8-QEFmj44/00003.wav" in table.index
    assert "vox/dev/wav/id10001/1zcIwhmdeo4/00001.wav" in table.index


@pytest.mark.parametrize(
    ("line", "lost", "message"),
    [
        ("", ["id10270/5r0dWxy17C8/00001.wav"], "utterances that are not there, 1: id10270/5r0dWxy17C8/00001.wav"),
        ("", [name for name in UTTERANCES if "id10001" in name], "speakers without an utterance, 1: id10001"),
        (
            "4 id10001/1zcIwhmdeo4/00002.wav",
            [],
            "iden_split.txt: the line '4 id10001/1zcIwhmdeo4/00002.wav' is not of the form",
        ),
        ("1 ../../id10001/1zcIwhmdeo4/00002.wav", [], "is not of the form"),
        ("2 id10001/1zcIwhmdeo4/00001.wav", [], "iden_split.txt: id10001/1zcIwhmdeo4/00001.wav is listed twice"),
        (
            "",
            [],
            "train: 3 instead of 138,361; validation: 2 instead of 6,904; test: 2 instead of 8,251; speakers: 2 instead of",
        ),
    ],
)
def test_a_faulty_voxceleb_is_refused_with_what_is_wrong(voxceleb, tmp_path, capsys, line, lost, message):
    with open(voxceleb / "iden_split.txt", "a") as file:
        file.write(line + "\n")
    for name in lost:
        (voxceleb / "wav" / name).unlink()
    assert main(["voxceleb1", "--root", str(voxceleb), "--out", str(tmp_path / "m.csv")]) == 2
    assert message in capsys.readouterr().err


# --- IEMOCAP ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def iemocap(tmp_path) -> Path:
    return write_iemocap(tmp_path / "IEMOCAP_full_release")


def test_the_papers_emotion_protocol_takes_every_tenth_turn_in_order_of_the_paths(iemocap, tmp_path):
    table = manifest_of("iemocap", iemocap, tmp_path / "m.csv", "wavcse-paper", ER_COUNTS)
    assert len(table) == 60
    labelled = table[table["emotion"] != ""]
    assert list(labelled.index) == sorted(labelled.index)  # the evaluations name M before F
    order = [f"Session{s}/{d}" for s in range(1, 6) for d in (f"Ses0{s}F_impro01", f"Ses0{s}M_script01_1b")]
    seen = [re.sub(r".*(Session\d)/sentences/wav/(\w+)/.*", r"\1/\2", name) for name in labelled.index]
    assert list(dict.fromkeys(seen)) == order
    assert list(np.flatnonzero(labelled["split_er"] == "validation")) == [4, 14, 24, 34, 44]
    assert list(np.flatnonzero(labelled["split_er"] == "test")) == [9, 19, 29, 39]
    assert (table["split_er"][table["emotion"] == ""] == "").all()
    prefix = "IEMOCAP_full_release/Session3/sentences/wav"
    row = table.loc[f"{prefix}/Ses03M_script01_1b/Ses03M_script01_1b_M000.wav"]
    assert row.drop("split_er").to_dict() == {
        **{"emotion": "", "emotion_code": "xxx", "valence": "3", "activation": "2.3333", "dominance": "4.5000"},
        **{"speaker_id": "Ses03M", "gender": "male", "session": "3", "style": "scripted", "transcript": ""},
        **{"corpus": "iemocap", "protocol": "wavcse-paper"},
    }
    excited = table.loc[f"{prefix}/Ses03F_impro01/Ses03F_impro01_M001.wav"]
    assert (excited["emotion"], excited["emotion_code"], excited["style"]) == ("happy", "exc", "improvised")
    assert table.loc[f"{prefix}/Ses03F_impro01/Ses03F_impro01_M002.wav", "speaker_id"] == "Ses03M"  # not the dialog's F
    task = load_task_clips("emotion", TaskSource((str(tmp_path / "m.csv"),), "emotion", ("split_er",)))
    assert task.classes == ["angry", "happy", "neutral", "sad"]


def test_superbs_emotion_folds_test_one_session_each_and_validate_on_a_fifth_of_the_others(iemocap, tmp_path):
    table = manifest_of("iemocap", iemocap, tmp_path / "m.csv", "superb", ER_COUNTS)
    for fold in range(1, 6):
        column = f"split_er_fold{fold}"
        task = load_task_clips("emotion", TaskSource((str(tmp_path / "m.csv"),), "emotion", (column,)))
        sizes = [len(task.rows(split)) for split in ("train", "validation", "test")]
        assert sizes == [28, 8, 9]  # int(0.8 * 36) = 28
        speakers = table.groupby(column)["speaker_id"].agg(set)
        assert speakers["test"] == {f"Ses0{fold}F", f"Ses0{fold}M"}
        assert not speakers["test"] & (speakers["train"] | speakers["validation"])
        digest = {
            name: hashlib.sha1(Path(name).stem.encode()).hexdigest()
            for name, row in table.iterrows()
            if row["emotion"] and row["session"] != str(fold)
        }
        assert set(table.index[table[column] == "validation"]) == set(sorted(digest, key=digest.get)[:8])
    assert "split_er" not in table


@pytest.mark.parametrize("protocol", ["session-5", "paper-guess"])
def test_valence_activation_and_dominance_have_a_split_of_all_turns(iemocap, tmp_path, protocol):
    table = manifest_of("iemocap", iemocap, tmp_path / "m.csv", protocol, {**ER_COUNTS, "turns": 60})
    if protocol == "session-5":
        assert table.groupby("session")["split_vad"].agg(set).to_dict() == {
            **{"1": {"train"}, "2": {"train"}, "3": {"train"}, "4": {"validation"}, "5": {"test"}}
        }
        assert (table["split_er"] == table["split_vad"].where(table["emotion"] != "", "")).all()
    else:
        assert list(np.flatnonzero(table["split_vad"] == "validation")) == list(range(4, 60, 10))
        assert list(np.flatnonzero(table["split_vad"] == "test")) == list(range(9, 60, 10))
    source = TaskSource((str(tmp_path / "m.csv"),), "valence", ("split_vad",), "speaker_id")
    if protocol == "session-5":  # 12 turns of the two speakers of every session; the values name the session
        speakers = table.groupby("split_vad")["speaker_id"].agg(set)
        assert speakers["test"] == {"Ses05F", "Ses05M"}
        assert not speakers["train"] & (speakers["validation"] | speakers["test"])
    else:
        with pytest.raises(ValueError, match="speaker_id .* occur in both train and validation"):
            load_task_clips("affect", source)


@pytest.mark.parametrize("protocol", ["wavcse-paper", "superb", "session-5", "paper-guess"])
def test_words_of_turns_are_a_column_and_change_nothing_else(iemocap, tmp_path, capsys, protocol):
    before = manifest_of("iemocap", iemocap, tmp_path / "m.csv", protocol, ER_COUNTS)
    assert set(before.pop("transcript")) == {""}
    write_transcriptions(iemocap, without="Ses02F_impro01_M001")
    after = manifest_of("iemocap", iemocap, tmp_path / "m.csv", protocol, ER_COUNTS)
    words = after.pop("transcript").rename(lambda name: Path(name).stem)
    pd.testing.assert_frame_equal(before, after)
    assert words["Ses03M_script01_1b_F002"] == "I said: F002."
    assert words.index[words == ""].tolist() == ["Ses02F_impro01_M001"]
    main(["iemocap", "--root", str(iemocap), "--out", str(tmp_path / "m.csv"), "--allow_partial", "--protocol", protocol])
    assert "transcripts 59" in capsys.readouterr().out


def test_a_protocol_that_leaves_sessions_out_has_words_and_five_folds(iemocap, tmp_path, capsys):
    write_transcriptions(iemocap)
    counts = {**ER_COUNTS, "turns": 60}
    table = manifest_of("iemocap", iemocap, tmp_path / "m.csv", "leave-one-session-out", counts)
    assert (table["transcript"] != "").all()
    folds = [f"split_er_fold{session}" for session in range(1, 6)]
    for session, column in enumerate(folds, start=1):
        assert ((table[column] == "") == (table["emotion"] == "")).all()
        assert ((table[column] == "test") == ((table["session"] == str(session)) & (table["emotion"] != ""))).all()
        drawn = {  # 10 % of all that a session could have
            name for name, row in table.iterrows()
            if int.from_bytes(hashlib.sha1(f"{row['session']}/{Path(name).name}".encode()).digest()[:6], "big") < 0.1 * 2**48
        }  # fmt: skip
        is_drawn = table.index.isin(drawn) & (table["emotion"] != "") & (table["session"] != str(session))
        assert ((table[column] == "validation") == is_drawn).all()
    assert (table[folds] == "validation").any(axis=None)
    write_transcriptions(iemocap, without="Ses02F_impro01_M001")
    refused = ["iemocap", "--root", str(iemocap), "--out", str(tmp_path / "m.csv"), "--protocol", "leave-one-session-out"]
    assert main(refused) == 2
    assert "dialog/transcriptions lacks the words of turns, 1: Ses02F_impro01_M001" in capsys.readouterr().err


def break_iemocap(root: Path, fault: str) -> None:
    evaluations = root / "Session2/dialog/EmoEvaluation"
    if fault == "missing file":
        (root / "Session2/sentences/wav/Ses02F_impro01/Ses02F_impro01_M001.wav").unlink()
    elif fault == "missing list":
        (evaluations / "Ses02F_impro01.txt").unlink()
    elif fault == "missing session":
        (root / "Session2").rename(root.parent / "elsewhere")
    elif fault == "malformed line":
        write_text(evaluations / "Ses02F_impro01.txt", HEADER, "[6.2901 - 8.2357]\tSes02F_impro01_F000\tneu\t[2.5000, 2.5000]")
    elif fault == "duplicate":
        write_text(evaluations / "copy.txt", HEADER, *evaluation("Ses02F_impro01_F000", "ang"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing file", "Session2 lacks the audio of evaluated turns, 1: Ses02F_impro01_M001"),
        ("missing list", "Session2 lacks the evaluation of dialogs, 1: Ses02F_impro01"),
        ("missing session", "Session2/dialog/EmoEvaluation is not there; "),
        (
            "malformed line",
            r"Ses02F_impro01.txt: the line '[6.2901 - 8.2357]\tSes02F_impro01_F000\tneu\t[2.5000, 2.5000]' is not",
        ),
        ("duplicate", "copy.txt: Ses02F_impro01_F000 is evaluated twice"),
        ("few clips", "neutral: 15 instead of 1,708; happy: 10 instead of 1,636; angry: 10 instead of 1,103"),
    ],
)
def test_a_faulty_iemocap_is_refused_with_what_is_wrong(iemocap, tmp_path, capsys, fault, message):
    break_iemocap(iemocap, fault)
    assert main(["iemocap", "--root", str(iemocap), "--out", str(tmp_path / "m.csv")]) == 2
    assert message in capsys.readouterr().err


def test_a_session_may_be_left_out(iemocap, tmp_path, capsys):
    break_iemocap(iemocap, "missing session")
    assert main(["iemocap", "--root", str(iemocap), "--out", str(tmp_path / "m.csv"), "--allow_partial"]) == 3
    assert "session 2: 0 instead of 1,023" in capsys.readouterr().err
    assert set(table_of(tmp_path / "m.csv")["session"]) == {"1", "3", "4", "5"}


# --- copies on the Hub -----------------------------------------------------------------------------------------------


@pytest.fixture
def hub_copy(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Factory: `hub_copy(features, train=rows, ...)` -> a folder of Parquet files as the Hub has them, to use as a hub_id."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # not to be used, even where it is installed

    def make(features: dict, **splits: list[dict]) -> Path:
        kept = datasets.Features({"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, **features})
        for split, rows in splits.items():
            table = datasets.Dataset.from_list(rows, features=kept).cast_column("audio", datasets.Audio(sampling_rate=RATE))
            table.to_parquet(tmp_path / f"copy/data/{split}-00000-of-00001.parquet")
        return tmp_path / "copy"

    return make


def encoded(samples: np.ndarray, name: str) -> dict:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=Path(name).suffix[1:].upper(), subtype="PCM_16")
    return {"bytes": buffer.getvalue(), "path": name}


NOISE = np.random.default_rng(0).integers(-32768, 32768, 800).astype(np.int16)


def test_a_hub_copy_of_speech_commands_becomes_its_two_archives(hub_copy, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["yes", "bed", "backward", "_silence_"])

    def row(file: str, word: str, suffix: str = "wav") -> dict:
        return {"file": file, "label": word, "audio": encoded(NOISE, Path(file).with_suffix(f".{suffix}").name)}

    copy = hub_copy(
        {"file": datasets.Value("string"), "label": label},
        train=[
            row("yes/0a7c2a8d_nohash_0.wav", "yes", "flac"),
            row("bed/7846fd85_nohash_1.wav", "bed"),
            {
                "file": "_background_noise_/white_noise.wav",
                "label": "_silence_",
                "audio": encoded(np.tile(NOISE, 40), "w.wav"),
            },
        ],
        validation=[row("026290a7_nohash_0.wav", "yes")],  # a path without its folder
        test=[
            row("yes/0c40e715_nohash_0.wav", "yes"),
            row("_unknown_/backward_0c40e715_nohash_0.wav", "backward"),
            row("_silence_/0.wav", "_silence_"),
        ],
    )
    arguments = ["--root", str(tmp_path / "gsc"), "--out", str(tmp_path / "m.csv"), "--hub_id", str(copy)]
    assert main(["speech_commands_v0.01", *arguments, "--protocol", "superb", "--allow_partial"]) == 3
    assert "(train 2, validation 1, test 3, words 2, noise files 1)" in capsys.readouterr().out
    table = table_of(tmp_path / "m.csv")
    assert sorted(zip(table.index, table["keyword"], table["split_ks"], table["end"])) == [
        ("gsc/speech_commands_test_set_v0.01/_silence_/0.wav", "_silence_", "test", ""),
        ("gsc/speech_commands_test_set_v0.01/_unknown_/backward_0c40e715_nohash_0.wav", "_unknown_", "test", ""),
        ("gsc/speech_commands_test_set_v0.01/yes/0c40e715_nohash_0.wav", "yes", "test", ""),
        ("gsc/speech_commands_v0.01/_background_noise_/white_noise.wav", "_silence_", "train", "1"),
        ("gsc/speech_commands_v0.01/_background_noise_/white_noise.wav", "_silence_", "train", "2"),
        ("gsc/speech_commands_v0.01/bed/7846fd85_nohash_1.wav", "_unknown_", "train", ""),
        ("gsc/speech_commands_v0.01/yes/026290a7_nohash_0.wav", "yes", "validation", ""),
        ("gsc/speech_commands_v0.01/yes/0a7c2a8d_nohash_0.wav", "yes", "train", ""),
    ]
    for name in ("yes/0a7c2a8d_nohash_0.wav", "bed/7846fd85_nohash_1.wav"):  # one was flac: the same samples
        samples, rate = soundfile.read(tmp_path / "gsc/speech_commands_v0.01" / name, dtype="int16")
        np.testing.assert_array_equal(samples, NOISE)
        assert rate == RATE


def test_a_hub_copy_with_the_listed_test_clips_serves_the_papers_protocol(hub_copy, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        split: [{"file": f"{word}/{speaker}_nohash_0.wav", "audio": encoded(NOISE, "a.wav")} for word in ("yes", "bed")]
        for speaker, split in {"0a7c2a8d": "train", "026290a7": "validation", "0c40e715": "test"}.items()
    }
    write_hub_copy(
        CORPORA["speech_commands_v0.01"], str(hub_copy({"file": datasets.Value("string")}, **rows)), tmp_path / "gsc"
    )
    archive = tmp_path / "gsc/speech_commands_v0.01"
    assert (archive / "testing_list.txt").read_text() == "bed/0c40e715_nohash_0.wav\nyes/0c40e715_nohash_0.wav\n"
    counts = {"train": 2, "validation": 2, "test": 2, "words": 2}
    manifest_of("speech_commands_v0.01", tmp_path / "gsc", tmp_path / "m.csv", "wavcse-paper", counts)


def test_a_hub_copy_of_voxceleb_keeps_an_official_list_that_is_there(hub_copy, voxceleb, tmp_path):
    datasets = pytest.importorskip("datasets")
    lost = ["id10001/y6zUMfEgXBI/00001.wav", "id10270/na8-QEFmj44/00003.wav"]
    for name in lost:
        (voxceleb / "wav" / name).unlink()
    audio = encoded(NOISE, "00001.wav")
    copy = hub_copy({"path": datasets.Value("string")}, train=[{"path": f"x/wav/{name}", "audio": audio} for name in lost])
    assert write_hub_copy(CORPORA["voxceleb1"], str(copy), voxceleb) == 2
    table = manifest_of("voxceleb1", voxceleb, tmp_path / "m.csv", "superb", VOX_COUNTS)
    assert table.loc[f"vox/wav/{lost[1]}", "split_sid"] == "test"  # as in the list, whatever the copy says
    (voxceleb / "iden_split.txt").unlink()
    write_hub_copy(CORPORA["voxceleb1"], str(copy), voxceleb)
    assert (voxceleb / "iden_split.txt").read_text() == "".join(f"1 {name}\n" for name in lost)


@pytest.mark.parametrize(
    ("emotion", "names", "file"),
    [
        ("major_emotion", ("EmoVal", "EmoAct", "EmoDom"), "Ses0{}F_impro01_M003.wav"),
        (
            "emotion",
            ("valence", "activation", "dominance"),
            "Session{0}/sentences/wav/Ses0{0}F_impro01/Ses0{0}F_impro01_M003.wav",
        ),
    ],
)
def test_a_hub_copy_of_iemocap_becomes_its_sessions(hub_copy, tmp_path, emotion, names, file):
    datasets = pytest.importorskip("datasets")
    words = ("excited", "neutral", "angry", "sad", "frustrated")
    rows = [
        {"file": file.format(session), emotion: words[session - 1], **dict(zip(names, (session, 3.5, 2.25)))}
        for session in range(1, 6)
    ]
    features = {"file": datasets.Value("string"), emotion: datasets.Value("string")}
    features |= {name: datasets.Value("float32") for name in names}
    features["transcription"] = datasets.Value("string")
    rows = [{**row, "transcription": f"Session {number}."} for number, row in enumerate(rows, start=1)]
    copy = hub_copy(features, train=[{**row, "audio": encoded(NOISE, "a.flac")} for row in rows])
    write_hub_copy(CORPORA["iemocap"], str(copy), tmp_path / "iemocap")
    counts = {"happy": 1, "neutral": 1, "angry": 1, "sad": 1}
    table = manifest_of("iemocap", tmp_path / "iemocap", tmp_path / "m.csv", "superb", counts)
    assert table["emotion"].tolist() == ["happy", "neutral", "angry", "sad", ""]
    last = table.loc["iemocap/Session5/sentences/wav/Ses05F_impro01/Ses05F_impro01_M003.wav"]
    assert last[["emotion_code", "valence", "activation", "dominance"]].tolist() == ["fru", "5", "3.5000", "2.2500"]
    assert last["transcript"] == "Session 5."


def test_a_hub_copy_of_kathbath_has_its_audio_in_another_column(hub_copy, tmp_path):
    """`ai4bharat/Kathbath`: a configuration per language, splits train and valid, the audio in `audio_filepath`."""
    datasets = pytest.importorskip("datasets")

    def row(name: str) -> dict:
        return {"fname": name, "lang": "hindi", "speaker_id": 594, "audio": encoded(NOISE, name.replace("m4a", "wav"))}

    features = {"fname": datasets.Value("string"), "lang": datasets.Value("string"), "speaker_id": datasets.Value("int64")}
    train = [row(f"84442493102985{number}-594-f.m4a") for number in range(5)]
    copy = hub_copy(features, train=train, valid=[row("844424931537866-594-f.m4a")])
    for path in copy.rglob("*.parquet"):
        data = datasets.Dataset.from_parquet(str(path)).cast_column("audio", datasets.Audio(decode=False))
        data.cast_column("audio", datasets.Audio(sampling_rate=RATE)).rename_column("audio", "audio_filepath").to_parquet(path)
    assert write_hub_copy(CORPORA["kathbath"], str(copy), tmp_path / "kb", "train-valid") == 6
    table = manifest_of("kathbath", tmp_path / "kb", tmp_path / "m.csv", "train-valid", {}, allow_partial=True)
    assert table.loc["kb/hindi/valid/844424931537866-594-f.wav"].to_dict() == {
        **{"language": "hi", "speaker_id": "hi-594", "gender": "female", "split_sid": "validation"},
        **{"corpus": "kathbath", "protocol": "train-valid-partial"},
    }
    assert len(table) == 6


def test_a_hub_copy_of_voxforge_becomes_its_archives(hub_copy, tmp_path):
    datasets = pytest.importorskip("datasets")
    row = {"path": "ralfherzog-20071217-de1/wav/de1-01.wav", "locale": "de", "audio": encoded(NOISE, "de1-01.flac")}
    features = {"path": datasets.Value("string"), "locale": datasets.Value("string")}
    assert write_hub_copy(CORPORA["voxforge"], str(hub_copy(features, train=[row])), tmp_path / "vf") == 1
    assert (tmp_path / "vf/de/ralfherzog-20071217-de1/wav/de1-01.wav").is_file()
    copy = hub_copy(features, train=[{**row, "locale": "nl"}])
    with pytest.raises(
        ValueError, match="row 0: no column of ralfherzog-20071217-de1/wav/de1-01.wav names one of the languages"
    ):
        write_hub_copy(CORPORA["voxforge"], str(copy), tmp_path / "vf")


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if corpus.from_hub is None])
def test_a_corpus_without_a_copy_on_the_hub_says_so(name, tmp_path, capsys):
    arguments = [name, "--root", str(tmp_path / "root"), "--out", str(tmp_path / "m.csv"), "--hub_id", "some/copy"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"{name}: no copy with its audio is known on the Hub; get it from {CORPORA[name].facts.source}" in error
    assert main(arguments[:-2]) == 2
    assert "--hub_id" not in capsys.readouterr().err  # where it lies is told without an advice that leads nowhere


def test_a_hub_copy_that_does_not_fit_is_refused(hub_copy, tmp_path, capsys):
    datasets = pytest.importorskip("datasets")
    arguments = ["voxceleb1", "--root", str(tmp_path / "vox"), "--out", str(tmp_path / "m.csv"), "--hub_id"]
    assert main([*arguments, str(tmp_path / "none")]) == 2
    assert "cannot be loaded as a data set" in capsys.readouterr().err
    text = {"id": datasets.Value("string")}
    nameless = hub_copy(text, train=[{"id": "../../id10001", "audio": encoded(NOISE, "a.wav")}])
    assert main([*arguments, str(nameless)]) == 2
    assert "split train, row 0: no column names the clip as the corpus does" in capsys.readouterr().err
    assert not (tmp_path / "vox").exists()


def test_a_label_of_a_hub_copy_cannot_lead_out_of_the_corpus(hub_copy, tmp_path):
    datasets = pytest.importorskip("datasets")
    row = {"label": "../../elsewhere", "audio": encoded(NOISE, "0a7c2a8d_nohash_0.wav")}
    copy = hub_copy({"label": datasets.Value("string")}, train=[row])
    with pytest.raises(ValueError, match=r"the word of 0a7c2a8d_nohash_0.wav is neither"):
        write_hub_copy(CORPORA["speech_commands_v0.01"], str(copy), tmp_path / "gsc")


def test_a_row_of_a_hub_copy_whose_audio_is_broken_is_named(hub_copy, tmp_path):
    datasets = pytest.importorskip("datasets")
    row = {"path": "id10001/1zcIwhmdeo4/00001.wav", "audio": {"bytes": b"fLaC, but broken", "path": "a.flac"}}
    copy = hub_copy({"path": datasets.Value("string")}, train=[row])
    with pytest.raises(ValueError, match=r"split train, row 0: 00001.wav: cannot be read as audio"):
        write_hub_copy(CORPORA["voxceleb1"], str(copy), tmp_path / "vox")
    assert not list((tmp_path / "vox").rglob("*.*"))


# --- every corpus ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_that_is_not_there_is_answered_with_where_it_comes_from(name, tmp_path, capsys):
    assert main([name, "--root", str(tmp_path / "none"), "--out", str(tmp_path / "m.csv")]) == 2
    error, corpus = capsys.readouterr().err, CORPORA[name]
    assert all(text in error for text in (corpus.facts.source, corpus.facts.licence, corpus.layout, str(tmp_path / "none")))


def test_every_corpus_has_its_facts_and_counts_of_every_protocol():
    assert {name: corpus.facts for name, corpus in CORPORA.items()} == FACTS
    assert all(list(corpus.counts) == list(corpus.facts.protocols) for corpus in CORPORA.values())


def test_facts_of_corpora_need_no_adapter():
    code = "import sys, wavcse.eval.tasks; print(*[name for name in sys.modules if name.startswith('wavcse.data')])"
    done = run_python("-c", code)
    assert done.stdout.split() == ["wavcse.data", "wavcse.data.corpus_facts"], done.stderr


def test_wrong_arguments_are_refused(voxceleb, tmp_path, capsys):
    arguments = ["voxceleb1", "--root", str(voxceleb), "--out"]
    assert main([*arguments, str(tmp_path / "m.csv"), "--protocol", "official"]) == 2
    assert "there is no protocol 'official'; there are wavcse-paper, superb" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "m.parquet")]) == 2
    assert "ends in .csv" in capsys.readouterr().err


def test_the_complete_corpora_have_the_published_sizes():
    sums = {
        (name, protocol): sum(value for key, value in counts.items() if key in ("train", "validation", "test"))
        for name, corpus in CORPORA.items()
        for protocol, counts in corpus.counts.items()
    }
    assert sums["speech_commands_v0.01", "wavcse-paper"] == 64_721
    assert sums["speech_commands_v0.02", "official-35"] == 105_829
    assert sums["voxceleb1", "superb"] == 153_516
    assert sums["fluent_speech_commands", "official"] == 30_043
    counts = CORPORA["iemocap"].counts["wavcse-paper"]
    assert sum(counts[emotion] for emotion in ("neutral", "happy", "angry", "sad")) == 5_531
    assert sum(counts[f"session {session}"] for session in range(1, 6)) == 5_531
    trials = CORPORA["cnceleb1"].counts["official"]
    assert trials["trials"] == trials["enrolment"] * trials["test clips"]  # every model against every clip


def test_the_command_runs_as_a_module(voxceleb, tmp_path):
    command = ("-m", "wavcse.data.corpora", "voxceleb1", "--root", "vox", "--out", "out/m.csv", "--allow_partial")
    done = run_python(*command, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith(
        "out/m.csv: 7 clips of VoxCeleb1 (train 3, validation 2, test 2, speakers 2); licence: CC BY"
    )
    assert all(clip.path.is_file() for clip in Manifest(tmp_path / "out/m.csv").clips)
