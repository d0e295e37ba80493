"""What a task is: data. Columns, splits, metrics, the rule against leaks, and the published figures to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from wavcse.data.corpus_facts import FACTS

Kind = Literal["classification", "regression", "verification", "transcription"]
NEEDS_FRAMES = ("transcription",)  # kinds that no vector of a whole clip can answer: only fine-tuning has the frames
WAVCSE_PAPER = "wavCSE paper, Table 4"


@dataclass(frozen=True)
class Published:
    """Published figures of one target, in the scale of our metrics (shares of 1, years, plain numbers).

    Args:
        metric: which metric they are of.
        paper: the paper's own model.
        baselines: the models that the paper compares with, and their figures.
        origin: where the figures are printed, and whose baselines they are.
    """

    metric: str
    paper: float
    baselines: Mapping[str, float]
    origin: str


@dataclass(frozen=True)
class Benchmark:
    """The corpus on which the paper reports a figure.

    Args:
        corpus: its name in `FACTS`, which knows its source and licence, and in the manifest column `corpus`.
        languages: codes of its languages.
        protocol: the adapter's protocol that is meant.
        split_source: who made that split, and how it compares with the paper's as far as that is known.
        published: target -> figures.
    """

    corpus: str
    languages: str
    protocol: str
    split_source: str
    published: Mapping[str, Published]

    def record(self, target: str) -> dict:
        """What a result file keeps of it for one target; empty where nothing is published for the target."""
        if target not in self.published:
            return {}
        facts = FACTS[self.corpus]
        return {
            "corpus": self.corpus,
            "title": f"{facts.title} ({self.languages})",
            "source": facts.source,
            "licence": facts.licence,
            "split": f"{self.protocol}: {facts.protocols[self.protocol]}",
            "split_source": self.split_source,
            **asdict(self.published[target]),
        }


@dataclass(frozen=True)
class Task:
    """One downstream task.

    Args:
        name: of the instance: in files, in tables and on the command line.
        title: name in tables.
        kind: "classification" (one linear layer, cross-entropy), "regression" (one linear layer for all targets together),
            "verification" (PLDA on the speakers of the training split, tested on a list of trials) or "transcription" (texts,
            which fine-tuning learns from frames; embeddings cannot be evaluated on it).
        targets: manifest columns with the labels, one row of the table each; rows of a manifest where the first is empty do
            not belong to the task. For a verification task the column of the speaker.
        split_columns: columns that may hold the split; the first one that a manifest has is taken.
        metrics: names from `wavcse.eval.metrics.METRICS`; the first one decides which encoder is best.
        benchmark: the paper's corpus and figures.
        disjoint_by: column whose values must not occur in two splits; None where the task is about known speakers, or where a
            recipe says so.
        label_range: lowest and highest value of a rating scale, which the CCC loss maps to 0..1.
        family: the task in `TASKS` that this is an instance of.
        note: shown under tables, for example why a recipe allows speakers on both sides.
    """

    name: str
    title: str
    kind: Kind
    targets: tuple[str, ...]
    split_columns: tuple[str, ...]
    metrics: tuple[str, ...]
    benchmark: Benchmark = field(repr=False)
    disjoint_by: str | None = "speaker_id"
    label_range: tuple[float, float] | None = None
    family: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)

    def row_name(self, target: str) -> str:
        """Name of a row of the table: of the task, or of one of its targets."""
        if len(self.targets) == 1:
            return self.name
        return target if self.name == self.family else f"{self.name}_{target}"

    def row_title(self, target: str) -> str:
        """Title of a row of the table."""
        return self.title if len(self.targets) == 1 else f"{self.title}: {target}"


def refuse_frames(task: Task, where: str) -> None:
    """ValueError for a task of a kind in `NEEDS_FRAMES`; `where` begins the message."""
    if task.kind in NEEDS_FRAMES:
        raise ValueError(
            f"{where}: is a {task.kind} task, and no text can be read off one vector per clip; `wavcse finetune` learns it "
            "from the frames of an upstream."
        )


CLASSIFICATION_METRICS = ("accuracy", "uar", "macro_f1")
