"""The synthetic corpus as data: who says what, how, and under which labels. Nothing is spoken here.

Two populations of speakers keep the tasks from leaking into one another when they are trained together:

- *open* speakers serve keyword spotting (KS) and emotion recognition (ER), each speaker in one split only;
- *known* speakers serve speaker identification (SID), each speaker in all splits. Their SID training clips also train
  KS and ER; their other clips are seen by SID alone.

So no clip trains one task and tests another, and no validation or test speaker of KS or ER is heard in training.
Clip `i` depends on `(seed, i)` alone: a smaller corpus is the beginning of a larger one.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

SPLITS = ("train", "validation", "test")

# The ten commands of Speech Commands' usual task; any other word is "unknown" (Warden 2018, arXiv:1804.03209).
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
KEYWORDS = (*COMMANDS, "unknown")
UNKNOWN_WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "eight", "five", "follow", "forward", "four", "happy", "house"),
    *("learn", "marvin", "nine", "one", "seven", "sheila", "six", "three", "tree", "two", "visual", "wow", "zero"),
)

# espeak-ng's human-sounding voice variants, without its robots, whispers and copies.
VARIANTS = {
    "male": ("m1", "m2", "m3", "m4", "m6", "m7", "m8", "Andy", "Denis", "Diogo", "Hugo", "Marco", "Michael", "victor"),
    "female": (
        *("f1", "f2", "f3", "f4", "f5", "Alicia", "Andrea", "Annie"),
        *("anika", "aunty", "belinda", "linda", "shelby", "steph"),
    ),
}
GENDERS = tuple(VARIANTS)
LANGUAGE = "en"
ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")

KNOWN_SPEAKERS = 24
OPEN_SPEAKERS = {"train": 24, "validation": 8, "test": 8}
# Split of a known speaker's 1st, 2nd, ... clip: 60/20/20, and all three splits after three clips.
KNOWN_SPLITS = ("train", "validation", "test", "train", "train")

# Odd clips come from open speakers, in rounds of 40 with 8 for validation and for test. After two rounds each of those
# splits has 16 clips, enough for the 11 keywords; known speakers have their three clips after 144.
MIN_CLIPS = 160

EQ_NODES_HZ = (125, 250, 500, 1000, 2000, 4000, 8000)

# First number of a random stream: what is drawn. The rest says for whom, so that no draw depends on another.
_VOICES, _SPEAKER, _ROUND, _KEYWORD, _EMOTION, _CLIP = range(6)


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
EMOTIONS = {
    "neutral": Prosody(Normal(0.0, 1.2), Normal(1.00, 0.08), Normal(0.9, 0.25), Normal(0, 2.5), Normal(0.0, 0.6)),
    "happy": Prosody(Normal(4.0, 1.5), Normal(1.05, 0.10), Normal(1.6, 0.25), Normal(1, 2.5), Normal(0.6, 0.6)),
    "angry": Prosody(Normal(1.5, 1.5), Normal(1.28, 0.12), Normal(1.2, 0.30), Normal(6, 2.5), Normal(2.0, 0.6)),
    "sad": Prosody(Normal(-3.0, 1.2), Normal(0.76, 0.08), Normal(0.4, 0.20), Normal(-5, 2.5), Normal(-1.6, 0.6)),
}


@dataclass(frozen=True)
class Speaker:
    """A voice with an identity. The colouring (`tract_ratio`, `eq_db`) stays the same in all clips of a speaker."""

    speaker_id: str
    split: str  # of an open speaker; empty for a known one
    gender: str
    language: str
    accent: str  # an espeak-ng voice
    variant: str  # an espeak-ng voice variant
    pitch_semitones: float  # relative to the variant
    rate_wpm: float
    tract_ratio: float  # scales all formants; above 1 is a shorter vocal tract
    eq_db: tuple[float, ...]  # gain at EQ_NODES_HZ


@dataclass(frozen=True)
class Utterance:
    """One clip: labels, splits (empty = the task does not use the clip) and everything that the renderer needs."""

    index: int
    file_name: str
    text: str
    keyword: str
    emotion: str
    speaker: Speaker
    split_ks: str
    split_sid: str
    split_er: str
    rate_wpm: float
    pitch_semitones: float  # relative to the variant
    pitch_range: float
    level_dbfs: float  # RMS of the speech
    tilt_db_per_octave: float
    snr_db: float
    lead_s: float  # silence before
    tail_s: float  # silence after
    noise_seed: int


def plan_corpus(n_clips: int, seed: int) -> list[Utterance]:
    """Plan `n_clips` clips, alternating between known and open speakers.

    The same seed gives the same clips, and a longer plan starts with the shorter one. Every class of every task occurs
    in every split.

    Raises:
        ValueError: fewer than `MIN_CLIPS` clips, or a negative seed.
    """
    if n_clips < MIN_CLIPS:
        raise ValueError(
            f"{n_clips} clips are too few for every class of every task to occur in every split; the minimum is {MIN_CLIPS}"
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    speakers = plan_speakers(seed)
    known, open_ = speakers[:KNOWN_SPEAKERS], speakers[KNOWN_SPEAKERS:]
    seen = Counter()  # clips so far in each cell = population and split
    utterances = []
    for index in range(n_clips):
        population = index % 2
        round_, speaker = _next_speaker(open_ if population else known, population, index // 2, seed)
        split = speaker.split or KNOWN_SPLITS[round_ % len(KNOWN_SPLITS)]
        cell = (population, SPLITS.index(split))
        utterances.append(_plan_clip(index, speaker, split, cell, seen[cell], seed))
        seen[cell] += 1
    return utterances


def plan_speakers(seed: int) -> list[Speaker]:
    """All speakers: first the known ones, then the open ones by split; men and women in turn."""
    splits = [""] * KNOWN_SPEAKERS + [split for split, count in OPEN_SPEAKERS.items() for _ in range(count)]
    voices = {gender: _shuffled_voices(gender, seed) for gender in GENDERS}
    return [_plan_speaker(i, split, voices[GENDERS[i % 2]][i // 2], seed) for i, split in enumerate(splits)]


def _shuffled_voices(gender: str, seed: int) -> list[tuple[str, str]]:
    """Different (variant, accent) pairs; each variant once before any comes back."""
    rng = np.random.default_rng([seed, _VOICES, GENDERS.index(gender)])
    variants, accents = rng.permutation(VARIANTS[gender]), rng.permutation(ACCENTS)
    n = len(variants)
    # n variants against 7 accents, shifted by one at each lap so that a variant meets another accent
    return [(str(variants[i % n]), str(accents[(i + i // n) % len(accents)])) for i in range(n * len(accents))]


def _plan_speaker(number: int, split: str, voice: tuple[str, str], seed: int) -> Speaker:
    rng = np.random.default_rng([seed, _SPEAKER, number])
    return Speaker(
        speaker_id=f"spk{number:02d}",
        split=split,
        gender=GENDERS[number % 2],
        language=LANGUAGE,
        accent=voice[1],
        variant=voice[0],
        pitch_semitones=_draw(rng, Normal(0, 1.5), -3, 3),
        rate_wpm=_draw(rng, Normal(145, 12), 115, 175),
        tract_ratio=_draw(rng, Normal(1, 0.03), 0.93, 1.07),
        eq_db=tuple(_draw(rng, Normal(0, 1.5), -4, 4) for _ in EQ_NODES_HZ),
    )


def _next_speaker(speakers: list[Speaker], population: int, n: int, seed: int) -> tuple[int, Speaker]:
    """The speaker of the population's n-th clip: all speakers in random order, round after round."""
    round_, place = divmod(n, len(speakers))
    order = np.random.default_rng([seed, _ROUND, population, round_]).permutation(len(speakers))
    return round_, speakers[order[place]]


def _plan_clip(index: int, speaker: Speaker, split: str, cell: tuple[int, int], n: int, seed: int) -> Utterance:
    """Clip `index`, the n-th one of its cell."""
    rng = np.random.default_rng([seed, _CLIP, index])
    keyword = _deal(KEYWORDS, (seed, _KEYWORD, *cell), n)
    emotion = _deal(tuple(EMOTIONS), (seed, _EMOTION, *cell), n)
    prosody = EMOTIONS[emotion]
    is_known = not speaker.split
    paralinguistic_split = "" if is_known and split != "train" else split
    return Utterance(
        index=index,
        file_name=f"audio/{index:06d}.flac",
        text=str(rng.choice(UNKNOWN_WORDS)) if keyword == "unknown" else keyword,
        keyword=keyword,
        emotion=emotion,
        speaker=speaker,
        split_ks=paralinguistic_split,
        split_sid=split if is_known else "",
        split_er=paralinguistic_split,
        rate_wpm=speaker.rate_wpm * _draw(rng, prosody.rate_ratio, 0.6, 1.7),
        pitch_semitones=speaker.pitch_semitones + _draw(rng, prosody.pitch_semitones, -7, 8),
        pitch_range=_draw(rng, prosody.pitch_range, 0.1, 2.0),
        level_dbfs=-28 + _draw(rng, prosody.level_db, -12, 12),
        tilt_db_per_octave=_draw(rng, prosody.tilt_db_per_octave, -3, 3),
        snr_db=_draw(rng, Normal(25, 5), 12, 40),
        lead_s=float(rng.uniform(0.05, 0.25)),
        tail_s=float(rng.uniform(0.05, 0.25)),
        noise_seed=int(rng.integers(2**31)),
    )


def _deal(labels: tuple[str, ...], stream: tuple[int, ...], n: int) -> str:
    """The n-th label from an endless shuffled deck: every label once in each run of `len(labels)`."""
    deck, place = divmod(n, len(labels))
    return labels[np.random.default_rng([*stream, deck]).permutation(len(labels))[place]]


def _draw(rng: np.random.Generator, normal: Normal, low: float, high: float) -> float:
    return float(np.clip(rng.normal(normal.mean, normal.sd), low, high))
