"""What a million hours of speech cost to embed, from the result files, by machine kind.

    python -m wavcse.benchmarks.million_hours                                  # writes docs/million_hours.md
    python -m wavcse.benchmarks.million_hours --price_per_unit_hour 0.05       # prints it with a column of costs

Prices are the reader's: the page says how many hours of one core or GPU are needed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wavcse.benchmarks.floors import RESULTS, machine_kind, newest_reports
from wavcse.benchmarks.report import table

PAGE = Path(__file__).parents[1] / "docs" / "million_hours.md"
HOURS = 1_000_000
CLIP_S = 8.0  # of the clips of a corpus: the mean of VoxCeleb, whose mix is measured
WORKLOAD = "voxceleb"
PRECISIONS = ("float32", "bfloat16", "int8")
SIZES = ((2000, 4), (256, 4), (256, 1))  # numbers of an embedding, bytes of each
WAVLM = "WavLM-Large up to layer 17"


class Rate(NamedTuple):
    """A measured speed: machine kind and its unit, upstream, precision, seconds of audio per second of one unit, the file."""

    machine: str
    unit: str
    upstream: str
    precision: str
    audio_s_per_s: float
    file: str

    @property
    def unit_hours(self) -> float:
        """Hours of one core or GPU for `HOURS` of audio."""
        return HOURS / self.audio_s_per_s


def rates(folder: Path = RESULTS) -> Iterator[Rate]:
    """All speeds of the result files that hold the pass of whole clips through an upstream, one core or one GPU."""
    for device, unit in (("cpu", "core"), ("cuda", "GPU")):
        for path, report in newest_reports(folder, device).values():
            runs = [run for run in report["runs"] if unit == "GPU" or (run["threads"], run["allocator"]) == (1, "default")]
            workloads = [workload for run in runs for workload in run["workloads"] if workload["name"] == WORKLOAD]
            for row in (row for workload in workloads for row in workload["variants"]):
                if row["name"] in PRECISIONS and "audio_s_per_s" in row:
                    yield Rate(_kind(report["machine"]), unit, WAVLM, row["name"], row["audio_s_per_s"], path.name)
    path = folder / "whisper-cpu.json"
    if path.exists():
        report = json.loads(path.read_text(encoding="utf-8"))
        for model in report["models"]:
            for row in model["speeds"]:
                context, _, precision = row["way"].partition(", ")
                if context == "clip" and row["seconds"] == CLIP_S:
                    speed = row["audio_s_per_cpu_s"]
                    yield Rate(_kind(report["machine"]), "core", model["name"], precision, speed, path.name)


def _kind(machine: dict) -> str:
    return machine.get("gpu") or f"{machine['processor']}, {machine_kind(machine)}"


def page(folder: Path = RESULTS, price_per_unit_hour: float | None = None) -> str:
    """The page; with a price, what one hour of one unit costs, also the costs."""
    found = list(rates(folder))
    columns = ["machine", "upstream", "precision", "audio-s/s of one unit", "unit", "hours of one unit", "from"]
    rows = [
        [one.machine, one.upstream, one.precision, f"{one.audio_s_per_s:.1f}", one.unit, f"{one.unit_hours:,.0f}", one.file]
        for one in found
    ]
    if price_per_unit_hour is not None:
        columns.append("cost")
        rows = [[*row, f"{rate.unit_hours * price_per_unit_hour:,.0f}"] for row, rate in zip(rows, found)]
    clips = HOURS * 3600 / CLIP_S
    sizes = [[str(size), str(num_bytes), f"{clips * size * num_bytes / 1e12:.2f}"] for size, num_bytes in SIZES]
    more = "" if any(rate.unit == "GPU" for rate in found) else " No result file holds a GPU yet."
    parts = [
        f"# What {HOURS:,} hours of speech cost",
        "Made by `python -m wavcse.benchmarks.million_hours` from the files in `benchmarks/results`; with\n"
        "`--price_per_unit_hour PRICE` it prints the costs too.",
        table(columns, rows),
        "**Cost = hours of one unit x the price of an hour of one unit.** A unit is one core or one GPU, with a worker each\n"
        "(`wavcse embed --engine ray`, [doors/ray.md](doors/ray.md)); N units take 1/N of the hours. The price is yours to\n"
        "fill in: it differs by provider, region and day.",
        f"- Measured are decoded clips of {CLIP_S:g} s on average through the upstream. {_waiting(folder)}Not in it\n"
        "  are reading from a remote store, the start of workers and what a cluster loses.\n"
        f"- `python benchmarks/bench_upstream.py`, and then this command, adds your machine.{more}\n"
        "- Try a thousand of your own clips first: their lengths matter as much as the machine.",
        f"What is stored, for clips of {CLIP_S:g} s ({clips / 1e6:,.0f} million):",
        table(["numbers per embedding", "bytes of each", "TB"], sizes),
    ]
    return "\n\n".join(parts) + "\n"


def _waiting(folder: Path) -> str:
    """How long a pass over a corpus waited for audio, where that was measured."""
    path = max(folder.glob("????-??-??-corpus-cpu*.json"), default=None)
    if path is None:
        return ""
    sizes = json.loads(path.read_text(encoding="utf-8"))["sizes"]  # passes of one worker over growing corpora
    share = statistics.median(row["waiting_percent"] for row in sizes)
    return f"A pass over local files waited\n  {share:.1f} % of its time for audio ({path.name}). "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--price_per_unit_hour", type=float, help="what one hour of one core or GPU costs")
    price = parser.parse_args().price_per_unit_hour
    if price is None:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(price_per_unit_hour=price))


if __name__ == "__main__":
    main()
