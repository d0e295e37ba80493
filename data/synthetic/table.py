"""The synthetic corpus as data: who says what, how, and under which labels. Nothing is spoken here.

Two populations of speakers keep the tasks from leaking into one another when they are trained together:

- *open* speakers serve keyword spotting (KS) and emotion recognition (ER), each speaker in one split only;
- *known* speakers serve speaker identification (SID), each speaker in all splits. Their SID training clips also train
  KS and ER; their other clips are seen by SID alone.

So no clip trains one task and tests another, and no validation or test speaker of KS or ER is heard in training.
Clip `i` depends on `(seed, i)` alone: a smaller corpus is the beginning of a larger one.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from wavcse.data import SPLITS

from .plan import Plan, Readme, Speaker, Utterance, check_size
from .voices import ANGRY, GENDERS, HAPPY, KNOWN_SPLITS, NEUTRAL, SAD, VARIANTS, deal, delivery, next_speaker, plan_speaker

# The ten commands of Speech Commands' usual task; any other word is "unknown" (Warden 2018, arXiv:1804.03209).
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
KEYWORDS = (*COMMANDS, "unknown")
UNKNOWN_WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "eight", "five", "follow", "forward", "four", "happy", "house"),
    *("learn", "marvin", "nine", "one", "seven", "sheila", "six", "three", "tree", "two", "visual", "wow", "zero"),
)
EMOTIONS = {"neutral": NEUTRAL, "happy": HAPPY, "angry": ANGRY, "sad": SAD}

LANGUAGE = "en"
ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")

KNOWN_SPEAKERS = 24
OPEN_SPEAKERS = {"train": 24, "validation": 8, "test": 8}

# Odd clips come from open speakers, in rounds of 40 with 8 for validation and for test. After two rounds each of those
# splits has 16 clips, enough for the 11 keywords; known speakers have their three clips after 144.
MIN_CLIPS = 160

# First number of a random stream after the seed: what is drawn. The rest says for whom.
_VOICES, _SPEAKER, _ROUND, _KEYWORD, _EMOTION, _CLIP = range(6)

COLUMNS = (
    *("file_name", "duration", "keyword", "speaker_id", "emotion", "gender", "language", "accent", "text"),
    *("split_ks", "split_sid", "split_er"),
)
README = Readme(
    title="Synthetic speech",
    about="",
    command="python -m wavcse.data.synthetic --out DIR --clips {clips} --seed {seed}",
    columns={
        "`file_name`": "path relative to this folder",
        "`duration`": "seconds",
        "`keyword`": "one of ten commands or `unknown`; `text` is the word that is spoken",
        "`speaker_id`, `gender`, `language`, `accent`": "who speaks; accents are espeak-ng's",
        "`emotion`": "prosody class: neutral, happy, angry or sad",
        "`split_ks`, `split_er`": "keyword spotting and emotion recognition: speakers of the splits are disjoint",
        "`split_sid`": "speaker identification: the same speakers in each split, other clips",
    },
    closing="""\
No clip trains one task and tests another, and no validation or test speaker of `split_ks` or `split_er` is heard in a
training clip of any task.
""",
)


def plan_multitask(clips: int, seed: int) -> Plan:
    """The corpus for keyword spotting, speaker identification and emotion recognition. Raises as :func:`plan_corpus`."""
    return Plan("wavcse synthetic speech", seed, plan_corpus(clips, seed), COLUMNS, README)


def plan_corpus(n_clips: int, seed: int) -> list[Utterance]:
    """Plan `n_clips` clips, alternating between known and open speakers.

    The same seed gives the same clips, and a longer plan starts with the shorter one. Every class of every task occurs
    in every split.

    Raises:
        ValueError: fewer than `MIN_CLIPS` clips, or a negative seed.
    """
    check_size(n_clips, MIN_CLIPS, seed)
    speakers = plan_speakers(seed)
    known, open_ = speakers[:KNOWN_SPEAKERS], speakers[KNOWN_SPEAKERS:]
    seen = Counter()  # clips so far in each cell = population and split
    utterances = []
    for index in range(n_clips):
        population = index % 2
        round_, speaker = next_speaker((seed, _ROUND, population), open_ if population else known, index // 2)
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
    variant, accent = voice
    stream = (seed, _SPEAKER, number)
    return plan_speaker(stream, f"spk{number:02d}", split, GENDERS[number % 2], LANGUAGE, accent, variant)


def _plan_clip(index: int, speaker: Speaker, split: str, cell: tuple[int, int], n: int, seed: int) -> Utterance:
    """Clip `index`, the n-th one of its cell."""
    rng = np.random.default_rng([seed, _CLIP, index])
    keyword = deal((seed, _KEYWORD, *cell), KEYWORDS, n)
    emotion = deal((seed, _EMOTION, *cell), tuple(EMOTIONS), n)
    is_known = not speaker.split
    paralinguistic_split = "" if is_known and split != "train" else split
    return Utterance(
        index=index,
        file_name=f"audio/{index:06d}.flac",
        text=str(rng.choice(UNKNOWN_WORDS)) if keyword == "unknown" else keyword,
        labels={"keyword": keyword, "emotion": emotion},
        speaker=speaker,
        splits={
            "split_ks": paralinguistic_split,
            "split_sid": split if is_known else "",
            "split_er": paralinguistic_split,
        },
        **delivery(rng, speaker, EMOTIONS[emotion]),
    )
