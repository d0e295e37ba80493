"""A corpus before it is spoken: who speaks (`Speaker`), what and how (`Utterance`), and what its folder says (`Plan`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wavcse.settings.fields import check_range

EQ_NODES_HZ = (125, 250, 500, 1000, 2000, 4000, 8000)


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


@dataclass(frozen=True, repr=False)
class Utterance:
    """One clip: labels, splits (empty = the task does not use the clip) and everything that the renderer needs."""

    index: int
    file_name: str
    text: str
    labels: Mapping[str, str]  # by manifest column; what the speaker tells (gender, language) is not repeated here
    speaker: Speaker
    splits: Mapping[str, str]  # by manifest column
    rate_wpm: float
    pitch_semitones: float  # relative to the variant
    pitch_range: float
    level_dbfs: float  # RMS of the speech
    tilt_db_per_octave: float
    snr_db: float
    lead_s: float  # silence before
    tail_s: float  # silence after
    noise_seed: int
    breath_db: float | None = None  # breath noise in the voice, relative to the speech; None = only what the variant has
    session_eq_db: tuple[float, ...] | None = None  # gain at EQ_NODES_HZ of room and microphone; None = none
    noise_tilt_db_per_octave: float | None = None  # of the noise, beside pink; None = pink

    def __repr__(self) -> str:
        """All values in one line, one per label and split, without those that are None: what identifies a plan."""
        values: dict[str, object] = {}
        for name, value in vars(self).items():
            values |= value if name in ("labels", "splits") else {name: value}
        return f"Utterance({', '.join(f'{name}={value!r}' for name, value in values.items() if value is not None)})"


@dataclass(frozen=True)
class Readme:
    """What README.md says besides the engine and the numbers. `{clips}` and `{seed}` in `command` are filled in."""

    title: str
    about: str
    command: str
    columns: Mapping[str, str]  # cell of the table with one or more columns -> what they hold
    closing: str


@dataclass(frozen=True)
class Plan:
    """A whole corpus.

    Args:
        corpus: identifies it, with seed and utterances, in `corpus.json`.
        columns: of `metadata.csv`, in order: `file_name`, `duration`, `text`, fields of `Speaker`, labels, splits, constants.
        constants: columns with one value for all clips.
        tables: further files of the folder beside `metadata.csv`, by name.
        has_times: whether `words.csv` and `phones.csv` say when each word and phone is said.
    """

    corpus: str
    seed: int
    utterances: list[Utterance]
    columns: tuple[str, ...]
    readme: Readme
    constants: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    has_times: bool = False


def check_size(clips: int, minimum: int, seed: int) -> None:
    """ValueError if the clips are too few for every class of every task to occur in every split, or `seed` is negative."""
    if clips < minimum:
        raise ValueError(
            f"{clips} clips are too few for every class of every task to occur in every split; the minimum is {minimum}"
        )
    check_range("seed", seed, at_least=0)
