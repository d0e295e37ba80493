"""report.md and report.html of Phase 1, from the steps' result files; no figure in it is typed by hand.

The paper's figures stand in the next column. They are marked as of other data or of another upstream unless the task's
manifests are the corpus and protocol that the paper names, complete, and the upstream is the paper's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from wavcse.data.corpora import CORPORA
from wavcse.reports.figures import draw_all, new_axes
from wavcse.reports.page import fenced, inert, made_by, markdown_table, opening, write_page
from wavcse.search.phase1_config import SEARCHES, Phase1, corpus_step
from wavcse.search.report import TITLES, is_regression, numbers_words, percent, ranges, signed
from wavcse.search.stability import against_chance
from wavcse.search.steps import ROOT
from wavcse.settings.recipes import read_recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ROOT / "conf/paper/phase1_figures.yaml"
SETTINGS = ("selected_layers", "pooling_type", "pooling_kwargs", "layer_projection_size", "embedding_size", "layer_dropout")
OTHER_DATA, OTHER_UPSTREAM = "¹", "²"  # behind figures of the paper that are not comparable with this run's
SETTINGS += ("embedding_dropout", "batch_size", "learning_rate", "weight_decay", "l1", "l2", "num_epochs", "seed")


def write_report(config: Phase1, records: Mapping[str, Mapping]) -> Path:
    """Write report.md, with links to the pictures, and report.html, with the pictures in it, below the run's folder.

    Args:
        records: step -> what `do_step` returned.

    Returns:
        The path of report.md.
    """
    results = {name: inert(_read(config.folder / name / "results" / f"{name}.json")) for name in SEARCHES}
    training = inert(_read(config.folder / "training/results/phase1.json"))
    paper, chance = Paper(config, records), _chance(training, results["layers"])
    draw_all({"result": partial(_draw_result, paper)}, chance, config.folder / "pictures")
    text = _markdown(config, records, results, training, paper, chance)
    return write_page(config.folder / "report.md", "Phase 1", text)


def _markdown(
    config: Phase1,
    records: Mapping[str, Mapping],
    results: Mapping[str, Mapping],
    training: Mapping,
    paper: Paper,
    chance: Mapping[str, Mapping],
) -> str:
    picture = ("Test accuracy of the final model, with its interval", "pictures/result.png")
    parts = opening("Phase 1", picture, _answer(config, results, training, chance))
    parts += ["## Result", *_result(training, chance, paper)]
    parts += [f"Note: {inert(config.recipe.note)}"] if config.recipe.note else []
    found = [_layers_words(results["layers"]), _poolings_words(results["poolings"]), _hparams_words(results["hparams"])]
    parts += ["## What the searches found", *found]
    parts += ["## Settings of the final model", _settings(config.folder / "training/config.yaml", paper)]
    parts += ["## Poolings beside Table 2 of the paper", _poolings(results["poolings"], paper)]
    parts += [_step_report(config.folder, name) for name in SEARCHES]
    parts += ["## Steps", *_steps(records), "## Versions", _versions({**results, "training": training})]
    parts += ["## Configuration", fenced(config.path.read_text(encoding="utf-8"), "yaml")]
    return "\n\n".join([*parts, made_by(f"python -m wavcse.search.phase1 {inert(str(config.path))}")]) + "\n"


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _answer(config: Phase1, results: Mapping[str, Mapping], training: Mapping, chance: Mapping[str, Mapping]) -> list[str]:
    """How good the final model is, what was chosen for it, and what that is worth."""
    choice, poolings, hparams = results["layers"]["choice"], results["poolings"], results["hparams"]
    mean = training["mean_accuracy"]
    lines = [
        f"The final model has a mean test accuracy of {_percent(mean['test'])} % ({_percent(mean['validation'])} % on "
        "validation).",
        _chance_words(chance),
        f"Chosen on validation clips: layers {ranges(results['layers']['sets'][str(choice['best'])])} of "
        f"{results['layers']['num_layers']}, `{poolings['best']}` pooling, trial {hparams['best']['number']} of "
        f"{len(hparams['trials'])} of the hyper-parameters.",
    ]
    if config.random_upstream:
        lines.append(
            "**The upstream is untrained:** what is chosen here says nothing of a trained upstream, and every figure is a "
            "lower bound."
        )
    return lines


def _chance(training: Mapping, layers: Mapping) -> dict[str, dict]:
    """Task -> the final model's test accuracy beside the most frequent class, as of `against_chance`."""
    tasks, facts = training["tasks"], layers["tasks"]
    figures = {task: {"mean": _figures(own)["test"]} for task, own in tasks.items()}
    counts = {task: own["num_clips"]["test"] for task, own in tasks.items()}
    numbers = [task for task in tasks if is_regression(facts[task])]
    return against_chance(figures, {task: facts[task]["majority"] for task in tasks}, counts, numbers)


def _figures(task: Mapping) -> Mapping[str, float]:
    """Split -> accuracy of a task of a training, of numbers the CCC."""
    return task["ccc" if is_regression(task) else "accuracy"]


def _draw_result(paper: Paper, chance: Mapping[str, Mapping]) -> Figure:
    """Test accuracy per task with its interval, the most frequent class, and the paper's figure where it is comparable."""
    figure, (axes,) = new_axes(6.5, 1.2 + 0.5 * len(chance))
    places = range(len(chance))
    values = [100 * own["accuracy"] for own in chance.values()]
    ends = [[100 * abs(own["accuracy"] - own["interval"][side]) for own in chance.values()] for side in (0, 1)]
    axes.barh(places, values, xerr=ends, height=0.6, color="tab:blue", capsize=3, label="this run")
    axes.plot([100 * own["majority"] for own in chance.values()], places, "k|", markersize=16, label="most frequent class")
    published = {task: paper.comparable("table_3", "wavCSE", task) for task in chance}
    if any(published.values()):
        found = [(value, place) for place, value in zip(places, published.values()) if value is not None]
        axes.plot(*zip(*found), "D", color="tab:red", label="the paper")
    axes.set_yticks(places, list(chance))
    axes.invert_yaxis()
    axes.set(xlabel="test accuracy in %", xlim=(0, 100))
    axes.legend(loc="lower right", fontsize="small")
    return figure


class Paper:
    """The paper's figures, and whether this run's stand beside them by right."""

    def __init__(self, config: Phase1, records: Mapping[str, Mapping]):
        fields = ("upstream", "tasks", "table_2", "table_3", "settings")
        self.figures = read_recipe(FIGURES, fields)
        self.tasks = self.figures["tasks"]
        protocols = _protocols(config, records)
        self.other_data = [
            task
            for task, source in config.recipe.task_sources().items()
            if {protocols.get(path) for path in source.manifests} != {self._protocol(task)}
        ]
        self.is_other_upstream = config.recipe.upstream != self.figures["upstream"]

    def _protocol(self, task: str) -> tuple[str, str]:
        return tuple(self.tasks.get(task, {}).get(name, "") for name in ("corpus", "protocol"))

    def cell(self, table: str, row: str, tasks: Sequence[str]) -> str:
        """The mean of the paper's figures for these tasks, in %, and what keeps it from being comparable."""
        figures = self.figures[table].get(row, {})
        if not set(tasks) <= set(figures):
            return ""
        mark = OTHER_DATA if set(tasks) & set(self.other_data) else OTHER_UPSTREAM if self.is_other_upstream else ""
        return f"{sum(figures[task] for task in tasks) / len(tasks):.2f}" + (f" {mark}" if mark else "")

    def comparable(self, table: str, row: str, task: str) -> float | None:
        """The paper's figure for a task, in %; `None` where there is none or it would be marked."""
        is_other = task in self.other_data or self.is_other_upstream
        return None if is_other else self.figures[table].get(row, {}).get(task)

    def words(self) -> str:
        """What the marks in the paper's columns mean."""
        if not self.other_data and not self.is_other_upstream:
            return "The paper's figures are of the same corpora, protocol and upstream."
        corpora = ", ".join(f"{task} {own['corpus']}" for task, own in self.tasks.items())
        return (
            f"{OTHER_DATA} of other data, {OTHER_UPSTREAM} of another upstream than this run's, here and in all tables below. "
            f"The paper's figures are of {self.figures['upstream']} on {corpora}, by the protocol wavcse-paper; marked ones "
            "only show where the paper stands, and are not to be compared."
        )


def _protocols(config: Phase1, records: Mapping[str, Mapping]) -> dict[str, tuple[str, str]]:
    """Manifest -> corpus and protocol, for the corpora that were found complete."""
    complete = [corpus for corpus in config.corpora if records[corpus_step(corpus)]["exit_code"] == 0]
    return {own["out"]: (own["corpus"], CORPORA[own["corpus"]].protocol(own.get("protocol"))) for own in complete}


def _result(training: Mapping, chance: Mapping[str, Mapping], paper: Paper) -> list[str]:
    tasks, rows = training["tasks"], []
    for task, own in tasks.items():
        low, high = chance[task]["interval"]
        clips = "/".join(str(own["num_clips"][split]) for split in ("train", "validation", "test"))
        figures = _figures(own)
        cells = [task, "CCC" if is_regression(own) else str(own["num_classes"]), clips, _percent(figures["validation"])]
        cells += [
            f"{_percent(figures['test'])} [{_percent(low)}, {_percent(high)}]",
            _percent(chance[task]["majority"]),
        ]
        rows.append([*cells, *(paper.cell("table_3", model, [task]) for model in paper.figures["table_3"])])
    mean = training["mean_accuracy"]
    papers = [paper.cell("table_3", model, list(tasks)) for model in paper.figures["table_3"]]
    rows.append(["mean", "", "", _percent(mean["validation"]), _percent(mean["test"]), "", *papers])
    models = [f"{model}, Table 3" for model in paper.figures["table_3"]]
    columns = ["task", "classes", "train/validation/test clips", "validation", "test", "most frequent class", *models]
    confidence = next(iter(chance.values()))["confidence"]
    words = (
        f"Epoch {training['best_epoch']} of {training['num_epochs']}, the best on validation. Behind the test accuracy its "
        f"Wilson interval over clips ({100 * confidence:.1f} % each, 95 % for all tasks); one seed."
    )
    choices = (
        "Accuracies in %. Layers, poolings, constants, sizes and epochs were chosen by the mean validation accuracy of the "
        "tasks, which is therefore too high; test clips chose nothing."
    )
    return [markdown_table(columns, rows), words, choices, *numbers_words(training), paper.words()]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _chance_words(chance: Mapping[str, Mapping]) -> str:
    above = [task for task, own in chance.items() if own["is_above"]]
    if not above:
        return "**No task is better than chance on the test clips, so no choice below has a meaning.**"
    others = [task for task in chance if task not in above]
    return f"Better than chance: {', '.join(above)}." + (f" **No better than chance: {', '.join(others)}.**" if others else "")


def _layers_words(report: Mapping) -> str:
    choice, sets = report["choice"], report["sets"]
    within = [size for size in choice["within"] if size != choice["best"]]
    sizes = (
        f"within one standard error: sets of {ranges(within)} layers" if within else "no other size within one standard error"
    )
    undecided = [TITLES[name] for name, own in report["over_rivals"].items() if _is_undecided(own["test"])]
    rivals = f"; on the test clips not distinguishable from: {', '.join(undecided)}" if undecided else ""
    smallest = f" The smallest set within one standard error is {ranges(sets[str(choice['smallest'])])}."
    is_above = any(own["is_above"] for own in report["chance"].values())
    hopeless = "" if is_above else " **The best set is not above chance on the test clips.**"
    return f"**Layers:** {ranges(sets[str(choice['best'])])} of {report['num_layers']}, {sizes}{rivals}.{smallest}{hopeless}"


def _poolings_words(report: Mapping) -> str:
    rows = [row for row in report["poolings"] if row["name"] != report["best"]]
    alike = [row["name"] for row in rows if not row["test"]["difference"]["is_distinguishable"]]
    better = [row["name"] for row in rows if row["name"] not in alike and row["test"]["difference"]["mean"] < 0]
    words = f"distinguishable on the test clips from {len(rows) - len(alike)} of the {len(rows)} others"
    words += f"; not from: {_names(alike)}" if alike else ""
    return f"**Pooling:** {_names([report['best']])}, {words}" + (f"; worse there than: {_names(better)}." if better else ".")


def _names(rows: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in rows)


def _hparams_words(report: Mapping) -> str:
    best, gain, number = report["best"], report["gain"], len(report["trials"])
    if best["number"] == 0:
        return f"**Hyper-parameters:** none of {number} trials is better on validation than the recipe's own sizes."
    apart = "not distinguishable from" if _is_undecided(gain["test"]) else "distinguishable from"
    differences = ", ".join(f"{signed(own)} on {split}" for split, own in gain.items())
    return (
        f"**Hyper-parameters:** trial {best['number']} of {number}; {differences} against the recipe's own sizes, on the test "
        f"clips {apart} them."
    )


def _is_undecided(difference: Mapping) -> bool:
    """One seed, or an interval over seeds that holds zero."""
    interval = difference["interval"]
    return interval is None or interval[0] <= 0 <= interval[1]


def _settings(path: Path, paper: Paper) -> str:
    final, published = inert(yaml.safe_load(path.read_text(encoding="utf-8"))), paper.figures["settings"]
    rows = [[name, _value(final[name]), _value(published[name]) if name in published else ""] for name in SETTINGS]
    return markdown_table(["field", "this run", "paper, sections 3 and 4"], rows)


def _value(value: object) -> str:
    return ranges(value) if isinstance(value, list) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _poolings(report: Mapping, paper: Paper) -> str:
    tasks = list(report["tasks"])
    groups = [([task], task) for task in tasks] + [(tasks, "mean")]
    rows = []
    for row in report["poolings"]:
        mark = "**" if row["name"] == report["best"] else ""
        cells = [f"{mark}{row['name']}{mark}"]
        for own, name in groups:
            figures = row["test"] if name == "mean" else row["test"]["tasks"][name]
            cells += [f"{mark}{percent(figures)}{mark}", paper.cell("table_2", row["name"], own)]
        rows.append(cells)
    columns = [column for _, name in groups for column in (f"{name} test", "Table 2")]
    return "± standard deviation over seeds.\n\n" + markdown_table(["pooling", *columns], rows)


def _step_report(folder: Path, name: str) -> str:
    """A search's own report, one level down, with the links to its pictures as they are from here."""
    text = (folder / name / f"{name}.md").read_text(encoding="utf-8").strip()
    return re.sub(r"\]\((?=pictures/)", f"]({name}/", re.sub(r"^#", "##", text, flags=re.MULTILINE))


def _steps(records: Mapping[str, Mapping]) -> list[str]:
    rows = [
        [inert(name), f"{own['seconds']:.1f}", str(own["attempts"]), inert(own["message"])] for name, own in records.items()
    ]
    rows.append(["all", f"{sum(own['seconds'] for own in records.values()):.1f}", "", ""])
    table = markdown_table(["step", "seconds", "attempts", "remark"], rows)
    words = "Seconds are those of the attempt that ended the step; earlier ones were interrupted. Each step by itself:"
    commands = "\n".join(own["command"] for own in records.values())
    return [table, words, fenced(commands)]


def _versions(results: Mapping[str, Mapping]) -> str:
    names = list(dict.fromkeys(name for own in results.values() for name in own["versions"]))
    rows = [[name, *(own["versions"].get(name, "") for own in results.values())] for name in names]
    return markdown_table(["", *results], rows)
