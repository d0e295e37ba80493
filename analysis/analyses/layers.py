"""Which layer holds what: a linear probe on every vector of every encoder, chosen on validation, tested once.

The layers are compared on the validation clips only, also for which of them cannot be told from the best. Beside the best
layer stands the weighted sum of all (Yang et al., SUPERB, Interspeech 2021), learnt together with its probe. Floors: the best
constant answer, a probe that learnt from shuffled labels, and an untrained twin where the study has one.

Shapes: `N` clips, `K` layers, `D` their size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from wavcse.analysis.encoders import AnalyzedEncoder, View
from wavcse.analysis.figures import figure, shown_figure
from wavcse.analysis.study import Analysis, Cell, Study, encoder_cell
from wavcse.eval.encoder import CachedEncoder
from wavcse.eval.evaluation import result_key, write_outcome
from wavcse.eval.metrics import METRICS, Metric, bootstrap_interval, paired_interval
from wavcse.eval.probe import Objective, ProbeRun, ProbeSettings, fit_on_task, objective_for, outcome_of, resampling_unit
from wavcse.eval.probe_stack import fit_all
from wavcse.eval.table import shown
from wavcse.eval.task import TaskData
from wavcse.reports.figures import heat_map, new_axes
from wavcse.reports.page import markdown_table
from wavcse.settings.fields import CheckedFields, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "layers"
CONSTANT = np.zeros((1, 0), np.float32)  # the vector of an encoder that says nothing
HOW = (
    "A linear probe on every vector; layer 0 is the input of the first block. The vector is chosen on the validation clips, "
    "and those that cannot be told from it there (paired bootstrap) are named; only the chosen one meets the test clips. "
    "Shuffled labels: the same probe, learnt from labels in random order. Untrained: the twin with random weights, at its own "
    "best layer. Weighted sum: of all layers, learnt with its probe at the learning rate of the best one; * where it can be "
    "told from the chosen one."
)


@dataclass
class LayersSettings(CheckedFields):
    """Settings of `layers`."""

    weighted_sum: bool = option(True, "Set the best layer beside a learnt weighted sum of all.")
    shuffled: bool = option(True, "Learn the best layer's probe from shuffled labels too, as a floor.")


class WeightedSum(nn.Module):
    """Layers `[B, K, D]` -> their sum with softmax weights -> one linear layer."""

    def __init__(self, num_layers: int, size: int, num_outputs: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.linear = nn.Linear(size, num_outputs)

    def forward(self, layers: Tensor) -> Tensor:
        """Outputs `[B, O]`."""
        return self.linear(torch.einsum("bkd,k->bd", layers, self.weights.softmax(dim=0)))


# ---- one encoder on one task ----


class Judge:
    """A task's metric on its splits, with intervals; of several targets the mean.

    Attributes:
        objective: what probes learn.
        metric: the task's first one, over all its targets.
    """

    def __init__(self, data: TaskData, seed: int):
        self.data, self.seed, self.objective = data, seed, objective_for(data)
        self.metric = over_targets(METRICS[data.task.metrics[0]])
        self.labels = data.labels if data.labels.ndim == 2 else data.labels[:, None]

    def predictions(self, run: ProbeRun, embeddings: np.ndarray, split: str) -> np.ndarray:
        """What a probe says of the clips of a split, `[n, targets]`."""
        if split == "test":
            predicted = run.predictions
        else:
            predicted = predictions_of(run, embeddings[self.data.table.rows(split)], self.objective)
        return predicted.reshape(len(predicted), -1)

    def figure(self, predictions: np.ndarray, split: str, **floor: Any) -> dict[str, Any]:
        """The metric of predictions on a split."""
        rows = self.data.table.rows(split)
        unit, groups = resampling_unit(self.data, rows)
        interval = bootstrap_interval(self.metric, self.labels[rows], [predictions], groups, self.seed)
        value = self.metric.compute(self.labels[rows], predictions)
        return figure(value, interval, len(rows), len(set(groups)), unit, **floor)

    def difference(self, one: np.ndarray, other: np.ndarray, split: str) -> list[float] | None:
        """Interval of the metric of `one` minus that of `other` on the same clips."""
        rows = self.data.table.rows(split)
        _, groups = resampling_unit(self.data, rows)
        interval = paired_interval(self.metric, self.labels[rows], [one], [other], groups, self.seed)
        return None if interval is None else list(interval)


def predictions_of(run: ProbeRun, embeddings: np.ndarray, objective: Objective) -> np.ndarray:
    """What a fitted probe says of embeddings `[N, ...]`; of a constant answer that answer."""
    if run.model is None:
        return np.repeat(run.predictions[:1], len(embeddings), axis=0)
    device = run.model.mean.device
    with torch.no_grad():
        return objective.predict(run.model(torch.from_numpy(embeddings).to(device))).cpu().numpy()


def over_targets(metric: Metric) -> Metric:
    """The mean of a metric over the columns of labels and predictions `[N, T]`."""

    def mean(compute: Callable, labels: np.ndarray, predictions: np.ndarray, *more: np.ndarray) -> Any:
        return np.mean([compute(*column, *more) for column in zip(labels.T, predictions.T)], axis=0)

    return replace(
        metric,
        compute=lambda labels, predictions: float(mean(metric.compute, labels, predictions)),
        resampled=lambda labels, predictions, weights: mean(metric.resampled, labels, predictions, weights),
        thin=None,
    )


def shuffled_labels(data: TaskData, seed: int) -> TaskData:
    """The task with the labels of its training clips, and those of its validation clips, in random order."""
    order, rng = np.arange(len(data.table.clips)), np.random.default_rng(seed)
    for split in ("train", "validation"):
        rows = data.table.rows(split)
        order[rows] = rng.permutation(rows)
    values = None if data.values is None else data.values[order]
    return replace(data, table=replace(data.table, labels=data.table.labels[order]), values=values)


def probe_views(study: Study, encoder: AnalyzedEncoder, task: str, settings: LayersSettings) -> dict[str, Any]:
    """Probes on all vectors of an encoder, the best one's test figure, and its rivals and floors."""
    data, judge = study.tasks[task], Judge(study.tasks[task], study.seed)
    vectors = {view.name: study.vectors(encoder, view, task) for view in encoder.views}
    found, run = judge_views(judge, vectors, settings.shuffled, study.device)
    layers = [view.name for view in encoder.views if view.layer is not None]
    if settings.weighted_sum and len(layers) > 1:
        found["weighted_sum"] = _weighted_sum(judge, {name: vectors[name] for name in layers}, run, study.device)
    _keep_predictions(study, encoder, encoder.view(found["chosen"]), data, run, judge.objective)
    about = {"title": data.task.title, "language": study.languages[task]}
    return {**about, "is_untrained": encoder.is_untrained, "model": encoder.model, **found}


def judge_views(
    judge: Judge, vectors: Mapping[str, np.ndarray], shuffled: bool, device: str
) -> tuple[dict[str, Any], ProbeRun]:
    """Probes on several vectors `[N, E]` of the same clips: all on validation, the one that is best there on the test clips.

    Args:
        shuffled: add the floor of shuffled labels.

    Returns:
        What a record holds, and the probe of the chosen vector.
    """
    data, seed, how = judge.data, judge.seed, {"device": device}
    runs = fit_all(vectors, data, judge.objective, seed, **how)
    direction = 1 if judge.objective.greater_is_better else -1
    best = max(runs, key=lambda name: direction * runs[name].validation)
    on_validation = {name: judge.predictions(run, vectors[name], "validation") for name, run in runs.items()}
    views = []
    for name, run in runs.items():
        difference = judge.difference(on_validation[best], on_validation[name], "validation")
        tied = name == best or difference is None or difference[0] <= 0 <= difference[1]
        own = {"view": name, "validation": judge.figure(on_validation[name], "validation"), "difference": difference}
        views.append({**own, "tied": tied, "learning_rate": run.learning_rate, "epoch": run.epoch})
    predicted, constant = judge.predictions(runs[best], vectors[best], "test"), _constant(judge, data)
    floor = {"chance": judge.figure(constant, "test")}
    if shuffled:
        mixed = shuffled_labels(data, seed + 1)
        run = fit_all({best: vectors[best]}, mixed, judge.objective, seed, **how)[best]
        floor["shuffled"] = judge.figure(judge.predictions(run, vectors[best], "test"), "test")
    found = {
        "metric": data.task.metrics[0],
        "greater_is_better": judge.metric.greater_is_better,
        "views": views,
        "chosen": best,
        "test": judge.figure(predicted, "test", **floor),
        "test_minus_chance": judge.difference(predicted, constant, "test"),
    }
    return found, runs[best]


def _constant(judge: Judge, data: TaskData) -> np.ndarray:
    """Test predictions `[n, targets]` of the best answer that an encoder can give which says nothing of a clip."""
    run = fit_on_task(np.repeat(CONSTANT, len(data.table.clips), axis=0), data, judge.objective)
    return judge.predictions(run, CONSTANT, "test")


def _weighted_sum(judge: Judge, vectors: Mapping[str, np.ndarray], best: ProbeRun, device: str) -> dict[str, Any]:
    """The sum learns with the learning rate that validation has chosen for the best vector."""
    layers, stacked = list(vectors), np.stack(list(vectors.values()), axis=1)

    def head(size: int, num_outputs: int) -> WeightedSum:
        return WeightedSum(len(layers), size, num_outputs)

    settings = ProbeSettings(learning_rates=(best.learning_rate,))
    run = fit_on_task(stacked, judge.data, judge.objective, judge.seed, device=device, head=head, settings=settings)
    weights = run.model.head.weights.detach().softmax(dim=0).tolist()
    predicted = judge.predictions(run, stacked, "test")
    return {
        "validation": judge.figure(judge.predictions(run, stacked, "validation"), "validation"),
        "test": judge.figure(predicted, "test"),
        "best_minus_it": judge.difference(best.predictions.reshape(predicted.shape), predicted, "test"),
        "weights": dict(zip(layers, weights)),
    }


def _keep_predictions(
    study: Study, encoder: AnalyzedEncoder, view: View, data: TaskData, run: ProbeRun, objective: Objective
) -> None:
    """Result and predictions of the chosen vector, as `wavcse eval` leaves them: its table and differences read them."""
    facts = {**encoder.record(), "layer": view.name.removeprefix("layer ")}
    del facts["name"]
    own = CachedEncoder(encoder.name, encoder.sampling_rate, encoder.size(view), facts)
    known = {"skipped_clips": study.lost.get(data.task.name, 0), "seconds": {}}
    known["key"] = result_key(own, data, study.settings, False)
    for place in range(len(data.task.targets)):
        outcome = outcome_of(place, {study.seed: run}, None, data, objective)
        write_outcome(outcome, own, data, study.settings, known, study.folder)


def cells(study: Study, settings: LayersSettings) -> list[Cell]:
    """Every encoder on every task."""
    return [
        encoder_cell(study, encoder, task, lambda e=encoder, t=task: probe_views(study, e, t, settings))
        for encoder, task in study.pairs()
    ]


# ---- what is shown ----


def answers(records: Sequence[dict]) -> list[str]:
    """Which layer holds which task, encoder by encoder; random weights are left to the table."""
    lines = []
    for encoder in dict.fromkeys(r["about"]["encoder"] for r in records if not r["found"]["is_untrained"]):
        own = [record for record in records if record["about"]["encoder"] == encoder and _num_layers(record) > 1]
        words = [f"{r['about']['task']} {_at(r)}" for r in own]
        if words:
            lines.append(
                f"`{encoder}`, test figure at the best of {_num_layers(own[0])} vectors on validation (so many others cannot "
                f"be told from it): {', '.join(words)}."
            )
    at_chance = [_pair(record) for record in records if not is_above_floors(record["found"])]
    if at_chance:
        lines.append(f"Not shown to be above their floors (shuffled labels, constant answer): {', '.join(at_chance)}.")
    return lines


def is_above_floors(found: dict) -> bool:
    """Whether the test figure is better than a constant answer and than shuffled labels, errors as well as scores.

    The constant answer is taken from it draw by draw: right for every clip of one class, it varies with the classes of the
    speakers drawn, and so does the figure. Of shuffled labels, which are never to be called above chance, the whole interval
    must lie below the figure's.
    """

    def upward(interval: Sequence[float] | None) -> list[float] | None:
        return interval and sorted(end if found["greater_is_better"] else -end for end in interval)

    gain, own = upward(found["test_minus_chance"]), upward(found["test"]["interval"])
    shuffled = found["test"]["floor"].get("shuffled")
    return gain is not None and gain[0] > 0 and (shuffled is None or own[0] > upward(shuffled["interval"])[1])


def _num_layers(record: dict) -> int:
    return len(record["found"]["views"])


def _short(view: str) -> str:
    return view.removeprefix("layer ")


def _at(record: dict) -> str:
    found = record["found"]
    tied = sum(own["tied"] for own in found["views"]) - 1
    unit = METRICS[found["metric"]].unit
    return f"{shown(found['test']['value'], unit)}{' %' if unit == 'percent' else ''} at {_short(found['chosen'])} ({tied})"


def _pair(record: dict) -> str:
    return f"{record['about']['encoder']} on {record['about']['task']}"


def section(records: Sequence[dict]) -> list[str]:
    """The map, a table of the chosen vectors with floors and rivals, and a picture of all vectors per task."""
    tasks = dict.fromkeys(record["about"]["task"] for record in records)
    return [
        HOW,
        f"![Validation figures by layer and task](pictures/{NAME}_map.png)",
        chosen_table(records),
        *(f"![{task}: validation figure of every vector](pictures/{NAME}_{task}.png)" for task in tasks),
    ]


def chosen_table(records: Sequence[dict]) -> str:
    """The chosen vector of every encoder and task, with its floors and rivals."""
    lines = []
    for record in records:
        found, unit = record["found"], METRICS[record["found"]["metric"]].unit
        weighted = found.get("weighted_sum")
        tied = [_short(own["view"]) for own in found["views"] if own["tied"] and own["view"] != found["chosen"]]
        lines.append(
            [
                *(record["about"]["task"], record["about"]["encoder"], _short(found["chosen"]), ", ".join(tied)),
                f"{found['metric']} {shown_figure(found['test'], unit)}",
                f"{found['test']['n']} clips, {found['test']['units']} {found['test']['unit']}s",
                *(shown_figure(found["test"]["floor"].get(name), unit) for name in ("chance", "shuffled")),
                shown_figure(_twin(record, records), unit),
                shown_figure(weighted and weighted["test"], unit) + _mark(weighted),
            ]
        )
    columns = ["task", "encoder", "chosen", "not told from it", "test", "n", "constant answer", "shuffled labels"]
    return markdown_table([*columns, "untrained", "weighted sum"], lines)


def _mark(weighted: dict | None) -> str:
    if not weighted or weighted["best_minus_it"] is None:
        return ""
    low, high = weighted["best_minus_it"]
    return "" if low <= 0 <= high else " *"


def _twin(record: dict, records: Sequence[dict]) -> dict | None:
    """The test figure of the same model with random weights."""
    found, task = record["found"], record["about"]["task"]
    if found["is_untrained"]:
        return None
    for other in records:
        own = other["found"]
        if own["is_untrained"] and own["model"] == found["model"] and other["about"]["task"] == task:
            return own["test"]
    return None


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """A map of all encoders, and a curve per task."""
    tasks = dict.fromkeys(record["about"]["task"] for record in records)
    curves = {f"{NAME}_{task}": lambda shown, own=task: draw_curves(shown, own) for task in tasks}
    return {f"{NAME}_map": draw_map, **curves}


def draw_curves(records: Sequence[dict], task: str) -> Figure:
    """Validation figure of every vector of every encoder on one task, with intervals and the floor on the test clips."""
    figure_, (axes,) = new_axes(7.0, 4.0)
    own = [record for record in records if record["about"]["task"] == task]
    ticks = _places([view["view"] for record in own for view in record["found"]["views"]])
    for record in own:
        views = record["found"]["views"]
        places, values = [ticks[_short(view["view"])] for view in views], [view["validation"]["value"] for view in views]
        (line,) = axes.plot(places, values, marker="o", markersize=3, label=record["about"]["encoder"])
        ends = np.array([view["validation"]["interval"] or (np.nan, np.nan) for view in views]).T
        axes.fill_between(places, *ends, color=line.get_color(), alpha=0.12, linewidth=0)
        chosen = [view["view"] for view in views].index(record["found"]["chosen"])
        axes.plot(places[chosen], values[chosen], marker="*", markersize=11, color=line.get_color())
    chance = own[0]["found"]["test"]["floor"]["chance"]["value"]
    axes.axhline(chance, color="grey", linestyle="--", linewidth=1, label="constant answer")
    axes.set_xticks(list(ticks.values()), list(ticks), rotation=45)
    axes.set_xlabel("layer (0: input of the first block)")
    axes.set_ylabel(f"{own[0]['found']['metric']} on validation")
    axes.set_title(task)
    axes.legend(fontsize=7)
    return figure_


def _places(views: Sequence[str]) -> dict[str, int]:
    """Where vectors stand in a picture: layers at their numbers, the others behind the last one."""
    names = dict.fromkeys(map(_short, views))
    layers = sorted(int(name) for name in names if name.isdecimal())
    others = [name for name in names if not name.isdecimal()]
    return {
        **{str(layer): layer for layer in layers},
        **{name: max(layers, default=-1) + 1 + k for k, name in enumerate(others)},
    }


def draw_map(records: Sequence[dict]) -> Figure:
    """Layers x tasks, one map per encoder with several vectors: how near each is to the best of its row, with the figure."""
    names = list(dict.fromkeys(r["about"]["encoder"] for r in records))
    shown = {name: [r for r in records if r["about"]["encoder"] == name and _num_layers(r) > 1] for name in names}
    shown = {name: own for name, own in shown.items() if own} or {
        names[0]: [r for r in records if r["about"]["encoder"] == names[0]]
    }
    widest = max(_num_layers(own[0]) for own in shown.values())
    height = sum(1.1 + 0.33 * len(own) for own in shown.values())
    figure_, axes = new_axes(2.5 + 0.62 * widest, height, rows=len(shown))
    for plot, (name, own) in zip(axes, shown.items()):
        values = np.array([[view["validation"]["value"] for view in record["found"]["views"]] for record in own])
        signs = np.array([1 if record["found"]["greater_is_better"] else -1 for record in own])[:, None]
        scaled = signs * values - (signs * values).max(axis=1, keepdims=True)
        columns = [_short(view["view"]) for view in own[0]["found"]["views"]]
        heat_map(plot, scaled, values, columns, [record["about"]["task"] for record in own], "minus the best of its row")
        plot.set_title(name)
    return figure_


ANALYSIS = Analysis(NAME, "Layers: which holds what", LayersSettings, cells, answers, section, drawings)
