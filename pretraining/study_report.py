"""study.md and study.html from study.json; no figure in them is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from wavcse.eval.table import shown, shown_interval
from wavcse.pretraining.study_config import MEAN, MEASURED, PICTURES
from wavcse.pretraining.study_pictures import draw_plots, plot_name
from wavcse.reports.page import fenced, inert, made_by, markdown_table, opening, write_page

TITLE = "Study of pre-training variants"
NONE = "–"
TRAINING_WORDS = (
    "Of the last line of each log; audio-s/s is the median of all lines. Cross-entropy and code entropy in nats: a loss below "
    "the entropy knows more than how frequent a code is. Distances in units of π, means over the anchors of a batch: to the "
    "farthest clip of the same label and to the closest of another; without a label loss they are only watched."
)
VALIDATION_WORDS = (
    "What choices are made by, so the highest of several is too high. In brackets the layer (0 = input of the first block). "
    "Variants differ by chance, too."
)


def write_study_report(facts: Mapping, folder: Path) -> Path:
    """Draw the plots and write study.md and study.html into `folder`; returns the path of study.md."""
    draw_plots(facts, folder / PICTURES)
    return write_page(folder / "study.md", TITLE, _text(inert(facts)))


def _text(facts: Mapping) -> str:
    first = _plot_link(facts, 0) if facts["plots"] else None
    parts = [*opening(TITLE, first, _answer(facts)), "## Variants", _variants_table(facts)]
    parts += ["## Validation accuracy", VALIDATION_WORDS, _validation_table(facts)]
    parts += ["## Test figures", _test_words(facts), _test_table(facts)]
    if any(own["training"] for own in facts["variants"].values()):
        parts += ["## Training", _training_table(facts), TRAINING_WORDS]
    if len(facts["plots"]) > 1:
        links = [_plot_link(facts, number) for number in range(1, len(facts["plots"]))]
        parts += ["## Pictures", *("![{}]({})".format(*link) for link in links)]
    parts += ["## Settings", _settings(facts), made_by(f"python -m wavcse.pretraining.study {facts['study']}")]
    return "\n\n".join(parts) + "\n"


def _answer(facts: Mapping) -> list[str]:
    """Which variant is best, by what, and where the baselines are."""
    means = {name: own["mean_validation"] for name, own in {**facts["variants"], **facts["baselines"]}.items()}
    lines = []
    if facts["best"]:
        lines.append(f"Highest mean validation accuracy: `{facts['best']}`, {_percent(means[facts['best']])} %.")
        others = sorted(set(facts["variants"]) - {facts["best"]}, key=lambda name: -(means[name] or 0))
        lines += [f"Next: {', '.join(f'`{name}` {_percent(means[name])} %' for name in others[:2])}."] if others else []
    baselines = [f"`{name}` {_percent(means[name])} %" for name in facts["baselines"] if means[name] is not None]
    lines += [f"Beside them: {', '.join(baselines)}."] if baselines else []
    lines.append(
        f"Every variant changes the recipe `{facts['recipe']}`; its frozen upstream is judged by linear probes on its layers, "
        f"pooled over time by `{facts['temporal_pooling']}`, each task's layer chosen on validation clips."
    )
    return [*lines, "Another seed moves every figure, so small differences say nothing."]


def _name(facts: Mapping, name: str) -> str:
    return f"**{name}**" if name == facts["best"] else name


def _variants_table(facts: Mapping) -> str:
    has_speed = any("speed" in own for own in facts["variants"].values())
    columns = ["variant", "differs in", "stem: channels (kernels / strides)", "blocks", "width", "parameters, M", "size, MB"]
    columns += ["times real time", "beside the first [spread]"] if has_speed else []
    lines = []
    for name, own in facts["variants"].items():
        shape = own["shape"]
        line = [_name(facts, name), _own_words(own), _stem_words(shape), shape["num_hidden_layers"], shape["hidden_size"]]
        line += [f"{own['parameters'] / 1e6:.2f}", f"{own['megabytes']:.1f}"]
        line += _speed_cells(own.get("speed")) if has_speed else []
        lines.append([*line, _percent(own["mean_validation"])])
    table = markdown_table([*columns, "mean validation accuracy, %"], lines)
    words = (
        "\n\nTimes real time: seconds of audio per second through the packed path on one thread, median of interleaved rounds "
        "on the same clips; the ratios are taken within a round, their spread is (largest - smallest) / median."
    )
    return table + (words if has_speed else "")


def _own_fields(own: Mapping) -> dict:
    """As the study gives them."""
    return {**own["own"], **({"untrained": True} if own["untrained"] else {})}


def _own_words(own: Mapping) -> str:
    fields = [f"{name} {value}" for name, value in own["own"].items() if name != "encoder"]
    return ", ".join(
        [*(["before training"] if own["untrained"] else []), *(["encoder"] if own["own"].get("encoder") else []), *fields]
    )


def _stem_words(shape: Mapping) -> str:
    channels = dict.fromkeys(shape["conv_dim"])
    kernels, strides = (", ".join(map(str, shape[name])) for name in ("conv_kernel", "conv_stride"))
    return f"{len(shape['conv_dim'])} × {', '.join(map(str, channels))} ({kernels} / {strides})"


def _speed_cells(speed: Mapping | None) -> list[str]:
    if speed is None:
        return [NONE, NONE]
    return [f"{speed['times_real_time']:.0f}", f"{speed['ratio']:.2f} [{100 * speed['spread']:.0f} %]"]


def _percent(share: float | None) -> str:
    return NONE if share is None else shown(share, "percent")


def _validation_table(facts: Mapping) -> str:
    rows = [name for name, row in facts["rows"].items() if row["kind"] == "classification"]
    everyone = {**facts["variants"], **facts["baselines"]}
    lines = []
    for name, own in everyone.items():
        cells = [_validation_cell(own["validation"].get(row)) for row in rows]
        lines.append([_name(facts, name), _percent(own["mean_validation"]), *cells])
    return markdown_table(["variant", "mean", *(facts["rows"][row]["title"] for row in rows)], lines)


def _validation_cell(found: Mapping | None) -> str:
    if found is None:
        return NONE
    return _percent(found["accuracy"]) + ("" if found["layer"] is None else f" ({found['layer']})")


def _test_words(facts: Mapping) -> str:
    metrics = dict.fromkeys(row["metric"] for row in facts["rows"].values())
    return (
        f"Primary metric ({', '.join(metrics)}; shares in %) with its 95 % bootstrap interval; test clips chose nothing. The "
        f"best of a task in bold. Which differences are more than chance: `{facts['evaluation']}/report.md`, made by "
        "`python -m wavcse.eval.report`."
    )


def _test_table(facts: Mapping) -> str:
    everyone = {**facts["variants"], **facts["baselines"]}
    best = {row: _best(everyone, row) for row in facts["rows"]}
    lines = []
    for name, own in everyone.items():
        cells = [_test_cell(own["test"].get(row), name in best[row]) for row in facts["rows"]]
        lines.append([_name(facts, name), *cells])
    return markdown_table(["variant", *(row["title"] for row in facts["rows"].values())], lines)


def _best(everyone: Mapping[str, Mapping], row: str) -> list[str]:
    figures = {name: own["test"][row] for name, own in everyone.items() if row in own["test"]}
    is_greater_better = next(iter(figures.values()))["greater_is_better"]
    best = (max if is_greater_better else min)(figure["value"] for figure in figures.values())
    return [name for name, figure in figures.items() if figure["value"] == best]


def _test_cell(figure: Mapping | None, is_best: bool) -> str:
    if figure is None:
        return NONE
    value = shown(figure["value"], figure["unit"])
    return (f"**{value}**" if is_best else value) + shown_interval(figure["interval"], figure["unit"])


def _training_table(facts: Mapping) -> str:
    columns = ["variant", "steps", "audio-s/s", "masked loss", "code entropy", "masked accuracy, %", "label loss"]
    columns += ["positive distance", "negative distance", "active, %"]
    lines = []
    for name, own in facts["variants"].items():
        if (run := own["training"]) is None:
            continue
        nats = [_number(run[field]) for field in ("masked_loss", "code_entropy")]
        distances = [_number(run[field]) for field in ("label_loss", "positive_distance", "negative_distance")]
        cells = [run["steps"], f"{run['audio_s_per_s']:.0f}", *nats, _percent(run["masked_accuracy"]), *distances]
        lines.append([_name(facts, name), *cells, _percent(run["active_share"])])
    return markdown_table(columns, lines)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _plot_link(facts: Mapping, number: int) -> tuple[str, str]:
    """Title and file of a plot."""
    plot = facts["plots"][number]
    what = "mean validation accuracy" if plot["task"] == MEAN else facts["rows"][plot["task"]]["title"]
    return f"{what} against {MEASURED.get(plot['x'], plot['x'])}", f"{PICTURES}/{plot_name(facts, number)}.png"


def _settings(facts: Mapping) -> str:
    settings = {"recipe": facts["recipe"], "overrides": facts["overrides"]}
    settings |= {
        "variants": {name: _own_fields(own) for name, own in facts["variants"].items()},
        "versions": facts["versions"],
    }
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, default_flow_style=None, width=127)
    return fenced(text, "yaml")
