"""Greek emotional speech: five emotions, sentences that carry none."""

from __future__ import annotations

from ..voices import ANGRY, DISGUSTED, FEARFUL, HAPPY, SAD
from .twin import Line, Turn, Twin, cast

EMOTIONS = {"anger": ANGRY, "disgust": DISGUSTED, "fear": FEARFUL, "happiness": HAPPY, "sadness": SAD}
SENTENCES = (
    "Το τρένο φεύγει σε λίγο.",
    "Το κλειδί είναι πάνω στο τραπέζι.",
    "Θα σε δω αύριο το πρωί.",
    "Ο γείτονας χτυπάει την πόρτα.",
    "Κοίτα τι έφερε η μητέρα.",
    "Αυτό το βιβλίο είναι δικό μου.",
    "Έρχεται βροχή από τη θάλασσα.",
    "Δεν ξέρω τι να σου πω.",
    "Το φαγητό είναι έτοιμο.",
    "Μιλάει με τον αδελφό του.",
)


def _line(turn: Turn) -> Line:
    emotion = turn.deal(tuple(EMOTIONS))
    return Line(turn.pick(SENTENCES), {"emotion": emotion}, EMOTIONS[emotion])


AESDD = Twin(
    name="aesdd",
    title="Synthetic Greek emotional speech",
    about="Stands for AESDD: five emotions, acted in Greek (el). Any emotion may come with any sentence.",
    protocol="speaker-disjoint",
    clips=600,
    min_clips=60,  # one round of 60 speakers: 12 clips in validation and in test for 5 emotions
    splits=("split_er",),
    cast=lambda stream: cast(stream, ("el",), "aesdd-"),
    line=_line,
    labels={"emotion": f"prosody class: {', '.join(EMOTIONS)}"},
)
