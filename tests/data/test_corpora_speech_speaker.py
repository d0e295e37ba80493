"""Corpora of speech and speaker recognition: miniatures in the official layouts; trials as an evaluation reads them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest

from wavcse.data.corpora import CORPORA, voxceleb2
from wavcse.data.corpora.hub5_2000 import normalised
from wavcse.eval.task import load_task
from wavcse.eval.tasks import TASKS
from wavcse.tests.helpers.corpus_trees import manifest_of, refuse, write_text, write_wav

# --- LibriSpeech -----------------------------------------------------------------------------------------------------

READERS = {"19": ("F", "train-clean-100"), "26": ("M", "train-clean-360"), "32": ("F", "train-other-500")}
READERS |= {"116": ("M", "dev-other"), "367": ("F", "test-other"), "533": ("F", "test-other"), "700": ("M", "test-other")}
BOOKS = {"367-1": "90", "367-2": "91", "367-3": "91", "533-4": "90", "700-5": "92"}  # of the chapters of test-other
LIBRI_COUNTS = {"train": 3, "validation": 1, "test": 10, "speakers": 7}


@pytest.fixture
def librispeech(tmp_path) -> Path:
    """Three readers train, one validates, three are tested; one of them reads two chapters of one book and one of another."""
    root = tmp_path / "LibriSpeech"
    chapters = {
        f"{reader}-{100 + number}": "77" for number, reader in enumerate(READERS) if READERS[reader][1] != "test-other"
    }
    for name, book in (chapters | BOOKS).items():
        reader, chapter = name.split("-")
        folder = root / READERS[reader][1] / reader / chapter
        clips = [f"{name}-{number:04d}" for number in range(2 if book != "77" else 1)]
        for clip in clips:
            write_wav(folder / f"{clip}.flac")
        write_text(folder / f"{name}.trans.txt", *(f"{clip} THE {reader}TH READER'S WORDS" for clip in clips))
    speakers = [f"{reader:<5}| {sex} | {subset:<17}| 25.1 | Somebody" for reader, (sex, subset) in READERS.items()]
    write_text(root / "SPEAKERS.TXT", "; ID  |SEX| SUBSET |MINUTES| NAME", *speakers)
    lines = [
        f"{name.split('-')[1]:<7}|{name.split('-')[0]:<7}| 2.0 | x | 1 | {book} | A chapter | A book"
        for name, book in (chapters | BOOKS).items()
    ]
    write_text(root / "CHAPTERS.TXT", ";ID    |READER |MINUTES| SUBSET |PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE", *lines)
    return root


def test_librispeech_has_texts_and_trials_across_books_within_genders(librispeech, tmp_path):
    table = manifest_of("librispeech", librispeech, tmp_path / "m.csv", "other", LIBRI_COUNTS)
    assert table["split_asr"].value_counts().to_dict() == {"train": 3, "validation": 1, "test": 10}
    assert table["split_asr"].tolist() == table["split_sv"].tolist()
    assert table["split_sid"].tolist() == ["train" if split == "train" else "" for split in table["split_sv"]]
    row = table.loc["LibriSpeech/test-other/367/1/367-1-0001.flac"]
    assert row[["speaker_id", "gender", "session", "subset"]].tolist() == ["367", "female", "90", "test-other"]
    assert row["text"] == "THE 367TH READER'S WORDS"
    test = table[table["split_sv"] == "test"].reset_index()
    expected = {
        (int(one.speaker_id == other.speaker_id), one.file_name, other.file_name)
        for one, other in combinations(test.itertuples(), 2)
        if (one.session != other.session if one.speaker_id == other.speaker_id else one.gender == other.gender)
    }
    trials = pd.read_csv(tmp_path / "m_trials.csv")
    assert set(trials.itertuples(index=False, name=None)) == expected
    assert trials["label"].sum() == 8  # the two clips of the one book by the four of the other
    data = load_task(TASKS["verification"], [tmp_path / "m.csv"], trials=tmp_path / "m_trials.csv")
    assert len(data.trials.labels) == len(trials)
    assert set(load_task(TASKS["transcription"], [tmp_path / "m.csv"]).labels) == set(table["text"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("clip", "texts name clips that are not there, 1: 533-4-0000"),
        ("speaker", "lack what the folders have, 1: speaker 700"),
        ("line", "the line '533-4-0002' is not as LibriSpeech writes it"),
        ("subset", "dev-other is not there"),
        ("count", "train: 3 instead of 281,241"),
    ],
)
def test_a_faulty_librispeech_is_refused_with_what_is_wrong(librispeech, tmp_path, capsys, fault, message):
    if fault == "clip":
        (librispeech / "test-other/533/4/533-4-0000.flac").unlink()
    if fault == "speaker":
        lines = (librispeech / "SPEAKERS.TXT").read_text().splitlines()
        write_text(librispeech / "SPEAKERS.TXT", *(line for line in lines if not line.startswith("700")))
    if fault == "line":
        with open(librispeech / "test-other/533/4/533-4.trans.txt", "a") as file:
            file.write("533-4-0002\n")
    if fault == "subset":
        (librispeech / "dev-other").rename(librispeech / "dev-another")
    assert message in refuse("librispeech", librispeech, tmp_path / "m.csv", capsys)


# --- VoxCeleb1's trials ----------------------------------------------------------------------------------------------

UTTERANCES = [f"id1{number:04d}/video{take}/00001.wav" for number in range(12) for take in range(2)]
TRIALS = [(1, 0, 1), (0, 0, 3), (1, 2, 3), (0, 2, 0)]  # label and utterances; the first two speakers are tested


@pytest.fixture
def voxceleb(tmp_path) -> Path:
    for name in UTTERANCES:
        write_wav(tmp_path / "vox/wav" / name)
    lines = [f"{label} {UTTERANCES[one]} {UTTERANCES[other]}" for label, one, other in TRIALS]
    for name in ("veri_test2.txt", "list_test_hard2.txt"):
        write_text(tmp_path / "vox" / name, *lines)
    return tmp_path / "vox"


def test_the_trials_of_voxceleb1_are_its_lists(voxceleb, tmp_path):
    counts = {"trials": 4, "test speakers": 2}
    table = manifest_of("voxceleb1", voxceleb, tmp_path / "o.csv", "verification-o", counts)
    tested = table[table["split_sv"] == "test"]
    assert sorted(tested.index) == [f"vox/wav/{name}" for name in UTTERANCES[:4]]
    assert set(table["split_sv"]) <= {"train", "validation", "test"}
    assert len(table) == 24
    assert table.groupby("speaker_id")["split_sv"].nunique().max() == 1
    trials = pd.read_csv(tmp_path / "o_trials.csv")
    assert trials["label"].tolist() == [1, 0, 1, 0]
    assert trials["test"].tolist() == [f"vox/wav/{UTTERANCES[other]}" for _, _, other in TRIALS]
    hard = manifest_of("voxceleb1", voxceleb, tmp_path / "h.csv", "verification-h", counts)
    assert hard.index.tolist() == tested.index.tolist()
    assert set(hard["session"]) == {"video0", "video1"}


def test_faulty_trials_of_voxceleb1_are_refused(voxceleb, tmp_path, capsys):
    protocol = ("--protocol", "verification-o")
    assert "trials: 4 instead of 37,611; test speakers: 2 instead of 40" in refuse(
        "voxceleb1", voxceleb, tmp_path / "m.csv", capsys, *protocol
    )
    (voxceleb / "wav" / UTTERANCES[0]).unlink()
    assert f"not there, 1: {UTTERANCES[0]}" in refuse("voxceleb1", voxceleb, tmp_path / "m.csv", capsys, *protocol)
    write_text(voxceleb / "veri_test2.txt", "2 a b")
    assert "is not of the form" in refuse("voxceleb1", voxceleb, tmp_path / "m.csv", capsys, *protocol)
    assert "list_test_all2.txt is not there" in refuse(
        "voxceleb1", voxceleb, tmp_path / "m.csv", capsys, "--protocol", "verification-e"
    )


# --- VoxCeleb2 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def voxceleb_2(tmp_path, monkeypatch) -> Path:
    """Twelve speakers with six videos each; one woman and one man are held out, half of the videos may validate."""
    monkeypatch.setattr(voxceleb2, "HELD_OUT", 2)
    monkeypatch.setattr(voxceleb2, "VALIDATION_SHARE", 0.5)
    root, lines = tmp_path / "vox2", ["VoxCeleb2 ID\tVGGFace2 ID\tGender\tSet"]
    for number in range(12):
        lines.append(f"id{number:05d}\tn{number:06d}\t{'fm'[number % 2]}\tdev")
        for video in range(6):
            write_wav(root / f"dev/wav/id{number:05d}/video{video}/00001.wav")
    write_text(root / "vox2_meta.csv", *lines, "id90000\tn900000\tf\ttest")
    return root


VOX2_COUNTS = {"speakers": 12, "videos": 72, "utterances": 72, "held out": 4}


def test_voxceleb2_holds_speakers_out_and_lets_at_most_two_videos_of_the_others_validate(voxceleb_2, tmp_path):
    table = manifest_of("voxceleb2", voxceleb_2, tmp_path / "m.csv", "speech-speaker-mtl", VOX2_COUNTS)
    held = table[table["split_sv"] == "test"]
    assert held.groupby("gender")["speaker_id"].nunique().to_dict() == {"female": 2, "male": 2}
    assert set(held["split_sid"]) == {""}
    others = table[table["split_sv"] == "train"]
    assert set(others["speaker_id"]).isdisjoint(held["speaker_id"])
    validating = others[others["split_sid"] == "validation"].groupby("speaker_id")["session"].nunique()
    assert validating.max() == 2
    assert set(others.loc[others["split_sid"] == "train", "speaker_id"]) == set(others["speaker_id"])
    trials = pd.read_csv(tmp_path / "m_trials.csv")
    one, other = held.loc[trials["enrolment"]], held.loc[trials["test"]]
    same = trials["label"].to_numpy() == 1
    assert same.sum() == 4 * 15
    assert (~same).sum() == 2 * 36  # two speakers of each gender
    assert (one["session"].to_numpy() != other["session"].to_numpy())[same].all()
    assert (one["gender"].to_numpy() == other["gender"].to_numpy())[~same].all()


def test_a_faulty_voxceleb2_is_refused(voxceleb_2, tmp_path, capsys):
    assert "speakers: 12 instead of 5,994" in refuse("voxceleb2", voxceleb_2, tmp_path / "m.csv", capsys)
    (voxceleb_2 / "dev/wav/id00003").rename(voxceleb_2 / "dev/wav/elsewhere")
    assert "without an utterance, 1: id00003" in refuse("voxceleb2", voxceleb_2, tmp_path / "m.csv", capsys)
    write_text(voxceleb_2 / "vox2_meta.csv", "ids", "id1 x")
    assert "is not of the form 'id00012 n000007 m dev'" in refuse("voxceleb2", voxceleb_2, tmp_path / "m.csv", capsys)


# --- HUB5 2000 -------------------------------------------------------------------------------------------------------

STM = (
    ';; CATEGORY "0" "" ""',
    "en_4156 A en_4156_A 0.00 0.50 <O,en,F,en-F> IGNORE_TIME_SEGMENT_IN_SCORING",
    "en_4156 A en_4156_A 0.50 0.90 <O,en,F,en-F>  (%HESITATION) HE'S A POLICE-OFFICER { GONNA / GOING TO } [NOISE] STA(Y)-",
    "en_4156 B en_4156_B 0.00 0.40 <O,en,M,en-M> <B_ASIDE> YEAH <E_ASIDE>",
    "sw_4390 A sw_4390_A 0.10 0.60 <O,sw,F,sw-F> [LAUGHTER]",
    "sw_4390 B sw_4390_B 0.10 0.60 <O,sw,F,sw-F> UH-HUH",
)


def test_hub5_is_cut_by_its_reference_and_keeps_words_only(tmp_path, capsys):
    root = tmp_path / "hub5"
    write_text(root / "reference/hub5e00.english.000405.stm", *STM)
    for side in ("en_4156_A", "en_4156_B", "sw_4390_A", "sw_4390_B"):
        write_wav(root / f"english/{side}.wav", 1.0)
    counts = {"conversations": 2, "sides": 4, "without words": 2, "test": 3}
    table = manifest_of("hub5_2000", root, tmp_path / "m.csv", "english", counts).reset_index()
    assert table["text"].tolist() == ["HE'S A POLICE OFFICER GONNA STA Y", "YEAH", "UH HUH"]
    assert table[["start", "end"]].iloc[0].tolist() == ["0.50", "0.90"]
    assert table["part"].tolist() == ["callhome", "callhome", "switchboard"]
    assert table["speaker_id"].tolist() == ["en_4156_A", "en_4156_B", "sw_4390_B"]
    assert "conversations: 2 instead of 40" in refuse("hub5_2000", root, tmp_path / "m.csv", capsys)
    (root / "english/sw_4390_B.wav").unlink()
    assert "not there, 1: sw_4390_B" in refuse("hub5_2000", root, tmp_path / "m.csv", capsys)


def test_what_is_left_of_words_are_the_characters_of_librispeech():
    assert normalised("it's (%hesitation) o'clock @ [cough] { wanna / want to } ' 1st") == "IT'S O'CLOCK WANNA ST"
    assert normalised("[laughter] (%hesitation)") == ""


# --- NIST SRE 2008 ---------------------------------------------------------------------------------------------------


def test_sre08_tries_models_by_nists_keys(tmp_path, capsys):
    root = tmp_path / "sre08"
    keys = root / "data/keys/NIST_SRE08_KEYS.v0.1"
    write_text(
        keys / "model-keys/NIST_SRE08_10sec.model.key", "model,gender,segment,pin", "1001,f,taaa:a,7", "1002,m,tbbb:b,8"
    )
    lines = ("1001,uaaa,a,target", "1001,ubbb,b,nontarget", "1002,ubbb,b,target", "1002,uccc,a,nontarget")
    write_text(keys / "trial-keys/NIST_SRE08_10sec-10sec.trial.key", "modelid,segment,channel,targettype", *lines)
    for side in ("taaa_a", "tbbb_b", "uaaa_a", "ubbb_b", "uccc_a", "spare_a"):
        write_wav(root / f"data/sides/{side}.wav")
    table = manifest_of("sre08", root, tmp_path / "m.csv", "10sec-10sec", {"models": 2, "clips": 5, "trials": 4})
    speakers = {name.split("/")[-1][:-4]: speaker for name, speaker in table["speaker_id"].items()}
    assert speakers == {"taaa_a": "7", "uaaa_a": "7", "tbbb_b": "8", "ubbb_b": "8", "uccc_a": "nobody-uccc_a"}
    assert set(table["split_sv"]) == {"test"}
    trials = pd.read_csv(tmp_path / "m_trials.csv")
    assert trials["label"].tolist() == [1, 0, 1, 0]
    assert trials["enrolment"].tolist() == [
        f"sre08/data/sides/{side}.wav" for side in ("taaa_a", "taaa_a", "tbbb_b", "tbbb_b")
    ]
    write_text(keys / "trial-keys/NIST_SRE08_10sec-10sec.trial.key", *lines, "1001,uddd,a,target")
    assert "not there, 1: uddd_a" in refuse("sre08", root, tmp_path / "m.csv", capsys)
    write_text(keys / "trial-keys/NIST_SRE08_10sec-10sec.trial.key", *lines, "1001,uaaa,c,target")
    assert "is not of the form 'MODEL,SEGMENT,a,target'" in refuse("sre08", root, tmp_path / "m.csv", capsys)


def test_all_of_them_are_offered_with_what_their_protocols_mean():
    for name in ("librispeech", "voxceleb2", "hub5_2000", "sre08"):
        assert set(CORPORA[name].counts) == set(CORPORA[name].facts.protocols)
