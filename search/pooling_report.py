"""poolings.md from results/poolings.json; no figure in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping

from wavcse.reports.page import inert, made_by, markdown_table, opening
from wavcse.search.report import clips_words, numbers_words, percent, probe_words, ranges, signed

LEAST_SEEDS = 3  # for a verdict on rankings: two seeds are one pair, which shows no spread
FEW_SPEAKERS = 10  # below this a bootstrap over speakers is known to be too narrow
PICTURES = {
    "poolings": "Accuracy of the poolings, with 95 % intervals",
    "constants": "Mean validation accuracy against the constant",
    "sets": "Poolings on the selected layers and on all",
}


def setting_words(setting: Mapping) -> str:
    """The constants of a pooling: "p = 16", "r = 1 at the start", or nothing."""
    kwargs = setting["pooling_kwargs"]
    is_learned = kwargs.get("learnable", setting["pooling_type"] == "auto")
    constants = [f"{name} = {value:g}" for name, value in kwargs.items() if name != "learnable"]
    return ", ".join(constants) + (" at the start" if is_learned else "")


def poolings_markdown(report: Mapping) -> str:
    """The report of a comparison of poolings: verdict, Table 2, differences, constants, the second set, pictures."""
    report = inert(report)
    layers = ranges(report["settings"]["selected_layers"])
    head = (
        f"{len(report['settings']['selected_layers'])} of {report['num_layers']} layers, {layers}; {len(report['seeds'])} "
        f"seed(s), {report['settings']['num_epochs']} epochs a fit, {clips_words(report)}. Constants and pooling are chosen "
        "by the mean validation accuracy of the tasks; test figures are only shown. Accuracies in %, mean over seeds."
    )
    pictures = pictures_of(report)
    parts = opening("Poolings", (pictures.pop("poolings"), "pictures/poolings.png"), _answer(report))
    for split in ("validation", "test"):
        parts += [f"## Table 2 of the paper, {split}", _table(report, split)]
    parts += [
        _interval_words(report),
        *probe_words(report, _best(report)),
        "## Against the best",
        _differences(report),
        _difference_words(report),
    ]
    parts += ["## Constants", _constants(report), "## Does the ranking depend on the set of layers?", *_sets(report)]
    parts += [
        "## How the figures were made",
        head,
        *numbers_words(report),
        *([f"Note: {report['note']}"] if report["note"] else []),
    ]
    parts += ["## Pictures", *(f"![{title}](pictures/{name}.png)" for name, title in pictures.items())]
    parts.append(made_by("wavcse search poolings"))
    return "\n\n".join(parts) + "\n"


def pictures_of(report: Mapping) -> dict[str, str]:
    """Name -> title of the pictures that this report has; without constants there is nothing to draw against them."""
    has_constants = any(setting_words(setting) for setting in report["grid"] if "diverged" not in setting)
    return {name: title for name, title in PICTURES.items() if has_constants or name != "constants"}


def _best(report: Mapping) -> Mapping:
    return next(row for row in report["poolings"] if row["name"] == report["best"])


def _ranked(report: Mapping) -> list[Mapping]:
    return sorted(report["poolings"], key=lambda row: -row["validation"]["mean"])


def _title(row: Mapping) -> str:
    constants = setting_words(row)
    return f"{row['name']} ({constants})" if constants else row["name"]


def _answer(report: Mapping) -> list[str]:
    """The best pooling, and which others are as good on the test clips."""
    best, groups = _best(report), {"worse": [], "not distinguishable": [], "better": []}
    for row in _ranked(report):
        if row is not best:
            groups[_verdict_on(row["test"]["difference"])].append(f"`{row['name']}`")
    found = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups.items() if names)
    answer = [f"**Best: {_title(best)}**, validation {_cell(best['validation'])}, test {_cell(best['test'])}."]
    answer += [f"Beside it on the test clips, {found}."] if found else []
    lost = [setting for setting in report["grid"] if "diverged" in setting]
    if lost:
        names = ", ".join(map(_title, lost))
        answer.append(f"Diverged, and so out of the choice: {names}; the first: {lost[0]['diverged']}")
    return answer


def _verdict_on(difference: Mapping) -> str:
    if not difference["is_distinguishable"]:
        return "not distinguishable"
    return "worse" if difference["mean"] > 0 else "better"


def _cell(figures: Mapping) -> str:
    low, high = figures["interval"]
    return f"{100 * figures['mean']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _table(report: Mapping, split: str) -> str:
    tasks, rows = list(report["tasks"]), []
    for row in report["poolings"]:
        figures = row[split]
        cells = [row["name"], setting_words(row), *(_cell(figures["tasks"][task]) for task in tasks), _cell(figures)]
        rows.append([f"**{cell}**" if cell and row["name"] == report["best"] else cell for cell in cells])
    return markdown_table(["pooling", "constant", *tasks, "mean"], rows)


def _interval_words(report: Mapping) -> str:
    units = report["units"]
    words = "; ".join(
        f"{task} {units['validation'][task]['number']}/{own['number']} {own['unit']}s" for task, own in units["test"].items()
    )
    few = [
        task
        for task in report["tasks"]
        if any(own[task]["unit"] == "speaker" and own[task]["number"] < FEW_SPEAKERS for own in units.values())
    ]
    tail = f" Of so few speakers they are too narrow: {', '.join(few)}." if few else ""
    return (
        f"Intervals: 95 %, bootstrap of the mean over seeds; drawn are, validation/test: {words}. They hold what other "
        f"clips or speakers would change, not what other seeds would.{tail}"
    )


def _differences(report: Mapping) -> str:
    rows = []
    for row in _ranked(report):
        if row["name"] == report["best"]:
            continue
        cells = [row["name"]]
        for split in ("validation", "test"):
            own = row[split]["difference"]
            cells += [signed(own), f"{own['p']:.3f}"]
        over_seeds = row["validation"]["difference_over_seeds"]
        rows.append([*cells, signed(over_seeds), _verdict_on(row["test"]["difference"])])
    columns = [f"{report['best']} minus", "validation", "p", "test", "p", "validation, over seeds", "on the test clips"]
    return markdown_table(columns, rows)


def _difference_words(report: Mapping) -> str:
    return (
        "Means of the tasks, paired: both poolings meet the same draws (p: two-sided, bootstrap), and in the column over "
        "seeds the same seeds (t interval). Not distinguishable: the interval holds zero. The best was chosen on the "
        "validation clips, so its lead there is too large; on the test clips it is not. "
        f"{len(report['poolings']) - 1} comparisons are made: at 95 %, one in twenty is found by chance."
    )


def _constants(report: Mapping) -> str:
    chosen = [(row["name"], row["pooling_kwargs"]) for row in report["poolings"]]
    rows = []
    for setting in report["grid"]:
        words = setting_words(setting)
        if words:
            cells = [setting["name"], words, *(_mean_cell(setting, split) for split in ("validation", "test"))]
            is_chosen = (setting["name"], setting["pooling_kwargs"]) in chosen
            rows.append([f"**{cell}**" if is_chosen else cell for cell in cells])
    if not rows:
        return "None of these poolings has a constant."
    return "± standard deviation over seeds.\n\n" + markdown_table(["pooling", "constant", "mean val.", "mean test"], rows)


def _sets(report: Mapping) -> list[str]:
    sets, agreement = report["sets"], report["rank_agreement"]
    if len(sets) == 1:
        return ["The recipe selects all layers: there is no second set."]
    columns = ["pooling", *(f"{name}, {len(own['layers'])} layers" for name, own in sets.items())]
    rows = [
        [_title(row), *(_mean_cell(own["poolings"][i]) for own in sets.values())] for i, row in enumerate(report["poolings"])
    ]
    table = "Mean validation accuracy with the constants chosen on the selected layers.\n\n" + markdown_table(columns, rows)
    return [table, *([_agreement_words(agreement, len(report["seeds"]))] if agreement else [])]


def _mean_cell(figures: Mapping, split: str = "validation") -> str:
    return "diverged" if "diverged" in figures else percent(figures[split])


def _agreement_words(agreement: Mapping, num_seeds: int) -> str:
    if agreement["spearman"] is None:
        return "All poolings are equal on one of the sets: there is no ranking."
    rho = (
        f"Rank correlation of the two sets: Spearman {agreement['spearman']:.2f}, Kendall tau {agreement['kendall_tau']:.2f}."
    )
    across, within = agreement["across"], agreement["within"]
    if not across or not within:
        return f"{rho} One seed: how much of it is chance cannot be said."
    spread = "{mean:.2f} [{min:.2f}, {max:.2f}]"
    differs = across["mean"] < within["min"]
    if num_seeds < LEAST_SEEDS:
        verdict = f"fewer than {LEAST_SEEDS} seeds, no verdict"
    else:
        verdict = "the ranking depends on the set" if differs else "no sign that the ranking depends on the set"
    return (
        f"{rho} Between seeds of one set Spearman is {spread.format(**within)}, between seeds of different sets "
        f"{spread.format(**across)} (mean, smallest and largest pair): {verdict}."
    )
