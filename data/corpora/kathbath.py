"""Kathbath of IndicSUPERB (Javed et al., AAAI 2023, arXiv:2208.11761): speaker identification in twelve Indian languages.

IndicSUPERB's split: the folders train, valid and test_known. Clips are `ID-SPEAKER-GENDER`, m4a in the archives; IndicSUPERB's
utilities/structure.py makes the wav files that are read here. Numbers of speakers are taken as of one language.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wavcse.data.corpora.corpus import Corpus, HubClip, Rows, matching_text, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import split_by_hash

LANGUAGES = {
    **{"bengali": "bn", "gujarati": "gu", "hindi": "hi", "kannada": "kn", "malayalam": "ml", "marathi": "mr"},
    **{"odia": "or", "punjabi": "pa", "sanskrit": "sa", "tamil": "ta", "telugu": "te", "urdu": "ur"},
}
SPLIT_OF_FOLDER = {"train": "train", "valid": "validation", "test_known": "test"}
CLIP = re.compile(r"\d+-(\d+)-([fm])\.(?:wav|flac)")
HUB_NAME = re.compile(r"(?:^|/)(\d+-\d+-[fm])\.\w+$")
GENDERS = {"f": "female", "m": "male"}
TEST_SHARE = 0.1  # of train, where test_known is not available


def _folders(protocol: str) -> list[str]:
    return [folder for folder in SPLIT_OF_FOLDER if protocol == "official" or folder != "test_known"]


def _parts(root: Path, protocol: str) -> list[Path]:
    return [root / language / folder for language in LANGUAGES for folder in _folders(protocol)]


def _rows(root: Path, protocol: str) -> Rows:
    rows, problems = [], []
    for folder in _parts(root, protocol):
        clips, strange = _clips(root, folder, protocol)
        rows += clips
        problems += strange
    columns = ["file_name", "language", "speaker_id", "gender", "split_sid"]
    table = text_table(rows, columns)
    known = set(table["speaker_id"][table["split_sid"] == "train"])
    if unknown := sorted(set(table["speaker_id"]) - known):
        problems.append(f"speakers without a training clip, {some(unknown)}")
        table.loc[~table["speaker_id"].isin(known), "split_sid"] = ""
    found = {"languages": table["language"].nunique(), "speakers": table["speaker_id"].nunique()}
    return Rows(table, {**tally(table["split_sid"]), **found}, problems)


def _clips(root: Path, folder: Path, protocol: str) -> tuple[list[tuple[str, ...]], list[str]]:
    """The clips of one split of one language, and sentences about files that are not clips."""
    language = LANGUAGES[folder.parent.name]
    rows, strange, packed = [], [], 0
    for path in sorted(folder.rglob("[!.]*")):
        if path.suffix in (".wav", ".flac"):
            match = CLIP.fullmatch(path.name)
            if match is None:
                strange.append(path.relative_to(root).as_posix())
                continue
            split = SPLIT_OF_FOLDER[folder.name]
            if protocol != "official" and split == "train":
                split = split_by_hash(path.stem, 0.0, TEST_SHARE)
            rows.append((path.relative_to(root).as_posix(), language, f"{language}-{match[1]}", GENDERS[match[2]], split))
        packed += path.suffix == ".m4a"
    problems = [f"names that are not of the form ID-SPEAKER-GENDER.wav, {some(strange)}"] if strange else []
    if packed and not rows:
        problems.append(f"{folder} has {packed:,} m4a files only; make wav of them with IndicSUPERB's utilities/structure.py")
    return rows, problems


def _from_hub(row: Mapping[str, Any], split: str, protocol: str) -> HubClip:
    name = matching_text(HUB_NAME, row)[1]
    texts = {value.lower() for value in row.values() if isinstance(value, str)}
    language = next((folder for folder, code in LANGUAGES.items() if {folder, code} & texts), None)
    folder = next((folder for folder, known in SPLIT_OF_FOLDER.items() if split in (folder, known)), None)
    if language is None or folder is None:
        raise ValueError(
            f"{name} has no column with its language, or {split!r} is none of the splits {', '.join(SPLIT_OF_FOLDER)}"
        )
    return HubClip(f"{language}/{folder}/{name}.wav")


KATHBATH = Corpus(
    facts=FACTS["kathbath"],
    layout="LANGUAGE/{train, valid, test_known}/**/ID-SPEAKER-GENDER.wav, LANGUAGE being bengali, gujarati, ... urdu",
    counts={name: {"languages": len(LANGUAGES)} for name in ("official", "train-valid")},
    parts=_parts,
    rows=_rows,
    from_hub=_from_hub,
)
