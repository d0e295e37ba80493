"""The English part of HUB5 2000 (LDC2002S09 and LDC2002T43): telephone conversations with texts, all of them tested.

Clips are the segments of the reference hub5e00.english.000405.stm. As in Vaessen and van Leeuwen (Interspeech 2023),
annotations are taken off the texts, and what is left are the characters of LibriSpeech: capitals, apostrophes and blanks.
"""

from __future__ import annotations

import re
from pathlib import Path

from wavcse.data.corpora.corpus import Corpus, Rows, read_lines, some, tally, text_table
from wavcse.data.corpus_facts import FACTS

REFERENCE = "reference/hub5e00.english.000405.stm"
LINE = re.compile(r"(\w+_\d+) ([AB]) \S+ +([\d.]+) +([\d.]+) +<([^>]*)>\s*(.*)")
IGNORED = "IGNORE_TIME_SEGMENT_IN_SCORING"
ALTERNATIVES = re.compile(r"\{([^/}]*)/[^}]*\}")  # { said / meant }: the first is what was said
ANNOTATIONS = re.compile(r"<[^>]*>|\[[^\]]*\]|%\w+|[()@*]")  # noises, asides, hesitations; brackets around unsure words


def _parts(root: Path, protocol: str) -> list[Path]:
    return [root / REFERENCE, root / "english"]


def _rows(root: Path, protocol: str) -> Rows:
    path, rows, lost, empty = root / REFERENCE, [], set(), 0
    sides: set[str] = set()
    for line in read_lines(path):
        if line.startswith(";;"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}: the line {line!r} is not of the form 'en_4156 A en_4156_A 301.85 302.48 <...> words'.")
        conversation, side, start, end, _, words = match.groups()
        speaker = f"{conversation}_{side}"
        sides.add(speaker)
        text = "" if IGNORED in words else normalised(words)
        empty += not text
        files = [root / f"english/{speaker}{suffix}" for suffix in (".wav", ".flac")]
        audio = next((file for file in files if file.is_file()), None)
        lost |= set() if audio else {speaker}
        if audio and text:
            part = "switchboard" if conversation.startswith("sw") else "callhome"
            rows.append((audio.relative_to(root).as_posix(), start, end, speaker, part, text, "test"))
    table = text_table(rows, ["file_name", "start", "end", "speaker_id", "part", "text", "split_asr"])
    problems = [f"the reference names sides that are not there, {some(sorted(lost))}"] if lost else []
    conversations = {side.rpartition("_")[0] for side in sides}
    found = {"conversations": len(conversations), "sides": len(sides), "without words": empty, **tally(table["split_asr"])}
    return Rows(table, found, problems)


def normalised(words: str) -> str:
    """What was said, in LibriSpeech's characters; empty where a segment holds annotations only."""
    text = ANNOTATIONS.sub(" ", ALTERNATIVES.sub(r" \1 ", words))
    text = re.sub(r"[^A-Z' ]+", " ", text.upper().replace("-", " "))
    return " ".join(word for word in text.split() if word.strip("'"))


# LDC's page of LDC2002S09: 40 conversations, 20 of Switchboard and 20 of CALLHOME. Kaldi takes every side as a speaker, too
# (egs/swbd/s5c/local/eval2000_data_prep.sh), from the same reference.
HUB5_2000 = Corpus(
    facts=FACTS["hub5_2000"],
    layout=(
        f"{REFERENCE} and english/CONVERSATION_A.wav and _B.wav, the two sides of english/CONVERSATION.sph on their own "
        "(`sph2pipe -f wav -p -c 1` and `-c 2`)"
    ),
    counts={"english": {"conversations": 40, "sides": 80}},
    parts=_parts,
    rows=_rows,
)
