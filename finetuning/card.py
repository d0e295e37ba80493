"""What the card of a trained network says of its run: figures of the test split, data, limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wavcse.data.files import write_atomically
from wavcse.eval.metrics import METRICS
from wavcse.eval.table import shown
from wavcse.finetuned_wavcse import FinetunedWavCSEConfig
from wavcse.hub.card import SECTIONS_OF_CARD
from wavcse.hub.source import CARD
from wavcse.hub_repository_wavcse import inert, weights_sha256, write_card
from wavcse.reports.page import markdown_table

FIGURES_WORDS = (
    "The test split by the step that validation chose; 95 % intervals resample speakers. Papers on emotion call accuracy WA "
    "and UAR, the mean recall of the classes, UA."
)
STALE = (
    "The outputs of {tasks} are of heads that an earlier stage trained: the encoder has moved since, and they were not judged "
    "again."
)
ONE_FOLD = (
    "This is one of {of} networks of a leave-one-group-out comparison. It was tested on {column} {tests}, whose speakers "
    "trained nothing; figures of a single fold say less than those of all."
)


def write_run_card(folder: Path, config: FinetunedWavCSEConfig, result: Mapping[str, Any]) -> None:
    """Write `card.md`, of which `wavcse push` makes a card, and what follows from it into the card of `hub/`.

    Args:
        folder: of the run, whose `hub/` is saved.
        result: of `results/finetuning.json`.
    """
    sections = card_sections(config, inert(result))
    head = f"Weights: `{weights_sha256(folder / 'hub')}`"
    parts = [head, *(f"## {title}\n\n{text}" for title, text in sections.items())]
    write_atomically(folder / CARD, "\n\n".join(parts) + "\n")
    titled = {
        title: "\n\n".join(sections[own] for own in names if own in sections) for title, names in SECTIONS_OF_CARD.items()
    }
    write_card(folder / "hub", config, sections={title: text for title, text in titled.items() if text})


def card_sections(config: FinetunedWavCSEConfig, result: Mapping[str, Any]) -> dict[str, str]:
    """Title of a section of `card.md` -> Markdown."""
    return {
        "What it is good for": f"{_figures(result)}\n\n{FIGURES_WORDS}",
        "Limits": "\n".join(f"- {line}" for line in _limits(config, result)),
        "What it was trained on": _data(result),
        "How it was trained": f"{result['steps']:,} updates; the weights are those of update {result['best_step']:,}.",
    }


def _figures(result: Mapping[str, Any]) -> str:
    lines = []
    for task, records in result["tasks"].items():
        for name, record in records.items():
            unit, interval = record["unit"], record["interval"]
            ends = "" if not interval else " [{} – {}]".format(*(shown(end, unit) for end in interval))
            title = f"{METRICS[name].title}{', %' if unit == 'percent' else ''}"
            lines.append([task, title, f"{shown(record['value'], unit)}{ends}", f"{record['clips']:,}"])
    return markdown_table(["task", "figure", "test split", "clips or pairs"], lines)


def _limits(config: FinetunedWavCSEConfig, result: Mapping[str, Any]) -> list[str]:
    lines = []
    if fold := result.get("fold"):
        lines.append(ONE_FOLD.format(of=fold["of"], column=fold["column"], tests=", ".join(map(str, fold["tests"]))))
    if stale := [name for name in config.readouts if name not in result["clips"]]:
        lines.append(STALE.format(tasks=", ".join(f"`{name}`" for name in stale)))
    lines += [f"No {name}: {reason}." for name, reason in result.get("not_reported", {}).items()]
    return [*lines, "Labels are what the corpora's annotators and actors meant; other people, rooms and languages may differ."]


def _data(result: Mapping[str, Any]) -> str:
    columns = ["task", "training", "validation", "test"]
    return markdown_table(columns, [[name, *(f"{own[split]:,}" for split in own)] for name, own in result["clips"].items()])
