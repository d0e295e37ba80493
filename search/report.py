"""layers.md from results/layers.json; no figure in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wavcse.reports.page import inert, made_by, markdown_table, opening
from wavcse.training.linear_probe import underfitted

TITLES = {
    "consensus": "recursion, consensus of the seeds",
    "recursion": "recursion, each seed's own sets",
    "all": "all layers",
    "top_weights": "top weights of the first round",
    "top_single": "best single layers",
    "greedy": "greedy forward",
    "random": "random sets",
}
PICTURES = {
    "first_round": "Layer weights of the first round (Figure 2 of the paper)",
    "weights": "Layer weights over the rounds",
    "accuracy": "Accuracy against the number of layers",
    "cost": "Cost against accuracy",
}
SPREAD_WORDS = (
    "In the column of the consensus ± is the deviation of one set over seeds. In the others every seed has a set of its own, "
    "of the random sets several, so ± holds what the sets differ by too."
)
SELECTION_WORDS = (
    "The best set is the highest of all sizes on these validation clips and joins the removal orders of all seeds; greedy "
    "figures are the highest of the candidates of a step. So validation differences are optimistic, and the verdict is that "
    "of the test clips, which chose nothing. Budgets differ: the recursion and the consensus take up to two fits per number "
    "of layers and seed, greedy half the square of the number of layers, the others less."
)


def percent(moments: Mapping) -> str:
    """Mean and, with several seeds, standard deviation, in percent."""
    deviation = "" if moments["deviation"] is None else f" ± {100 * moments['deviation']:.2f}"
    return f"{100 * moments['mean']:.2f}{deviation}"


def signed(difference: Mapping) -> str:
    """A difference with its interval, in percent."""
    if difference["interval"] is None:
        return f"{100 * difference['mean']:+.2f} (one seed)"
    low, high = difference["interval"]
    return f"{100 * difference['mean']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def layers_markdown(report: Mapping) -> str:
    """The report of a layer selection: verdict, sets with their costs, rivals, stability, pictures."""
    report = inert(report)
    settings = report["settings"]
    head = (
        f"{report['num_layers']} layers, {len(report['seeds'])} seed(s), {settings['num_epochs']} epochs a fit, "
        f"{clips_words(report)}. Sets are chosen by the mean validation accuracy of the tasks; test figures are only shown. "
        "Accuracies in %, ± standard deviation over seeds."
    )
    parts = opening("Layer selection", (PICTURES["accuracy"], "pictures/accuracy.png"), _answer(report))
    best = next(point for point in report["curves"]["consensus"] if point["size"] == report["choice"]["best"])
    parts += [
        "## Sets of the consensus order",
        _sets_table(report),
        *probe_words(report, best),
        "## Beside other ways to choose",
        _rivals_table(report),
    ]
    parts += [_differences(report), SELECTION_WORDS] if report["over_rivals"] else []
    parts += ["## Stability", *_stability(report), "## How the figures were made", head, *numbers_words(report)]
    parts += [f"Note: {report['note']}"] if report["note"] else []
    parts += [_chance_words(report), _error_words(report)]
    parts += [_lost_words(report["diverged"])] if report.get("diverged") else []
    parts += ["## Pictures", *(f"![{title}](pictures/{name}.png)" for name, title in PICTURES.items() if name != "accuracy")]
    parts.append(made_by("wavcse search layers"))
    return "\n\n".join(parts) + "\n"


def clips_words(report: Mapping) -> str:
    """How many clips and classes each task has."""
    tasks = [
        f"{task} {facts['num_train']}/{facts['num_validation']}/{facts['num_test']} clips, "
        + ("numbers" if is_regression(facts) else f"{facts['num_classes']} classes")
        for task, facts in report["tasks"].items()
    ]
    return "train/validation/test: " + "; ".join(tasks)


def is_regression(facts: Mapping) -> bool:
    """Whether a task of a report (`task_facts`) is one of numbers."""
    return facts.get("kind") == "regression"


def numbers_words(report: Mapping) -> list[str]:
    """What stands in place of the accuracy for numbers, where there are any."""
    names = ", ".join(task for task, facts in report["tasks"].items() if is_regression(facts))
    return [f"{names}: the figure is the CCC x 100 in place of an accuracy, also in the means over tasks."] if names else []


def probe_words(report: Mapping, best: Mapping) -> list[str]:
    """What a linear classifier reads from the layers that the search had, and which tasks stay behind it in the best fits.

    Args:
        best: figures of what was chosen; its validation accuracies are means over seeds.
    """
    probes = report.get("probe", {})
    if not probes:
        return []
    figures = "; ".join(
        f"{task} {100 * own['together']:.2f} from all of them, {100 * own['best_layer']:.2f} from layer {own['layer']}"
        for task, own in probes.items()
    )
    found = {task: underfitted(own, best["validation"]["tasks"][task]["mean"]) for task, own in probes.items()}
    behind = [f"**{task}: {words}.**" for task, words in found.items() if words]
    return [" ".join([f"A plain linear probe on the same layers, validation accuracy in %: {figures}.", *behind])]


def _answer(report: Mapping) -> list[str]:
    """Which layers to take, what they cost, and whether that says anything."""
    choice, points = report["choice"], {point["size"]: point for point in report["curves"]["consensus"]}
    lines = [_chance_verdict(report)]
    for name, size in (("Best", choice["best"]), ("Smallest within one standard error", choice["smallest"])):
        cost = next(cost for cost in report["costs"] if cost["size"] == size)
        layers = ranges(report["sets"][str(size)])
        lines.append(
            f"**{name}: {size} layer{'' if size == 1 else 's'}** {layers}, validation {percent(points[size]['validation'])}, "
            f"test {percent(points[size]['test'])}; {cost['blocks']} blocks, {cost['parameters'] / 1e6:.1f} M parameters, "
            f"{cost['megabytes']:.0f} MB, {cost['gflop_per_audio_s']:.2f} GFLOP per second of audio."
        )
    lines += [_rivals_verdict(report)] if report["over_rivals"] else []
    return lines + (["Some fits diverged and are out of every choice, see below."] if report.get("diverged") else [])


def _error_words(report: Mapping) -> str:
    choice = report["choice"]
    is_over_seeds = choice["basis"] == "seeds"
    basis = (
        "over seeds, pooled over the sizes" if is_over_seeds else "of drawing the validation clips; one seed shows no spread"
    )
    return (
        f"Standard error of the best: {100 * choice['standard_error']:.2f} ({basis}). Within one standard error: sets of "
        f"{ranges(choice['within'])} layers; a rule of thumb, no test."
    )


def _lost_words(lost: Sequence[Mapping]) -> str:
    names = "; ".join(f"{TITLES[own['strategy']]}, seed {own['seed']}, {ranges(own['layers'])}" for own in lost)
    return f"**Diverged, and so out of every choice:** {names}. The first: {lost[0]['diverged']}"


def _chance_verdict(report: Mapping) -> str:
    chance = report["chance"]
    above = [task for task, verdict in chance.items() if verdict["is_above"]]
    if not above:
        clips = ", ".join(f"{v['num_clips']} ({task})" for task, v in chance.items())
        return f"**The best set is not above chance on the test clips, {clips}: no choice below has a meaning.**"
    not_above = [task for task in chance if task not in above]
    tail = f" **Not above chance: {', '.join(not_above)}.**" if not_above else ""
    return f"Above chance: {', '.join(above)}.{tail}"


def _chance_words(report: Mapping) -> str:
    chance = report["chance"]
    figures = "; ".join(
        f"{task} {100 * v['accuracy']:.1f} [{100 * v['interval'][0]:.1f}, {100 * v['interval'][1]:.1f}] against "
        f"{100 * v['majority']:.1f}"
        for task, v in chance.items()
    )
    confidence = 100 * next(iter(chance.values()))["confidence"]
    return (
        f"Test accuracy of the best set with its {confidence:.1f} % interval, against the most frequent class"
        f"{_or_constant(report)}: {figures}. "
        "Clips are taken as independent; where speakers have several, the intervals are too narrow."
    )


def _or_constant(report: Mapping) -> str:
    return " (of numbers the CCC, against a constant)" if numbers_words(report) else ""


def ranges(numbers: Sequence[int]) -> str:
    """`[0, 1, 2, 5]` -> `{0-2, 5}`."""
    groups: list[list[int]] = []
    for number in sorted(numbers):
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return "{" + ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups) + "}"


def _sets_table(report: Mapping) -> str:
    tasks, costs = list(report["tasks"]), {cost["size"]: cost for cost in report["costs"]}
    has_speed = "audio_s_per_s" in report["costs"][0]
    columns = ["layers", "set", *(f"{task} val." for task in tasks), "mean val.", "mean test", "blocks", "M param.", "MB"]
    rows = []
    for point in reversed(report["curves"]["consensus"]):
        size, cost = point["size"], costs[point["size"]]
        own = [percent(point["validation"]["tasks"][task]) for task in tasks]
        cells = [str(size), ranges(report["sets"][str(size)]), *own, percent(point["validation"]), percent(point["test"])]
        cells += [str(cost["blocks"]), f"{cost['parameters'] / 1e6:.1f}", f"{cost['megabytes']:.0f}"]
        cells += [f"{cost['gflop_per_audio_s']:.2f}", *([f"{cost['audio_s_per_s']:.2f}"] if has_speed else [])]
        rows.append([f"**{cell}**" if size == report["choice"]["best"] else cell for cell in cells])
    return markdown_table([*columns, "GFLOP/audio-s", *(["audio-s/s"] if has_speed else [])], rows)


def _rivals_table(report: Mapping) -> str:
    names = [name for name in TITLES if name in report["curves"] and name != "all"]
    by_size = {name: {point["size"]: point for point in report["curves"][name]} for name in names}
    sizes = sorted({size for points in by_size.values() for size in points}, reverse=True)
    columns, parts = ["layers", *(TITLES[name] for name in names)], [SPREAD_WORDS]
    for split in ("validation", "test"):
        rows = []
        for size in sizes:
            figures = [by_size[name].get(size) for name in names]
            rows.append([str(size), *("" if point is None else percent(point[split]) for point in figures)])
        parts += [f"Mean {split} accuracy:", markdown_table(columns, rows)]
    return "\n\n".join(parts)


def _differences(report: Mapping) -> str:
    rows = [[TITLES[name], signed(own), signed(own["test"])] for name, own in report["over_rivals"].items()]
    first = "the best set minus, at its size (all layers: at theirs)"
    return markdown_table([first, "mean val. [95 % over seeds]", "mean test [95 % over seeds]"], rows)


def _rivals_verdict(report: Mapping) -> str:
    groups: dict[str, list[str]] = {"better than": [], "not distinguishable from": [], "worse than": []}
    for name, own in report["over_rivals"].items():
        if own["test"]["interval"] is None:
            return "**One seed: on the test clips the best set is distinguishable from no rival.**"
        low, high = own["test"]["interval"]
        verdict = "better than" if low > 0 else "worse than" if high < 0 else "not distinguishable from"
        groups[verdict].append(TITLES[name])
    found = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in groups.items() if names)
    return f"**On the test clips the best set is {found}.**"


def _stability(report: Mapping) -> list[str]:
    own, lines = report["stability"], []
    if own["kendall_tau"]:
        lines.append(
            "Agreement of the seeds' removal orders: Kendall tau {:.2f} [{:.2f}, {:.2f}], ".format(
                *own["kendall_tau"].values()
            )
            + "Spearman {:.2f} [{:.2f}, {:.2f}] (mean, smallest and largest pair).".format(*own["spearman"].values())
        )
    else:
        lines.append("One seed: nothing to compare the removal order with.")
    rows = []
    for i, (layer, share, removals) in enumerate(zip(report["order"], own["agreement"], own["removals"])):
        spread = "{mean:.1f} [{min}, {max}]".format(**own["layers"][str(layer)])
        dropped = ", ".join(f"{name} ({100 * part:.0f} %)" for name, part in sorted(removals.items(), key=lambda x: -x[1]))
        rows.append([str(i + 1), str(layer), spread, f"{100 * share:.0f} %", dropped])
    columns = ["round", "dropped after it", "round in the seeds: mean [first, last]", "seeds that dropped it by then"]
    columns += ["what the seeds dropped in this round"]
    return [*lines, markdown_table(columns, rows)]
