"""The corpora of Phase 2: miniature trees in the official layouts, with lines in the real formats, and with faults in them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wavcse.data import SPLITS
from wavcse.data.composite import TaskSource, load_task_clips
from wavcse.data.corpora import CORPORA
from wavcse.data.corpora.__main__ import main
from wavcse.data.corpora.voxforge import speaker_of
from wavcse.data.splits import split_by_hash
from wavcse.eval.task import load_task
from wavcse.eval.tasks import TASKS
from wavcse.tests.helpers.corpus_trees import RATE, manifest_of, refuse, table_of, write_text, write_wav


def share_of(name: str) -> float:
    """Independent: the whole sha1 as a hexadecimal fraction."""
    return int(hashlib.sha1(name.encode("utf-8")).hexdigest(), 16) / 16**40


def named(pattern: str, low: float, high: float) -> str:
    """The first name of a pattern whose hash lies in a range, to plan a miniature's splits by."""
    return next(name for name in (pattern.format(number) for number in range(10_000)) if low < share_of(name) < high)


def task_of(manifest: Path, label: str, split: str, disjoint_by: str | None = "speaker_id"):
    return load_task_clips(label, TaskSource((str(manifest),), label, (split,), disjoint_by))


def append(path: Path, *lines: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))


def test_a_split_by_hash_has_its_shares_and_depends_on_the_name_alone():
    splits = [split_by_hash(f"speaker {number}", 0.1, 0.2) for number in range(5_000)]
    expected = [share_of(f"speaker {number}") for number in range(5_000)]
    assert splits == ["test" if x < 0.2 else "validation" if x < 0.3 else "train" for x in expected]
    shares = pd.Series(splits).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.02)
    assert shares["validation"] == pytest.approx(0.1, abs=0.02)


# --- Fluent Speech Commands ------------------------------------------------------------------------------------------

FSC_HEADER = ",path,speakerId,transcription,action,object,location"
FSC_SPEAKERS = {"train": "2BqVo8kVB2Skwgyb", "valid": "4BrX8aDqK2cLZRYl", "test": "5o9BvRGEGvhaeBwA"}
FSC_SENTENCES = [
    ("Turn on the lights", "activate", "lights", "none"),
    ('"Turn the lights on in the kitchen, please"', "activate", "lights", "kitchen"),
    ("Change language", "change language", "none", "none"),
]


@pytest.fixture
def fluent(tmp_path) -> Path:
    """One speaker per list, three sentences each."""
    root = tmp_path / "fluent_speech_commands_dataset"
    for split, speaker in FSC_SPEAKERS.items():
        lines = [FSC_HEADER]
        for number, (text, *slots) in enumerate(FSC_SENTENCES):
            name = f"wavs/speakers/{speaker}/0a3129c0-4474-11e9-a9a5-5dbec3b8816{number}.wav"
            write_wav(root / name)
            lines.append(",".join([str(number), name, speaker, text, *slots]))
        write_text(root / f"data/{split}_data.csv", *lines)
    write_text(
        root / "data/speaker_demographics.csv", "speakerId,Self-reported fluency level,First Language spoken,gender,ageRange"
    )
    return root


FSC_COUNTS = {"train": 3, "validation": 3, "test": 3, "speakers": 3, "intents": 3}


def test_intents_are_joined_slots_and_the_lists_are_the_splits(fluent, tmp_path):
    table = manifest_of("fluent_speech_commands", fluent, tmp_path / "m.csv", "official", FSC_COUNTS)
    prefix = "fluent_speech_commands_dataset/wavs/speakers"
    assert table.loc[f"{prefix}/4BrX8aDqK2cLZRYl/0a3129c0-4474-11e9-a9a5-5dbec3b88161.wav"].to_dict() == {
        **{"intent": "activate_lights_kitchen", "action": "activate", "object": "lights", "location": "kitchen"},
        **{"speaker_id": "4BrX8aDqK2cLZRYl", "split_ic": "validation"},
        **{"corpus": "fluent_speech_commands", "protocol": "official"},
    }
    task = task_of(tmp_path / "m.csv", "intent", "split_ic")
    assert task.classes == ["activate_lights", "activate_lights_kitchen", "change language"]
    assert [set(task.groups[task.rows(split)]) for split in SPLITS] == [{name} for name in FSC_SPEAKERS.values()]
    assert all(clip.path.is_file() for clip in task.clips)


def break_fluent(root: Path, fault: str) -> None:
    first = next((root / "wavs/speakers/2BqVo8kVB2Skwgyb").iterdir())
    listed = f"wavs/speakers/2BqVo8kVB2Skwgyb/{first.name}"
    if fault == "missing file":
        first.unlink()
    elif fault == "missing list":
        (root / "data/valid_data.csv").unlink()
    elif fault == "duplicate":
        append(root / "data/test_data.csv", f"9,{listed},2BqVo8kVB2Skwgyb,Go,activate,music,none")
    elif fault == "speaker in two splits":
        append(root / "data/test_data.csv", "9,wavs/speakers/2BqVo8kVB2Skwgyb/x.wav,2BqVo8kVB2Skwgyb,Go,activate,music,none")
    elif fault == "other speaker":
        append(root / "data/test_data.csv", "9,wavs/speakers/2BqVo8kVB2Skwgyb/x.wav,someone,Go,activate,music,none")
    elif fault == "way out":
        append(root / "data/test_data.csv", "9,../../secret.wav,someone,Go,activate,music,none")
    elif fault == "columns":
        write_text(root / "data/test_data.csv", "path,speakerId,transcription")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing file", "the lists name clips that are not there, 1: wavs/speakers/2BqVo8kVB2Skwgyb/0a3129c0"),
        ("missing list", "data/valid_data.csv is not there"),
        ("duplicate", "the lists name clips twice, 1: wavs/speakers/2BqVo8kVB2Skwgyb/0a3129c0"),
        ("speaker in two splits", "data: speakers are in two splits, 1: 2BqVo8kVB2Skwgyb"),
        ("other speaker", "test_data.csv: the row of 'wavs/speakers/2BqVo8kVB2Skwgyb/x.wav' does not have a path"),
        ("way out", "the row of '../../secret.wav' does not have a path 'wavs/speakers/SPEAKER/CLIP.wav'"),
        ("columns", "test_data.csv: has no columns ['action', 'object', 'location']"),
        (
            "few clips",
            "train: 3 instead of 23,132; validation: 3 instead of 3,118; test: 3 instead of 3,793; speakers: 3 instead",
        ),
    ],
)
def test_a_faulty_fluent_speech_commands_is_refused_with_what_is_wrong(fluent, tmp_path, capsys, fault, message):
    break_fluent(fluent, fault)
    assert message in refuse("fluent_speech_commands", fluent, tmp_path / "m.csv", capsys)


# --- Football Keywords -----------------------------------------------------------------------------------------------


@pytest.fixture
def football(tmp_path) -> Path:
    """Two keywords with thirty training and two test clips each, and the test folders that are no keyword."""
    root = tmp_path / "FKD"
    for word in ("Corner", "Free kick"):
        for number in range(30):
            write_wav(root / f"Train/{word}/{number}.wav")
        for number in range(2):
            write_wav(root / f"Test/{word}/{1000 + number}.wav")
    for word in ("Unknown", "Silence"):
        write_wav(root / f"Test/{word}/0.wav")
    write_text(root / "Test/Corner/readme.txt", "no clip")
    return root


def test_football_keywords_keep_their_test_part_and_a_tenth_of_the_training_part_validates(football, tmp_path):
    table = manifest_of("football", football, tmp_path / "m.csv", "official", {"test": 4, "keywords": 2})
    assert len(table) == 64
    assert set(table["keyword"]) == {"corner", "free_kick"}
    train = table[table.index.str.contains("/Train/")]
    validates = {
        f"FKD/Train/{folder}/{n}.wav"
        for folder, word in (("Corner", "corner"), ("Free kick", "free_kick"))
        for n in range(30)
        if share_of(f"{word}/{n}") < 0.1
    }
    assert set(train.index[train["split_ks"] == "validation"]) == validates
    assert 0 < len(validates) < 15
    assert set(table["split_ks"][table.index.str.contains("/Test/")]) == {"test"}
    assert "speaker_id" not in table  # nobody says how a file names its speaker
    with pytest.raises(ValueError, match="has no column 'speaker_id'"):
        task_of(tmp_path / "m.csv", "keyword", "split_ks")
    assert len(task_of(tmp_path / "m.csv", "keyword", "split_ks", disjoint_by=None).rows("test")) == 4


def test_a_faulty_football_is_refused_with_what_is_wrong(football, tmp_path, capsys):
    error = refuse("football", football, tmp_path / "m.csv", capsys)
    assert "test: 4 instead of 5,400; keywords: 2 instead of 18" in error
    write_wav(football / "Train/Goal/1.wav")
    assert "only in Train or only in Test, 1: goal" in refuse("football", football, tmp_path / "m.csv", capsys)
    (football / "Test").rename(tmp_path / "elsewhere")
    assert "FKD/Test is not there" in refuse("football", football, tmp_path / "m.csv", capsys)


# --- VoxForge --------------------------------------------------------------------------------------------------------

VOX_USERS = [named("user{0}", low, high) for low, high in ((0.25, 0.9), (0.11, 0.19), (0.01, 0.09))]  # train, validation, test


def write_session(folder: Path, language: str = "EN", kind: str = "wav") -> None:
    """An archive as it unpacks: README and PROMPTS below etc, the clips below wav or flac."""
    readme = ["User Name:x", "", "Speaker Characteristics:", "", "Gender: Male", "Age Range: Adult", f"Language: {language}"]
    write_text(folder / "etc/README", *readme, "Pronunciation dialect: American English")
    write_text(
        folder / "etc/PROMPTS", f"{folder.name}/mfc/a0001 AUTHOR OF THE DANGER TRAIL", f"{folder.name}/mfc/a0002 NOT AT ALL"
    )
    for number in (1, 2):
        write_wav(folder / f"{kind}/a{number:04d}.{kind}")


@pytest.fixture
def voxforge(tmp_path) -> Path:
    """In each language three named users, one of them in two sessions, and an anonymous one."""
    root = tmp_path / "voxforge"
    for language in ("de", "en", "es", "fr", "it", "ru"):
        below = root / language / "Trunk/Audio/Main/16kHz_16bit"
        for user in VOX_USERS:
            write_session(below / f"{user}-20080318-kdl", language.upper(), "flac" if language == "ru" else "wav")
        write_session(below / f"{VOX_USERS[2].upper()}-20090102-abc")
        write_session(below / "anonymous-20080425-byo")
    return root


def test_voxforge_is_split_by_user_whatever_the_language_and_session(voxforge, tmp_path):
    table = manifest_of("voxforge", voxforge, tmp_path / "m.csv", "speaker-disjoint", {"languages": 6, "speakers": 4})
    assert len(table) == 6 * 5 * 2
    train, validation, test = VOX_USERS
    row = table.loc[f"voxforge/it/Trunk/Audio/Main/16kHz_16bit/{test.upper()}-20090102-abc/wav/a0002.wav"]
    assert row.to_dict() == {
        **{"language": "it", "speaker_id": test, "split_sli": "test", "corpus": "voxforge", "protocol": "speaker-disjoint"}
    }
    assert table.groupby("speaker_id")["split_sli"].agg(set).to_dict() == {
        **{"anonymous": {"train"}, train: {"train"}, validation: {"validation"}, test: {"test"}}
    }
    task = task_of(tmp_path / "m.csv", "language", "split_sli")
    assert task.classes == ["de", "en", "es", "fr", "it", "ru"]
    assert {len(set(task.labels[task.rows(split)])) for split in SPLITS} == {6}
    assert len(task.clips[-1].load(RATE)) == 160  # flac


@pytest.mark.parametrize(
    ("archive", "speaker"),
    [
        ("Aaron-20080318-kdl", "aaron"),
        ("1028-20100710-hne", "1028"),
        ("ralfherzog-20071217-de1", "ralfherzog"),
        ("jean-marc-20090511a-_x", "jean-marc"),
        ("anonymous-20080425-byo", "anonymous"),
        ("Anonyme-20100101-fr", "anonymous"),
        ("anonimo-20100101-it", "anonymous"),
        ("testing", "anonymous"),
    ],
)
def test_the_name_of_an_archive_tells_its_user(archive, speaker):
    assert speaker_of(archive) == speaker


def test_a_session_at_two_rates_counts_once_and_packed_archives_are_named(voxforge, tmp_path, capsys):
    user = VOX_USERS[0]
    write_session(voxforge / f"en/Trunk/Audio/Main/8kHz_16bit/{user}-20080318-kdl")
    table = manifest_of("voxforge", voxforge, tmp_path / "m/m.csv", "speaker-disjoint", {"languages": 6})
    assert len(table) == 6 * 5 * 2
    assert not table.index.str.contains("8kHz_16bit").any()
    write_text(voxforge / f"en/Trunk/{user}-20080318-kdl.tgz", "unpacked already")
    write_text(voxforge / "de/Trunk/guenter-20090101-aaa.tgz", "not yet")
    error = refuse("voxforge", voxforge, tmp_path / "m.csv", capsys)
    assert "archives of de that are not unpacked, 1: guenter-20090101-aaa." in error
    (voxforge / "ru").rename(tmp_path / "elsewhere")
    assert "voxforge/ru is not there" in refuse("voxforge", voxforge, tmp_path / "m.csv", capsys)


# --- Kathbath --------------------------------------------------------------------------------------------------------

KATHBATH_LANGUAGES = ["bengali", "gujarati", "hindi", "kannada", "malayalam", "marathi"]
KATHBATH_LANGUAGES += ["odia", "punjabi", "sanskrit", "tamil", "telugu", "urdu"]


@pytest.fixture
def kathbath(tmp_path) -> Path:
    """Two speakers per language, with the same numbers in all; below them IndicSUPERB's folder of a speaker, or none."""
    root = tmp_path / "kb_data_clean_wav"
    for language in KATHBATH_LANGUAGES:
        for folder, clips in (("train", 12), ("valid", 1), ("test_known", 1), ("test_unknown", 1)):
            for speaker in ("594-f", "973-m") if folder != "test_unknown" else ("12-m",):
                for clip in range(clips):
                    below = f"audio/{speaker[:3]}/" if language == "hindi" else ""
                    write_wav(root / f"{language}/{folder}/{below}8444249315{clip:05d}{len(folder)}-{speaker}.wav")
        write_text(root / f"{language}/train/transcription_n2w.txt", "844424931500000 -")
    return root


def test_kathbath_identifies_speakers_by_indicsuperbs_folders(kathbath, tmp_path):
    table = manifest_of("kathbath", kathbath, tmp_path / "m.csv", "official", {"languages": 12, "speakers": 24})
    assert table["split_sid"].value_counts().to_dict() == {"train": 12 * 24, "validation": 24, "test": 24}
    assert table.loc["kb_data_clean_wav/hindi/test_known/audio/594/84442493150000010-594-f.wav"].to_dict() == {
        **{"language": "hi", "speaker_id": "hi-594", "gender": "female", "split_sid": "test"},
        **{"corpus": "kathbath", "protocol": "official"},
    }
    task = task_of(tmp_path / "m.csv", "speaker_id", "split_sid", disjoint_by=None)
    assert len(task.classes) == 24
    assert all(set(task.labels[task.rows(split)]) == set(task.classes) for split in SPLITS)


def test_kathbath_without_its_test_part_tests_a_tenth_of_train(kathbath, tmp_path):
    for language in KATHBATH_LANGUAGES:
        (kathbath / language / "test_known").rename(tmp_path / f"{language}_test")
    table = manifest_of("kathbath", kathbath, tmp_path / "m.csv", "train-valid", {"languages": 12})
    for name, row in table.iterrows():
        train = "/train/" in name
        expected = "test" if train and share_of(Path(name).stem) < 0.1 else "train" if train else "validation"
        assert row["split_sid"] == expected
    assert 0 < (table["split_sid"] == "test").sum() < 100


def break_kathbath(root: Path, fault: str) -> None:
    if fault == "missing folder":
        (root / "odia/valid").rename(root.parent / "elsewhere")
    elif fault == "strange name":
        write_wav(root / "tamil/train/recording.wav")
    elif fault == "stranger":
        write_wav(root / "urdu/test_known/84442493150009910-77-m.wav")
    elif fault == "packed":
        for path in (root / "urdu/valid").iterdir():
            path.rename(path.with_suffix(".m4a"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing folder", "kb_data_clean_wav/odia/valid is not there"),
        ("strange name", "names that are not of the form ID-SPEAKER-GENDER.wav, 1: tamil/train/recording.wav"),
        ("stranger", "speakers without a training clip, 1: ur-77"),
        (
            "packed",
            "kb_data_clean_wav/urdu/valid has 2 m4a files only; make wav of them with IndicSUPERB's utilities/structure.py",
        ),
    ],
)
def test_a_faulty_kathbath_is_refused_with_what_is_wrong(kathbath, tmp_path, capsys, fault, message):
    break_kathbath(kathbath, fault)
    assert message in refuse("kathbath", kathbath, tmp_path / "m.csv", capsys)


def test_a_speaker_whom_training_does_not_know_is_left_out_of_a_partial_kathbath(kathbath, tmp_path):
    break_kathbath(kathbath, "stranger")
    table = manifest_of("kathbath", kathbath, tmp_path / "m.csv", "official", {}, allow_partial=True)
    assert set(table["split_sid"][table["speaker_id"] == "ur-77"]) == {""}
    task_of(tmp_path / "m.csv", "speaker_id", "split_sid", disjoint_by=None)


# --- CN-Celeb1 -------------------------------------------------------------------------------------------------------

CN_SPEAKERS = [named("id00{0:03d}", 0.2, 0.9), named("id00{0:03d}", 0.01, 0.09)]  # trains, validates
CN_TRIALS = [
    "id00800-enroll test/id00800-singing-01-002.wav 1",
    "id00800-enroll test/id00801-interview-02-011.wav 0",
    "id00801-enroll test/id00800-singing-01-002.wav 0",
    "id00801-enroll test/id00801-interview-02-011.wav 1",
]


@pytest.fixture
def cnceleb(tmp_path) -> Path:
    """Two development and two evaluation speakers; flac on disk and wav in the lists, as in the archive."""
    root = tmp_path / "CN-Celeb_flac"
    for speaker in [*CN_SPEAKERS, "id00800", "id00801"]:
        for number in (1, 2):
            write_wav(root / f"data/{speaker}/singing-01-{number:03d}.flac")
    for speaker, clip in (("id00800", "singing-01-002"), ("id00801", "interview-02-011")):
        write_wav(root / f"eval/enroll/{speaker}-enroll.flac")
        write_wav(root / f"eval/test/{speaker}-{clip}.flac")
    write_text(root / "dev/dev.lst", *CN_SPEAKERS)
    write_text(root / "eval/lists/enroll.lst", *(f"{s}-enroll enroll/{s}-enroll.wav" for s in ("id00800", "id00801")))
    write_text(root / "eval/lists/trials.lst", *CN_TRIALS)
    return root


CN_COUNTS = {"enrolment": 2, "test clips": 2, "trials": 4, "development speakers": 2}


def test_cnceleb_gives_a_manifest_and_trials_that_fit_it(cnceleb, tmp_path):
    table = manifest_of("cnceleb1", cnceleb, tmp_path / "lists/m.csv", "official", CN_COUNTS)
    prefix = "../CN-Celeb_flac"
    assert table.loc[f"{prefix}/eval/enroll/id00801-enroll.flac"].to_dict() == {
        **{"speaker_id": "id00801", "split_sv": "test", "enrolment_id": "id00801-enroll"},
        **{"corpus": "cnceleb1", "protocol": "official"},
    }
    assert len(table) == 8  # four development clips; what data/ has of the evaluation speakers is not used
    splits = table.groupby("speaker_id")["split_sv"].agg(set).to_dict()
    assert splits == {CN_SPEAKERS[0]: {"train"}, CN_SPEAKERS[1]: {"validation"}, "id00800": {"test"}, "id00801": {"test"}}
    trials = pd.read_csv(tmp_path / "lists/m_trials.csv", dtype=str)
    tests = [f"{prefix}/eval/test/id00800-singing-01-002.flac", f"{prefix}/eval/test/id00801-interview-02-011.flac"]
    assert trials.columns.tolist() == ["label", "enrolment", "test"]
    assert trials["label"].tolist() == ["1", "0", "0", "1"]
    assert trials["test"].tolist() == tests * 2
    assert trials["enrolment"].tolist() == ["id00800-enroll"] * 2 + ["id00801-enroll"] * 2
    assert set(trials["test"]) <= set(table.index)
    assert set(trials["enrolment"]) == set(table["enrolment_id"]) - {""}
    assert (tmp_path / "lists" / tests[0]).is_file()


def test_the_command_names_both_files_of_a_verification_corpus(cnceleb, tmp_path, capsys):
    arguments = ["cnceleb1", "--root", str(cnceleb), "--out", str(tmp_path / "m.csv"), "--allow_partial"]
    assert main(arguments) == 3
    output = capsys.readouterr()
    assert f"m.csv and {tmp_path}/m_trials.csv: 8 clips of CN-Celeb1 (enrolment 2, test clips 2, trials 4, " in output.out
    assert "trials: 4 instead of 3,484,292" in output.err


def break_cnceleb(root: Path, fault: str) -> None:
    lists = root / "eval/lists"
    if fault == "missing list":
        (lists / "trials.lst").unlink()
    elif fault == "missing test clip":
        (root / "eval/test/id00801-interview-02-011.flac").unlink()
    elif fault == "missing enrolment":
        (root / "eval/enroll/id00801-enroll.flac").unlink()
    elif fault == "malformed trial":
        append(lists / "trials.lst", "id00800-enroll test/id00800-singing-01-002.wav target")
    elif fault == "malformed enrolment":
        append(lists / "enroll.lst", "id00802-enroll ../id00802-enroll.wav")
    elif fault == "malformed speaker":
        append(root / "dev/dev.lst", "../id00010")
    elif fault == "duplicate trial":
        append(lists / "trials.lst", CN_TRIALS[1].replace(" 0", " 1"))
    elif fault == "duplicate enrolment":
        append(lists / "enroll.lst", "id00801-enroll enroll/id00801-enroll.wav")
    elif fault == "speaker in two splits":
        append(root / "dev/dev.lst", "id00800")
    elif fault == "lost speakers":
        append(root / "dev/dev.lst", *(f"id0090{number}" for number in range(4)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing list", "eval/lists/trials.lst is not there"),
        ("missing test clip", "trials.lst names models or clips that are not there, 1: test/id00801-interview-02-011"),
        ("missing enrolment", "enroll.lst names models without their clip, 1: id00801-enroll; "),
        ("malformed trial", "trials.lst: the line 'id00800-enroll test/id00800-singing-01-002.wav target' is not of the form"),
        ("malformed enrolment", "enroll.lst: the line 'id00802-enroll ../id00802-enroll.wav' is not of the form"),
        ("malformed speaker", "dev.lst: the line '../id00010' is not a speaker"),
        ("duplicate trial", "trials.lst: id00800-enroll eval/test/id00801-interview-02-011.flac is listed twice"),
        ("duplicate enrolment", "enroll.lst: id00801-enroll is listed twice"),
        ("speaker in two splits", "CN-Celeb_flac: speakers are in two splits, 1: id00800"),
        ("lost speakers", "dev/dev.lst names speakers without a clip, 4: id00900, id00901, id00902, ..."),
        ("few trials", "enrolment: 2 instead of 196; test clips: 2 instead of 17,777; trials: 4 instead of 3,484,292"),
    ],
)
def test_a_faulty_cnceleb_is_refused_with_what_is_wrong(cnceleb, tmp_path, capsys, fault, message):
    break_cnceleb(cnceleb, fault)
    assert message in refuse("cnceleb1", cnceleb, tmp_path / "m.csv", capsys)


def test_a_partial_cnceleb_keeps_the_trials_whose_sides_are_there(cnceleb, tmp_path):
    break_cnceleb(cnceleb, "missing enrolment")
    manifest_of("cnceleb1", cnceleb, tmp_path / "m.csv", "official", CN_COUNTS, allow_partial=True)
    assert pd.read_csv(tmp_path / "m_trials.csv")["enrolment"].tolist() == ["id00800-enroll"] * 2


# --- TIMIT -----------------------------------------------------------------------------------------------------------

SENTENCES = ["SA1", "SA2", "SI1027", "SI1657", "SI648", "SX117", "SX127", "SX217", "SX307", "SX397"]
TIMIT_TRAIN = [f"M{code}" for code in ("CPM0", "DAC0", "DPK0", "EDR0", "GRL0", "JEB1", "JWT0", "KLS0", "KLW0", "MGG0")]
TIMIT_INFO = [
    "; SPKRINFO.TXT, a table of the speakers",
    ";ID  Sex DR Use  RecDate   BirthDate  Ht    Race Edu  Comments",
    "FDW0  F  1  TRN  01/08/86  ??/??/??  5'07\"  WHT  BS",
    "DAB0  M  1  TST  03/03/86  06/17/60  5'11\"  WHT  BS",
    "CMM0  F  8  TST  02/05/86  02/31/50  ?     ???  ??   Slight cold, parents from Ohio",
    *(f"{speaker[1:]}  M  1  TRN  01/27/86  01/27/56  6'00\"  BLK  MS" for speaker in TIMIT_TRAIN),
]


def write_speaker(folder: Path) -> None:
    for sentence in SENTENCES:
        write_wav(folder / f"{sentence}.WAV")
        write_text(folder / f"{sentence}.TXT", "0 160 She had your dark suit in greasy wash water all year.")


@pytest.fixture
def timit(tmp_path) -> Path:
    """Ten men and a woman of New England to train on, a man of there and a woman from an army family to test."""
    root = tmp_path / "TIMIT"
    for speaker in [*TIMIT_TRAIN, "FFDW0"]:
        write_speaker(root / f"TRAIN/DR1/{speaker}")
    write_speaker(root / "TEST/DR1/MDAB0")
    write_speaker(root / "TEST/DR8/FCMM0")
    write_text(root / "DOC/SPKRINFO.TXT", *TIMIT_INFO)
    return root


TIMIT_COUNTS = {"clips": 130, "speakers": 13, "test": 20, "speakers with an age": 11}


def test_timits_official_split_holds_its_test_speakers_and_a_tenth_of_the_training_speakers_out(timit, tmp_path):
    table = manifest_of("timit", timit, tmp_path / "m.csv", "official", TIMIT_COUNTS)
    row = table.loc["TIMIT/TEST/DR1/MDAB0/SX397.WAV"]
    assert row.to_dict() == {
        **{"speaker_id": "MDAB0", "gender": "male", "dialect": "New England", "age": "25.71"},
        **{"split_sgr": "test", "split_sar": "test", "split_sdr": "test", "corpus": "timit", "protocol": "official"},
    }
    assert float(row["age"]) == pytest.approx((25 * 365 + 6 + 259) / 365.25, abs=0.005)  # 6 leap days, 17 June to 3 March
    validating = min(TIMIT_TRAIN, key=share_of)
    assert set(table["speaker_id"][table["split_sgr"] == "validation"]) == {validating}
    assert set(table["speaker_id"][table["split_sgr"] == "train"]) == {*TIMIT_TRAIN, "FFDW0"} - {validating}
    assert table["dialect"][table["speaker_id"] == "FCMM0"].unique().tolist() == ["Army Brat"]
    ages = table.groupby("speaker_id")["age"].agg(set)
    assert ages["FFDW0"] == ages["FCMM0"] == {""}  # not known; no calendar has the 31st of February
    assert ages["MKLW0"] == {"30"}
    gender = task_of(tmp_path / "m.csv", "gender", "split_sgr")
    assert [len(gender.rows(split)) for split in SPLITS] == [100, 10, 20]
    assert len(gender.clips[0].load(RATE)) == 160  # NIST's SPHERE


def test_timits_guessed_split_tests_one_sentence_of_every_speaker(timit, tmp_path):
    table = manifest_of("timit", timit, tmp_path / "m.csv", "paper-guess", {**TIMIT_COUNTS, "test": 13})
    tested = table[table["split_sdr"] == "test"]
    assert sorted(tested["speaker_id"]) == sorted(table["speaker_id"].unique())
    assert set(tested.index.map(lambda name: Path(name).stem)) == {"SX397"}
    assert set(table.index[table["split_sdr"] == "validation"].map(lambda name: Path(name).stem)) == {"SI648"}
    with pytest.raises(ValueError, match="occur in both train and validation"):
        task_of(tmp_path / "m.csv", "dialect", "split_sdr")
    task_of(tmp_path / "m.csv", "dialect", "split_sdr", disjoint_by=None)


def test_timit_may_be_written_in_lower_case(timit, tmp_path):
    for path in sorted(timit.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.lower()))
    table = manifest_of("timit", timit, tmp_path / "m.csv", "official", TIMIT_COUNTS)
    assert table.loc["TIMIT/test/dr8/fcmm0/sa1.wav", "speaker_id"] == "FCMM0"


def break_timit(root: Path, fault: str) -> None:
    info = root / "DOC/SPKRINFO.TXT"
    if fault == "missing list":
        info.unlink()
    elif fault == "malformed line":
        append(info, "ABC0  M  6  TRAIN  03/03/86  06/17/60  5'11\"  WHT  BS")
    elif fault == "duplicate":
        append(info, TIMIT_INFO[3])
    elif fault == "unlisted":
        write_text(info, *TIMIT_INFO[:3], *TIMIT_INFO[4:])
    elif fault == "speaker in two splits":
        write_speaker(root / "TRAIN/DR1/MDAB0")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing list", "DOC/SPKRINFO.TXT is not there"),
        ("malformed line", "SPKRINFO.TXT: the line 'ABC0 M 6 TRAIN 03/03/86"),
        ("duplicate", "SPKRINFO.TXT: DAB0 is listed twice"),
        ("unlisted", "SPKRINFO.TXT lacks speakers, 1: DAB0"),
        ("speaker in two splits", "TIMIT: speakers are in two splits, 1: MDAB0"),
        ("few clips", "clips: 130 instead of 6,300; speakers: 13 instead of 630; test: 20 instead of 1,680"),
    ],
)
def test_a_faulty_timit_is_refused_with_what_is_wrong(timit, tmp_path, capsys, fault, message):
    break_timit(timit, fault)
    assert message in refuse("timit", timit, tmp_path / "m.csv", capsys)


# --- AESDD -----------------------------------------------------------------------------------------------------------


def emobox_line(name: str) -> str:
    emotion, clip = name.split("/")
    row = {"key": f"aesdd-{clip[:3]}", "dataset": "aesdd", "wav": f"downloads/aesdd/{name}", "emo": emotion[0], "channel": 1}
    return json.dumps(row)


@pytest.fixture
def aesdd(tmp_path) -> Path:
    """Five emotions, four sentences, six actors, once in two takes; EmoBox's lists test the fourth sentence."""
    root = tmp_path / "Acted Emotional Speech Dynamic Database"
    names = [
        f"{emotion}/{emotion[0]}{sentence:02d} ({actor}).wav"
        for emotion in ("anger", "disgust", "fear", "happiness", "sadness")
        for sentence in range(1, 5)
        for actor in range(1, 7)
    ]
    names[names.index("fear/f02 (1).wav")] = "fear/f02 (01).wav"
    names.append("sadness/s02 (5)b.wav")
    for name in names:
        write_wav(root / name)
    for split in ("train", "test"):
        listed = [emobox_line(name) for name in names if ("04 (" in name) == (split == "test")]
        write_text(root / f"fold_1/aesdd_{split}_fold_1.jsonl", *listed)
    return root


def test_aesdds_actors_are_kept_apart(aesdd, tmp_path):
    table = manifest_of("aesdd", aesdd, tmp_path / "m.csv", "speaker-disjoint", {"emotions": 5, "speakers": 6})
    assert table.loc["Acted Emotional Speech Dynamic Database/sadness/s02 (5)b.wav", ["emotion", "speaker_id"]].tolist() == [
        "sadness",
        "5",
    ]
    assert table.loc["Acted Emotional Speech Dynamic Database/fear/f02 (01).wav", "speaker_id"] == "1"
    order = sorted("123456", key=share_of)
    speakers = table.groupby("split_er")["speaker_id"].agg(set).to_dict()
    assert speakers == {"test": set(order[:2]), "validation": {order[2]}, "train": set(order[3:])}
    task = task_of(tmp_path / "m.csv", "emotion", "split_er")
    assert task.classes == ["anger", "disgust", "fear", "happiness", "sadness"]


def test_aesdds_guessed_split_is_that_of_emoboxs_lists(aesdd, tmp_path):
    (aesdd / "anger/a21 (1).wav").write_bytes((aesdd / "anger/a01 (1).wav").read_bytes())  # in neither list
    table = manifest_of("aesdd", aesdd, tmp_path / "m.csv", "paper-guess", {"emotions": 5, "test": 30}).reset_index()
    name = table["file_name"].str.removeprefix("Acted Emotional Speech Dynamic Database/")
    expected = np.select(
        [name == "anger/a21 (1).wav", name.str.contains(r"04 \("), name.map(share_of) < 0.1],
        ["", "test", "validation"],
        "train",
    )
    assert table["split_er"].tolist() == expected.tolist()
    assert 0 < (expected == "validation").sum() < 30
    task_of(tmp_path / "m.csv", "emotion", "split_er", disjoint_by=None)


def break_aesdd(root: Path, fault: str) -> None:
    lists = root / "fold_1"
    if fault == "missing emotion":
        (root / "fear").rename(root.parent / "elsewhere")
    elif fault == "strange name":
        write_wav(root / "fear/a01 (1).wav")
    elif fault == "missing list":
        (lists / "aesdd_test_fold_1.jsonl").unlink()
    elif fault == "missing file":
        (root / "fear/f04 (3).wav").unlink()
    elif fault == "malformed line":
        append(lists / "aesdd_test_fold_1.jsonl", '{"key": "aesdd-a06-5b"}')
    elif fault == "duplicate":
        append(lists / "aesdd_test_fold_1.jsonl", emobox_line("fear/f01 (3).wav"))


@pytest.mark.parametrize(
    ("protocol", "fault", "message"),
    [
        ("speaker-disjoint", "missing emotion", "Database/fear is not there"),
        ("speaker-disjoint", "strange name", "names that are not of the form x01 (2).wav, 1: fear/a01 (1).wav"),
        ("paper-guess", "missing list", "fold_1/aesdd_test_fold_1.jsonl is not there"),
        ("paper-guess", "missing file", "the lists name clips that are not there, 1: fear/f04 (3).wav"),
        (
            "paper-guess",
            "malformed line",
            'aesdd_test_fold_1.jsonl: the line \'{"key": "aesdd-a06-5b"}\' is not a JSON object',
        ),
        ("paper-guess", "duplicate", "aesdd_test_fold_1.jsonl: fear/f01 (3).wav is listed twice, or in both lists"),
        ("paper-guess", "few clips", "test: 30 instead of 149"),
    ],
)
def test_a_faulty_aesdd_is_refused_with_what_is_wrong(aesdd, tmp_path, capsys, protocol, fault, message):
    break_aesdd(aesdd, fault)
    assert message in refuse("aesdd", aesdd, tmp_path / "m.csv", capsys, "--protocol", protocol)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixture", "name", "split", "counts"),
    [
        ("fluent", "fluent_speech_commands", "split_ic", FSC_COUNTS),
        ("voxforge", "voxforge", "split_sli", {}),
        ("cnceleb", "cnceleb1", "split_sv", {}),
        ("timit", "timit", "split_sgr", {}),
        ("aesdd", "aesdd", "split_er", {}),
    ],
)
def test_the_default_protocol_keeps_speakers_apart_and_is_repeatable(request, tmp_path, fixture, name, split, counts):
    root, default = request.getfixturevalue(fixture), next(iter(CORPORA[name].facts.protocols))
    first = manifest_of(name, root, tmp_path / "first.csv", default, counts)
    speakers = first[first[split] != ""].groupby(split)["speaker_id"].agg(set)
    assert set(speakers.index) == set(SPLITS)
    assert sum(map(len, speakers)) == len(set().union(*speakers))
    manifest_of(name, root, tmp_path / "second.csv", default, counts)
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()
    assert table_of(tmp_path / "first.csv")["corpus"].unique().tolist() == [name]


@pytest.mark.parametrize(
    ("fixture", "task"),
    [
        *[("voxforge", "language"), ("kathbath", "speaker"), ("cnceleb", "verification"), ("aesdd", "emotion")],
        *[("timit", "gender"), ("timit", "age"), ("fluent", "intent"), ("football", "keyword")],
    ],
)
def test_the_tasks_of_the_paper_read_their_corpora(request, tmp_path, fixture, task):
    root, benchmark = request.getfixturevalue(fixture), TASKS[task].benchmark
    manifest_of(benchmark.corpus, root, tmp_path / "m.csv", benchmark.protocol, {}, allow_partial=True)
    definition = TASKS[task] if fixture != "football" else replace(TASKS[task], disjoint_by=None)
    data = load_task(definition, [tmp_path / "m.csv"], tmp_path / "m_trials.csv" if task == "verification" else None)
    assert all(len(data.table.rows(split)) for split in SPLITS)
    if task == "verification":
        assert (len(data.trials.labels), int(data.trials.labels.sum()), len(data.trials.enrolments)) == (4, 2, 2)


def test_help_lists_every_corpus_with_its_protocols(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for corpus in CORPORA.values():
        assert f"  {corpus.facts.name}: {corpus.layout}" in text
        assert all(f"    {name}: {words}" in text for name, words in corpus.facts.protocols.items())
