"""VoxCeleb2's development set (Chung, Nagrani and Zisserman, Interspeech 2018), as Vaessen and van Leeuwen (2023) divide it.

Of its 5,994 speakers 97 women and 97 men are held out, of whom 100,000 trials of one speaker, from two videos, and 100,000 of
two of one gender are drawn. Of the others about 2 % of the videos, at most two each, validate what is trained on the rest. The
paper drew at random; here speakers, videos and trials follow from hashes of their names and a fixed seed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from wavcse.data.corpora.corpus import Corpus, Rows, read_lines, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import hash_fraction
from wavcse.data.trials import make_pairs, trials_table

if TYPE_CHECKING:
    import pandas as pd

META = "vox2_meta.csv"
LINE = re.compile(r"(id\d{5})\s*,?\s+\S+\s*,?\s+([fm])\s*,?\s+(dev|test)\s*")
GENDERS = {"f": "female", "m": "male"}
FOLDERS = ("dev/wav", "wav", "dev/flac", "flac")
HELD_OUT = 97  # of each gender
VALIDATION_SHARE, MOST_VALIDATING = 0.02, 2  # of a speaker's videos
TRIALS = 100_000  # of each kind
FEW = 2_000  # held-out utterances up to which all pairs are trials; the complete corpus has some 35,000


def _parts(root: Path, protocol: str) -> list[Path]:
    found = [root / folder for folder in FOLDERS if (root / folder).is_dir()]
    return [root / META, *(found[:1] or [root / FOLDERS[0]])]


def _rows(root: Path, protocol: str) -> Rows:
    genders = _genders(root / META)
    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), root / FOLDERS[0])
    held = {
        speaker
        for gender in GENDERS.values()
        for speaker in sorted((own for own, known in genders.items() if known == gender), key=hash_fraction)[:HELD_OUT]
    }
    rows, videos = [], 0
    for speaker in sorted(genders):
        found: dict[str, list[Path]] = {}
        for path in sorted((folder / speaker).glob("*/*")):
            if path.suffix in (".wav", ".flac"):
                found.setdefault(path.parent.name, []).append(path)
        videos += len(found)
        validating = set() if speaker in held else _validating(speaker, list(found))
        for video, paths in found.items():
            splits = ("", "test") if speaker in held else ("validation" if video in validating else "train", "train")
            rows += [(path.relative_to(root).as_posix(), speaker, genders[speaker], video, *splits) for path in paths]
    table = text_table(rows, ["file_name", "speaker_id", "gender", "session", "split_sid", "split_sv"])
    lost = sorted(set(genders) - set(table["speaker_id"]))
    problems = [f"{META} names speakers without an utterance, {some(lost)}"] if lost else []
    found = {"speakers": table["speaker_id"].nunique(), "videos": videos, "utterances": len(table)}
    return Rows(table, {**found, "held out": len(held), **tally(table["split_sid"])}, problems, _trials(table))


def _genders(path: Path) -> dict[str, str]:
    """Development speaker -> gender."""
    genders: dict[str, str] = {}
    for line in read_lines(path)[1:]:  # the first names the columns
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: the line {line!r} is not of the form 'id00012 n000007 m dev'.")
        if match[1] in genders:
            raise ValueError(f"{path}: {match[1]} is listed twice.")
        if match[3] == "dev":
            genders[match[1]] = GENDERS[match[2]]
    return genders


def _validating(speaker: str, videos: list[str]) -> set[str]:
    """The videos of a speaker that validate: never all of them."""
    ordered = sorted(videos, key=lambda video: hash_fraction(f"{speaker}/{video}"))
    most = min(MOST_VALIDATING, len(videos) - 1)
    return {video for video in ordered[:most] if hash_fraction(f"{speaker}/{video}") < VALIDATION_SHARE}


def _trials(table: pd.DataFrame) -> pd.DataFrame | None:
    """The trials of the held-out speakers; all pairs where an incomplete corpus has fewer than are drawn."""
    held = table[table["split_sv"] == "test"]
    if held["speaker_id"].nunique() < 2:
        return None
    speakers, genders, videos = (held[name].to_numpy() for name in ("speaker_id", "gender", "session"))
    counts = (TRIALS, TRIALS) if len(held) > FEW else (None, None)
    return trials_table(held["file_name"], make_pairs(speakers, [genders], [videos], *counts))


# Of the development set: the corpus's paper, Table 2 (dev and test together are 6,112 speakers, 150,480 videos, 1,128,246
# utterances); speakers and utterances also in PaddleSpeech's examples/voxceleb/README.md.
VOXCELEB2 = Corpus(
    facts=FACTS["voxceleb2"],
    layout=f"{META} and dev/wav/idXXXXX/VIDEO/NNNNN.wav (or flac; the archive's m4a is not read: `ffmpeg -i X.m4a X.wav`)",
    counts={"speech-speaker-mtl": {"speakers": 5_994, "videos": 145_569, "utterances": 1_092_009, "held out": 194}},
    parts=_parts,
    rows=_rows,
)
