"""Google Speech Commands v0.01 and v0.02 (Warden 2018, arXiv:1804.03209): keyword spotting.

The training archive is split by its own lists, or by the hash of the speaker's code that the lists were made with. The test
set is the one listed there, or the separate archive with silence and a share of unknown words, SUPERB's (Yang et al. 2021).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile

from wavcse.data.corpora.corpus import Corpus, HubClip, Rows, matching_text, read_lines, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.synthetic.table import COMMANDS

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN, SILENCE, NOISE = "_unknown_", "_silence_", "_background_noise_"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
CLIP_NAME = re.compile(r"(?:[a-z]+_)?([^_/]+)_nohash_\d+\.wav")  # the test archive puts the word before an unknown one
WORD = re.compile(r"[a-z_]+")
HUB_NAME = re.compile(rf"(?:({WORD.pattern})/)?([\w-]+\.wav)$")
HASH_RANGE = 2**27  # of the corpus's README: the hash modulo this, as a share of 2**27 - 1
PIECE_S = 1  # length of a piece of background noise
VALIDATION_PIECE = 9  # of every ten pieces


def official_split(speaker: str) -> str:
    """The split of a speaker's clips by the corpus's own rule: 10 % validation, 10 % test, by the sha1 of the code."""
    percentage = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % HASH_RANGE * (100 / (HASH_RANGE - 1))
    return "validation" if percentage < 10 else "test" if percentage < 20 else "train"


def _folders(root: Path, version: str) -> tuple[Path, Path]:
    return root / f"speech_commands_{version}", root / f"speech_commands_test_set_{version}"


def _parts(version: str, root: Path, protocol: str) -> list[Path]:
    archive, test_archive = _folders(root, version)
    if protocol == "superb":
        return [archive, archive / NOISE, test_archive]
    return [archive, *(archive / name for name in LISTS.values())]


def _rows(version: str, root: Path, protocol: str) -> Rows:
    import pandas as pd

    archive, test_archive = _folders(root, version)
    table, problems = _clips_by_word(archive)
    words = table["word"].nunique()
    if protocol == "superb":
        table["split_ks"] = table["speaker_id"].map(official_split).replace("test", "")  # that tenth stays unused
        found = tally(table["split_ks"])
        noise, (test, strange) = _noise_pieces(archive), _clips_by_word(test_archive)
        found |= {"test": len(test), "noise files": noise["file_name"].nunique()}
        table = pd.concat([table, noise, test.assign(split_ks="test")]).fillna("")
    else:
        table["split_ks"], strange = _listed_splits(archive, table["file_name"])
        found = tally(table["split_ks"])
    keyword = table["word"].where(table["word"].isin([*COMMANDS, SILENCE]), UNKNOWN)
    table["keyword"] = table["word"] if protocol == "official-35" else keyword
    return Rows(table, {**found, "words": words}, [*problems, *strange])


def _clips_by_word(archive: Path) -> tuple[pd.DataFrame, list[str]]:
    """Every WORD/*.wav of an archive with word and speaker, and a sentence about names that the corpus does not have."""
    rows, strange = [], []
    for path in sorted(archive.glob("[!.]*/[!.]*.wav")):
        word, match = path.parent.name, CLIP_NAME.fullmatch(path.name)
        if word == NOISE:
            continue
        name = f"{archive.name}/{word}/{path.name}"
        if match is None and word != SILENCE:
            strange.append(name)
        else:  # silence has no speaker; each clip of it stands for itself
            rows.append((name, word, f"{word}/{path.stem}" if word == SILENCE else match[1]))
    problems = [f"names that are not of the form CODE_nohash_N.wav, {some(strange)}"] if strange else []
    return text_table(rows, ["file_name", "word", "speaker_id"]), problems


def _listed_splits(archive: Path, names: pd.Series) -> tuple[list[str], list[str]]:
    """The split of every clip after the lists of the archive, and sentences about lines that name no file."""
    split_of: dict[str, str] = {}
    problems, on_disk = [], set(names)
    for split, list_name in LISTS.items():
        listed = Counter(f"{archive.name}/{line}" for line in read_lines(archive / list_name))
        repeated = [name for name, count in listed.items() if count > 1 or name in split_of]
        if repeated:
            raise ValueError(f"{archive / list_name}: names clips twice, or clips of the other list, {some(repeated)}.")
        split_of |= dict.fromkeys(listed, split)
        lost = [name for name in listed if name not in on_disk]
        problems += [f"{list_name} names clips that are not there, {some(lost)}"] if lost else []
    words = sorted({name.split("/")[1] for name in split_of} - {name.split("/")[1] for name in on_disk})
    problems += [f"words without a clip, {some(words)}"] if words else []
    return [split_of.get(name, "train") for name in names], problems


def _noise_pieces(archive: Path) -> pd.DataFrame:
    """The background noise in pieces of a second: silence to learn from, nine tenths in train, the rest in validation.

    SUPERB draws random seconds of all files for both; pieces keep train and validation apart. Each stands for itself.
    """
    rows = []
    for path in sorted((archive / NOISE).glob("[!.]*.wav")):
        for piece in range(int(_seconds(path) / PIECE_S)):
            rows.append(
                {
                    "file_name": f"{archive.name}/{NOISE}/{path.name}",
                    "word": SILENCE,
                    "speaker_id": f"{NOISE}/{path.stem}/{piece}",
                    "split_ks": "validation" if piece % 10 == VALIDATION_PIECE else "train",
                    "start": str(piece * PIECE_S),
                    "end": str((piece + 1) * PIECE_S),
                }
            )
    return text_table(rows, ["file_name", "word", "speaker_id", "split_ks", "start", "end"])


def _seconds(path: Path) -> float:
    try:
        return soundfile.info(path).duration
    except (OSError, soundfile.LibsndfileError) as error:
        raise ValueError(f"{path}: cannot be read as audio ({error}).") from error


def _from_hub(version: str, row: Mapping[str, Any], split: str, protocol: str) -> HubClip:
    match = matching_text(HUB_NAME, row)
    word = match[1] or str(row.get("label"))
    if not WORD.fullmatch(word):
        raise ValueError(f"the word of {match[2]} is neither in its path nor in a column 'label' (it says {word})")
    archive, test_archive = (folder.name for folder in _folders(Path(), version))
    if protocol == "superb" and split == "test":
        return HubClip(f"{test_archive}/{word}/{match[2]}")
    list_name = LISTS.get(split) if word != NOISE else None
    return HubClip(f"{archive}/{word}/{match[2]}", f"{archive}/{list_name}" if list_name else "", f"{word}/{match[2]}")


def _corpus(version: str, counts: Mapping[str, Mapping[str, int]]) -> Corpus:
    archive, test_archive = (folder.name for folder in _folders(Path(), version))
    layout = f"{archive}/{{WORD/CODE_nohash_N.wav, {NOISE}/*.wav, {', '.join(LISTS.values())}}}"
    if "superb" in counts:
        layout += f" and, for superb, {test_archive}/{{WORD, {UNKNOWN}, {SILENCE}}}/*.wav"
    return Corpus(
        facts=FACTS[f"speech_commands_{version}"],
        layout=layout,
        counts=counts,
        parts=partial(_parts, version),
        rows=partial(_rows, version),
        from_hub=partial(_from_hub, version),
    )


V1 = _corpus(
    "v0.01",
    {
        "wavcse-paper": {"train": 51_088, "validation": 6_798, "test": 6_835, "words": 30},
        "superb": {"train": 51_088, "validation": 6_798, "test": 3_081, "words": 30, "noise files": 6},
    },
)
V2_COUNTS = {"train": 84_843, "validation": 9_981, "test": 11_005, "words": 35}
V2 = _corpus("v0.02", {"official-35": V2_COUNTS, "official-12": V2_COUNTS})
