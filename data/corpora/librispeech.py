"""LibriSpeech (Panayotov et al., ICASSP 2015; OpenSLR 12): read English with texts, and who reads which book.

Vaessen and van Leeuwen (Interspeech 2023) train on all 960 hours, validate by dev-other and test by test-other, with trials of
all pairs of test-other: of one speaker from two books, of two of one sex. Texts are the corpus's, in capitals without
punctuation.
"""

from __future__ import annotations

import re
from pathlib import Path

from wavcse.data.corpora.corpus import Corpus, Rows, read_lines, refuse_shared_speakers, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.trials import make_pairs, trials_table

TRAIN = ("train-clean-100", "train-clean-360", "train-other-500")
SUBSETS = {
    "other": {**dict.fromkeys(TRAIN, "train"), "dev-other": "validation", "test-other": "test"},
    "clean": {**dict.fromkeys(TRAIN, "train"), "dev-clean": "validation", "test-clean": "test"},
    "clean-360": {"train-clean-360": "train", "dev-clean": "validation", "test-clean": "test"},
}
SPLIT_COLUMNS = ("split_asr", "split_sv", "split_sid")  # of the last, for known speakers, the training part alone
TEXT = re.compile(r"((\d+)-(\d+)-\d{4}) (.+)")
SPEAKER = re.compile(r"(\d+)\s*\|\s*([FM])\s*\|.*")
CHAPTER = re.compile(r"(\d+)\s*\|\s*(\d+)\s*\|(?:[^|]*\|){3}\s*(\d+)\s*\|.*")  # ID, reader, minutes, subset, project, book
GENDERS = {"F": "female", "M": "male"}


def _parts(root: Path, protocol: str) -> list[Path]:
    return [root / "SPEAKERS.TXT", root / "CHAPTERS.TXT", *(root / name for name in SUBSETS[protocol])]


def _rows(root: Path, protocol: str) -> Rows:
    genders = {match[1]: GENDERS[match[2]] for match in _matches(root / "SPEAKERS.TXT", SPEAKER)}
    books = {match[1]: match[3] for match in _matches(root / "CHAPTERS.TXT", CHAPTER)}
    rows, lost, unlisted = [], [], set()
    for subset, split in SUBSETS[protocol].items():
        for path in sorted((root / subset).glob("*/*/*.trans.txt")):
            for match in _matches(path, TEXT, all_lines=True):
                clip, speaker, chapter, text = match.groups()
                unlisted |= set() if speaker in genders else {f"speaker {speaker}"}
                unlisted |= set() if chapter in books else {f"chapter {chapter}"}
                audio = path.with_name(f"{clip}.flac")
                lost += [] if audio.is_file() else [clip]
                if audio.is_file():
                    session = books.get(chapter, f"chapter-{chapter}")
                    file_name = audio.relative_to(root).as_posix()
                    rows.append(
                        (
                            file_name,
                            speaker,
                            genders.get(speaker, ""),
                            session,
                            text,
                            subset,
                            split,
                            split,
                            "train" if split == "train" else "",
                        )
                    )
    table = text_table(rows, ["file_name", "speaker_id", "gender", "session", "text", "subset", *SPLIT_COLUMNS])
    refuse_shared_speakers(table, "split_sv", root)
    problems = [f"texts name clips that are not there, {some(lost)}"] if lost else []
    problems += [f"SPEAKERS.TXT and CHAPTERS.TXT lack what the folders have, {some(sorted(unlisted))}"] if unlisted else []
    test = table[table["split_sv"] == "test"]
    speakers, sexes, sessions = (test[name].to_numpy() for name in ("speaker_id", "gender", "session"))
    trials = trials_table(test["file_name"], make_pairs(speakers, [sexes], [sessions])) if len(set(speakers)) > 1 else None
    return Rows(table, {**tally(table["split_asr"]), "speakers": table["speaker_id"].nunique()}, problems, trials)


def _matches(path: Path, pattern: re.Pattern, all_lines: bool = False) -> list[re.Match]:
    """The lines of a list, without comments; ValueError for one that is not as the corpus writes it."""
    lines = [line for line in read_lines(path) if all_lines or not line.startswith(";")]
    matches = [pattern.fullmatch(line) for line in lines]
    wrong = next((line for line, match in zip(lines, matches) if match is None), None)
    if wrong is not None:
        raise ValueError(f"{path}: the line {wrong!r} is not as LibriSpeech writes it.")
    return matches


# Utterances: ESPnet's Database.md; speakers: Table 1 of the corpus's paper, 251 + 921 + 1,166 who train,
# and 33 each of dev-other and test-other, or 40 each of dev-clean and test-clean.
LIBRISPEECH = Corpus(
    facts=FACTS["librispeech"],
    layout="SPEAKERS.TXT, CHAPTERS.TXT and SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac with SPEAKER-CHAPTER.trans.txt",
    counts={
        "other": {"train": 281_241, "validation": 2_864, "test": 2_939, "speakers": 2_404},
        "clean": {"train": 281_241, "validation": 2_703, "test": 2_620, "speakers": 2_418},
        "clean-360": {"train": 104_014, "validation": 2_703, "test": 2_620, "speakers": 1_001},
    },
    parts=_parts,
    rows=_rows,
)
