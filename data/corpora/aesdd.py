"""AESDD (Vryzas et al., J. Audio Eng. Soc. 2018): acted emotions in Greek, five of them.

Clips are `x01 (2).wav`: the emotion's letter, the sentence, the actor. There is no official split, and the corpus grows.
EmoBox (Ma et al. 2024) has lists with the same actors on both sides; its fold 1 tests 149 clips, of which the paper's
89.26 % would be 133, so that is the guess at the paper's protocol.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from wavcse.data.corpora.corpus import Corpus, Rows, read_lines, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import hash_fraction, split_by_hash

if TYPE_CHECKING:
    import pandas as pd

EMOTIONS = {"anger": "a", "disgust": "d", "fear": "f", "happiness": "h", "sadness": "s"}
CLIP = re.compile(r"([adfhs])\d\d \((\d+)\)[a-z]?\.wav")
LISTS = {"train": "fold_1/aesdd_train_fold_1.jsonl", "test": "fold_1/aesdd_test_fold_1.jsonl"}
NUM_TEST, NUM_VALIDATION = 2, 1  # actors, of six
VALIDATION_SHARE = 0.1  # of EmoBox's training clips


def _parts(root: Path, protocol: str) -> list[Path]:
    lists = LISTS.values() if protocol == "paper-guess" else ()
    return [*(root / emotion for emotion in EMOTIONS), *(root / name for name in lists)]


def _rows(root: Path, protocol: str) -> Rows:
    rows, strange = [], []
    for path in sorted(path for emotion in EMOTIONS for path in (root / emotion).glob("[!.]*.wav")):
        match = CLIP.fullmatch(path.name)
        if match is None or match[1] != EMOTIONS[path.parent.name]:
            strange.append(path.relative_to(root).as_posix())
        else:
            rows.append((path.relative_to(root).as_posix(), path.parent.name, str(int(match[2]))))
    table = text_table(rows, ["file_name", "emotion", "speaker_id"])
    problems = [f"names that are not of the form x01 (2).wav, {some(strange)}"] if strange else []
    if protocol == "paper-guess":
        table["split_er"], lost = _listed_splits(root, table["file_name"])
        problems += lost
    else:
        table["split_er"] = table["speaker_id"].map(_splits_of_actors(table["speaker_id"]))
    found = {"emotions": table["emotion"].nunique(), "speakers": table["speaker_id"].nunique()}
    return Rows(table, {**tally(table["split_er"]), **found}, problems)


def _splits_of_actors(speakers: pd.Series) -> dict[str, str]:
    """In the order of the sha1 of their numbers, two actors are tested, one validates and the others train."""
    actors = sorted(set(speakers), key=hash_fraction)
    splits = ["test"] * NUM_TEST + ["validation"] * NUM_VALIDATION + ["train"] * len(actors)
    return dict(zip(actors, splits))


def _listed_splits(root: Path, names: pd.Series) -> tuple[list[str], list[str]]:
    """The split of every clip after EmoBox's lists (empty = in none), and sentences about what they name and is not there."""
    split_of: dict[str, str] = {}
    for split, list_name in LISTS.items():
        for line in read_lines(root / list_name):
            name = _listed_name(root / list_name, line)
            if name in split_of:
                raise ValueError(f"{root / list_name}: {name} is listed twice, or in both lists.")
            split_of[name] = split if split == "test" else split_by_hash(name, VALIDATION_SHARE)
    lost = sorted(set(split_of) - set(names))
    return [split_of.get(name, "") for name in names], [
        f"the lists name clips that are not there, {some(lost)}"
    ] if lost else []


def _listed_name(path: Path, line: str) -> str:
    try:
        return "/".join(Path(json.loads(line)["wav"]).parts[-2:])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the line {line!r} is not a JSON object with a path 'wav'.") from error


AESDD = Corpus(
    facts=FACTS["aesdd"],
    layout=f"{', '.join(EMOTIONS)}, each with x01 (2).wav, and for paper-guess fold_1/aesdd_{{train,test}}_fold_1.jsonl of "
    "https://github.com/emo-box/EmoBox (data/aesdd)",
    counts={"speaker-disjoint": {"emotions": len(EMOTIONS)}, "paper-guess": {"test": 149, "emotions": len(EMOTIONS)}},
    parts=_parts,
    rows=_rows,
)
