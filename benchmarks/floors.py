"""The floors of inference speed, and which of them the results of each class of processors reach.

    python -m wavcse.benchmarks.floors

writes `results/floors.md` from the result files beside it; `bench_upstream.py` does so after every run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wavcse.benchmarks.report import table

RESULTS = Path(__file__).parent / "results"
PAGE = "floors.md"
SHORT = ("mixed", "gsc", "8s", "iemocap", "voxceleb")  # workloads of clips up to 15 s
EVERY = (*SHORT, "30s")


@dataclass(frozen=True)
class Floor:
    """The least that a variant must reach on every one of the workloads, one thread; `most` turns it into a ceiling."""

    title: str
    goal: float
    key: str
    variant: str = "float32"
    workloads: Sequence[str] = ("mixed",)
    unit: str = "x"
    most: bool = False


FLOORS = (
    Floor("exact float32 over the ordinary recipe", 4.5, "over_ordinary"),
    Floor("exact float32 over the best use of transformers", 1.3, "over_best_rival"),
    Floor("exact float32, share of the product rate, up to 15 s", 0.85, "share_of_limit", workloads=SHORT, unit="%"),
    Floor("exact float32, share of the product rate, 30 s", 0.80, "share_of_limit", workloads=("30s",), unit="%"),
    Floor("exact float32 over ONNX Runtime float32", 1.2, "over_engine", workloads=EVERY),
    Floor("int8 over ONNX Runtime int8", 1.2, "over_engine", "int8", EVERY),
    Floor("int8 over exact float32", 1.0, "over_float32", "int8", EVERY),
    Floor("wavcse-tiny, share of the product rate, clips of 1 s", 0.75, "share_of_limit", "small", (), "%"),
    Floor("wavcse-tiny, one clip of 1 s through encode", 8.0, "encode_ms", "small", (), "ms", most=True),
    Floor("the model in the root, one clip of 1 s through encode", 8.0, "root_encode_ms", "small", (), "ms", most=True),
)


def measured(run: Mapping[str, Any], floor: Floor) -> dict[str, float]:
    """Workload -> figure, for those that the run has."""
    if floor.variant == "small":
        small = run.get("small") or {}
        return {"": small[floor.key]} if floor.key in small else {}
    found = {}
    for workload in run["workloads"]:
        row = next((row for row in workload["variants"] if row["name"] == floor.variant), {})
        value = row.get(floor.key)
        if workload["name"] in floor.workloads and value is not None:
            found[workload["name"]] = value["ratio"] if isinstance(value, Mapping) else value
    return found


def cells(run: Mapping[str, Any], floor: Floor) -> list[str]:
    """Floor, what was measured at worst, where, and the verdict."""
    found = measured(run, floor)
    goal = f"{'at most' if floor.most else 'at least'} {_figure(floor.goal, floor.unit)}"
    if not found:
        return [floor.title, goal, "not measured", "", ""]
    worst = (max if floor.most else min)(found, key=found.get)
    is_met = found[worst] <= floor.goal if floor.most else found[worst] >= floor.goal
    return [
        floor.title,
        goal,
        _figure(found[worst], floor.unit),
        worst if len(found) > 1 else "",
        "met" if is_met else "missed",
    ]


def _figure(value: float, unit: str) -> str:
    return f"{value:.0%}" if unit == "%" else f"{value:.1f} ms" if unit == "ms" else f"{value:.2f}x"


def floors_table(run: Mapping[str, Any]) -> str:
    """All floors of one run."""
    return table(["floor", "goal", "measured", "lowest on", ""], [cells(run, floor) for floor in FLOORS])


def newest_reports(folder: Path = RESULTS, device: str = "cpu") -> dict[str, tuple[Path, dict]]:
    """Machine kind -> file and content of its newest result of `bench_upstream.py`; "cpu" or "cuda"."""
    newest: dict[str, tuple[Path, dict]] = {}
    for path in sorted(folder.glob(f"????-??-??-{device}*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        newest[machine_kind(report["machine"])] = path, report
    return dict(sorted(newest.items()))


def machine_kind(machine: Mapping[str, Any]) -> str:
    """The GPU, or the instructions of the processor."""
    return machine.get("gpu") or machine.get("instructions", "AVX512")  # the first result did not say


def page(folder: Path = RESULTS) -> str:
    """Of every class of processors, the newest result's floors."""
    parts = [
        "# Floors of inference speed, one thread",
        "Made by `python -m wavcse.benchmarks.floors` from the files beside it.",
    ]
    for instructions, (path, report) in newest_reports(folder).items():
        run = next((run for run in report["runs"] if (run["threads"], run["allocator"]) == (1, "default")), None)
        if run is not None:
            parts.append(f"## {report['machine']['processor']}, {instructions}")
            parts += [f"From [{path.name}]({path.with_suffix('.md').name}), {report['date']}.", floors_table(run)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (RESULTS / PAGE).write_text(page(), encoding="utf-8")
