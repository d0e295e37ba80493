"""Dyads of a woman and a man, improvised and scripted: four emotions by prosody, and words that sometimes hint at them."""

from __future__ import annotations

from itertools import product

import numpy as np

from ..plan import Speaker
from ..voices import ANGRY, HAPPY, NEUTRAL, SAD, VARIANTS, Prosody, Stream, draw
from .twin import Line, Turn, Twin, cast

EMOTIONS = {"neutral": NEUTRAL, "happy": HAPPY, "angry": ANGRY, "sad": SAD}
STYLES = ("improvised", "scripted")
SPEAKERS = {"train": 6, "validation": 2, "test": 2}  # sessions 1 to 3, 4, 5
HINTS = (True, False, False)  # whether the words hint at the emotion: of a third of the clips
CASES = tuple(product(EMOTIONS, STYLES, HINTS))
SECONDS = (2.1, 3.2)  # of speech; with the silence around it clips have 2 to 4 s
OFF_PACE = ("Marco", "Alicia", "Andrea", "anika")  # speak a sixth and more slower or faster than they are told

# What is said, and how many minutes at one word a minute espeak-ng needs for it (measured).
FIXED_LINES = {
    "The meeting begins at nine on Monday morning.": 6.6,
    "Please leave all the keys on the kitchen table.": 6.4,
    "The last train arrives at the north station.": 6.4,
    "She put the old letters back in the drawer.": 5.8,
    "We painted the whole kitchen in the spring.": 6.0,
    "The little shop on the corner is closed today.": 6.8,
    "He carried the heavy boxes down to the car.": 6.7,
    "They moved to the city at the end of last year.": 6.8,
    "The window at the end of the hall is open.": 5.8,
    "My brother works at the old paper mill now.": 6.9,
    "There are three wooden chairs out in the garden.": 6.2,
    "The road along the river is long and narrow.": 6.3,
}
FIXED_HINTS = {
    "neutral": {
        "Nothing has changed here since last week.": 7.1,
        "It is an ordinary day at the office.": 5.0,
        "The form only needs a name and a date.": 6.1,
    },
    "happy": {
        "This is the best news that I have had in years.": 6.6,
        "We won the first prize and it is wonderful.": 6.9,
        "I am so glad that you could come tonight.": 5.9,
    },
    "angry": {
        "You lied to me again, so get out of here.": 6.9,
        "I have had more than enough of your excuses.": 6.2,
        "How dare you take my money from me again.": 5.9,
    },
    "sad": {
        "I miss her so much more than I can say.": 5.8,
        "We lost everything we had in the fire.": 5.6,
        "He is gone for good and I feel all alone.": 6.5,
    },
}
FILLERS = {"um": 1.4, "uh": 1.2, "well": 1.6, "so": 1.6, "I mean": 1.9, "you know": 1.9}  # with the pause after it
LOOSE_LINES = {
    "maybe we could meet on Monday or so": 5.9,
    "the keys are like over there somewhere": 5.0,
    "that train comes in up north I guess": 5.8,
    "she sort of kept all of the letters": 5.5,
    "we kind of painted the kitchen thing": 5.8,
    "that shop is like all closed up now": 6.3,
    "he just took the boxes or whatever": 6.1,
    "they went off to the city I think": 4.7,
    "that window thing is like wide open": 5.6,
    "my brother does stuff at some mill": 5.2,
    "there are like three chairs out there": 5.3,
    "that road just goes on and on and on": 6.2,
}
LOOSE_HINTS = {
    "neutral": {
        "it is just kind of the usual stuff": 5.4,
        "nothing much is going on I guess": 4.9,
        "they just want a name or whatever": 5.7,
    },
    "happy": {
        "that is like the best news ever": 4.8,
        "we kind of won and it is so great": 5.8,
        "I am just like so happy right now": 5.7,
    },
    "angry": {
        "you just lied to me like always": 5.1,
        "I am just like so sick of all this": 5.7,
        "that stuff was mine so get lost now": 6.1,
    },
    "sad": {
        "I just kind of miss her all the time": 5.9,
        "we kind of lost it all back there": 5.6,
        "he is like gone and I just cry": 5.3,
    },
}


def _line(turn: Turn) -> Line:
    emotion, style, has_hint = turn.deal(CASES)
    text, length = (_improvised if style == "improvised" else _scripted)(turn, emotion, has_hint)
    session = int(turn.speaker.speaker_id[-3:]) // 2 + 1
    labels = {"emotion": emotion, "style": style, "session": str(session)}
    return Line(text, labels, EMOTIONS[emotion], recorded={"rate_wpm": _rate_wpm(turn, EMOTIONS[emotion], length)})


def _scripted(turn: Turn, emotion: str, has_hint: bool) -> tuple[str, float]:
    lines = FIXED_HINTS[emotion] if has_hint else FIXED_LINES
    text = turn.pick(list(lines))
    return text, lines[text]


def _improvised(turn: Turn, emotion: str, has_hint: bool) -> tuple[str, float]:
    lines = LOOSE_HINTS[emotion] if has_hint else LOOSE_LINES
    filler, text = turn.pick(list(FILLERS)), turn.pick(list(lines))
    return f"{filler}, {text}.", FILLERS[filler] + lines[text]


def _rate_wpm(turn: Turn, prosody: Prosody, length: float) -> float:
    """The speaker's rate in this emotion, limited so that the clip has 2 to 4 s."""
    fastest, slowest = (60 * length / seconds for seconds in SECONDS)
    return float(np.clip(turn.speaker.rate_wpm * draw(turn.rng, prosody.rate_ratio, 0.6, 1.7), slowest, fastest))


def _cast(stream: Stream) -> list[Speaker]:
    variants = {gender: [name for name in names if name not in OFF_PACE] for gender, names in VARIANTS.items()}
    return cast(stream, ("en-us",), "dyads-", SPEAKERS, variants)


DYADS = Twin(
    name="dyads",
    title="Synthetic dyadic emotional speech",
    about=(
        "Stands for IEMOCAP with speaker, gender, style and words beside the emotion: five sessions of a woman and a man. "
        "The emotion is in the prosody; of a third of the clips the words hint at it too."
    ),
    protocol="speaker-disjoint",
    clips=1080,
    min_clips=120,  # so many that all 24 cases come up among the 2 speakers of validation, and of test
    splits=("split_er",),
    cast=_cast,
    line=_line,
    labels={
        "emotion": f"prosody class: {', '.join(EMOTIONS)}",
        "style": "improvised (fillers and looser wording) or scripted (fixed lines)",
        "session": "1 to 5, each of one woman and one man; 4 validates, 5 is tested, unless sessions are left out in turn",
    },
)
