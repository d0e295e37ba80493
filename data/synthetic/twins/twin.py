"""A synthetic twin: an offline stand-in for a public corpus, with its columns, splits and kind of label, spoken by espeak-ng.

A twin is data (`Twin`) and two functions: who speaks (`cast`) and what a speaker says when it is their turn (`line`).
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wavcse.data import SPLITS

from ..plan import Plan, Readme, Speaker, Utterance, check_size
from ..voices import (
    GENDERS,
    KNOWN_SPLITS,
    NEUTRAL,
    VARIANTS,
    Prosody,
    Stream,
    T,
    deal,
    delivery,
    next_speaker,
    plan_speaker,
)

OPEN_SPEAKERS = {"train": 36, "validation": 12, "test": 12}  # 60/20/20 of the clips, as all speak equally often

# Number after a twin's own stream: what is drawn.
_VOICES, _SPEAKER, _ROUND, _DECK, _CLIP = range(5)


@dataclass(frozen=True)
class Turn:
    """One clip to be filled: who speaks, and what chance has to offer."""

    speaker: Speaker
    split: str
    round: int  # how many clips the speaker has had before
    n: int  # how many clips the split has had before
    rng: np.random.Generator
    stream: Stream  # of the twin

    def deal(self, options: Sequence[T]) -> T:
        """Each option once in each run of `len(options)` clips of the split: for what every split needs alike."""
        return deal((*self.stream, _DECK, SPLITS.index(self.split)), options, self.n)

    def pick(self, options: Sequence[T]) -> T:
        """Any option."""
        return options[self.rng.integers(len(options))]


@dataclass(frozen=True)
class Line:
    """What is said, under which labels, and how; `recorded` are fields of the `Utterance` that are not left to chance."""

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    prosody: Prosody = NEUTRAL
    breath_db: float | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Twin:
    """A synthetic stand-in for a public corpus.

    Args:
        name: of the corpus that it stands for, as in `wavcse corpora`.
        title: of its README.
        about: what it holds, one or two sentences of Markdown.
        protocol: `speaker-disjoint` or `known-speakers`.
        clips: default number of clips.
        min_clips: below it a class may be missing in a split.
        labels: manifest columns of `Line.labels` -> what they hold.
        splits: split columns; a clip has the same split in all of them.
        cast: random stream -> all speakers; those with an empty `split` are in all three.
        line: fills a turn.
        tables: utterances -> further files, by name.
        files: name of a further file -> what it holds.
        has_times: whether `words.csv` and `phones.csv` are written.
        flag: of `wavcse synthesize`; by default `--twins NAME`.
    """

    name: str
    title: str
    about: str
    protocol: str
    clips: int
    min_clips: int
    splits: tuple[str, ...]
    cast: Callable[[Stream], list[Speaker]]
    line: Callable[[Turn], Line]
    labels: Mapping[str, str] = field(default_factory=dict)
    tables: Callable[[list[Utterance]], dict[str, str]] = lambda utterances: {}
    files: Mapping[str, str] = field(default_factory=dict)
    has_times: bool = False
    flag: str = ""


def plan_twin(twin: Twin, clips: int | None, seed: int) -> Plan:
    """Plan a twin with `clips` clips (None: its default). The same seed gives the same clips; more clips start with fewer.

    Raises:
        ValueError: fewer clips than `twin.min_clips`, or a negative seed.
    """
    clips = twin.clips if clips is None else clips
    check_size(clips, twin.min_clips, seed)
    utterances = _plan_clips(twin, clips, (seed, zlib.crc32(twin.name.encode())))
    return Plan(
        corpus=f"synthetic-{twin.name}",
        seed=seed,
        utterances=utterances,
        columns=(
            *("file_name", "duration", "speaker_id", "corpus", "protocol", "gender", "language", "accent", "text"),
            *twin.labels,
            *twin.splits,
        ),
        readme=_readme(twin),
        constants={"corpus": f"synthetic-{twin.name}", "protocol": twin.protocol},
        tables=twin.tables(utterances),
        has_times=twin.has_times,
    )


def cast(
    stream: Stream,
    accents: Sequence[str],
    prefix: str,
    counts: Mapping[str, int] | None = None,
    variants: Mapping[str, Sequence[str]] = VARIANTS,
) -> list[Speaker]:
    """Speakers of each split: men and women in turn, each gender through all accents and variants.

    A split has every accent in both genders if its count is a multiple of `2 * len(accents)`. The language is the first part
    of the accent.

    Args:
        stream: of the twin.
        accents: espeak-ng voices.
        prefix: of the speakers' ids.
        counts: speakers by split, with an empty split for known speakers; by default `OPEN_SPEAKERS`.
        variants: gender -> voices that may be chosen.
    """
    splits = [split for split, count in (counts or OPEN_SPEAKERS).items() for _ in range(count)]
    shuffled = [np.random.default_rng([*stream, _VOICES, i]).permutation(variants[g]) for i, g in enumerate(GENDERS)]
    speakers = []
    for number, split in enumerate(splits):
        place, gender = divmod(number, len(GENDERS))
        lap = place // np.lcm(len(accents), len(shuffled[gender]))  # then accent and variant would meet again
        variant = str(shuffled[gender][(place + lap) % len(shuffled[gender])])
        accent = accents[place % len(accents)]
        identity = (f"{prefix}{number:03d}", split, GENDERS[gender], accent.partition("-")[0], accent, variant)
        speakers.append(plan_speaker((*stream, _SPEAKER, number), *identity))
    return speakers


def _plan_clips(twin: Twin, clips: int, stream: Stream) -> list[Utterance]:
    speakers = twin.cast(stream)
    seen = Counter()  # clips so far in each split
    utterances = []
    for index in range(clips):
        round_, speaker = next_speaker((*stream, _ROUND), speakers, index)
        split = speaker.split or KNOWN_SPLITS[round_ % len(KNOWN_SPLITS)]
        rng = np.random.default_rng([*stream, _CLIP, index])
        line = twin.line(Turn(speaker, split, round_, seen[split], rng, stream))
        seen[split] += 1
        utterances.append(
            Utterance(
                index=index,
                file_name=f"audio/{index:06d}.flac",
                text=line.text,
                labels=line.labels,
                speaker=speaker,
                splits=dict.fromkeys(twin.splits, split),
                breath_db=line.breath_db,
                **(delivery(rng, speaker, line.prosody) | line.recorded),
            )
        )
    return utterances


def _readme(twin: Twin) -> Readme:
    splits = ", ".join(f"`{column}`" for column in twin.splits)
    said = {
        "speaker-disjoint": "speakers of the splits are disjoint",
        "known-speakers": "the same speakers in each split, other clips",
    }
    return Readme(
        title=twin.title,
        about=f"\n{twin.about}\n",
        command=f"wavcse synthesize --out DIR {twin.flag or f'--twins {twin.name}'} --clips {{clips}} --seed {{seed}}",
        columns={
            "`file_name`": "path relative to this folder",
            "`duration`": "seconds",
            "`corpus`, `protocol`": f"`synthetic-{twin.name}`, `{twin.protocol}`",
            "`speaker_id`, `gender`, `language`, `accent`": "who speaks; accents are espeak-ng's voices",
            "`text`": "what is said",
            **{f"`{column}`": text for column, text in twin.labels.items()},
            splits: f"train, validation or test: {said[twin.protocol]}",
        },
        closing="".join(f"`{name}`: {text}\n" for name, text in twin.files.items()),
    )
