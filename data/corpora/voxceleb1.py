"""VoxCeleb1 (Nagrani, Chung and Zisserman, Interspeech 2017, arXiv:1706.08612): speaker identification.

Both protocols are the authors' identification split, on whole utterances.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wavcse.data.corpora.corpus import Corpus, HubClip, Rows, matching_text, read_lines, some, tally, text_table
from wavcse.data.corpus_facts import FACTS

LIST = "iden_split.txt"
LINE = re.compile(r"([123]) ((id\d{5})/[^/ ]+/\d{5}\.wav)")
HUB_NAME = re.compile(r"id\d{5}/[\w-]+/\d{5}\.wav$")
SPLIT_OF_NUMBER = {"1": "train", "2": "validation", "3": "test"}
WAV_FOLDERS = ("wav", "dev/wav", "test/wav")  # the two archives unpacked together, or each into a folder of its own
COUNTS = {"train": 138_361, "validation": 6_904, "test": 8_251, "speakers": 1_251}


def _parts(root: Path, protocol: str) -> list[Path]:
    wav = [root / folder for folder in WAV_FOLDERS if (root / folder).is_dir()]
    return [root / LIST, *(wav or [root / "wav"])]


def _rows(root: Path, protocol: str) -> Rows:
    folder_of = {
        path.relative_to(root / folder).as_posix(): folder
        for folder in WAV_FOLDERS
        for path in (root / folder).glob("id*/*/*.wav")
    }
    listed = _listed_splits(root / LIST)
    lost = [name for name in listed if name not in folder_of]
    problems = [f"{LIST} names utterances that are not there, {some(lost)}"] if lost else []
    speakers = sorted({name.split("/")[0] for name in lost} - {name.split("/")[0] for name in folder_of})
    problems += [f"speakers without an utterance, {some(speakers)}"] if speakers else []
    rows = [
        (f"{folder_of[name]}/{name}", name.split("/")[0], split) for name, split in sorted(listed.items()) if name in folder_of
    ]
    table = text_table(rows, ["file_name", "speaker_id", "split_sid"])
    return Rows(table, {**tally(table["split_sid"]), "speakers": table["speaker_id"].nunique()}, problems)


def _listed_splits(path: Path) -> dict[str, str]:
    """Utterance `idXXXXX/VIDEO/NNNNN.wav` -> split, as the list says."""
    splits: dict[str, str] = {}
    for line in read_lines(path):
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: the line {line!r} is not of the form '3 id10003/na8-QEFmj44/00003.wav'.")
        if match[2] in splits:
            raise ValueError(f"{path}: {match[2]} is listed twice.")
        splits[match[2]] = SPLIT_OF_NUMBER[match[1]]
    return splits


def _from_hub(row: Mapping[str, Any], split: str, protocol: str) -> HubClip:
    name = matching_text(HUB_NAME, row)[0]
    number = next((number for number, known in SPLIT_OF_NUMBER.items() if known == split), None)
    return HubClip(f"wav/{name}", LIST, f"{number} {name}") if number else HubClip(f"wav/{name}")


VOXCELEB1 = Corpus(
    facts=FACTS["voxceleb1"],
    layout=f"{LIST} and wav/idXXXXX/VIDEO/NNNNN.wav (or dev/wav and test/wav)",
    counts={"wavcse-paper": COUNTS, "superb": COUNTS},
    parts=_parts,
    rows=_rows,
    from_hub=_from_hub,
)
