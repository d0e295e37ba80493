"""VoxForge (MacLean 2018, voxforge.org): language identification in German, English, Spanish, French, Italian, Russian.

One archive per recording session, named USER-YYYYMMDD-CODE. There is no official split: users are dealt to train, validation
and test by the sha1 of their name, whatever the language and however many sessions. It is not known who `anonymous` is, so
all of that trains, and so does what an archive without a user's name holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wavcse.data.corpora.corpus import Corpus, HubClip, Rows, matching_text, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import split_by_hash

LANGUAGES = {"de": "german", "en": "english", "es": "spanish", "fr": "french", "it": "italian", "ru": "russian"}
ARCHIVE = re.compile(r"(.+?)-\d{8,10}[a-z]?(?:[-_].*)?")
ANONYMOUS = "anonymous"
HUB_NAME = re.compile(r"(?:^|/)([^/]+-\d{8,10}[^/]*)/(?:(?:wav|flac)/)?([^/]+)\.(?:wav|flac)$")
SHARE = 0.1  # of the users, in validation and in test


def _parts(root: Path, protocol: str) -> list[Path]:
    return [root / language for language in LANGUAGES]


def _rows(root: Path, protocol: str) -> Rows:
    rows, problems = [], []
    for language in LANGUAGES:
        sessions: set[str] = set()
        for path in _clips(root / language):
            sessions.add(path.parents[1].name)
            rows.append((path.relative_to(root).as_posix(), language, speaker_of(path.parents[1].name)))
        packed = sorted({path.name.removesuffix(".tgz") for path in (root / language).rglob("*.tgz")} - sessions)
        problems += [f"archives of {language} that are not unpacked, {some(packed)}"] if packed else []
    table = text_table(rows, ["file_name", "language", "speaker_id"])
    table["split_sli"] = [_split(speaker) for speaker in table["speaker_id"]]
    found = {"languages": table["language"].nunique(), "speakers": table["speaker_id"].nunique()}
    return Rows(table, {**tally(table["split_sli"]), **found}, problems)


def _clips(folder: Path) -> Iterator[Path]:
    """The clips of a language; of a session that is there at several rates, its first folder (16kHz before 44kHz, 8kHz)."""
    seen: set[tuple[str, str]] = set()
    for path in sorted([*folder.rglob("wav/[!.]*.wav"), *folder.rglob("flac/[!.]*.flac")]):
        key = path.parents[1].name, path.stem
        if key not in seen:
            seen.add(key)
            yield path


def speaker_of(archive: str) -> str:
    """The user of an archive in lower case; `anonymous` for those without a name and for names of another form."""
    match = ARCHIVE.fullmatch(archive)
    user = match[1].lower() if match else ANONYMOUS
    return ANONYMOUS if user.startswith(("anonym", "anonim")) else user


def _split(speaker: str) -> str:
    return "train" if speaker == ANONYMOUS else split_by_hash(speaker, SHARE, SHARE)


def _from_hub(row: Mapping[str, Any], split: str, protocol: str) -> HubClip:
    match = matching_text(HUB_NAME, row)
    texts = {value.lower() for value in row.values() if isinstance(value, str)}
    language = next((code for code, name in LANGUAGES.items() if {code, name} & texts), None)
    if language is None:
        raise ValueError(f"no column of {match[0]} names one of the languages {', '.join(LANGUAGES)}")
    return HubClip(f"{language}/{match[1]}/wav/{match[2]}.wav")


VOXFORGE = Corpus(
    facts=FACTS["voxforge"],
    layout="LANGUAGE/USER-YYYYMMDD-CODE/{etc/README, etc/PROMPTS, wav/*.wav or flac/*.flac}, at any depth below LANGUAGE, "
    f"which is {', '.join(LANGUAGES)}",
    counts={"speaker-disjoint": {"languages": len(LANGUAGES)}},
    parts=_parts,
    rows=_rows,
    from_hub=_from_hub,
)
