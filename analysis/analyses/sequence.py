"""What the order of the frames adds: a bidirectional LSTM on the frames of a layer, beside a linear probe on their mean.

The third rival is the same LSTM on frames in random order: what it loses against the right order is what order tells. Frames
are standardised by the training clips, batches are shuffled, dropout is off at the test. With `attribute` the dimensions that
the LSTM looks at (Integrated Gradients, by the settings of `dimensions`) stand beside those of the linear probe, and new LSTMs
learn from the top share of them alone, beside the rivals of `dimensions`.

Shapes: `N` clips, `B` of a batch, `T` frames, `D` width of a layer, `H` units of the LSTM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wavcse.analysis.analyses.dimensions import (
    BIASED,
    RIVALS,
    SUMMARIES,
    Part,
    RetrainSettings,
    draw_shares,
    part_of,
    retrain_beside_rivals,
    shown_rivals,
)
from wavcse.analysis.analyses.layers import Judge
from wavcse.analysis.analyses.overlap import overlap_of
from wavcse.analysis.attribution import LARGEST_GAP, importance, integrated_gradients
from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.figures import metric_unit, shown_figure
from wavcse.analysis.frames import Frames, frames_of, remove_others, stem_of
from wavcse.analysis.study import Analysis, Cell, Study, encoder_cell
from wavcse.data import SPLITS
from wavcse.eval.probe import ProbeSettings, train_heads
from wavcse.eval.probe_stack import fit_all
from wavcse.reports.figures import new_axes
from wavcse.reports.page import markdown_table
from wavcse.settings.fields import check_choice, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "sequence"
FOLDER = "frames"  # in the study's
AT_ONCE = 64  # clips, where more are answered


class Size(NamedTuple):
    """Of a sequence probe.

    Attributes:
        layers: of the LSTM; units: of each of its directions.
        hidden: widths of the linear layers behind it.
        bias: whether the last of these, to the outputs, has one.
        sums: over time; else the mean.
    """

    layers: int
    units: int
    hidden: tuple[int, ...] = ()
    bias: bool = True
    sums: bool = False


SIZES = {"small": Size(1, 64), "paper": Size(4, 512, (1024, 1024, 1024), bias=False)}
SIZES_OF_WORDS = {**SIZES, "paper": SIZES["paper"]._replace(sums=True)}  # the authors sum the words of an utterance


@dataclass
class SequenceSettings(RetrainSettings):
    """Settings of `sequence`; those of `dimensions` are used with `attribute`."""

    size: str = option("small", "small: 1 x 64; paper: 4 x 512 and three layers of 1024, for a GPU.", choices=tuple(SIZES))
    tasks: list[str] = option(list, "Tasks with classes whose frames are read.", "the first")
    dropout: float = option(0.2, "In training.", at_least=0, below=1)
    learning_rate: float = option(1e-3, "Of Adam.", above=0)
    epochs: int = option(30, "At most; validation chooses.", at_least=1)
    attribute: int = option(
        0, "So many clips are attributed to dimensions (needs captum), and LSTMs retrained on shares of them.", at_least=0
    )
    together: int = option(
        1, "So many frames, one after another, are read as their mean: less work. Not of words.", at_least=1
    )


class SequenceProbe(nn.Module):
    """Frames of clips -> BiLSTM -> over time -> dropout -> linear layers -> outputs `[B, O]`; padding reaches nothing."""

    def __init__(self, size: Size, width: int, num_outputs: int, dropout: float):
        super().__init__()
        self.sums = size.sums
        self.lstm = nn.LSTM(width, size.units, size.layers, batch_first=True, bidirectional=True)
        widths = [2 * size.units, *size.hidden]
        hidden = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
        self.head = nn.Sequential(nn.Dropout(dropout), *hidden, nn.Linear(widths[-1], num_outputs, bias=size.bias))

    def forward(self, clips: Sequences) -> Tensor:
        """Outputs `[B, O]` of B clips."""
        groups = [clips.frames[start : start + AT_ONCE] for start in range(0, len(clips.frames), AT_ONCE)]
        return torch.cat([self.of(group) for group in groups])

    def of(self, frames: Sequence[Tensor]) -> Tensor:
        """Outputs `[B, O]` of frames `[T, D]` each, or of `[B, T, D]`."""
        packed = nn.utils.rnn.pack_sequence(list(frames), enforce_sorted=False)
        states, lengths = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)  # zeros behind the end
        pooled = states.sum(dim=1)
        return self.head(pooled if self.sums else pooled / lengths.to(pooled)[:, None])


class Sequences:
    """Frames of clips, `[T, D]` each, from which `train_heads` takes some by their rows."""

    def __init__(self, frames: Sequence[Tensor]):
        self.frames = list(frames)

    def index_select(self, dimension: int, rows: Tensor) -> Sequences:
        """The clips of these rows, in their order."""
        return Sequences([self.frames[row] for row in rows.tolist()])


class Scale(NamedTuple):
    """Mean and deviation of the frames of the training clips, float64 `[D]` each."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, frames: Frames, train: np.ndarray) -> Scale:
        """Of the frames of these rows."""
        known = np.concatenate([frames[row] for row in train])
        return cls(known.mean(axis=0, dtype=np.float64), np.maximum(known.std(axis=0, dtype=np.float64), 1e-8))

    def standardised(self, frames: np.ndarray) -> np.ndarray:
        """Frames `[..., D]` with mean 0 and deviation 1 over those of the training clips, float32."""
        return ((frames - self.mean) / self.deviation).astype(np.float32)

    def baseline(self, name: str) -> np.ndarray:
        """Where attribution begins among standardised frames, `[D]`: at the training mean, or where frames were zero."""
        return self.standardised(self.mean if name == "mean" else np.zeros_like(self.mean))


def grouped(frames: np.ndarray, together: int) -> np.ndarray:
    """Means of so many frames of `[T, D]` one after another, `[ceil(T / together), D]`; the last may be of fewer."""
    starts = np.arange(0, len(frames), together)
    return np.add.reduceat(frames, starts, axis=0) / np.diff(np.append(starts, len(frames)))[:, None].astype(frames.dtype)


def part_of_frames(frames: Sequence[np.ndarray], part: Part, train: np.ndarray) -> list[np.ndarray]:
    """`part_of` of the frames of clips, `[T, D]` each; principal components are those of the frames of the `train` clips."""
    lengths = [len(own) for own in frames]
    of_train = np.flatnonzero(np.isin(np.repeat(np.arange(len(frames)), lengths), train))
    return np.split(part_of(np.concatenate(frames), part, of_train), np.cumsum(lengths)[:-1])


def fit_sequence(
    judge: Judge, frames: Sequence[np.ndarray], settings: SequenceSettings, device: str, of_words: bool = False
) -> tuple[SequenceProbe, np.ndarray]:
    """A probe on frames, its epoch chosen on validation, and its predictions of the test clips, `[n, 1]`.

    Args:
        of_words: whether a frame is a word.
    """
    data = judge.data
    parts = {}
    for split in SPLITS:
        rows = data.table.rows(split)
        own = Sequences([torch.from_numpy(frames[row]).to(device) for row in rows])
        parts[split] = (own, torch.from_numpy(data.labels[rows]).to(device))
    width, size = frames[0].shape[1], (SIZES_OF_WORDS if of_words else SIZES)[settings.size]

    def make() -> SequenceProbe:
        return SequenceProbe(size, width, judge.objective.num_outputs, settings.dropout)

    how = ProbeSettings((settings.learning_rate,), max_epochs=settings.epochs, min_steps_per_epoch=1)
    probe = train_heads(make, parts["train"], parts["validation"], judge.objective, judge.seed, how).head
    with torch.no_grad():
        return probe, judge.objective.predict(probe(parts["test"][0])).cpu().numpy().reshape(-1, 1)


def ranked(
    probe: SequenceProbe,
    judge: Judge,
    frames: Sequence[np.ndarray],
    baseline: np.ndarray,
    settings: SequenceSettings,
    device: str,
) -> tuple[np.ndarray, dict[str, Any]]:
    """All dimensions, that which a probe looks at most first, `[D]`, and how far from complete their attributions are.

    Args:
        frames: standardised, `[T, D]` each.
        baseline: one frame `[D]`, in the same scale.
    """
    rows = judge.data.table.rows(settings.attribute_on)
    rows = np.sort(np.random.default_rng(judge.seed).permutation(rows)[: settings.attribute])
    begin, of_clips, gaps, steps = torch.from_numpy(baseline).to(device), [], [], []
    for row in rows:
        inputs, target = torch.from_numpy(frames[row])[None].to(device), torch.tensor([judge.data.labels[row]], device=device)
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN knows no backward of an LSTM in eval mode
            found = integrated_gradients(probe.of, inputs, target, begin)
        of_clips.append(_over_time(found.values[0], settings.summary))
        gaps.append(found.gap)
        steps.append(found.steps)
    return np.argsort(-importance(np.stack(of_clips), settings.summary), kind="stable"), {
        "clips": len(rows),
        "completeness_gap": float(np.median(gaps)),
        "largest_gap": max(gaps),
        "incomplete": sum(gap > LARGEST_GAP for gap in gaps),
        "steps": max(steps),
    }


def _over_time(attributions: np.ndarray, summary: str) -> np.ndarray:
    """One number per dimension of a clip, `[D]` of `[T, D]`: every clip counts the same, however long."""
    return (np.abs(attributions) if summary == "absolute" else attributions).mean(axis=0)


def _beside_linear(study: Study, encoder: AnalyzedEncoder, task: str, view: str, own: dict[str, Any]) -> dict[str, Any]:
    """The list, and how much of that of the linear probe (`dimensions`) is in it, where that is of the same vector."""
    linear = study.found("dimensions", encoder, task)
    if linear is None or linear["view"] != view or linear["kept"] != len(own["list"]):
        return own
    return {**own, "shared_with_linear": overlap_of(own["list"], linear["lists"][0], own["size"])._asdict()}


def read_in_order(study: Study, encoder: AnalyzedEncoder, task: str, settings: SequenceSettings) -> dict[str, Any]:
    """The probe on frames in order, in random order, and the linear probe on their mean, with paired differences."""
    view = encoder.view(_layer(study, encoder, task))
    judge, table = Judge(study.tasks[task], study.seed), study.tasks[task].table
    how = (study.folder / FOLDER, study.key_of_task(encoder, task), study.disk_gb, study.first_s)
    frames = frames_of(encoder, view, table.clips, *how)
    scale, rng = Scale.of(frames, table.rows("train")), np.random.default_rng(study.seed)
    own = [scale.standardised(frames[row]) for row in range(len(frames))]
    means, together = np.stack([frame.mean(axis=0) for frame in own]), 1 if encoder.reads_words else settings.together
    (linear,) = fit_all({view.name: means}, judge.data, judge.objective, study.seed, device=study.device).values()
    linear, own = linear.predictions.reshape(-1, 1), [grouped(frame, together) for frame in own]
    how = (settings, study.device, encoder.reads_words)
    probe, ordered = fit_sequence(judge, own, *how)
    _, mixed = fit_sequence(judge, [frame[rng.permutation(len(frame))] for frame in own], *how)
    floor = study.found("layers", encoder, task)["test"]["floor"]

    def predict(parts: Mapping[str, Part]) -> dict[str, np.ndarray]:
        train = table.rows("train")
        return {name: fit_sequence(judge, part_of_frames(own, part, train), *how)[1] for name, part in parts.items()}

    found = {"title": judge.data.task.title, "metric": judge.data.task.metrics[0], "view": view.name, "size": settings.size}
    if settings.attribute:
        order, gaps = ranked(probe, judge, own, scale.baseline(settings.baseline), settings, study.device)
        looked_at = {**gaps, **retrain_beside_rivals(judge, order, settings, floor, predict)}
        looked_at["list"] = order[: looked_at["kept"]].tolist()
        found["dimensions"] = _beside_linear(study, encoder, task, view.name, looked_at)
    return {
        **found,
        "frames": int(frames.lengths.sum()),
        "sequence": judge.figure(ordered, "test", **floor),
        "linear": judge.figure(linear, "test", **floor),
        "random_order": judge.figure(mixed, "test", **floor),
        "minus_linear": judge.difference(ordered, linear, "test"),
        "minus_random_order": judge.difference(ordered, mixed, "test"),
    }


def _layer(study: Study, encoder: AnalyzedEncoder, task: str) -> str:
    """The vector that `layers` has chosen, or where it has no frames the best layer on validation."""
    found = study.found("layers", encoder, task)
    names = [view.name for view in encoder.views if view.layer is not None]
    if found["chosen"] in names:
        return found["chosen"]
    values = {own["view"]: own["validation"]["value"] for own in found["views"] if own["view"] in names}
    return max(values, key=lambda name: values[name] if found["greater_is_better"] else -values[name])


def cells(study: Study, settings: SequenceSettings) -> list[Cell]:
    """Every encoder with layers on the tasks that are named; kept frames of others are removed."""
    names = [name for name, data in study.tasks.items() if data.task.kind == "classification"]
    tasks = settings.tasks or names[:1]
    for name in tasks:
        check_choice("analyses.sequence: tasks", name, names)
    pairs = [(own, task) for own, task in study.pairs() if task in tasks and any(v.layer is not None for v in own.views)]
    layers = [_layer(study, own, task) for own, task in pairs]
    stems = [stem_of(own, own.view(name), study.key_of_task(own, task)) for (own, task), name in zip(pairs, layers)]
    remove_others(study.folder / FOLDER, stems)
    return [
        encoder_cell(
            *(study, encoder, task, lambda e=encoder, t=task: read_in_order(study, e, t, settings), layer),
            *([(study.found("dimensions", encoder, task) or {}).get("lists")] if settings.attribute else []),
        )
        for (encoder, task), layer in zip(pairs, layers)
    ]


# ---- what is shown ----


def answers(records: Sequence[dict]) -> list[str]:
    """Where order helps."""
    better = [_pair(record) for record in records if _is_above_zero(record["found"]["minus_linear"])]
    by_order = [_pair(record) for record in records if _is_above_zero(record["found"]["minus_random_order"])]
    if not records:
        return []
    return [
        f"A BiLSTM on frames is better than a linear probe on their mean in {len(better)} of {len(records)} pairs of encoder "
        f"and task, and better than itself on frames in random order in {len(by_order)}."
    ]


def _is_above_zero(interval: Sequence[float] | None) -> bool:
    return interval is not None and interval[0] > 0


def _pair(record: dict) -> str:
    return f"{record['about']['encoder']} on {record['about']['task']}"


def section(records: Sequence[dict]) -> list[str]:
    """A table of the three probes."""
    lines = []
    for record in records:
        found, unit = record["found"], metric_unit(record["found"]["metric"])
        figures = [shown_figure(found[name], unit) for name in ("sequence", "random_order", "linear")]
        chance = shown_figure(found["sequence"]["floor"]["chance"], unit)
        marks = ["*" if _is_above_zero(found[name]) else "" for name in ("minus_random_order", "minus_linear")]
        n = f"{found['sequence']['n']} clips, {found['sequence']['units']} {found['sequence']['unit']}s"
        view = found["view"].removeprefix("layer ")
        lines.append([record["about"]["task"], record["about"]["encoder"], view, found["size"], *figures, *marks, chance, n])
    columns = ["task", "encoder", "layer", "size", "BiLSTM", "frames in random order", "linear on the mean"]
    return [
        "A bidirectional LSTM on the frames of the chosen layer, learnt by the rules of the linear probe; its epoch is "
        "chosen on validation. *: the paired 95 % interval of the difference lies above zero.",
        markdown_table([*columns, "above random order", "above linear", "constant answer", "n"], lines),
        *_dimension_table(records),
        *([f"![BiLSTM and rivals](pictures/{NAME}.png)"] if records else []),
    ]


def _dimension_table(records: Sequence[dict]) -> list[str]:
    records = [record for record in records if record["found"].get("dimensions")]
    if not records:
        return []
    lines = []
    for record in records:
        own = record["found"]["dimensions"]
        shared = own.get("shared_with_linear")
        beside = f"{shared['shared']} ({shared['expected']:.1f}), p = {shared['p']:.2g}" if shared else "–"
        gaps = [f"{100 * own[name]:.2g} %" for name in ("completeness_gap", "largest_gap")]
        names, unit = [record["about"]["task"], record["about"]["encoder"]], metric_unit(record["found"]["metric"])
        rivals = shown_rivals({**own, "all": record["found"]["sequence"]}, unit)
        lines.append([*names, *rivals, beside, str(own["clips"]), *gaps])
    columns = ["task", "encoder", *RIVALS, "shared with the linear probe's (by chance)", "clips attributed"]
    table = markdown_table([*columns, "completeness gap, median", "largest"], lines)
    pictures = [f"![{task}: share of dimensions kept](pictures/{name}.png)" for name, task in _curves(records).items()]
    return [_how_attributed(records[0]["settings"]), table, *_warnings(records), *pictures]


def _curves(records: Sequence[dict]) -> dict[str, str]:
    """Pictures of shares of dimensions: name -> task."""
    tasks = [record["about"]["task"] for record in records if record["found"].get("dimensions")]
    return {f"{NAME}_dimensions_{task}": task for task in dict.fromkeys(tasks)}


def _how_attributed(settings: dict) -> str:
    on = settings["attribute_on"]
    return (
        f"The dimensions that the LSTM looks at: Integrated Gradients from the baseline `{settings['baseline']}`, on {on} "
        f"clips, summed up by the {SUMMARIES[settings['summary']]}.{BIASED if on == 'test' else ''} New "
        "LSTMs then learn from the kept dimensions of every frame alone, beside the rivals of the linear probe's."
    )


def _warnings(records: Sequence[dict]) -> list[str]:
    """A word where the attributions of clips do not add up, even with the most steps."""
    found = [(_pair(record), record["found"]["dimensions"]) for record in records]
    words = [f"{pair} ({own['incomplete']} of {own['clips']} clips)" for pair, own in found if own["incomplete"]]
    limit = f"{100 * LARGEST_GAP:g} %"
    return [f"**Not complete**, a gap above {limit} with the most steps: {', '.join(words)}."] if words else []


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """The probes, and per task the shares of dimensions where they are attributed."""
    curves = {name: partial(draw_curves, task=task) for name, task in _curves(records).items()}
    return {NAME: draw, **curves} if records else {}


def draw_curves(records: Sequence[dict], task: str) -> Figure:
    """As `dimensions` draws them."""
    known = [record for record in records if record["found"].get("dimensions")]
    return draw_shares(
        [{**own, "found": {**own["found"]["dimensions"], "all": own["found"]["sequence"]}} for own in known], task
    )


def draw(records: Sequence[dict]) -> Figure:
    """Three bars with intervals per encoder and task."""
    figure_, (axes,) = new_axes(2.5 + 1.1 * len(records), 3.8)
    for number, name in enumerate(("linear", "random_order", "sequence")):
        own = [record["found"][name] for record in records]
        values = np.array([one["value"] for one in own])
        ends = np.array([one["interval"] or (np.nan, np.nan) for one in own])
        places = np.arange(len(own)) + 0.25 * (number - 1)
        axes.bar(places, values, 0.25, yerr=np.abs(ends.T - values), ecolor="grey", label=name.replace("_", " "))
    axes.set_xticks(range(len(records)), [_pair(record) for record in records], rotation=20, ha="right", fontsize=8)
    axes.set_ylabel("test figure")
    axes.legend(fontsize=7)
    return figure_


ANALYSIS = Analysis(
    NAME, "Sequence: what the order of the frames adds", SequenceSettings, cells, answers, section, drawings, needs=("layers",)
)
