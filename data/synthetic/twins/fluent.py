"""Spoken commands to a house: 31 intents of action, object and place, each in several wordings."""

from __future__ import annotations

from .twin import Line, Turn, Twin, cast

ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp")

# `{}` is the object.
WORDINGS = {
    "activate": ("turn on the {}", "switch on the {}", "turn the {} on"),
    "deactivate": ("turn off the {}", "switch off the {}", "turn the {} off"),
    "increase": ("turn up the {}", "increase the {}", "turn the {} up"),
    "decrease": ("turn down the {}", "decrease the {}", "turn the {} down"),
    "bring": ("bring me the {}", "get me the {}", "fetch the {}"),
    "change language": ("set the language to {}", "switch to {}", "change the language to {}"),
}
WORDINGS_WITHOUT_OBJECT = ("change the language", "use another language", "switch languages")

PLACES = ("none", "bedroom", "kitchen", "washroom")
# action -> objects, and those of them that can be told by place
OBJECTS = {
    "activate": (("lamp", "lights", "music"), {"lights"}),
    "deactivate": (("lamp", "lights", "music"), {"lights"}),
    "increase": (("heat", "volume"), {"heat"}),
    "decrease": (("heat", "volume"), {"heat"}),
    "bring": (("juice", "newspaper", "shoes", "socks"), set()),
    "change language": (("none", "Chinese", "English", "German", "Korean"), set()),
}
# The slots of the 31 intents of Fluent Speech Commands (Lugosch et al. 2019, arXiv:1904.03670).
INTENTS = tuple(
    (action, thing, place)
    for action, (things, placed) in OBJECTS.items()
    for thing in things
    for place in (PLACES if thing in placed else ("none",))
)


def intent_label(action: str, thing: str, place: str) -> str:
    """The slots that are filled, joined: `activate_lights_kitchen`."""
    return "_".join(slot for slot in (action, thing, place) if slot != "none")


def _line(turn: Turn) -> Line:
    action, thing, place = slots = turn.deal(INTENTS)
    wording = turn.pick(WORDINGS_WITHOUT_OBJECT if thing == "none" else WORDINGS[action])
    text = wording.format(thing) + ("" if place == "none" else f" in the {place}")
    return Line(text, {"intent": intent_label(*slots), "action": action, "object": thing, "location": place})


FLUENT = Twin(
    name="fluent",
    title="Synthetic spoken commands",
    about="Stands for Fluent Speech Commands: intents in English, from a grammar with three wordings for each.",
    protocol="speaker-disjoint",
    clips=840,
    min_clips=180,  # three rounds of 60 speakers: 36 clips in validation and in test for 31 intents
    splits=("split_ic",),
    cast=lambda stream: cast(stream, ACCENTS, "fluent-"),
    line=_line,
    labels={
        "intent": "one of 31: the filled slots, joined",
        "action": "first slot",
        "object": "second slot, or none",
        "location": "third slot, or none",
    },
)
