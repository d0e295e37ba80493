"""Persian keyword spotting: 18 words of football, one per clip."""

from __future__ import annotations

from .twin import Line, Turn, Twin, cast

WORDS = {
    "ball": "توپ",
    "corner": "کرنر",
    "defender": "مدافع",
    "dribble": "دریبل",
    "foul": "خطا",
    "goal": "گل",
    "goalkeeper": "دروازه‌بان",
    "goalposts": "دروازه",
    "midfielder": "هافبک",
    "offside": "آفساید",
    "pass": "پاس",
    "penalty": "پنالتی",
    "red_card": "کارت قرمز",
    "referee": "داور",
    "shot": "شوت",
    "striker": "مهاجم",
    "substitution": "تعویض",
    "yellow_card": "کارت زرد",
}


def _line(turn: Turn) -> Line:
    keyword = turn.deal(tuple(WORDS))
    return Line(WORDS[keyword], {"keyword": keyword})


FOOTBALL = Twin(
    name="football",
    title="Synthetic Persian keywords",
    about="Stands for the Football Keyword corpus: Persian (fa), 18 words of football.",
    protocol="speaker-disjoint",
    clips=720,
    min_clips=120,  # two rounds of 60 speakers: 24 clips in validation and in test for 18 words
    splits=("split_ks",),
    cast=lambda stream: cast(stream, ("fa",), "football-"),
    line=_line,
    labels={"keyword": "one of 18 words, in English; `text` is the Persian word"},
)
