"""SLURP, CaFE, Common Voice and LibriSpeech's small protocol: miniatures in the official layouts, and with faults in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import pandas as pd
import pytest

from wavcse.data.corpora import CORPORA
from wavcse.data.corpora.__main__ import main
from wavcse.data.corpora.librispeech import SUBSETS
from wavcse.eval.task import load_task
from wavcse.eval.tasks import TASKS
from wavcse.tests.helpers.corpus_trees import manifest_of, refuse, table_of, write_text, write_wav

# --- SLURP -----------------------------------------------------------------------------------------------------------

SENTENCES = {  # list -> sentence, scenario, action, recordings
    "train": [
        ("event remaining mona tuesday", "calendar", "set", ["audio-1501754435-headset.flac", "audio-1501754435.flac"]),
        ("play the song", "play", "music", ["audio-1490018439.flac"]),
    ],
    "devel": [("what is next", "calendar", "set", ["audio-1490955536.flac"])],
    "test": [("siri, what's up", "general", "quirky", ["audio-1498566919.flac"])],
    "train_synthetic": [("play a song", "play", "music", ["a1.flac"])],
}
USERS = {"audio-1501754435-headset.flac": "MO-465", "audio-1501754435.flac": "MO-465", "audio-1490955536.flac": "FE-145"}


def slurp_line(sentence: str, scenario: str, action: str, files: list[str]) -> str:
    recordings = [{"file": name, "wer": 0.1, "ent_wer": 0.0, "status": "correct"} for name in files]
    about = {"slurp_id": 1, "sentence": sentence, "intent": f"{scenario}_other", "action": action, "scenario": scenario}
    return json.dumps({**about, "tokens": [], "recordings": recordings})


@pytest.fixture
def slurp(tmp_path) -> Path:
    """Five recordings of four sentences, of which metadata.json knows three speakers, and a synthetic one."""
    root = tmp_path / "slurp"
    for name, sentences in SENTENCES.items():
        write_text(root / f"dataset/slurp/{name}.jsonl", *(slurp_line(*own) for own in sentences))
        folder = root / ("audio/slurp_synth" if name == "train_synthetic" else "audio/slurp_real")
        for *_, files in sentences:
            for clip in files:
                write_wav(folder / clip)
    recordings = {name: {"usrid": user, "status": "correct"} for name, user in USERS.items()}
    about = {"7": {"sentence": "x", "recordings": {**recordings, "audio-1490018439.flac": {"status": "correct"}}}, "8": None}
    write_text(root / "dataset/slurp/metadata.json", json.dumps(about))
    return root


SLURP_COUNTS = {"train": 3, "validation": 1, "test": 1, "speakers": 2, "intents": 3, "of intents that nothing trains": 1}


def test_slurp_joins_scenario_and_action_and_takes_speakers_where_they_are_known(slurp, tmp_path):
    table = manifest_of("slurp", slurp, tmp_path / "m.csv", "official", SLURP_COUNTS)
    assert table.loc["slurp/audio/slurp_real/audio-1490955536.flac"].to_dict() == {
        **{"intent": "calendar_set", "text": "what is next", "scenario": "calendar", "action": "set"},
        **{"speaker_id": "FE-145", "split_ic": "validation", "corpus": "slurp", "protocol": "official"},
    }
    assert table["speaker_id"].tolist() == ["MO-465", "MO-465", "", "FE-145", ""]
    assert table["split_ic"].tolist() == ["train", "train", "train", "validation", ""]  # nothing trains general_quirky
    synthetic = manifest_of("slurp", slurp, tmp_path / "s.csv", "with-synthetic", {**SLURP_COUNTS, "train": 4})
    assert synthetic.loc["slurp/audio/slurp_synth/a1.flac", ["speaker_id", "split_ic"]].tolist() == ["synthetic", "train"]


@pytest.mark.parametrize("about", [None, {"recordings": {name: {"usrid": user} for name, user in USERS.items()}}])
def test_slurp_without_metadata_has_no_speakers_and_a_flat_one_is_read_too(slurp, tmp_path, about):
    (slurp / "dataset/slurp/metadata.json").unlink()
    if about:
        write_text(slurp / "dataset/slurp/metadata.json", json.dumps(about))
    table = manifest_of("slurp", slurp, tmp_path / "m.csv", "official", {**SLURP_COUNTS, "speakers": 2 if about else 0})
    assert set(table["speaker_id"]) == ({"MO-465", "FE-145", ""} if about else {""})


def test_the_intent_task_reads_slurp_whose_speakers_it_does_not_hold_apart(slurp, tmp_path):
    ((sentence, _, _, files),) = SENTENCES["test"]
    write_text(slurp / "dataset/slurp/test.jsonl", slurp_line(sentence, "calendar", "set", files))
    manifest_of("slurp", slurp, tmp_path / "m.csv", "official", {}, allow_partial=True)
    data = load_task(replace(TASKS["intent"], disjoint_by=None), [tmp_path / "m.csv"])
    assert data.table.classes == ["calendar_set", "play_music"]
    assert [len(data.table.rows(split)) for split in ("train", "validation", "test")] == [3, 1, 1]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("clip", "the lists name clips that are not there, 1: audio/slurp_real/audio-1498566919.flac"),
        ("list", "devel.jsonl is not there"),
        ("twice", "test.jsonl: audio-1490955536.flac is listed twice, or in two lists"),
        ("line", "is not a JSON object with a sentence, a scenario, an action and recordings"),
        ("way out", "is not a JSON object with a sentence, a scenario, an action and recordings"),
        ("metadata", "metadata.json: is not JSON"),
        ("count", "validation: 1 instead of 8,690; test: 1 instead of 13,078"),
    ],
)
def test_a_faulty_slurp_is_refused_with_what_is_wrong(slurp, tmp_path, capsys, fault, message):
    lists = slurp / "dataset/slurp"
    if fault == "clip":
        (slurp / "audio/slurp_real/audio-1498566919.flac").unlink()
    elif fault == "list":
        (lists / "devel.jsonl").unlink()
    elif fault == "twice":
        write_text(lists / "test.jsonl", slurp_line("what", "calendar", "query", ["audio-1490955536.flac"]))
    elif fault == "line":
        write_text(lists / "test.jsonl", json.dumps({"sentence": "what", "scenario": None, "action": "x", "recordings": []}))
    elif fault == "way out":
        write_text(lists / "test.jsonl", slurp_line("what", "calendar", "query", ["../../secret.flac"]))
    elif fault == "metadata":
        write_text(lists / "metadata.json", "{")
    assert message in refuse("slurp", slurp, tmp_path / "m.csv", capsys)


# --- CaFE ------------------------------------------------------------------------------------------------------------

FRENCH = {"Colère": "C", "Dégoût": "D", "Joie": "J", "Neutre": "N", "Peur": "P", "Surprise": "S", "Tristesse": "T"}
ENGLISH = {"C": "anger", "D": "disgust", "J": "happiness", "N": "neutral", "P": "fear", "S": "surprise", "T": "sadness"}


@pytest.fixture(scope="module")
def cafe(tmp_path_factory) -> Path:
    """All 936 names; the accents of folders decomposed, as some disks write them."""
    root = tmp_path_factory.mktemp("corpora") / "CaFE"
    for folder, letter in FRENCH.items():
        for place, intensity in [("", "0")] if letter == "N" else [("Faible", "1"), ("Fort", "2")]:
            for actor in range(1, 13):
                for sentence in range(1, 7):
                    name = f"{actor:02d}-{letter}-{intensity}-{sentence}.wav"
                    path = root / normalize("NFD", folder) / place / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"")  # names are all that is read
    return root


def test_cafe_is_read_by_the_names_of_its_clips_and_splits_its_actors(cafe, tmp_path):
    assert main(["cafe", "--root", str(cafe), "--out", str(tmp_path / "m.csv")]) == 0  # its own counts hold
    table = table_of(tmp_path / "m.csv")
    table["letter"] = [Path(name).name.split("-")[1] for name in table.index]
    assert (table["letter"].map(ENGLISH) == table["emotion"]).all()
    assert table["intensity"].value_counts().to_dict() == {"weak": 432, "strong": 432, "": 72}
    assert set(table["intensity"][table["emotion"] == "neutral"]) == {""}
    actors = table.drop_duplicates("speaker_id").set_index("speaker_id")
    assert actors["gender"].to_dict() == {f"{n:02d}": "male" if n % 2 else "female" for n in range(1, 13)}
    shares = actors.groupby(["split_er", "gender"]).size().to_dict()
    assert shares == {
        **{("test", "female"): 1, ("test", "male"): 1, ("validation", "female"): 1, ("validation", "male"): 1},
        **{("train", "female"): 4, ("train", "male"): 4},
    }
    assert table.groupby("speaker_id")["split_er"].nunique().max() == 1


def test_the_emotion_task_reads_cafe(tmp_path):
    for actor in range(1, 13):
        for name in (f"{actor:02d}-C-1-1.wav", f"{actor:02d}-N-1-1.wav"):  # some copies call neutral's intensity 1
            write_wav(tmp_path / "CaFE/x" / name)
    manifest_of("cafe", tmp_path / "CaFE", tmp_path / "m.csv", "speaker-disjoint", {})
    data = load_task(TASKS["emotion"], [tmp_path / "m.csv"])
    assert data.table.classes == ["anger", "neutral"]
    assert [len(data.table.rows(split)) for split in ("train", "validation", "test")] == [16, 4, 4]


def test_a_faulty_cafe_is_refused_with_what_is_wrong(tmp_path, capsys):
    root = tmp_path / "CaFE"
    for name in ("01-C-1-1.wav", "02-C-1-1.wav", "13-C-1-1.wav", "02-C-0-1.wav"):
        write_wav(root / "a" / name)
    error = refuse("cafe", root, tmp_path / "m.csv", capsys)
    assert "names that are not of the form 01-C-1-1.wav, 2: a/02-C-0-1.wav, a/13-C-1-1.wav" in error
    assert "clips: 2 instead of 936; emotions: 1 instead of 7; speakers: 2 instead of 12" in error
    assert main(["cafe", "--root", str(root), "--out", str(tmp_path / "part.csv"), "--allow_partial"]) == 3
    assert "this is a part of the corpus" in capsys.readouterr().err
    assert set(table_of(tmp_path / "part.csv")["protocol"]) == {"speaker-disjoint-partial"}
    (tmp_path / "part.csv").unlink()
    write_wav(root / "b/01-C-1-1.wav")
    assert "01-C-1-1.wav is there twice, a/01-C-1-1.wav and b/01-C-1-1.wav" in refuse("cafe", root, tmp_path / "m.csv", capsys)


# --- Common Voice ----------------------------------------------------------------------------------------------------

OLD = ["client_id", "path", "sentence", "up_votes", "down_votes", "age", "gender", "accent"]
NEW = ["client_id", "path", "sentence_id", "sentence", "age", "gender", "accents", "variant", "locale", "segment"]
SPOKEN = {  # list -> client, sentence, age, gender, accent
    "train": [
        ("aa", 'Il dit "non".', "twenties", "male_masculine", "Français de France"),
        ("bb", "Oui\u00a0!", "", "", ""),
        ("cc", "Zéro", "teens", "female_feminine", ""),
    ],
    "dev": [("dd", "NA", "sixties", "female", ""), ("ee", "Deux", "", "other", "")],
    "test": [("ff", "null", "fifties", "male", ""), ("gg", "Trois", "", "do_not_wish_to_say", "")],
}


def write_common_voice(root: Path, columns: list[str]) -> Path:
    """A locale's folder in an old or a new release."""
    number = 0
    for name, spoken in SPOKEN.items():
        lines = ["\t".join(columns)]
        for client, sentence, age, gender, accent in spoken:
            clip = f"common_voice_fr_{number}.mp3"
            number += 1
            about = {"client_id": client, "path": clip, "sentence": sentence, "age": age, "gender": gender}
            about |= {"accent": accent, "accents": accent, "locale": "fr", "up_votes": "2"}
            lines.append("\t".join(about.get(column, "") for column in columns))
            write_wav(root / "clips" / clip)
        write_text(root / f"{name}.tsv", *lines)
    return root


CV_COUNTS = {"train": 3, "validation": 2, "test": 2, "speakers": 7, "with a gender": 4, "languages": 1}


@pytest.mark.parametrize("columns", [OLD, NEW])
def test_common_voice_is_read_in_the_spelling_of_every_release(tmp_path, columns):
    root = write_common_voice(tmp_path / "cv-corpus/fr", columns)
    table = manifest_of("common_voice", root, tmp_path / "m.csv", "official", CV_COUNTS)
    assert table.loc["cv-corpus/fr/clips/common_voice_fr_0.mp3"].to_dict() == {
        **{"speaker_id": "aa", "text": 'Il dit "non".', "gender": "male", "age_group": "twenties"},
        **{"accent": "Français de France", "language": "fr", "split": "train"},
        **{"corpus": "common_voice", "protocol": "official"},
    }
    assert table["gender"].tolist() == ["male", "", "female", "female", "", "male", ""]
    assert table["text"].tolist()[3:] == ["NA", "Deux", "null", "Trois"]  # words, not gaps
    assert table["split"].tolist() == ["train"] * 3 + ["validation"] * 2 + ["test"] * 2


def test_tasks_read_common_voice(tmp_path):
    manifest_of(
        "common_voice", write_common_voice(tmp_path / "fr", NEW), tmp_path / "m.csv", "official", {}, allow_partial=True
    )
    gender = load_task(TASKS["gender"], [tmp_path / "m.csv"])
    assert gender.table.classes == ["female", "male"]
    assert [len(gender.table.rows(split)) for split in ("train", "validation", "test")] == [2, 1, 1]
    assert len(load_task(TASKS["transcription"], [tmp_path / "m.csv"]).labels) == 7


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("clip", "the lists name clips that are not there, 1: clips/common_voice_fr_6.mp3"),
        ("list", "dev.tsv is not there"),
        ("twice", "the lists name clips twice, 1: clips/common_voice_fr_0.mp3"),
        ("speaker", "speakers are in two of the lists, which keep them apart, 1: aa"),
        ("columns", "test.tsv: has no columns ['sentence']; its columns are ['client_id', 'path']"),
        ("way out", "test.tsv: '../x.mp3' in the column path is not the name of a file in clips/"),
    ],
)
def test_a_faulty_common_voice_is_refused_with_what_is_wrong(tmp_path, capsys, fault, message):
    root = write_common_voice(tmp_path / "fr", NEW)
    changed = {"twice": ("zz", "common_voice_fr_0.mp3", "x"), "speaker": ("aa", "common_voice_fr_5.mp3", "x")}
    changed["way out"] = ("zz", "../x.mp3", "x")
    if fault == "clip":
        (root / "clips/common_voice_fr_6.mp3").unlink()
    elif fault == "list":
        (root / "dev.tsv").unlink()
    elif fault == "columns":
        write_text(root / "test.tsv", "client_id\tpath", "ff\tcommon_voice_fr_5.mp3")
    else:
        write_text(root / "test.tsv", "client_id\tpath\tsentence", "\t".join(changed[fault]))
    assert message in refuse("common_voice", root, tmp_path / "m.csv", capsys)


def test_common_voice_without_a_locale_takes_the_language_of_its_folder(tmp_path):
    root = write_common_voice(tmp_path / "zh-CN", OLD)
    assert set(manifest_of("common_voice", root, tmp_path / "m.csv", "official", {})["language"]) == {"zh"}
    for name in ("train", "dev", "test"):
        (root / f"{name}.tsv").unlink()
    assert main(["common_voice", "--root", str(root), "--out", str(tmp_path / "n.csv"), "--allow_partial"]) == 2


# --- LibriSpeech as the paper uses it --------------------------------------------------------------------------------


def test_librispeech_has_the_part_that_the_paper_trains_on():
    counts = CORPORA["librispeech"].counts
    assert SUBSETS["clean-360"] == {"train-clean-360": "train", "dev-clean": "validation", "test-clean": "test"}
    assert 28_539 + counts["clean-360"]["train"] + 148_688 == counts["clean"]["train"]  # with train-clean-100, train-other-500
    assert pd.Series(counts["clean-360"])[["validation", "test", "speakers"]].tolist() == [2_703, 2_620, 921 + 40 + 40]
