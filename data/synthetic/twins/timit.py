"""Gender, age and dialect from read English sentences: many speakers, few clips each, two sentences common to all."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..plan import Speaker
from ..voices import Stream
from .twin import Line, Turn, Twin, cast

# espeak-ng's voice -> label.
DIALECTS = {
    "en-us": "en-us",
    "en-us-nyc": "en-us-nyc",
    "en-gb-x-rp": "en-gb-x-rp",
    "en-gb-scotland": "en-gb-scotland",
    "en-gb-x-gbclan": "en-gb-x-gbclan",
    "en-gb-x-gbcwmd": "en-gb-x-gbcwmd",
    "en-029": "en-029",
    "en": "en-gb",
}
SPEAKERS = {"train": 96, "validation": 32, "test": 32}  # multiples of 16: every dialect in both genders in every split

# Read first by every speaker, as TIMIT's SA sentences are; vowels and r's that the accents treat differently.
COMMON_SENTENCES = ("Ask her to park the car by the old barn.", "My father never washes the floor in the morning.")
OTHER_SENTENCES = (
    "The girl bought nice new boots.",
    "Half an hour later it started to rain.",
    "No one heard the first question.",
    "Put the butter and the bread on the table.",
    "The dance lasted all night.",
    "They walked along the northern shore.",
    "Every bird has its own song.",
    "Little children like hot chocolate.",
    "He could not find a better word.",
    "Our house is near the river.",
)

# Age in years: TIMIT's speakers are mostly between 20 and 40 (LDC93S1, SPKRINFO.TXT).
MIN_AGE, MAX_AGE, AGE_SHAPE, AGE_SCALE = 20.0, 75.0, 1.6, 11.0
TYPICAL_AGE = 38.0

_AGE = 5  # number after the twin's stream, beyond those of twin.py


@dataclass(frozen=True)
class AgedSpeaker(Speaker):
    """A speaker whose voice shows their age, as far as it can be told from a voice."""

    age: float  # years
    breath_db: float


def age(speaker: Speaker, rng: np.random.Generator) -> AgedSpeaker:
    """Draw an age and change the voice accordingly: slower, lower, a longer tract, hoarser.

    Directions after Linville 2001, Vocal Aging; the speakers' own differences stay on top.
    """
    years = round(float(np.clip(MIN_AGE + rng.gamma(AGE_SHAPE, AGE_SCALE), MIN_AGE, MAX_AGE)), 1)
    older = years - TYPICAL_AGE
    aged = replace(
        speaker,
        pitch_semitones=speaker.pitch_semitones - 0.06 * older,
        rate_wpm=speaker.rate_wpm - 1.0 * older,
        tract_ratio=speaker.tract_ratio * (1 - 0.001 * older),
    )
    return AgedSpeaker(**vars(aged), age=years, breath_db=-22 + 0.35 * older + float(rng.normal(0, 2)))


def _cast(stream: Stream) -> list[Speaker]:
    speakers = cast(stream, tuple(DIALECTS), "timit-", SPEAKERS)
    return [age(speaker, np.random.default_rng([*stream, _AGE, i])) for i, speaker in enumerate(speakers)]


def _line(turn: Turn) -> Line:
    is_common = turn.round < len(COMMON_SENTENCES)
    text = COMMON_SENTENCES[turn.round] if is_common else turn.pick(OTHER_SENTENCES)
    labels = {"age": f"{turn.speaker.age:.1f}", "dialect": DIALECTS[turn.speaker.accent]}
    return Line(text, labels, breath_db=turn.speaker.breath_db)


TIMIT = Twin(
    name="timit",
    title="Synthetic English sentences",
    about="Stands for TIMIT: gender, age and dialect of speakers who read English sentences, two of them common to all.",
    protocol="speaker-disjoint",
    clips=640,
    min_clips=160,  # one clip for each of 160 speakers
    splits=("split_sgr", "split_sar", "split_sdr"),
    cast=_cast,
    line=_line,
    labels={
        "age": "years; an older voice is lower, slower and hoarser, and its tract longer, within the differences of voices",
        "dialect": f"{', '.join(DIALECTS.values())}: espeak-ng's accents",
    },
)
