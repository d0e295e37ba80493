"""What `bench_search.py` makes of its measurements: bounds, the whole recursion, the upstream run again, and their page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from wavcse.benchmarks.measure import SPREAD_LIMIT, Measured, PairedRatio
from wavcse.benchmarks.report import table
from wavcse.benchmarks.rerun import UpstreamRates, over_rerun
from wavcse.benchmarks.search_ways import Way
from wavcse.benchmarks.workloads import CLASSES, PAPER_TRAIN, PAPER_VALIDATION, paper_audio_s
from wavcse.configuration_wavcse import WavCSEConfig

PAPER_ROUNDS, PAPER_EPOCHS = 25, 100
GOAL_EPOCHS = 10  # a round, for which the goals against running the upstream again were set
SHARE_TITLE, MINUTES_TITLE = "share of the bound, at every number of layers", "minutes for the recursion"
CPU_GOALS = {"x (a)": 10.0, SHARE_TITLE: 0.5, "x best HF": 480.0, "x ordinary": 1600.0}
GPU_GOALS = {SHARE_TITLE: 0.5, MINUTES_TITLE: 5.0}


# -- figures


def summarise(
    ways: Sequence[Way], sizes: Sequence[int], measured: Measured, config: WavCSEConfig, upstream: UpstreamRates | None
) -> list[dict]:
    """Per way: speed and share of its bound by number of layers, the extrapolated recursion, and its ratios to others."""
    totals = {way.name: _recursion_seconds(way, sizes, measured) for way in ways}
    return [
        {
            "name": way.name,
            "title": way.title,
            "precision": way.precision,
            "is_plain": way.is_plain,
            "processes": way.processes,
            "by_layers": [{"layers": size, **_speed(way, size, measured, config)} for size in sizes],
            "recursion_hours": round(statistics.median(totals[way.name]) / 3600, 3),
            "over_plain": asdict(PairedRatio.of(totals[ways[0].name], totals[way.name])),
            "over_rerun": {} if upstream is None else _over_rerun(way, upstream, statistics.median(totals[way.name])),
        }
        for way in ways
    ]


def flop_per_clip(is_plain: bool, num_layers: int, config: WavCSEConfig) -> float:
    """Multiply-adds (as 2) of one training clip, forward and backward.

    Plain: FC1 on every layer (no gradient of its input), all heads on all clips. Else: FC1 once (and the gradient of its
    input, for the layer weights), the head of the clip's own task.
    """
    projection = config.upstream_config.hidden_size * config.layer_projection_size
    total = sum(PAPER_TRAIN.values())
    outputs = sum(CLASSES.values()) if is_plain else sum(CLASSES[task] * PAPER_TRAIN[task] / total for task in CLASSES)
    first = 2 * num_layers * projection if is_plain else 3 * projection
    return 2 * (first + 3 * config.embedding_size * (config.layer_projection_size + outputs))


def bytes_per_clip(is_plain: bool, num_layers: int, config: WavCSEConfig) -> float:
    """Feature bytes of one training clip: read twice (forward, and for the gradients); plain also copies them to a batch."""
    return (4 if is_plain else 2) * 4 * num_layers * config.upstream_config.hidden_size


def bounds(way: Way, size: int, measured: Measured, config: WavCSEConfig, i: int) -> tuple[float, float]:
    """Least seconds per training clip by the rates of round i: for the products, for reading.

    Both rates are of one process and count once for each, though processes share the memory: no share is flattered.
    """
    products = flop_per_clip(way.is_plain, size, config) / measured.rates[way.precision][i]
    reading = bytes_per_clip(way.is_plain, size, config) / measured.rates["bytes"][i]
    return products / way.processes, reading / way.processes


def whole_recursion(per_clip: Mapping[tuple[str, int], float], sizes: Sequence[int]) -> float:
    """Seconds of the paper's recursion, extrapolated from seconds per clip by (part, layers), linearly between sizes."""
    counts = {"train": sum(PAPER_TRAIN.values()), "evaluate": sum(PAPER_VALIDATION.values())}
    ascending = sorted(sizes)
    return sum(
        PAPER_EPOCHS * count * float(np.interp(k, ascending, [per_clip[part, size] for size in ascending]))
        for k in range(1, PAPER_ROUNDS + 1)
        for part, count in counts.items()
    )


def _recursion_seconds(way: Way, sizes: Sequence[int], measured: Measured) -> list[float]:
    """`whole_recursion` by the seconds of every round."""
    own = {key: measured.seconds_per_clip[way.name, *key] for key in way.work}
    rounds = zip(*own.values())
    return [whole_recursion(dict(zip(own, of_round)), sizes) for of_round in rounds]


def _speed(way: Way, size: int, measured: Measured, config: WavCSEConfig) -> dict[str, float]:
    speeds = [1 / seconds for seconds in measured.seconds_per_clip[way.name, "train", size]]
    both = [bounds(way, size, measured, config, i) for i in range(len(speeds))]
    return {
        "clips_per_s": round(statistics.median(speeds), 1),
        "share_of_bound": round(statistics.median(max(own) * speed for own, speed in zip(both, speeds)), 3),
        "share_of_bandwidth_bound": round(statistics.median(own[1] * speed for own, speed in zip(both, speeds)), 3),
    }


def _over_rerun(way: Way, upstream: UpstreamRates, recursion_s: float) -> dict[str, dict[str, float]]:
    epoch_core_s = recursion_s * way.processes / (PAPER_ROUNDS * PAPER_EPOCHS)
    return {
        str(epochs): over_rerun(upstream, paper_audio_s(), way.precision, PAPER_ROUNDS * epochs, epoch_core_s)
        for epochs in (GOAL_EPOCHS, PAPER_EPOCHS)
    }


# -- page


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
