"""Result files with the pages made from them, and the tables and pictures of `bench_upstream.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from wavcse.benchmarks.measure import SPREAD_LIMIT
from wavcse.data.files import json_text

FULL_ROUNDS = 5
COLUMNS = (
    "workload",
    "variant",
    "audio-s/s",
    "share of limit",
    "x ordinary",
    "spread",
    "x best HF",
    "spread",
    "x ONNX Runtime",
    "max abs error",
    "relative error",
    "min cosine",
)
STYLES = {
    "ordinary": ("tab:red", "o"),
    "hooks": ("tab:orange", "s"),
    "float32": ("tab:blue", "^"),
    "bfloat16": ("tab:cyan", "v"),
    "int8": ("tab:green", "D"),
}


def write_results(report: dict[str, Any], path: Path, page_of: Callable[[dict[str, Any]], str]) -> str:
    """Write a report as JSON, and beside it the Markdown page that `page_of` makes of what was written; returns the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_text(report, indent=1) + "\n", encoding="utf-8")
    page = page_of(json.loads(path.read_text(encoding="utf-8")))
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    return page


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table that also reads well on a screen: columns are padded, all but the first two right-aligned."""
    rows = [list(map(str, row)) for row in rows]
    widths = [max(len(row[i]) for row in [list(columns), *rows]) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(padded) + " |"

    rule = "| " + " | ".join("-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([line(columns), rule, *map(line, rows)])


def run_table(workloads: Sequence[dict[str, Any]]) -> str:
    """Speed, share of the limit, paired ratios and errors of every variant on every workload."""
    return table(COLUMNS, [_cells(workload, row) for workload in workloads for row in workload["variants"]])


def _cells(workload: dict[str, Any], row: dict[str, Any]) -> list[str]:
    errors = [f"{row['max_abs']:.1e}", f"{row['relative']:.1e}", f"{row['min_cosine']:.6f}"]
    if not row["within_tolerance"]:
        return [workload["title"], row["title"], "outside its tolerance", *[""] * 6, *errors]
    ratios = [cell for key in ("over_ordinary", "over_best_rival") for cell in _ratio_cells(row[key], workload["rounds"])]
    batch = f", batches of {row['batch_size']}" if row["name"] == "sorted" else ""
    speed = [f"{row['audio_s_per_s']:.2f}", f"{row['share_of_limit']:.0%}"]
    engine = _ratio_cells(row["over_engine"], workload["rounds"])[0] if "over_engine" in row else ""
    return [workload["title"], row["title"] + batch, *speed, *ratios, engine, *errors]


def _ratio_cells(ratio: dict[str, Any], rounds: int) -> list[str]:
    spread = ratio["spread"]
    if spread is None:
        return [f"{ratio['ratio']:.2f}†", "-"]
    mark = "*" if spread > SPREAD_LIMIT else ""
    return [f"{ratio['ratio']:.2f}{mark}{'†' if rounds < FULL_ROUNDS else ''}", f"{spread:.0%}"]


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """Working memory by clip length, and how much less than the ordinary recipe."""
    ordinary = {row["workload"]: row for row in rows if row["variant"] == "ordinary"}
    cells = []
    for row in sorted(rows, key=lambda row: list(ordinary).index(row["workload"])):
        base = ordinary[row["workload"]]
        compares = row is not base and not base["is_estimate"] and not row["is_estimate"] and row["working_mb"] > 0
        less = f"{base['working_mb'] / row['working_mb']:.1f}x" if compares else ""
        megabytes = f"{row['working_mb']:,.0f} MB"
        estimate = " (estimate, not run)" if row["is_estimate"] else ""
        cells.append([row["title"], row["variant_title"], megabytes + estimate, less])
    return table(["clips", "variant", "memory above the model", "less than ordinary"], cells)


def markdown_of(report: dict[str, Any]) -> str:
    """The whole report."""
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    parts = [f"# Upstream benchmark, {report['date']}, {report['device']}", f"Machine: {facts}.", _legend()]
    for run in report["runs"]:
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in run["gflop_per_s"].items())
        parts.append(f"## {run['threads']} thread(s), {run['allocator']} allocator")
        slow = [f" {name} multiplies too slowly here to be of use and is left out." for name in run.get("left_out", ())]
        parts.append(f"Products 1024 x 1024 x 4096, GFLOP/s: {rates}.{''.join(slow)}")
        if run["workloads"]:
            parts += [_audio_lines(run["workloads"]), run_table(run["workloads"])]
        if run.get("small"):
            small = run["small"]
            parts.append(
                f"wavcse-tiny, {small['clips']} clips of {small['clip_s']:g} s, processor time: {small['audio_s_per_s']:.0f} "
                f"audio-s/s, {small['share_of_limit']:.0%} of the product rate; one clip through `encode` "
                f"{small['encode_ms']:.1f} ms."
            )
            if "root_encode_ms" in small:
                parts.append(f"The model in the root, one clip through `encode`: {small['root_encode_ms']:.1f} ms.")
        if run["memory"]:
            parts += ["### Working memory", memory_table(run["memory"])]
    return "\n\n".join(parts) + "\n"


def _legend() -> str:
    return (
        "HF24 padded is the ordinary recipe (all hidden states of one padded batch, stack, mean). The share of the limit is "
        "the speed divided by what the measured product rates allow for the variant's own products without padding. The "
        "rates are measured again in every round; the share is the median over rounds. Ratios are medians "
        "of paired rounds (over ONNX Runtime: at the same precision); spread is (largest - smallest) / median. "
        f"`*`: spread above {SPREAD_LIMIT:.0%}. `†`: fewer than {FULL_ROUNDS} rounds. Errors are against HF24 padded; "
        "a variant outside its tolerance gets no speed. Memory rows marked as estimates were not run: transformers keeps "
        "several tensors of heads x frames x frames, see `benchmarks/memory.py`; clips above 60 s go through ours in windows."
    )


def _audio_lines(workloads: Sequence[dict[str, Any]]) -> str:
    lines = []
    for workload in workloads:
        lengths = workload["clip_seconds"]
        is_equal = len(set(lengths)) == 1
        clips = f"{len(lengths)} x {lengths[0]:g} s" if is_equal else " + ".join(f"{s:g}" for s in lengths) + " s"
        padded = f", {workload['padded_s']:.1f} s padded" if workload["padded_s"] > workload["audio_s"] + 0.05 else ""
        rates = " / ".join(f"{rate:.0f}" for rate in workload["gflop_per_s"].values())
        lines.append(f"- {workload['title']}: {clips}{padded}, {workload['rounds']} rounds, products at {rates} GFLOP/s")
    return "\n".join(lines)


def plot(report: dict[str, Any], stem: Path) -> list[Path]:
    """Throughput and memory against clip length as PNG and SVG; nothing where no run has lengths to show."""
    run = max(report["runs"], key=lambda run: len(run["workloads"]), default=None)
    memory_rows = max((run["memory"] for run in report["runs"]), key=len, default=[])
    if not memory_rows:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name in STYLES:
        rows = [row for row in memory_rows if row["variant"] == name and row["workload"] != "8x10s"]
        _plot_variant(speed, memory, run, name, rows)
    _label_axes(speed, "throughput in audio-s/s", "Throughput")
    _label_axes(memory, "MB above the model", "Working memory")
    memory.plot([], [], "o", color="gray", fillstyle="none", label="estimate, not run")
    memory.legend(fontsize=8)
    threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
    figure.suptitle(
        f"Pooled layers of the upstream, clips of one length; {report['machine']['processor']}, {threads}", fontsize=10
    )
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return paths


def _plot_variant(speed: Any, memory: Any, run: dict[str, Any], name: str, rows: Sequence[dict[str, Any]]) -> None:
    color, marker = STYLES[name]
    found = [(workload, row) for workload in run["workloads"] for row in workload["variants"] if row["name"] == name]
    if not (found or rows):  # not run on this processor
        return
    label = [*(row["variant_title"] for row in rows), *(row["title"] for _, row in found)][0]
    of_one_length = [(workload["clip_seconds"], row) for workload, row in found if len(set(workload["clip_seconds"])) == 1]
    speeds = {seconds[0]: row["audio_s_per_s"] for seconds, row in of_one_length if "audio_s_per_s" in row}
    lengths = sorted(speeds)
    speed.plot(lengths, [speeds[length] for length in lengths], color=color, marker=marker, label=label)
    if not rows:
        return
    measured = [row for row in rows if not row["is_estimate"]]
    memory.plot(*_memory_points(measured), color=color, marker=marker, label=label)
    memory.plot(*_memory_points(measured[-1:] + [row for row in rows if row["is_estimate"]]), ":", color=color)
    memory.plot(*_memory_points([row for row in rows if row["is_estimate"]]), marker, color=color, fillstyle="none")


def _memory_points(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["clip_s"] for row in rows], [max(row["working_mb"], 0.1) for row in rows]


def _label_axes(axes: Any, ylabel: str, title: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel="clip length in s", ylabel=ylabel, title=title)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
