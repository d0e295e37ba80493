"""CaFE (Gournay, Lahaie and Lefebvre, ACM MMSys 2018): acted emotions in Canadian French, seven of them in two intensities.

Clips are `01-C-1-1.wav`: actor, letter of the emotion in French, intensity, sentence; neutral has one intensity. Twelve actors
say six sentences. There is no official split: of the women and of the men each, by the sha1 of their numbers, one is tested,
one validates and the others train. Porjazovski et al. (2024) do not say how they split it; 14 of their 15 F1 scores are
multiples of 1/156, and two actors have 156 clips.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from wavcse.data.corpora.corpus import Corpus, Rows, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import hash_fraction

if TYPE_CHECKING:
    import pandas as pd

EMOTIONS = {
    **{"C": "anger", "D": "disgust", "J": "happiness", "N": "neutral"},  # colère, dégoût, joie, neutre
    **{"P": "fear", "S": "surprise", "T": "sadness"},  # peur, surprise, tristesse
}
NEUTRAL = "N"
INTENSITIES = {"1": "weak", "2": "strong"}
CLIP = re.compile(r"(0[1-9]|1[0-2])-([CDJNPST])-([012])-([1-6])\.wav", re.IGNORECASE)
GENDERS = ("female", "male")  # of even and odd numbers


def _parts(root: Path, protocol: str) -> list[Path]:
    return [root]  # how a disk spells the accents in names of folders varies, so clips are known by their own names


def _rows(root: Path, protocol: str) -> Rows:
    rows, strange, places = [], [], {}
    for path in sorted(root.rglob("[!.]*.wav")):
        name = path.relative_to(root).as_posix()
        match = CLIP.fullmatch(path.name)
        if match is None or (match[3] == "0" and match[2].upper() != NEUTRAL):
            strange.append(name)
            continue
        if path.name in places:
            raise ValueError(f"{root}: {path.name} is there twice, {places[path.name]} and {name}; keep one of the two rates.")
        places[path.name] = name
        actor, letter, intensity, sentence = match.groups()
        intensity = "" if letter.upper() == NEUTRAL else INTENSITIES[intensity]
        rows.append((name, EMOTIONS[letter.upper()], intensity, actor, GENDERS[int(actor) % 2], sentence))
    table = text_table(rows, ["file_name", "emotion", "intensity", "speaker_id", "gender", "sentence"])
    table["split_er"] = table["speaker_id"].map(_splits_of_actors(table))
    problems = [f"names that are not of the form 01-C-1-1.wav, {some(strange)}"] if strange else []
    found = {"clips": len(table), "emotions": table["emotion"].nunique(), "speakers": table["speaker_id"].nunique()}
    return Rows(table, {**found, **tally(table["split_er"])}, problems)


def _splits_of_actors(table: pd.DataFrame) -> dict[str, str]:
    """In each gender, by the sha1 of their numbers, one actor is tested, one validates and the others train."""
    splits: dict[str, str] = {}
    for gender in GENDERS:
        actors = sorted(set(table["speaker_id"][table["gender"] == gender]), key=hash_fraction)
        splits.update(zip(actors, ["test", "validation", *["train"] * len(actors)]))
    return splits


CAFE = Corpus(
    facts=FACTS["cafe"],
    layout="EMOTION/INTENSITY/ACTOR-LETTER-INTENSITY-SENTENCE.wav (01-C-1-1.wav), at any depth, at one sampling rate",
    counts={
        "speaker-disjoint": {
            **{"clips": 936, "emotions": 7, "speakers": 12},
            **{"train": 624, "validation": 156, "test": 156},  # 78 of each actor
        }
    },
    parts=_parts,
    rows=_rows,
)
