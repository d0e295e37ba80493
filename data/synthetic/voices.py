"""Random draws that plans share: voices, what a speaker sounds like, how an emotion sounds, whose turn it is.

A *stream* is the seed of a random generator: a tuple of integers that begins with the corpus's seed and says what is drawn
and for whom, so that no draw depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .plan import EQ_NODES_HZ, Speaker

T = TypeVar("T")
Stream = tuple[int, ...]

# espeak-ng's human-sounding voice variants, without its robots, whispers and copies.
VARIANTS = {
    "male": ("m1", "m2", "m3", "m4", "m6", "m7", "m8", "Andy", "Denis", "Diogo", "Hugo", "Marco", "Michael", "victor"),
    "female": (
        *("f1", "f2", "f3", "f4", "f5", "Alicia", "Andrea", "Annie"),
        *("anika", "aunty", "belinda", "linda", "shelby", "steph"),
    ),
}
GENDERS = tuple(VARIANTS)

# Split of a known speaker's 1st, 2nd, ... clip: 60/20/20, and all three splits after three clips.
KNOWN_SPLITS = ("train", "validation", "test", "train", "train")


@dataclass(frozen=True)
class Normal:
    """A normal distribution."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Prosody:
    """How an emotion changes a speaker's delivery. Neighbouring emotions overlap: a clip cannot always be told."""

    pitch_semitones: Normal  # above the speaker's own
    rate_ratio: Normal  # times the speaker's own rate
    pitch_range: Normal  # 1 = the voice's own
    level_db: Normal
    tilt_db_per_octave: Normal  # vocal effort: the louder the voice, the stronger its high frequencies


# Directions after the reviews of vocal emotion, e.g. Scherer 2003 (doi:10.1016/S0167-6393(02)00084-5), table 2.
NEUTRAL = Prosody(Normal(0.0, 1.2), Normal(1.00, 0.08), Normal(0.9, 0.25), Normal(0, 2.5), Normal(0.0, 0.6))
HAPPY = Prosody(Normal(4.0, 1.5), Normal(1.05, 0.10), Normal(1.6, 0.25), Normal(1, 2.5), Normal(0.6, 0.6))
ANGRY = Prosody(Normal(1.5, 1.5), Normal(1.28, 0.12), Normal(1.2, 0.30), Normal(6, 2.5), Normal(2.0, 0.6))
SAD = Prosody(Normal(-3.0, 1.2), Normal(0.76, 0.08), Normal(0.4, 0.20), Normal(-5, 2.5), Normal(-1.6, 0.6))
FEARFUL = Prosody(Normal(5.5, 1.5), Normal(1.22, 0.10), Normal(0.7, 0.25), Normal(-1, 2.5), Normal(-0.4, 0.6))
DISGUSTED = Prosody(Normal(-1.5, 1.2), Normal(0.84, 0.08), Normal(1.1, 0.25), Normal(2, 2.5), Normal(0.9, 0.6))


def plan_speaker(
    stream: Stream, speaker_id: str, split: str, gender: str, language: str, accent: str, variant: str
) -> Speaker:
    """A speaker with a pitch, rate and colouring of their own."""
    rng = np.random.default_rng(stream)
    return Speaker(
        speaker_id=speaker_id,
        split=split,
        gender=gender,
        language=language,
        accent=accent,
        variant=variant,
        pitch_semitones=draw(rng, Normal(0, 1.5), -3, 3),
        rate_wpm=draw(rng, Normal(145, 12), 115, 175),
        tract_ratio=draw(rng, Normal(1, 0.03), 0.93, 1.07),
        eq_db=tuple(draw(rng, Normal(0, 1.5), -4, 4) for _ in EQ_NODES_HZ),
    )


def next_speaker(stream: Stream, speakers: Sequence[Speaker], n: int) -> tuple[int, Speaker]:
    """Round and speaker of the n-th clip: all speakers in random order, round after round."""
    round_, place = divmod(n, len(speakers))
    order = np.random.default_rng([*stream, round_]).permutation(len(speakers))
    return round_, speakers[order[place]]


def delivery(rng: np.random.Generator, speaker: Speaker, prosody: Prosody) -> dict[str, float | int]:
    """How a clip is spoken and recorded: the fields of an `Utterance` that are drawn for each clip."""
    return {
        "rate_wpm": speaker.rate_wpm * draw(rng, prosody.rate_ratio, 0.6, 1.7),
        "pitch_semitones": speaker.pitch_semitones + draw(rng, prosody.pitch_semitones, -7, 8),
        "pitch_range": draw(rng, prosody.pitch_range, 0.1, 2.0),
        "level_dbfs": -28 + draw(rng, prosody.level_db, -12, 12),
        "tilt_db_per_octave": draw(rng, prosody.tilt_db_per_octave, -3, 3),
        "snr_db": draw(rng, Normal(25, 5), 12, 40),
        "lead_s": float(rng.uniform(0.05, 0.25)),
        "tail_s": float(rng.uniform(0.05, 0.25)),
        "noise_seed": int(rng.integers(2**31)),
    }


def deal(stream: Stream, labels: Sequence[T], n: int) -> T:
    """The n-th label from an endless shuffled deck: every label once in each run of `len(labels)`."""
    deck, place = divmod(n, len(labels))
    return labels[np.random.default_rng([*stream, deck]).permutation(len(labels))[place]]


def draw(rng: np.random.Generator, normal: Normal, low: float, high: float) -> float:
    """A number of the distribution, limited to `low`..`high`."""
    return float(np.clip(rng.normal(normal.mean, normal.sd), low, high))
