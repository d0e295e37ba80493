"""hparams.md and its pictures from results/hparams.json; no figure in them is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavcse.reports.figures import draw_all, heat_map, new_axes
from wavcse.reports.page import inert, made_by, markdown_table, opening
from wavcse.search.report import clips_words, numbers_words, percent, ranges, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_TRIALS = 10
TITLES = {
    "layer_projection_size": "FC1",
    "embedding_size": "FC2, the embedding",
    "l1": "l1",
    "l2": "l2",
    "layer_dropout": "dropout before FC2",
    "embedding_dropout": "dropout before the heads",
}
PICTURES = {
    "grid": "Batch size and learning rate",
    "history": "Optimisation history",
    "slices": "Trials by setting",
    "importances": "Importance of the settings",
}


def hparams_markdown(report: Mapping) -> str:
    """The report of a search for hyper-parameters: verdict, settings, grid, trials, pictures."""
    report = inert(report)
    settings = report["settings"]
    head = (
        f"Layers {ranges(settings['selected_layers'])}, {settings['pooling_type']} pooling; {len(report['seeds'])} seed(s), "
        f"{settings['num_epochs']} epochs a fit, {clips_words(report)}. Everything is chosen by the mean validation accuracy "
        "of the tasks, mean over seeds. Accuracies in %, ± standard deviation over seeds."
    )
    pictures = pictures_of(report)
    parts = opening("Hyper-parameters", (pictures.pop("history"), "pictures/history.png"), _answer(report))
    parts += ["## Settings", _settings(report), "## Batch size and learning rate", _grid_table(report)]
    parts += ["## The best trials", _trials(report), "## How the figures were made", head, *numbers_words(report)]
    parts += [f"Note: {report['note']}"] if report["note"] else []
    parts += ["## Pictures", *(f"![{title}](pictures/{name}.png)" for name, title in pictures.items())]
    parts.append(made_by("wavcse search hparams"))
    return "\n\n".join(parts) + "\n"


def pictures_of(report: Mapping) -> dict[str, str]:
    """Name -> title of the pictures that this report has; too few trials have no importances."""
    return {name: title for name, title in PICTURES.items() if report["importances"] or name != "importances"}


def _answer(report: Mapping) -> list[str]:
    """The best trial, and what it gains over the recipe's own sizes."""
    best, recipe, gain = report["best"], report["recipe"], report["gain"]
    pruned = _pruned_words(report["trials"])
    if best["number"] == 0:
        return [f"**None of {len(report['trials'])} trials ({pruned}) is better than the recipe's own sizes.**"]
    differences = " and ".join(f"{signed(gain[split])} on {split}" for split in gain)
    return [
        f"**Best: trial {best['number']} of {len(report['trials'])}** ({pruned}), validation "
        f"{percent(best['validation'])}, test {percent(best['test'])}; the recipe's own sizes (trial 0): validation "
        f"{percent(recipe['validation'])}, test {percent(recipe['test'])}.",
        f"Best minus recipe: {differences} (95 % over seeds).",
        "The best of many on validation clips looks better there than it is; the test clips took no part in the search.",
    ]


def _pruned_words(trials: Sequence[Mapping]) -> str:
    diverged = sum("diverged" in trial for trial in trials)
    words = f"{sum(trial['state'] == 'pruned' for trial in trials)} pruned"
    return f"{words}, {diverged} of them because they diverged" if diverged else words


def _settings(report: Mapping) -> str:
    shares, rows = report["importances"] or {}, []
    for name, (low, high) in report["ranges"].items():
        own = [report["recipe"]["params"][name], low, high, report["best"]["params"][name]]
        recipe, low, high, best = (f"{value:.4g}" for value in own)
        rows.append(
            [TITLES[name], f"`{name}`", recipe, f"{low} to {high}", f"**{best}**", f"{shares[name]:.2f}" if shares else "-"]
        )
    columns = ["setting", "field", "recipe", "range", "best", "importance"]
    note = "Importance: share of the variance between trials (fANOVA)" + ("." if shares else "; too few trials to say.")
    zero = [f"`{name}`" for name in report["ranges"] if name in ("l1", "l2") and report["settings"][name] == 0]
    if zero:
        note += f" The recipe has 0 for {' and '.join(zero)}; a logarithmic range has none, so trial 0 has its low end."
    return f"{markdown_table(columns, rows)}\n\n{note}"


def _grid_table(report: Mapping) -> str:
    point = {
        (own["batch_size"], own["learning_rate"]): "diverged" if "diverged" in own else percent(own["validation"])
        for own in report["grid"]
    }
    sizes, rates = (sorted({own[i] for own in point}) for i in (0, 1))
    chosen = report["settings"]["batch_size"], report["settings"]["learning_rate"]
    rows = [
        [size, *(f"**{point[size, rate]}**" if (size, rate) == chosen else point[size, rate] for rate in rates)]
        for size in sizes
    ]
    table = markdown_table(["batch size \\ learning rate", *(f"{rate:.4g}" for rate in rates)], rows)
    is_at_edge = any(len(own) > 2 and value in (own[0], own[-1]) for own, value in zip((sizes, rates), chosen))
    edge = "\n\nThe best point lies at the edge of the grid; a wider one may hold a better." if is_at_edge else ""
    reason = next((own["diverged"] for own in report["grid"] if "diverged" in own), "")
    lost = f"\n\nPoints that diverged are out of the choice; the first: {reason}" if reason else ""
    return f"Mean validation accuracy, with the recipe's sizes.\n\n{table}{edge}{lost}"


def _trials(report: Mapping) -> str:
    complete = [trial for trial in report["trials"] if trial["state"] == "complete"]
    best = sorted(complete, key=lambda trial: -trial["value"])[:SHOWN_TRIALS]
    rows = [
        [trial["number"], f"{100 * trial['value']:.2f}", *(f"{trial['params'][name]:.4g}" for name in report["ranges"])]
        for trial in best
    ]
    return markdown_table(["trial", "mean val.", *(TITLES[name] for name in report["ranges"])], rows)


def draw_hparams(report: Mapping, folder: Path) -> list[Path]:
    """Draw grid, history, slices and importances; returns the files."""
    drawings = {"grid": _grid, "history": _history, "slices": _slices, "importances": _importances}
    return draw_all({name: drawings[name] for name in pictures_of(report)}, report, folder)


def _grid(report: Mapping) -> Figure:
    sizes, rates = (sorted({own[name] for own in report["grid"]}) for name in ("batch_size", "learning_rate"))
    values = np.full((len(sizes), len(rates)), np.nan)
    for own in [own for own in report["grid"] if "diverged" not in own]:
        values[sizes.index(own["batch_size"]), rates.index(own["learning_rate"])] = 100 * own["validation"]["mean"]
    figure, (axes,) = new_axes(2.4 + 1.1 * len(rates), 1.4 + 0.6 * len(sizes))
    heat_map(axes, values, values, [f"{rate:.4g}" for rate in rates], list(map(str, sizes)), "mean validation accuracy in %")
    axes.set(xlabel="learning rate", ylabel="batch size")
    return figure


def _history(report: Mapping) -> Figure:
    figure, (axes,) = new_axes(7, 3.8)
    complete = [trial for trial in report["trials"] if trial["state"] == "complete"]
    numbers, values = [own["number"] for own in complete], [100 * own["value"] for own in complete]
    axes.plot(numbers, values, "o", color="black", markersize=4, label="trial")
    axes.step(numbers, np.maximum.accumulate(values), where="post", color="tab:blue", label="best so far")
    pruned = [trial for trial in report["trials"] if trial["state"] == "pruned"]
    axes.plot(
        [own["number"] for own in pruned], [100 * own["reached"] for own in pruned], "x", color="tab:gray", label="pruned"
    )
    axes.axhline(100 * report["recipe"]["validation"]["mean"], color="gray", linestyle=":", label="the recipe")
    axes.set(xlabel="trial", ylabel="mean validation accuracy in %", title="Optimisation history")
    axes.legend(fontsize=7)
    return figure


def _slices(report: Mapping) -> Figure:
    figure, axes = new_axes(2.6 * len(report["ranges"]), 3, len(report["ranges"]))
    complete = [trial for trial in report["trials"] if trial["state"] == "complete"]
    for own, name in zip(axes, report["ranges"]):
        own.plot([t["params"][name] for t in complete], [100 * t["value"] for t in complete], "o", color="black", markersize=3)
        own.plot(report["best"]["params"][name], 100 * report["best"]["validation"]["mean"], "o", color="tab:orange")
        own.set(xlabel=TITLES[name], xscale="linear" if "dropout" in name else "log")
    axes[0].set_ylabel("mean validation accuracy in %")
    return figure


def _importances(report: Mapping) -> Figure:
    shares = list(report["importances"].items())[::-1]
    figure, (axes,) = new_axes(6, 3)
    axes.barh([TITLES[name] for name, _ in shares], [share for _, share in shares])
    axes.set(xlabel="share of the variance between trials (fANOVA)")
    return figure
