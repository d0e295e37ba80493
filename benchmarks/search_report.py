"""The page that `bench_search.py` makes of its result: speeds, the upstream run again, which goal is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wavcse.benchmarks.measure import SPREAD_LIMIT
from wavcse.benchmarks.report import table

GOAL_EPOCHS = 10  # a round, for which the goals against running the upstream again were set
SHARE_TITLE, MINUTES_TITLE = "share of the bound, at every number of layers", "minutes for the recursion"
CPU_GOALS = {"x (a)": 10.0, SHARE_TITLE: 0.5, "x best HF": 480.0, "x ordinary": 1600.0}
GPU_GOALS = {SHARE_TITLE: 0.5, MINUTES_TITLE: 5.0}


def markdown_of(report: Mapping) -> str:
    """The result as a page."""
    parts = [f"# Layer search, {report['device']}", _how(report), _speeds(report["rows"])]
    if report["upstream"]:
        parts += ["## Beside running the upstream again", _how_again(report), _again(report["rows"])]
    return "\n\n".join([*parts, "## Goals", _goals(report)]) + "\n"


def _how(report: Mapping) -> str:
    settings, rates, paper = report["settings"], report["rates"], report["paper"]
    return (
        f"{' x '.join(map(str, report['shape']))} features, batches of {settings['batch_size']}, {settings['rounds']} "
        f"round(s), one thread per process. Products {rates['float32'] / 1e9:.0f} (float32) and {rates['bfloat16'] / 1e9:.0f} "
        f"(bfloat16) GFLOP/s, reading {rates['bytes'] / 1e9:.1f} GB/s (medians). The recursion is extrapolated to the paper's "
        f"corpora: {paper['train_clips']:,} training clips, {paper['rounds']} rounds of {paper['epochs']} epochs, validation "
        "included. Ratios are of whole recursions, paired by round; spread is (largest - smallest) / median, marked above "
        f"{SPREAD_LIMIT:.0%}. A way's bound: its own products at the measured rate, or reading its features, whichever takes "
        "longer; the bandwidth bound: reading them alone. Rates are of one process; (e) is held to as many times them as it "
        "has processes, which is more than a shared memory gives, so its shares are at least these."
    )


def _speeds(rows: Sequence[Mapping]) -> str:
    sizes = [own["layers"] for own in rows[0]["by_layers"]]
    speeds = [f"{size} layers, clips/s (of bound; of bandwidth bound)" for size in sizes]
    return table(["way", "processes", *speeds, "recursion, h", "x (a)", "spread"], map(_cells, rows))


def _cells(row: Mapping) -> list[str]:
    speeds = [
        f"{own['clips_per_s']:,.0f} ({own['share_of_bound']:.0%}; {own['share_of_bandwidth_bound']:.0%})"
        for own in row["by_layers"]
    ]
    ratio, spread = row["over_plain"]["ratio"], row["over_plain"]["spread"]
    mark = "*" if spread is not None and spread > SPREAD_LIMIT else ""
    ratios = [f"{ratio:.2f}{mark}", "-" if spread is None else f"{spread:.0%}"]
    return [row["title"], str(row["processes"]), *speeds, f"{row['recursion_hours']:.2f}", *ratios]


def _how_again(report: Mapping) -> str:
    upstream, hours = report["upstream"], report["paper"]["audio_s"] / 3600
    ours = ", ".join(f"{rate:.2f} ({name})" for name, rate in upstream["ours"].items())
    return (
        f"Extrapolated, never run: the upstream once per epoch of every round, on {hours:,.0f} h of audio, against one pass "
        "of ours at the way's precision and the epochs on its cache, in core hours. Seconds of audio per second of a core, "
        f"all 24 blocks, from `{upstream['source']}` (mixed workload, one thread; what was measured on fewer blocks is scaled "
        f"by the arithmetic): ordinary {upstream['ordinary']:.2f}, best HF {upstream['best']:.2f} ({upstream['best_title']}), "
        f"ours {ours}."
    )


def _again(rows: Sequence[Mapping]) -> str:
    epochs = list(next(row["over_rerun"] for row in rows if row["over_rerun"]))
    columns = ["way", "processes", *(f"{title}, {e} epochs" for e in epochs for title in ("x best HF", "x ordinary"))]
    cells = ([f"{own[name]:,.0f}" for own in row["over_rerun"].values() for name in ("best", "ordinary")] for row in rows)
    return table(columns, [[row["title"], str(row["processes"]), *own] for row, own in zip(rows, cells)])


def _goals(report: Mapping) -> str:
    goals = GPU_GOALS if "gpu" in report["machine"] else CPU_GOALS
    precisions = list(dict.fromkeys(row["precision"] for row in report["rows"]))
    cells = []
    for title, goal in goals.items():
        ways = [[row for row in report["rows"] if row["precision"] == own and not row["is_plain"]] for own in precisions]
        cells.append([title, _figure(title, goal), *(_verdict(title, goal, rows) for rows in ways)])
    again = f"The goals against running the upstream again are for {GOAL_EPOCHS} epochs a round. Each cell: the best way."
    return f"{again}\n\n{table(['goal', 'value', *precisions], cells)}"


def _verdict(title: str, goal: float, rows: Sequence[Mapping]) -> str:
    reached = [(value, row) for row in rows if (value := _value(title, row)) is not None]
    if not reached:
        return "not measured"
    is_least = title == MINUTES_TITLE
    value, row = (min if is_least else max)(reached, key=lambda pair: pair[0])
    is_met = value <= goal if is_least else value >= goal
    return f"{_figure(title, value)}, {row['name'].split()[0]}: {'met' if is_met else 'missed'}"


def _value(title: str, row: Mapping) -> float | None:
    if title == "x (a)":
        return row["over_plain"]["ratio"]
    if title == SHARE_TITLE:
        return min(own["share_of_bound"] for own in row["by_layers"])
    if title == MINUTES_TITLE:
        return 60 * row["recursion_hours"]
    again = row["over_rerun"].get(str(GOAL_EPOCHS), {})
    return again.get("best" if title == "x best HF" else "ordinary")


def _figure(title: str, value: float) -> str:
    return f"{value:.0%}" if title == SHARE_TITLE else f"{value:,.1f}"
