"""SLURP (Bastianelli et al., EMNLP 2020): requests to an assistant at home, with intents, read and said by many speakers.

The corpus's own lists, one JSON object per sentence with its recordings. An intent is SCENARIO_ACTION, as Porjazovski et al.
(2024) make it, whatever the field `intent` of the lists says; a clip whose intent nothing trains has no split. The lists are
not known to keep speakers apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wavcse.data.corpora.corpus import Corpus, Rows, read_lines, some, tally, text_table
from wavcse.data.corpus_facts import FACTS

LISTS = {"train": "train", "devel": "validation", "test": "test"}
SYNTHETIC = "train_synthetic"
FOLDER, METADATA = "dataset/slurp", "metadata.json"
REAL_AUDIO, SYNTHETIC_AUDIO = "audio/slurp_real", "audio/slurp_synth"
FIELDS = ("sentence", "scenario", "action", "recordings")
SYNTHETIC_SPEAKER = "synthetic"


def _lists(protocol: str) -> dict[str, str]:
    """List -> split."""
    return {**LISTS, **({SYNTHETIC: "train"} if protocol == "with-synthetic" else {})}


def _audio(list_name: str) -> str:
    return SYNTHETIC_AUDIO if list_name == SYNTHETIC else REAL_AUDIO


def _parts(root: Path, protocol: str) -> list[Path]:
    lists = _lists(protocol)
    return [*(root / FOLDER / f"{name}.jsonl" for name in lists), *(root / own for own in dict.fromkeys(map(_audio, lists)))]


def _rows(root: Path, protocol: str) -> Rows:
    speakers = _speakers(root / FOLDER / METADATA)
    rows, lost, seen = [], [], set()
    for name, split in _lists(protocol).items():
        path = root / FOLDER / f"{name}.jsonl"
        there = {own.name for own in (root / _audio(name)).glob("*.flac")}
        for said, clip in _listed(path):
            file_name = f"{_audio(name)}/{clip}"
            if file_name in seen:
                raise ValueError(f"{path}: {clip} is listed twice, or in two lists.")
            seen.add(file_name)
            lost += [] if clip in there else [file_name]
            if clip in there:
                speaker = SYNTHETIC_SPEAKER if name == SYNTHETIC else speakers.get(clip, "")
                rows.append((file_name, f"{said['scenario']}_{said['action']}", *map(said.get, FIELDS[:3]), speaker, split))
    table = text_table(rows, ["file_name", "intent", "text", "scenario", "action", "speaker_id", "split_ic"])
    problems = [f"the lists name clips that are not there, {some(lost)}"] if lost else []
    known = set(table["speaker_id"]) - {"", SYNTHETIC_SPEAKER}
    found = {**tally(table["split_ic"]), "intents": table["intent"].nunique(), "speakers": len(known)}
    trained = set(table["intent"][table["split_ic"] == "train"])
    table["split_ic"] = table["split_ic"].where(table["intent"].isin(trained), "")
    return Rows(table, {**found, "of intents that nothing trains": int((table["split_ic"] == "").sum())}, problems)


def _listed(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """What is said, and the file, of every recording in a list; nothing where there is no list, which `parts` tells of."""
    for line in read_lines(path) if path.is_file() else []:
        try:
            said = json.loads(line)
            clips = [recording["file"] for recording in said["recordings"]]
            right = all(isinstance(said[name], str) and said[name] for name in FIELDS[:3])
            right &= all(isinstance(clip, str) and Path(clip).name == clip for clip in clips)
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            raise ValueError(
                f"{path}: the line {line[:80]!r} is not a JSON object with a sentence, a scenario, an action and recordings, "
                "each with a file."
            )
        yield from ((said, clip) for clip in clips)


def _speakers(path: Path) -> dict[str, str]:
    """File -> who speaks, of the recordings of which `metadata.json` says it; empty where there is no such file."""
    try:
        about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); load it again, or go without speakers and remove it.") from error
    sentences = [about] if "recordings" in about else [own for own in about.values() if isinstance(own, Mapping)]
    recordings = [own["recordings"] for own in sentences if isinstance(own.get("recordings"), Mapping)]
    return {
        clip: str(own["usrid"])
        for of_sentence in recordings
        for clip, own in of_sentence.items()
        if isinstance(own, Mapping) and own.get("usrid")
    }


# The numbers of devel and test that papers on the corpus state; what they say of train differs, so it is not checked.
SLURP = Corpus(
    facts=FACTS["slurp"],
    layout=f"{FOLDER}/{{{', '.join(f'{name}.jsonl' for name in LISTS)}, {METADATA}}} and {REAL_AUDIO}/*.flac, and for "
    f"with-synthetic {FOLDER}/{SYNTHETIC}.jsonl and {SYNTHETIC_AUDIO}/*.flac",
    counts={protocol: {"validation": 8_690, "test": 13_078} for protocol in FACTS["slurp"].protocols},
    parts=_parts,
    rows=_rows,
)
