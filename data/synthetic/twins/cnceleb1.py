"""Mandarin speaker verification: speakers in several styles; test speakers enrol with one to three clips."""

from __future__ import annotations

from ..plan import Speaker, Utterance
from ..voices import NEUTRAL, Normal, Prosody, Stream
from .twin import Line, Turn, Twin, cast

SUBJECTS = ("我", "他们", "老师", "我妹妹", "我的朋友")
ACTIVITIES = ("今天去北京", "喝绿茶", "看电影", "每天学中文", "买苹果", "不喜欢下雨")

# Some of CN-Celeb's genres, by how far they are from reading aloud.
STYLES = {
    "interview": NEUTRAL,
    "speech": Prosody(Normal(1.0, 1.2), Normal(0.88, 0.06), Normal(1.2, 0.25), Normal(4, 2.0), Normal(0.8, 0.5)),
    "vlog": Prosody(Normal(1.0, 1.2), Normal(1.15, 0.08), Normal(1.2, 0.25), Normal(0, 2.5), Normal(0.2, 0.5)),
    "drama": Prosody(Normal(2.5, 2.0), Normal(1.05, 0.15), Normal(1.7, 0.25), Normal(3, 3.0), Normal(0.8, 0.8)),
    "singing": Prosody(Normal(3.5, 1.5), Normal(0.70, 0.05), Normal(1.5, 0.30), Normal(4, 2.5), Normal(0.5, 0.6)),
}

SPEAKERS = {"train": 36, "validation": 12, "test": 20}
MAX_ENROLMENT_CLIPS = 3


def enrolment_clips(speaker: Speaker) -> int:
    """How many of a test speaker's first clips enrol them: 1, 2 or 3."""
    return 1 + int(speaker.speaker_id[-3:]) % MAX_ENROLMENT_CLIPS


def trials(utterances: list[Utterance]) -> str:
    """Every enrolled speaker against every other test clip, as CSV: `label` (1 = same speaker), `enrolment`, `test`."""
    test = [u for u in utterances if u.splits["split_sv"] == "test"]
    enrolled = {u.labels["enrolment_id"]: u.speaker.speaker_id for u in test if u.labels["enrolment_id"]}
    rows = ["label,enrolment,test"]
    for enrolment_id, speaker_id in sorted(enrolled.items()):
        probes = (u for u in test if not u.labels["enrolment_id"])
        rows += [f"{int(u.speaker.speaker_id == speaker_id)},{enrolment_id},{u.file_name}" for u in probes]
    return "\n".join(rows) + "\n"


def _cast(stream: Stream) -> list[Speaker]:
    return cast(stream, ("cmn",), "cnceleb1-", SPEAKERS)


def _line(turn: Turn) -> Line:
    style = turn.deal(tuple(STYLES))
    enrols = turn.split == "test" and turn.round < enrolment_clips(turn.speaker)
    enrolment_id = f"{turn.speaker.speaker_id}-enrol" if enrols else ""
    text = turn.pick(SUBJECTS) + turn.pick(ACTIVITIES)
    return Line(text, {"style": style, "enrolment_id": enrolment_id}, STYLES[style])


CNCELEB1 = Twin(
    name="cnceleb1",
    title="Synthetic Mandarin speakers",
    about="Stands for CN-Celeb1: speaker verification in Mandarin (cmn), across speaking styles.",
    protocol="speaker-disjoint",
    clips=680,
    min_clips=272,  # four clips for each of 68 speakers: three may enrol a test speaker, one is left to test
    splits=("split_sv",),
    cast=_cast,
    line=_line,
    labels={
        "style": f"{', '.join(STYLES)}: prosody classes after genres of CN-Celeb",
        "enrolment_id": "clips of a test speaker that enrol them; empty for all other clips",
    },
    tables=lambda utterances: {"trials.csv": trials(utterances)},
    files={
        "trials.csv": "one row per trial of the test split: `label` (1 = same speaker), `enrolment` (an `enrolment_id`), "
        "`test` (a `file_name`)."
    },
)
