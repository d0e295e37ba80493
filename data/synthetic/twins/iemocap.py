"""Valence, activation and dominance of English turns: each moves the prosody, and three raters hear it with some noise."""

from __future__ import annotations

import numpy as np

from ..voices import Normal, Prosody, draw
from .twin import Line, Turn, Twin, cast

ACCENTS = ("en-us", "en-us-nyc")
SENTENCES = (
    "I told you that already.",
    "We have to leave before noon.",
    "You said you would call me.",
    "That is what she wrote.",
    "I will wait outside.",
    "They are moving to the city.",
    "It was raining the whole day.",
    "Come and look at this.",
    "He left his coat here.",
    "Let us talk about it later.",
)
MIN_RATING, NEUTRAL_RATING, MAX_RATING = 1, 3, 5
RATERS, RATING_SD = 3, 0.6
AFFECT = ("valence", "activation", "dominance")


def affect(rng: np.random.Generator) -> tuple[float, float, float]:
    """Valence, activation and dominance of a turn, 1..5; dominance goes with activation, as in IEMOCAP."""
    valence = draw(rng, Normal(NEUTRAL_RATING, 1.0), MIN_RATING, MAX_RATING)
    activation = draw(rng, Normal(NEUTRAL_RATING, 0.9), MIN_RATING, MAX_RATING)
    dominance = draw(rng, Normal(NEUTRAL_RATING + 0.5 * (activation - NEUTRAL_RATING), 0.8), MIN_RATING, MAX_RATING)
    return valence, activation, dominance


def prosody(valence: float, activation: float, dominance: float) -> Prosody:
    """How such a turn sounds.

    Directions after the reviews of vocal affect, e.g. Laukka, Juslin and Bresin 2005 (doi:10.1080/02699930441000445):
    activation is high, fast and loud; valence lively and mild; dominance low and forceful.
    """
    v, a, d = valence - NEUTRAL_RATING, activation - NEUTRAL_RATING, dominance - NEUTRAL_RATING
    return Prosody(
        pitch_semitones=Normal(1.5 * a + 0.8 * v - 1.2 * d, 0.8),
        rate_ratio=Normal(1 + 0.10 * a + 0.04 * v, 0.06),
        pitch_range=Normal(1 + 0.3 * v + 0.1 * a, 0.2),
        level_db=Normal(2.5 * a + 1.5 * d, 2.0),
        tilt_db_per_octave=Normal(0.4 * a + 0.5 * d - 1.0 * v, 0.4),
    )


def rating(true: float, rng: np.random.Generator) -> str:
    """Mean of the whole points that the raters give."""
    points = np.clip(np.round(rng.normal(true, RATING_SD, RATERS)), MIN_RATING, MAX_RATING)
    return f"{points.mean():.4f}"


def _line(turn: Turn) -> Line:
    true = affect(turn.rng)
    labels = {name: rating(value, turn.rng) for name, value in zip(AFFECT, true, strict=True)}
    return Line(turn.pick(SENTENCES), labels, prosody(*true))


IEMOCAP = Twin(
    name="iemocap",
    title="Synthetic affective speech",
    about="Stands for IEMOCAP: valence, activation and dominance of English turns.",
    protocol="speaker-disjoint",
    clips=600,
    min_clips=60,  # one clip for each of 60 speakers
    splits=("split_vad",),
    cast=lambda stream: cast(stream, ACCENTS, "iemocap-"),
    line=_line,
    labels=dict.fromkeys(AFFECT, f"1 to 5: mean of {RATERS} simulated raters, of what moved the prosody"),
)
