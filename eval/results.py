"""Result files (one JSON per task and encoder) and the Markdown table made from them.

    python -m wavcse.eval.results runs/x/eval

writes runs/x/eval/results.md anew from runs/x/eval/results/*.json; no figure in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from wavcse.data.features import write_atomically
from wavcse.eval.baselines import BASELINES
from wavcse.eval.metrics import METRICS
from wavcse.eval.tasks import TASKS

FEW_SPEAKERS = 10  # below this a bootstrap over speakers is known to be too narrow


def write_result(output_dir: Path, record: dict) -> Path:
    """Write one record to `output_dir`/results/<task>__<encoder>.json, whole or not at all; an older one is replaced."""
    path = output_dir / "results" / f"{record['task']['name']}__{record['encoder']['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return path


def read_results(output_dir: str | Path) -> list[dict]:
    """All records of a folder.

    Raises:
        ValueError: there are none, or one is not a result file.
    """
    paths = sorted((Path(output_dir) / "results").glob("*__*.json"))
    if not paths:
        raise ValueError(f"{output_dir}: holds no results/*.json. Run `python -m wavcse.eval` first.")
    records = []
    for path in paths:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            record["task"]["name"], record["encoder"]["name"], record["metrics"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: is not a result file ({type(error).__name__}: {error}).") from error
        records.append(record)
    return records


def write_table(output_dir: str | Path) -> str:
    """Make `output_dir`/results.md from the result files; returns its text. The same files give the same bytes."""
    text = markdown_table(read_results(output_dir))
    write_atomically(Path(output_dir) / "results.md", text)
    return text


def markdown_table(records: Sequence[dict]) -> str:
    """Tasks x encoders: primary metric with its interval, then UAR, in percent; the best of a row in bold; notes below."""
    cells = {(record["task"]["name"], record["encoder"]["name"]): record for record in records}
    tasks = _ordered({task for task, _ in cells}, TASKS, known_first=True)
    encoders = _ordered({encoder for _, encoder in cells}, BASELINES, known_first=False)
    lines = ["| task | test split | " + " | ".join(encoders) + " |", "|---|---" + "|---" * len(encoders) + "|"]
    for task in tasks:
        row = [cells.get((task, encoder)) for encoder in encoders]
        best = _best_value([record for record in row if record])
        first = next(record for record in row if record)
        described = f"| {first['task']['title']} | {_test_split(first)} | "
        lines.append(described + " | ".join("–" if r is None else _cell(r, best) for r in row) + " |")
    ordered = [cells[task, encoder] for task in tasks for encoder in encoders if (task, encoder) in cells]
    return "\n".join([*lines, "", *_footnotes(ordered)]) + "\n"


def _ordered(names: set[str], registry: Sequence[str], known_first: bool) -> list[str]:
    known = [name for name in registry if name in names]
    others = sorted(names - set(known))
    return known + others if known_first else others + known


def _primary(record: dict) -> str:
    return record["task"]["metrics"][0]


def _best_value(records: Sequence[dict]) -> float:
    values = [record["metrics"][_primary(record)]["value"] for record in records]
    return max(values) if METRICS[_primary(records[0])].greater_is_better else min(values)


def _test_split(record: dict) -> str:
    counts = record["counts"]
    num_speakers = counts["speakers"]["test"]
    speakers = f", {num_speakers} speakers" if num_speakers else ""
    protocols = sorted({manifest.get("protocol", "") for manifest in record["manifests"]} - {""})
    named = f", protocol {', '.join(protocols)}" if protocols else ""
    return f"{counts['clips']['test']} clips{speakers}, {len(record['task']['classes'])} classes{named}"


def _cell(record: dict, best: float) -> str:
    primary = record["metrics"][_primary(record)]
    value = _percent(primary["value"])
    value = f"**{value}**" if primary["value"] == best else value
    interval = " [{}, {}]".format(*map(_percent, primary["interval"])) if primary["interval"] else ""
    second = record["task"]["metrics"][1]
    return f"{value}{interval}, {METRICS[second].title} {_percent(record['metrics'][second]['value'])}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _footnotes(records: Sequence[dict]) -> list[str]:
    primary = METRICS[_primary(records[0])].title
    notes = [
        f"{primary.capitalize()} in % [95 % bootstrap interval], then UAR; higher is better; the best {primary} in bold. "
        "Linear probe on frozen embeddings; learning rate and epoch chosen on the validation split."
    ]
    notes += _interval_notes(records) + _seed_notes(records)
    notes += [f"`{name}`: {origin}." for name, origin in dict(map(_origin, records)).items()]
    skipped = {record["task"]["title"]: record["skipped_clips"] for record in records if record["skipped_clips"]}
    notes += [f"{title}: {count} clips were left out, see skipped.csv." for title, count in skipped.items()]
    notes += [f"{title}: the encoders were tested on different clips; do not compare them." for title in _mixed(records)]
    notes += [f"Note: {note}" for note in dict.fromkeys(record["note"] for record in records) if note]
    return [f"- {note}" for note in notes]


def _interval_notes(records: Sequence[dict]) -> list[str]:
    notes = []
    for unit in ("speaker", "clip"):
        titles = dict.fromkeys(r["task"]["title"] for r in records if r["interval"]["unit"] == unit)
        if titles:
            notes.append(f"Intervals resample {unit}s: {', '.join(titles)}.")
    few = {
        record["task"]["title"]: record["interval"]["units"]
        for record in records
        if record["interval"]["unit"] == "speaker" and record["interval"]["units"] < FEW_SPEAKERS
    }
    notes += [f"{title}: only {n} test speakers, so the interval is too narrow." for title, n in few.items()]
    return notes


def _seed_notes(records: Sequence[dict]) -> list[str]:
    counts = sorted({len(record["probe"]["runs"]) for record in records if "runs" in record["probe"]})
    return [f"Figures are means over {counts[-1]} probe seeds."] if counts and counts[-1] > 1 else []


def _origin(record: dict) -> tuple[str, str]:
    encoder = record["encoder"]
    parts = [encoder["model"]] if "model" in encoder else []
    parts += [f"layer {encoder['layer']}"] if "layer" in encoder else []
    parts += [f"revision {encoder['revision']}"] if "revision" in encoder else []
    parts += [f"weights sha256 {encoder['weights_sha256'][:12]}"] if "weights_sha256" in encoder else []
    parts.append(f"{encoder['embedding_size']} dimensions" if encoder["embedding_size"] else "the most frequent label")
    return encoder["name"], ", ".join(parts)


def _mixed(records: Sequence[dict]) -> list[str]:
    tested: dict[str, set[str]] = {}
    for record in records:
        data = [record["counts"], sorted(manifest["sha256"] for manifest in record["manifests"])]
        tested.setdefault(record["task"]["title"], set()).add(json.dumps(data, sort_keys=True))
    return [title for title, different in tested.items() if len(different) > 1]


def main(argv: Sequence[str] | None = None) -> int:
    """Regenerate and print the table of a folder; returns 0, or 2 if there is nothing to show."""
    parser = argparse.ArgumentParser(
        prog="python -m wavcse.eval.results", description="Make results.md anew from results/*.json, and print it."
    )
    parser.add_argument("output_dir", help="folder that `wavcse eval` wrote")
    args = parser.parse_args(argv)
    try:
        print(write_table(args.output_dir), end="")
    except ValueError as error:
        print(f"wavcse eval: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
