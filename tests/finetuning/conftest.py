"""A corpus for tasks that are learnt together: speakers who say words of tones, with what is said and who says it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from wavcse.tests.helpers.tiny_families import DROPOUTS, TRAINED

LETTERS = {"a": 400, "b": 800, "c": 1600, "d": 3200}  # Hz
LETTER_S, PAUSE_S = 0.12, 0.1
SPEAKERS = "klmnopqrst"  # differ in their overtones
SPLITS = dict(zip(SPEAKERS, ["train"] * 6 + ["validation"] * 2 + ["test"] * 2))
TAKES = 6
ENCODER = {**TRAINED, **dict.fromkeys(DROPOUTS, 0.0)}


def spoken(text: str, overtone: float, rng: np.random.Generator) -> np.ndarray:
    """A text as tones, each letter with a second tone that is the speaker's."""
    parts = []
    for letter in text:
        time_s = np.arange(int(16_000 * (PAUSE_S if letter == " " else LETTER_S))) / 16_000
        tone = np.zeros_like(time_s)
        if letter != " ":
            tone = np.sin(2 * np.pi * LETTERS[letter] * time_s) + 0.5 * np.sin(2 * np.pi * overtone * time_s)
        parts.append(tone)
    samples = 0.1 * np.concatenate(parts)
    return samples + 0.005 * rng.standard_normal(len(samples))


@pytest.fixture(scope="session")
def spoken_corpus(tmp_path_factory) -> Path:
    """60 clips of 0.7 to 1.5 s by ten speakers, no one of whom is in two splits."""
    folder, rng, rows = tmp_path_factory.mktemp("spoken"), np.random.default_rng(0), []
    for number, speaker in enumerate(SPEAKERS):
        for take in range(TAKES):
            words = ["".join(rng.choice(list(LETTERS), size=rng.integers(2, 5))) for _ in range(2)]
            text, name = " ".join(words), f"{speaker}{take}.flac"
            samples = spoken(text, 5000 + 250 * number, rng)
            soundfile.write(folder / name, samples, 16_000)
            rows.append((name, text, speaker, SPLITS[speaker], len(text)))
    columns = ["file_name", "text", "speaker_id", "split", "length"]
    table = pd.DataFrame(rows, columns=columns)
    known = table["speaker_id"].map(lambda speaker: SPLITS[speaker] == "train")
    table["split_take"] = np.where(known, np.tile(["train"] * 4 + ["validation", "test"], len(SPEAKERS)), "")
    table["session"] = np.repeat(np.arange(1, len(SPEAKERS) // 2 + 1), 2 * TAKES)
    table["letter"] = table["text"].str[0]
    table.to_csv(folder / "metadata.csv", index=False)
    return folder / "metadata.csv"


@pytest.fixture(scope="session")
def tasks_recipe(spoken_corpus, tmp_path_factory) -> dict:
    """Texts and speakers from two streams, from nothing."""
    of_clips = {"manifest": str(spoken_corpus), "disjoint_by": "speaker_id"}
    voice = {**of_clips, "kind": "classes", "label_column": "speaker_id", "tap": 1, "loss": "aam_softmax"}
    return {
        "encoder": ENCODER,
        "tasks": {"speech": {**of_clips, "kind": "ctc", "label_column": "text"}, "voice": voice},
        "streams": {
            "speech": {"tasks": ["speech"], "batch_seconds": 8.0},
            "voice": {"tasks": ["voice"], "batch_seconds": 8.0, "crop": 0.6, "length_step_s": 0.2},
        },
        "audio_dir": str(tmp_path_factory.mktemp("audio")),
        "freeze": {"stem": False},
        "max_steps": 12,
        "learning_rate": 2e-3,
        "validate_every": 4,
        "checkpoint_every_s": 0.0,
    }


@pytest.fixture(scope="session")
def emotional_corpus(spoken_corpus, tmp_path_factory) -> Path:
    """The spoken corpus with an emotion, which is the first letter's half, and a gender of every speaker."""
    table = pd.read_csv(spoken_corpus)
    table["file_name"] = [str(spoken_corpus.parent / name) for name in table["file_name"]]
    table["emotion"] = np.where(table["text"].str[0].isin(["a", "b"]), "joy", "anger")
    table["gender"] = np.where(table["speaker_id"].isin(list("klmop")), "female", "male")
    path = tmp_path_factory.mktemp("emotional") / "metadata.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def staged_recipe(tasks_recipe, emotional_corpus) -> dict:
    of_clips = {"manifest": str(emotional_corpus), "disjoint_by": "speaker_id", "tap": "ari"}
    return {
        "encoder": {**tasks_recipe["encoder"], "num_hidden_layers": 3, "hidden_dropout": 0.1},
        "tasks": {
            "words": {**of_clips, "kind": "ctc", "label_column": "text", "hidden": 12},
            "gender": {**of_clips, "kind": "classes", "label_column": "gender", "hidden": 12, "weight": 0.1},
            "emotion": {**of_clips, "kind": "classes", "label_column": "emotion", "fusion": {"hidden": 12}},
        },
        "streams": {"all": {"batch_clips": 8}},
        "mask_share": 0.0,
        "freeze": {"stem": True, "blocks": 1},
        "num_epochs": 1,
        "validate_every": 0,
        "learning_rate": 1e-2,
        "encoder_learning_rate": 1e-3,
        "decay": "newbob",
        "choose": {"emotion.uar": 1.0},
        "stages": [
            {"tasks": {"emotion": None}, "freeze": {"stem": True}, "choose": {"loss": 1.0}},
            {"init_from": {"stage": 1}, "learn": ["emotion"]},
        ],
        "audio_dir": tasks_recipe["audio_dir"],
        "checkpoint_every_s": 0.0,
    }
