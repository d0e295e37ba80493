"""The options of `wavcse synthesize`. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, option

from .plan import Plan
from .sentences import SENTENCES
from .table import MIN_CLIPS, plan_multitask
from .twins import TWINS, plan_twin

DEFAULT_CLIPS = 4000
MIN_TWIN_CLIPS = sorted(twin.min_clips for twin in TWINS.values())
ABOUT = f"""\
Write speech made offline by espeak-ng, with labels and splits: a corpus for keyword spotting, speaker identification and
emotion recognition, or with --twins a stand-in for each corpus of the twelve downstream tasks, or with --sentences utterances
in two languages with the times of their words and phones (words.csv and phones.csv, manifests of their own).

The folder gets audio/*.flac (16 kHz, mono) and metadata.csv, one row per clip. The same clips and seed give the same bytes,
whatever the number of workers. Killed? Run the same command again, and it continues. At least {MIN_CLIPS} clips
(a twin: {MIN_TWIN_CLIPS[0]} to {MIN_TWIN_CLIPS[-1]}), so that every class occurs in every split.

twins, one folder each (DIR/football/metadata.csv, ...):
{chr(10).join(f"  {name:<10} {twin.title}, {twin.clips} clips" for name, twin in TWINS.items())}

All of them, and two of them, smaller:
  wavcse synthesize --out corpora/twins --twins
  wavcse synthesize --out corpora/twins --twins football timit --clips 200
"""


@dataclass
class SynthesizeArguments(CheckedFields):
    """Which corpora, and how large."""

    output_dir: Path = option(NEEDED, "Folder to write into.", flag="out", value="DIR")
    twins: list[str] | None = option(
        None,
        "Write these twins, or all if none is named, each into DIR/NAME.",
        value="NAME",
        choices=tuple(TWINS),
        empty=True,
    )
    sentences: bool = option(False, "Write sentences with the times of words and phones.")
    clips: int | None = option(
        None, "Of each corpus.", f"{DEFAULT_CLIPS}; twins: see above; sentences: {SENTENCES.clips}", value="N"
    )
    seed: int = option(0, "Of all random draws.", value="S", at_least=0)
    workers: int | None = option(None, "Processes.", "the number of CPUs", value="K", at_least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.sentences and self.twins is not None:
            raise ValueError("--sentences and --twins are two corpora: write one after the other.")

    def plans(self) -> Iterator[tuple[Path, Plan]]:
        """Folder and plan of every corpus that was asked for."""
        if self.sentences:
            yield self.output_dir, plan_twin(SENTENCES, self.clips, self.seed)
        elif self.twins is None:
            yield self.output_dir, plan_multitask(DEFAULT_CLIPS if self.clips is None else self.clips, self.seed)
        else:
            for name in self.twins or TWINS:
                yield self.output_dir / name, plan_twin(TWINS[name], self.clips, self.seed)


SYNTHESIZE = Program(
    "wavcse synthesize",
    SynthesizeArguments,
    ABOUT,
    "wavcse synthesize --out corpora/synthetic --clips 4000 --seed 0   # of 0.8 s each, about 15 seconds on two cores",
    continues=True,
)
