"""Which dimensions matter to a task: attributed on validation, and a probe retrained on them alone.

Integrated Gradients of the linear probe rank the dimensions of the vector that `layers` has chosen. New probes then learn from
the top share alone, beside the bottom share, random draws of as many and as many principal components: without these rivals
the top's figure says nothing, as many dimensions know the same.

Shapes: `N` clips, `E` dimensions, `M` of them kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wavcse.analysis.analyses.layers import Judge
from wavcse.analysis.attribution import LIBRARY, Attribution, importance, integrated_gradients
from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.figures import figure, metric_unit, shown_figure
from wavcse.analysis.study import Analysis, Cell, Study, encoder_cell
from wavcse.data.pca import fit_pca
from wavcse.eval.probe import ProbeRun, ProbeSettings
from wavcse.eval.probe_stack import fit_all
from wavcse.reports.figures import new_axes
from wavcse.reports.page import markdown_table
from wavcse.settings.fields import CheckedFields, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "dimensions"
SIGNIFICANT = 0.05


Part = np.ndarray | int  # of a vector, that a probe learns from: these of its dimensions, or so many principal components


@dataclass
class RetrainSettings(CheckedFields):
    """How dimensions are ranked, and on which of them probes are retrained; the same for a probe on frames."""

    share: float = option(0.1, "Of the dimensions is kept.", above=0, below=1)
    curve: list[float] = option(lambda: [0.01, 0.02, 0.05, 0.2, 0.5], "Further shares.", above=0, below=1)
    draws: int = option(20, "Random draws of as many dimensions; of fewer than 20 p is never below 0.05.", at_least=1)
    baseline: str = option("mean", "Where attribution begins: the training mean, or zero.", choices=("mean", "zero"))
    summary: str = option(
        "absolute", "Of clips: mean of absolutes, or the authors' signed mean.", choices=("absolute", "signed")
    )
    attribute_on: str = option(
        "validation", "Clips of the attribution; test, as the authors, biases the figures.", choices=("validation", "test")
    )


@dataclass
class DimensionsSettings(RetrainSettings):
    """Settings of `dimensions`."""

    seeds: int = option(3, "Probes whose rankings are compared.", at_least=1)
    view: str | None = option(None, "Which vector, such as embedding or layer 3.", "the one that layers has chosen")


class Ranker:
    """Dimensions of the vectors of one task, most important first, by one probe.

    Args:
        judge: of the task.
        vectors: `[N, E]` of its clips.
    """

    def __init__(self, judge: Judge, vectors: np.ndarray, settings: DimensionsSettings, device: str = "cpu"):
        self.judge, self.vectors, self.settings, self.device = judge, vectors, settings, device

    def probe(self, seed: int) -> ProbeRun:
        """Fitted on all dimensions."""
        (run,) = fit_all({"": self.vectors}, self.judge.data, self.judge.objective, seed, device=self.device).values()
        return run

    def attribution(self, run: ProbeRun) -> Attribution:
        """Of the true classes of the clips that are attributed on; in the scale of the vectors."""
        rows = self.judge.data.table.rows(self.settings.attribute_on)
        model, targets = run.model, torch.from_numpy(self.judge.data.labels[rows]).to(self.device)
        baseline = model.mean if self.settings.baseline == "mean" else 0.0
        return integrated_gradients(model, torch.from_numpy(self.vectors[rows]).to(self.device), targets, baseline)

    def order(self, attribution: Attribution) -> np.ndarray:
        """All dimensions, the most important first, `[E]`."""
        return np.argsort(-importance(attribution.values, self.settings.summary), kind="stable")

    def retrained(self, run: ProbeRun, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What probes on other vectors answer of the test clips, name -> `[n, 1]`.

        Their learning rate is the one that validation chose for all dimensions.
        """
        settings, judge = ProbeSettings(learning_rates=(run.learning_rate,)), self.judge
        runs = fit_all(vectors, judge.data, judge.objective, judge.seed, settings, self.device)
        return {name: own.predictions.reshape(-1, 1) for name, own in runs.items()}


def kept(size: int, share: float) -> int:
    """M: as the authors cut it, at least one."""
    return max(1, int(share * size))


def rank_and_retrain(study: Study, encoder: AnalyzedEncoder, task: str, settings: DimensionsSettings) -> dict[str, Any]:
    """Rankings of several probes, and what probes on the top share achieve beside their rivals."""
    layers = study.found("layers", encoder, task)
    view = settings.view or layers["chosen"]
    vectors = study.vectors(encoder, view, task)
    judge, most = Judge(study.tasks[task], study.seed), kept(vectors.shape[1], settings.share)
    ranker = Ranker(judge, vectors, settings, study.device)
    runs = [ranker.probe(study.seed + number) for number in range(settings.seeds)]
    attributions = [ranker.attribution(run) for run in runs]
    orders = [ranker.order(own) for own in attributions]
    first, train = runs[0], judge.data.table.rows("train")

    def predict(parts: Mapping[str, Part]) -> dict[str, np.ndarray]:
        return ranker.retrained(first, {name: part_of(vectors, part, train) for name, part in parts.items()})

    floor = layers["test"]["floor"]
    return {
        "title": judge.data.task.title,
        "language": study.languages[task],
        "metric": judge.data.task.metrics[0],
        "view": view,
        "attributed_on": settings.attribute_on,
        "completeness_gap": attributions[0].gap,
        "steps": attributions[0].steps,
        "all": judge.figure(judge.predictions(first, vectors, "test"), "test", **floor),
        **retrain_beside_rivals(judge, orders[0], settings, floor, predict),
        "lists": [own[:most].tolist() for own in orders],
    }


def retrain_beside_rivals(
    judge: Judge,
    order: np.ndarray,
    settings: RetrainSettings,
    floor: Mapping[str, Any],
    predict: Callable[[Mapping[str, Part]], Mapping[str, np.ndarray]],
) -> dict[str, Any]:
    """What probes achieve on the top share of the dimensions, on other shares, the bottom, random draws and PCA.

    Args:
        order: of all dimensions, the most important first, `[E]`.
        floor: of every figure.
        predict: fits a probe on each of these parts and says what it answers of the test clips, `[n, 1]`.
    """
    size, most = len(order), kept(len(order), settings.share)
    rng = np.random.default_rng(judge.seed)
    draws = {f"draw {number}": rng.permutation(size)[:most] for number in range(settings.draws)}
    shares = {f"share {share:g}": order[: kept(size, share)] for share in settings.curve}
    chosen = {**draws, **shares, "top": order[:most], "bottom": order[-most:]}
    predicted = predict({**{name: np.sort(own) for name, own in chosen.items()}, "pca": most})
    labels = judge.labels[judge.data.table.rows("test")]
    values = [float(judge.metric.compute(labels, predicted[name])) for name in draws]
    beside = partial(judge.figure, split="test", **floor)
    top = beside(predicted["top"])
    at_least = sum(value >= top["value"] for value in values)
    return {
        "size": size,
        "kept": most,
        "top": top,
        "bottom": beside(predicted["bottom"]),
        "random": {
            "values": values,
            **figure(np.mean(values), np.quantile(values, [0.025, 0.975]), len(values), len(values), "draw", **top["floor"]),
        },
        "p_random": (1 + at_least) / (1 + len(values)),  # as good or better by a draw: of a permutation test
        "pca": beside(predicted["pca"]),
        "curve": [
            {"share": share, "kept": kept(size, share), **beside(predicted[f"share {share:g}"])} for share in settings.curve
        ],
    }


def part_of(vectors: np.ndarray, part: Part, train: np.ndarray) -> np.ndarray:
    """The part of vectors `[N, E]` that a probe learns from, `[N, M]`; principal components are those of the `train` rows."""
    return components(vectors, train, part) if isinstance(part, int) else np.ascontiguousarray(vectors[:, part])


def components(vectors: np.ndarray, train: np.ndarray, most: int) -> np.ndarray:
    """Principal components of the training clips, `[N, M]` of all clips; fewer where there are too few clips."""
    most = min(most, len(train) - 1)
    return fit_pca([vectors[train]], most).project(vectors).astype(np.float32)


def cells(study: Study, settings: DimensionsSettings) -> list[Cell]:
    """Every encoder on every task with classes, at the vector that `layers` has chosen."""
    return [
        encoder_cell(
            *(study, encoder, task, lambda e=encoder, t=task: rank_and_retrain(study, e, t, settings)),
            study.found("layers", encoder, task)["chosen"],
        )
        for encoder, task in study.pairs()
        if study.tasks[task].task.kind == "classification" and _has_view(encoder, settings.view)
    ]


def _has_view(encoder: AnalyzedEncoder, name: str | None) -> bool:
    return name is None or any(own.name == name for own in encoder.views)


# ---- what is shown ----


def answers(records: Sequence[dict]) -> list[str]:
    """Whether the top dimensions beat as many random ones."""
    if not records:
        return []
    draws = [record["settings"]["draws"] for record in records]
    better = [record for record in records if record["found"]["p_random"] < SIGNIFICANT]
    share = f"{100 * records[0]['settings']['share']:g} %"
    words = (
        f"in {len(better)} of {len(records)} pairs of encoder and task they beat all but 5 % of random draws of as many "
        f"(by luck alone in {sum(map(by_luck, draws)):.1f})"
    )
    if not any(map(by_luck, draws)):
        words = f"with {draws[0]} random draws of as many none can be said to be better (of fewer than 20 p is 0.05 at least)"
    lost = [r["found"]["all"]["value"] - r["found"]["top"]["value"] for r in records]
    return [
        f"The top {share} of dimensions, retrained alone: {words}; the median loss against all dimensions is "
        f"{100 * float(np.median(lost)):.1f} points."
    ]


def by_luck(draws: int) -> float:
    """How likely p falls below `SIGNIFICANT` where the top is a draw like any other, of so many draws."""
    return (np.ceil(SIGNIFICANT * (draws + 1)) - 1) / (draws + 1)


def section(records: Sequence[dict]) -> list[str]:
    """What is kept by the top share and its rivals."""
    if not records:
        return []
    lines = []
    for record in records:
        found, unit = record["found"], metric_unit(record["found"]["metric"])
        lines.append(
            [
                *(record["about"]["task"], record["about"]["encoder"], found["view"].removeprefix("layer ")),
                *shown_rivals(found, unit),
                shown_figure(found["all"]["floor"]["chance"], unit),
                f"{found['all']['n']} clips, {found['all']['units']} {found['all']['unit']}s",
                f"{100 * found['completeness_gap']:.2g} %",
            ]
        )
    columns = ["task", "encoder", "vector", *RIVALS, "constant answer", "n", "completeness gap"]
    settings = records[0]["settings"]
    pictures = [f"![{task}: share of dimensions kept](pictures/{NAME}_{task}.png)" for task in _tasks(records)]
    return [_how(settings), markdown_table(columns, lines), *pictures]


RIVALS = ("dimensions kept", "all", "top", "bottom", "random draws", "PCA", "p of top against random")


def shown_rivals(found: Mapping[str, Any], unit: str) -> list[str]:
    """The cells of `RIVALS`: what `retrain_beside_rivals` found, and `all`."""
    figures = [shown_figure(found[name], unit) for name in ("all", "top", "bottom", "random", "pca")]
    return [f"{found['kept']} of {found['size']}", *figures, f"{found['p_random']:.3f}"]


BIASED = " The test clips chose the dimensions here, as in the authors' code: figures are biased."
FEW = ", which of fewer than 20 draws is never below 0.05"
SUMMARIES = {"absolute": "mean of absolutes", "signed": "signed mean, as the authors do"}


def _how(settings: dict) -> str:
    on = settings["attribute_on"]
    return (
        f"Integrated Gradients of the linear probe, from the baseline `{settings['baseline']}`, on the {on} clips, summed up "
        f"by the {SUMMARIES[settings['summary']]}; new probes then learn from the kept dimensions alone and meet the test "
        f"clips.{BIASED if on == 'test' else ''} Random draws: mean and 95 % of {settings['draws']} draws of as many "
        "dimensions; p is the share of draws, the top counted with them, that do as well as the top"
        f"{FEW if not by_luck(settings['draws']) else ''}. Nothing is chosen by these figures."
    )


def _tasks(records: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(record["about"]["task"] for record in records))


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """A picture per task."""
    return {f"{NAME}_{task}": partial(draw_shares, task=task) for task in _tasks(records)}


def draw_shares(records: Sequence[dict], task: str) -> Figure:
    """A curve per encoder over the share that is kept; random draws as a bar at theirs."""
    figure_, (axes,) = new_axes(6.4, 4.0)
    for record in (own for own in records if own["about"]["task"] == task):
        found, share = record["found"], record["settings"]["share"]
        points = sorted([(own["share"], own["value"]) for own in found["curve"]] + [(share, found["top"]["value"])])
        points.append((1.0, found["all"]["value"]))
        (line,) = axes.plot(*zip(*points), marker="o", markersize=3, label=record["about"]["encoder"])
        low, high = found["random"]["interval"]
        middle = found["random"]["value"]
        axes.errorbar([share], [middle], [[middle - low], [high - middle]], color=line.get_color(), capsize=3, fmt="x")
    shares = sorted({1.0, *(own["share"] for own in records[0]["found"]["curve"]), records[0]["settings"]["share"]})
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
    axes.minorticks_off()
    axes.set_xlabel("share of the dimensions that is kept (crosses: random draws)")
    axes.set_ylabel("test figure")
    axes.set_title(task)
    axes.legend(fontsize=7)
    return figure_


ANALYSIS = Analysis(
    *(NAME, "Dimensions: which matter", DimensionsSettings, cells, answers, section, drawings),
    needs=("layers",),
    library=LIBRARY,
)
