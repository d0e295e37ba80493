"""TIMIT (Garofolo et al. 1993, LDC93S1): gender, age and dialect of 630 speakers with ten sentences each.

Gender and dialect region are in the names of the folders; the age is the date of recording less the date of birth in
DOC/SPKRINFO.TXT, in years, and empty where a date is not known. The official test speakers are tested.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavcse.data.corpora.corpus import Corpus, Rows, read_lines, refuse_shared_speakers, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import hash_fraction

if TYPE_CHECKING:
    import pandas as pd

SPLIT_COLUMNS = ("split_sgr", "split_sar", "split_sdr")
USES = ("TRAIN", "TEST")
CLIP = re.compile(r"(TRAIN|TEST)/DR([1-8])/(([FM])([A-Z]{3}\d))/S[AIX]\d+\.WAV", re.IGNORECASE)
SPEAKER = re.compile(r"([A-Z]{3}\d)\s+[MF]\s+[1-8]\s+(?:TRN|TST)\s+(\S+)\s+(\S+)(?:\s.*)?")
DATE = re.compile(r"(\d\d)/(\d\d)/(\d\d)")  # month, day, year of the twentieth century
GENDERS = {"F": "female", "M": "male"}
DIALECTS = {
    **{"1": "New England", "2": "Northern", "3": "North Midland", "4": "South Midland"},
    **{"5": "Southern", "6": "New York City", "7": "Western", "8": "Army Brat"},
}
VALIDATION_SHARE = 0.1  # of the training speakers of each dialect and gender
DAYS_PER_YEAR = 365.25


def _entry(folder: Path, name: str) -> Path:
    """The entry of that name, which some copies of the disc have in lower case."""
    return folder / name.lower() if (folder / name.lower()).exists() else folder / name


def _speaker_info(root: Path) -> Path:
    return _entry(_entry(root, "DOC"), "SPKRINFO.TXT")


def _parts(root: Path, protocol: str) -> list[Path]:
    return [*(_entry(root, use) for use in USES), _speaker_info(root)]


def _rows(root: Path, protocol: str) -> Rows:
    table = _clips(root)
    ages = _ages(_speaker_info(root))
    unlisted = sorted(set(table["speaker_id"].str[1:]) - set(ages))
    problems = [f"SPKRINFO.TXT lacks speakers, {some(unlisted)}"] if unlisted else []
    table["age"] = [ages.get(speaker[1:], "") for speaker in table["speaker_id"]]
    refuse_shared_speakers(table, "use", root)
    split = _every_tenth(table) if protocol == "paper-guess" else _by_speaker(table)
    for column in SPLIT_COLUMNS:
        table[column] = split
    found = {"clips": len(table), "speakers": table["speaker_id"].nunique()}
    aged = table["speaker_id"][table["age"] != ""].nunique()
    return Rows(table.drop(columns="use"), {**found, **tally(split), "speakers with an age": aged}, problems)


def _clips(root: Path) -> pd.DataFrame:
    rows = []
    for use in USES:
        for path in sorted(_entry(root, use).glob("*/*/*")):
            name = path.relative_to(root).as_posix()
            if match := CLIP.fullmatch(name):
                _, region, speaker, gender, _ = match.groups()
                rows.append((name, speaker.upper(), GENDERS[gender.upper()], DIALECTS[region], use))
    return text_table(rows, ["file_name", "speaker_id", "gender", "dialect", "use"])


def _ages(path: Path) -> dict[str, str]:
    """Speaker (without the letter of the gender) -> age in years at the recording, empty where it is not known."""
    ages: dict[str, str] = {}
    for line in read_lines(path):
        if line.startswith(";"):
            continue
        match = SPEAKER.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path}: the line {line!r} is not of the form 'ABC0  M  6  TRN  03/03/86  06/17/60 ...'.")
        if match[1] in ages:
            raise ValueError(f"{path}: {match[1]} is listed twice.")
        recorded, born = _date(match[2]), _date(match[3])
        ages[match[1]] = f"{(recorded - born).days / DAYS_PER_YEAR:.2f}" if recorded and born else ""
    return ages


def _date(text: str) -> date | None:
    """A date as MM/DD/YY; None for `??/??/??` and for what no calendar has."""
    match = DATE.fullmatch(text)
    try:
        return date(1900 + int(match[3]), int(match[1]), int(match[2])) if match else None
    except ValueError:
        return None


def _by_speaker(table: pd.DataFrame) -> pd.Series:
    """TEST is tested; of TRAIN, in each dialect and gender, the tenth of speakers with the smallest sha1 validates."""
    validating: set[str] = set()
    train = table[table["use"] == "TRAIN"]
    for _, speakers in train.groupby(["dialect", "gender"])["speaker_id"]:
        ordered = sorted(set(speakers), key=hash_fraction)
        validating.update(ordered[: round(VALIDATION_SHARE * len(ordered))])
    split = table["use"].map({"TRAIN": "train", "TEST": "test"})
    return split.mask((split == "train") & table["speaker_id"].isin(validating), "validation")


def _every_tenth(table: pd.DataFrame) -> pd.Series:
    """Validation = 4::10, test = 9::10 in the order of the paths: one sentence of every speaker in each."""
    import pandas as pd

    place = table["file_name"].str.upper().rank(method="first").astype(int).to_numpy() - 1
    split = np.select([place % 10 == 4, place % 10 == 9], ["validation", "test"], "train")
    return pd.Series(split, table.index, dtype=object)


TIMIT = Corpus(
    facts=FACTS["timit"],
    layout="TRAIN and TEST, each with DR1 to DR8/SPEAKER/SENTENCE.WAV, and DOC/SPKRINFO.TXT (or all in lower case)",
    counts={
        "official": {"clips": 6_300, "speakers": 630, "test": 1_680},
        "paper-guess": {"clips": 6_300, "speakers": 630, "test": 630},
    },
    parts=_parts,
    rows=_rows,
)
