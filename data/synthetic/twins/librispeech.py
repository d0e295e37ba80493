"""Read English: sentences of a grammar, in each split others, by speakers who are each recorded in two sessions."""

from __future__ import annotations

import zlib

import numpy as np

from wavcse.data.trials import csv_text, make_pairs, trials_table

from ..plan import EQ_NODES_HZ, Speaker, Utterance
from ..voices import Normal, Stream, draw
from .twin import Line, Turn, Twin, cast

ACCENTS = ("en-us", "en-gb-x-rp")
SPEAKERS = {"train": 48, "validation": 16, "test": 16}
SESSIONS = 2
SECONDS = (3.5, 5.6)  # of speech, drawn evenly; with the silence around it clips have 3 to 8 s
WORDS_PER_NOMINAL = 1.14  # that espeak-ng says of these words in a minute at a rate of one word per minute (measured)

# Whose sentences a text may be, by its CRC-32: 60/20/20, so no sentence of one split is said in another.
OWNERS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2

DETERMINERS = "the a this that her his my our their every".split()
PEOPLE = """
    teacher farmer sailor doctor painter soldier baker lawyer miner poet singer hunter servant captain merchant
    student neighbour stranger traveller widow mother father sister brother daughter uncle cousin child woman man boy
    girl king queen judge priest guard nurse clerk writer builder dancer fisherman gardener carpenter tailor guest
""".split()
THINGS = """
    basket letter book lamp table chair window door ladder hammer bottle blanket candle mirror picture carpet kettle
    needle pencil paper ribbon pocket purse ring coin key knife spoon plate cup bread cheese apple orange cherry melon
    potato onion sugar butter salt honey horse donkey rabbit chicken goose pigeon spider bear wolf lion boat wagon
    wheel engine rope barrel box bag coat hat shoe shirt glove scarf flower branch leaf stone shell feather bell drum
    flute violin clock map flag
""".split()
PLACES = """
    garden kitchen village forest meadow harbour market church station castle palace cottage mountain valley river
    island desert beach bridge tower cellar attic stable barn school library theatre hospital prison factory office
    square street corner field lake
""".split()
ADJECTIVES = """
    old young tall small heavy light broken golden silver wooden empty famous gentle clever lazy hungry tired angry
    happy lonely quiet noisy dirty clean bright dark red blue green yellow purple white black brown round narrow
    simple strange secret pretty brave polite honest foolish patient careful modern ancient precious common cheap
""".split()
VERBS = """
    carried found lost opened closed painted repaired sold bought borrowed forgot noticed dropped lifted pushed pulled
    counted covered touched washed cooked followed answered remembered described admired hated loved wanted needed
    offered promised returned received collected delivered examined ignored invented measured polished protected
    replaced watched
""".split()
PREPOSITIONS = "near behind beside outside inside under across beyond before within around by".split()
ADVERBS = """
    slowly quickly often never always again yesterday today suddenly quietly gladly rarely carefully later together
    twice early already perhaps once soon finally proudly secretly
""".split()
JOINERS = "and but while because when although so until after since where unless".split()
VOCABULARY = {*DETERMINERS, *PEOPLE, *THINGS, *PLACES, *ADJECTIVES, *VERBS, *PREPOSITIONS, *ADVERBS, *JOINERS}
SHORTEST, LONGEST, JOINED_FROM = 6, 23, 12  # words of a sentence; from 12 on it has two clauses

_SESSION = 100  # after the twin's stream, beside those of twin.py: what a session sounds like


def _line(turn: Turn) -> Line:
    session = turn.round % SESSIONS
    number = int(turn.speaker.speaker_id[-3:])
    rate_wpm = turn.speaker.rate_wpm * draw(turn.rng, Normal(1, 0.05), 0.88, 1.12)
    words = round(turn.rng.uniform(*SECONDS) * rate_wpm / 60 * WORDS_PER_NOMINAL)
    return Line(
        sentence(turn.rng, min(max(words, SHORTEST), LONGEST), turn.split),
        {"session": f"{turn.speaker.speaker_id}-{session}"},
        recorded={"rate_wpm": rate_wpm, **recording((*turn.stream, _SESSION, number, session), turn.rng)},
    )


def recording(stream: Stream, rng: np.random.Generator) -> dict:
    """How a clip of a session is recorded: room and microphone, and the colour and (nearly) the level of the noise."""
    own = np.random.default_rng(stream)
    return {
        "session_eq_db": tuple(draw(own, Normal(0, 4), -9, 9) for _ in EQ_NODES_HZ),
        "noise_tilt_db_per_octave": draw(own, Normal(0, 2.5), -5, 5),
        "snr_db": draw(own, Normal(22, 6), 10, 36) + draw(rng, Normal(0, 1), -2, 2),
    }


def sentence(rng: np.random.Generator, num_words: int, split: str) -> str:
    """A sentence of 5 to 23 words that belongs to a split."""
    while True:
        text = " ".join(_words(rng, num_words))
        if OWNERS[zlib.crc32(text.encode()) % len(OWNERS)] == split:
            return text


def _words(rng: np.random.Generator, num_words: int) -> list[str]:
    if num_words < JOINED_FROM:
        return _clause(rng, num_words)
    first = (num_words - 1) // 2
    return [*_clause(rng, first), _one(rng, JOINERS), *_clause(rng, num_words - 1 - first)]


def _clause(rng: np.random.Generator, num_words: int) -> list[str]:
    """Somebody did something to a thing, in 5 to 11 words: with a place from 8 on, and up to three of how and which."""
    place = [_one(rng, PREPOSITIONS), "the", _one(rng, PLACES)] if num_words >= 8 else []
    extra = rng.permutation(3) < num_words - 5 - len(place)  # which of two adjectives and an adverb it has
    subject = [_one(rng, DETERMINERS), *([_one(rng, ADJECTIVES)] if extra[0] else []), _one(rng, PEOPLE)]
    thing = [_one(rng, DETERMINERS), *([_one(rng, ADJECTIVES)] if extra[1] else []), _one(rng, THINGS)]
    return [*subject, _one(rng, VERBS), *thing, *place, *([_one(rng, ADVERBS)] if extra[2] else [])]


def _one(rng: np.random.Generator, words: list[str]) -> str:
    return words[rng.integers(len(words))]


def trials(utterances: list[Utterance]) -> str:
    """All pairs of test clips, as CSV: of one speaker in two sessions, of two of one gender."""
    test = [u for u in utterances if u.splits["split_sv"] == "test"]
    speakers, genders, sessions = (
        np.array(own) for own in zip(*((u.speaker.speaker_id, u.speaker.gender, u.labels["session"]) for u in test))
    )
    return csv_text(trials_table([u.file_name for u in test], make_pairs(speakers, [genders], [sessions])))


def _cast(stream: Stream) -> list[Speaker]:
    return cast(stream, ACCENTS, "librispeech-", SPEAKERS)


LIBRISPEECH = Twin(
    name="librispeech",
    title="Synthetic read English",
    about=(
        "Stands for LibriSpeech: speech recognition and speaker verification in English. Every speaker is recorded in two "
        "sessions, each with a room, a microphone and noise of its own. No sentence of one split is said in another."
    ),
    protocol="speaker-disjoint",
    clips=1440,
    min_clips=160,  # a clip in both sessions of 80 speakers
    splits=("split_asr", "split_sv"),
    cast=_cast,
    line=_line,
    labels={"session": "one of two of the speaker"},
    tables=lambda utterances: {"trials.csv": trials(utterances)},
    files={
        "trials.csv": "one row per trial of the test split: `label` (1 = one speaker in two sessions, 0 = two of one gender), "
        "`enrolment` and `test`, both a `file_name`."
    },
)
