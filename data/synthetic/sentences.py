"""Sentences in two languages with the times of their words and phones: what models of words are trained and judged on.

The vocabulary is small, so that every word is said by many speakers; which words are said does not depend on the emotion.
"""

from __future__ import annotations

import numpy as np

from .table import EMOTIONS
from .twins.twin import Line, Turn, Twin, cast

ACCENTS = ("en-us", "es", "en-gb-x-rp", "es-419")
SPEAKERS = {"train": 32, "validation": 8, "test": 16}  # multiples of 8: every accent in both genders

# A sentence takes one word of each place. Spanish nouns are masculine, so that any word goes with any other.
ENGLISH = (
    "the my her every",
    "young gentle hungry famous clever",
    "teacher farmer sailor doctor painter singer",
    "carried opened found washed repaired forgot",
    "the my her every",
    "golden broken heavy yellow empty",
    "basket letter candle window blanket hammer",
    "near behind under inside",
    "the",
    "garden kitchen village station castle mountain",
)
SPANISH = (
    "el mi su cada",
    "viejo famoso pobre alegre joven",
    "profesor médico pintor vecino soldado cantante",
    "busca lleva encuentra limpia compra olvida",
    "el mi su cada",
    "libro cuchillo sombrero zapato espejo dinero",
    "blanco pesado roto amarillo nuevo",
    "sobre tras hacia desde",
    "el",
    "jardín mercado castillo puente desierto camino",
)
PLACES = {"en": [place.split() for place in ENGLISH], "es": [place.split() for place in SPANISH]}
LEFT_OUT = ((), (1,), (7, 8, 9), (1, 7, 8, 9), (1, 5))  # places of a sentence that may be missing


def _line(turn: Turn) -> Line:
    emotion = turn.deal(tuple(EMOTIONS))
    text = _sentence(turn.rng, PLACES[turn.speaker.language], turn.pick(LEFT_OUT))
    return Line(text, {"emotion": emotion}, EMOTIONS[emotion])


def _sentence(rng: np.random.Generator, places: list[list[str]], left_out: tuple[int, ...]) -> str:
    return " ".join(own[rng.integers(len(own))] for place, own in enumerate(places) if place not in left_out)


SENTENCES = Twin(
    name="sentences",
    title="Synthetic sentences with times",
    about=(
        "Sentences in English (en) and Spanish (es) by speakers with emotions, and when each word and phone is said: "
        "espeak-ng's own times, exact to the sample."
    ),
    protocol="speaker-disjoint",
    clips=1200,
    min_clips=112,  # two for each of 56 speakers: 16 clips in validation for four emotions
    splits=("split",),
    cast=lambda stream: cast(stream, ACCENTS, "sentences-", SPEAKERS),
    line=_line,
    labels={"emotion": f"prosody class: {', '.join(EMOTIONS)}"},
    files={
        "words.csv": "a manifest with a row per word: the part of the utterance (`start`, `end` in seconds), `word`, its "
        "`order` in the utterance, its `phones`, `utterance_id`, and the labels and split of the utterance.\n",
        "phones.csv": "the same with a row per phone: `phone` in espeak-ng's notation, stress before the vowel.",
    },
    has_times=True,
    flag="--sentences",
)
