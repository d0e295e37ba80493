"""CN-Celeb1 (Fan et al., ICASSP 2020, arXiv:1911.01799; OpenSLR 82): speaker verification in Mandarin, eleven genres.

Training speakers are those of dev/dev.lst, a tenth of which validates by hash. Tested are the trials of eval/lists/trials.lst:
a model of eval/lists/enroll.lst, one clip each, against a clip of eval/test. The lists say .wav, the archive has flac.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from wavcse.data.corpora.corpus import Corpus, Rows, read_lines, refuse_shared_speakers, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import split_by_hash

if TYPE_CHECKING:
    import pandas as pd

DEV_LIST, ENROLMENTS, TRIALS = "dev/dev.lst", "eval/lists/enroll.lst", "eval/lists/trials.lst"
SPEAKER = re.compile(r"id\d{5}")
ENROLMENT = re.compile(r"(\S+) (enroll/id\d{5}-[^/ ]+)\.(?:wav|flac)")
TRIAL = re.compile(r"(\S+) (test/id\d{5}-[^/ ]+)\.(?:wav|flac) ([01])")
AUDIO = {".wav", ".flac"}
VALIDATION_SHARE = 0.1  # of the development speakers
KNOWN_LOST = 3  # of the 800 development speakers the distributed archive has clips of 797


def _parts(root: Path, protocol: str) -> list[Path]:
    return [root / name for name in (DEV_LIST, "data", ENROLMENTS, TRIALS, "eval/enroll", "eval/test")]


def _rows(root: Path, protocol: str) -> Rows:
    development, problems = _development(root)
    clips = {
        path.relative_to(root / "eval").with_suffix("").as_posix(): path.relative_to(root).as_posix()
        for folder in ("enroll", "test")
        for path in _audio(root / "eval" / folder)
    }
    models, lost = _enrolments(root / ENROLMENTS, clips)
    enrolled = [(file_name, _speaker(file_name), "test", model) for model, file_name in models.items()]
    tested = [(file_name, _speaker(file_name), "test", "") for key, file_name in clips.items() if key.startswith("test/")]
    trials, unheard = _trials(root / TRIALS, models, clips)
    columns = ["file_name", "speaker_id", "split_sv", "enrolment_id"]
    table = text_table([*development, *enrolled, *tested], columns)
    refuse_shared_speakers(table, "split_sv", root)
    found = {
        **tally(table["split_sv"]),
        **{"development speakers": len({row[1] for row in development}), "enrolment": len(enrolled)},
        **{"test clips": len(tested), "trials": len(trials)},
    }
    return Rows(table, found, [*problems, *lost, *unheard], trials)


def _audio(folder: Path) -> list[Path]:
    """The clips of a folder; one that is there as flac and as wav counts once."""
    return list({path.stem: path for path in sorted(folder.glob("[!.]*")) if path.suffix in AUDIO}.values())


def _speaker(file_name: str) -> str:
    return Path(file_name).name.split("-")[0]


def _development(root: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """The clips of the listed speakers; a tenth of the speakers validates."""
    rows, lost = [], []
    speakers = read_lines(root / DEV_LIST)
    for speaker in speakers:
        if not SPEAKER.fullmatch(speaker) or speakers.count(speaker) > 1:
            raise ValueError(f"{root / DEV_LIST}: the line {speaker!r} is not a speaker such as 'id00010', listed once.")
        clips = _audio(root / "data" / speaker)
        split = split_by_hash(speaker, VALIDATION_SHARE)
        rows += [(path.relative_to(root).as_posix(), speaker, split, "") for path in clips]
        lost += [] if clips else [speaker]
    return rows, [f"{DEV_LIST} names speakers without a clip, {some(lost)}"] if len(lost) > KNOWN_LOST else []


def _enrolments(path: Path, clips: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Model -> file of its clip, and a sentence about models whose clip is not there."""
    models: dict[str, str] = {}
    for line in read_lines(path):
        match = ENROLMENT.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: the line {line!r} is not of the form 'id00800-enroll enroll/id00800-enroll.wav'.")
        if match[1] in models:
            raise ValueError(f"{path}: {match[1]} is listed twice.")
        models[match[1]] = clips.get(match[2], "")
    lost = [model for model, file_name in models.items() if not file_name]
    return {model: file_name for model, file_name in models.items() if file_name}, (
        [f"{ENROLMENTS} names models without their clip, {some(lost)}"] if lost else []
    )


def _trials(path: Path, models: dict[str, str], clips: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """The trials whose two sides are there, and a sentence about the others."""
    known = {model: model for model in models}  # one string object per name in millions of rows
    rows, lost = [], set()
    for line in read_lines(path):
        match = TRIAL.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{path}: the line {line!r} is not of the form 'id00800-enroll test/id00800-singing-01-002.wav 1'."
            )
        model, clip, label = match.groups()
        if model in known and clip in clips:
            rows.append((label, known[model], clips[clip]))
        else:
            lost.add(clip if model in known else model)
    trials = text_table(rows, ["label", "enrolment", "test"])
    if (again := trials.duplicated(["enrolment", "test"])).any():
        raise ValueError(f"{path}: {' '.join(trials.loc[again.idxmax(), ['enrolment', 'test']])} is listed twice.")
    return trials, [f"{TRIALS} names models or clips that are not there, {some(sorted(lost))}"] if lost else []


CNCELEB1 = Corpus(
    facts=FACTS["cnceleb1"],
    layout=f"{DEV_LIST}, data/idXXXXX/*.flac, eval/{{enroll,test}}/*.flac, {ENROLMENTS} and {TRIALS} (flac or wav)",
    counts={"official": {"enrolment": 196, "test clips": 17_777, "trials": 3_484_292}},
    parts=_parts,
    rows=_rows,
)
