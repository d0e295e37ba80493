"""Do words and speakers read worse from Whisper at the clip's own length than from windows of 30 s? Linear probes say.

    python benchmarks/probe_contexts.py --models path/to/whisper-tiny.en path/to/whisper-base

Two corpora of single words in ../shared/data, of each the clips that are in the training or the validation part of both tasks
(words by speakers whom training has not heard; known speakers), and of each of the four combinations at most `--most`, spread
evenly over the manifest: a clip in a window of 30 s takes a second of one core. Embeddings, their store and the probes are
those of `wavcse eval`. Every layer is probed; the best one, by its validation accuracy, with `--seeds` seeds. Validation
chooses the probe's epoch and learning rate too, so figures are a little too good, in both contexts alike; no test clip is
read. Intervals (95 %) are of the difference of the two contexts on the same clips, by paired bootstrap.

Results go to benchmarks/results/whisper-contexts.json, with a Markdown table made from it, and into docs/upstreams.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavcse.benchmarks.measure import machine_facts
from wavcse.configuration_wavcse import CONTEXTS
from wavcse.data.files import json_text, write_atomically
from wavcse.eval.baselines.layers import BestLayerEncoder, UpstreamLayers
from wavcse.eval.embeddings import embed_clips
from wavcse.eval.metrics import METRICS, paired_interval
from wavcse.eval.probe import LabelledEmbeddings, ProbeRun, fit_probe, objective_for, resampling_unit
from wavcse.eval.task import TaskData, load_task
from wavcse.eval.tasks import TASKS
from wavcse.reports.page import markdown_table

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "whisper-contexts.json"
PAGE = ROOT / "docs" / "upstreams.md"
BEGIN, END = "<!-- whisper-contexts: begin -->", "<!-- whisper-contexts: end -->"
CORPORA = {"speech_commands_9": "en", "arabic_commands_10": "ar"}
KINDS = {"keyword": "words", "speaker": "speakers"}
PARTS = ("train", "validation")
BATCH_S = 20.0  # of clips; in windows of 30 s it costs as many times 30 s
WORDS = """\
Validation accuracy in % of a linear probe on the best layer, mean of {seeds} seeds, and the difference of the contexts with
its 95 % interval. Validation also chose layer, epoch and learning rate, in both contexts alike; no test clip was read. Made by
`python benchmarks/probe_contexts.py`, whose first lines say on which clips."""


def subset(tasks: Sequence[TaskData], most: int) -> list[TaskData]:
    """The tasks of one corpus on the clips that are in a part of all of them, at most `most` of each combination of parts."""
    part_of = [{clip.place: split for clip, split in zip(data.table.clips, data.table.splits)} for data in tasks]
    combinations: dict[tuple, list] = {}
    for clip in tasks[0].table.clips:
        parts = tuple(parts.get(clip.place) for parts in part_of)
        if set(parts) <= set(PARTS):
            combinations.setdefault(parts, []).append(clip.place)
    spread = [places[int(at)] for places in combinations.values() for at in _spread(len(places), most)]
    chosen = set(spread)
    return [
        data.subset(np.array([row for row, clip in enumerate(data.table.clips) if clip.place in chosen])) for data in tasks
    ]


def _spread(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).round()


def load_tasks(data_dir: Path, most: int) -> dict[str, TaskData]:
    """Title -> task, on its part of the clips."""
    tasks = {}
    for corpus, language in CORPORA.items():
        own = [load_task(TASKS[kind], [data_dir / corpus / "metadata.csv"]) for kind in KINDS]
        tasks |= {f"{words} ({language})": data for words, data in zip(KINDS.values(), subset(own, most))}
    return tasks


def probe(layers: np.ndarray, data: TaskData, seeds: int) -> dict[str, Any]:
    """Validation accuracy of every layer `[N, L, D]` of the task's clips, and the best layer's predictions by seed."""
    objective = objective_for(data)
    train, validation = (data.table.rows(part) for part in PARTS)

    def fit(layer: int, seed: int) -> ProbeRun:
        own = layers[:, layer]
        parts = [LabelledEmbeddings(own[rows], data.labels[rows]) for rows in (train, validation)]
        return fit_probe(*parts, own[validation], objective, seed)

    firsts = [fit(layer, 0) for layer in range(layers.shape[1])]
    best = max(range(len(firsts)), key=lambda layer: firsts[layer].validation)
    runs = [firsts[best], *(fit(best, seed) for seed in range(1, seeds))]
    return {
        "by_layer": [run.validation for run in firsts],
        "best_layer": best,
        "accuracy": float(np.mean([run.validation for run in runs])),
        "predictions": [run.predictions for run in runs],
    }


def compare(title: str, data: TaskData, layers: dict[str, np.ndarray], seeds: int) -> dict[str, Any]:
    """The contexts on one task: figures of both, and the interval of "clip" minus "window" in validation accuracy."""
    found = {context: probe(own, data, seeds) for context, own in layers.items()}
    rows = data.table.rows("validation")
    clip, window = (found[context].pop("predictions") for context in CONTEXTS)
    unit, groups = resampling_unit(data, rows)
    interval = paired_interval(METRICS["accuracy"], data.labels[rows], clip, window, groups)
    trained = set(data.table.labels[data.table.rows("train")])
    counts = {part: len(data.table.rows(part)) for part in PARTS}
    return {"task": title, "clips": counts, "classes": len(trained), **found, "difference": interval, "resampled": unit}


def measure(model: str, tasks: dict[str, TaskData], store: Path, seeds: int) -> dict[str, Any]:
    """One checkpoint in both contexts on all tasks."""
    sources = {context: UpstreamLayers(model, context=context) for context in CONTEXTS}
    encoders = {context: BestLayerEncoder(source, f"{Path(model).name}-{context}") for context, source in sources.items()}
    clips = {clip.place: clip for data in tasks.values() for clip in data.table.clips}
    embedded = embed_clips(list(encoders.values()), list(clips.values()), store_dir=store, workers=1, batch_seconds=BATCH_S)
    if not embedded.embedded.all():
        raise ValueError(f"{len(embedded.skipped)} clips could not be embedded; the first: {embedded.skipped[0]}")
    row_of = {place: row for row, place in enumerate(clips)}
    compared = []
    for title, data in tasks.items():
        rows = [row_of[clip.place] for clip in data.table.clips]
        layers = {
            context: embedded.tables[encoder.name][rows].reshape(len(rows), encoder.num_candidates, -1)
            for context, encoder in encoders.items()
        }
        compared.append(compare(title, data, layers, seeds))
        print(compared[-1], flush=True)
    return {"name": Path(model).name, "clips": len(clips), "tasks": compared}


def markdown_of(report: dict[str, Any]) -> str:
    """Two tables with what they show, as docs/upstreams.md has them."""
    lines, layers = [], []
    for model in report["models"]:
        for row in model["tasks"]:
            low, high = (f"{100 * end:+.1f}" for end in row["difference"])
            cells = [f"{100 * row[context]['accuracy']:.1f} (layer {row[context]['best_layer']})" for context in CONTEXTS]
            change = f"{100 * (row['clip']['accuracy'] - row['window']['accuracy']):+.1f} [{low}, {high}]"
            sizes = f"{row['clips']['train']} / {row['clips']['validation']}"
            lines.append([model["name"], row["task"], str(row["classes"]), sizes, *cells, change])
            for context in CONTEXTS:
                accuracies = " ".join(f"{100 * figure:.0f}" for figure in row[context]["by_layer"])
                layers.append([model["name"], row["task"], context, accuracies])
    columns = ["model", "task", "classes", "clips: training / validation", *(f"`{context}`" for context in CONTEXTS)]
    words = WORDS.format(seeds=report["seeds"])
    main_table = markdown_table([*columns, "`clip` minus `window`"], lines)
    by_layer = markdown_table(["model", "task", "context", "accuracy by layer"], layers)
    return f"{words}\n\n{main_table}\n\nThe same of every layer, 0 to the last, one seed:\n\n{by_layer}"


def with_tables(page: str, tables: str) -> str:
    """`page` with the tables between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE.name} needs one line {BEGIN!r} and after it one line {END!r}.")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="folders or Hub ids of Whisper checkpoints")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the two corpora")
    parser.add_argument("--most", type=int, default=35, help="clips of each combination of parts (default 35)")
    parser.add_argument("--seeds", type=int, default=3, help="probes of the best layer (default 3)")
    parser.add_argument("--store", type=Path, default=Path("runs/whisper_contexts"), help="keeps embeddings, to go on from")
    parser.add_argument(
        "--out", type=Path, default=RESULT, help="JSON to write (default benchmarks/results/whisper-contexts.json)"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="page that shows the tables (default docs/upstreams.md)")
    args = parser.parse_args(argv)
    tasks = load_tasks(args.data, args.most)
    report = {"machine": machine_facts(torch.device("cpu")), "most": args.most, "seeds": args.seeds}
    report["models"] = []
    for model in args.models:
        report["models"].append(measure(model, tasks, args.store, args.seeds))
        write(report, args.out, args.page)


def write(report: dict[str, Any], out: Path, page: Path) -> None:
    """The JSON, the tables made from it beside it, and the page that shows them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json_text(report, indent=1) + "\n", encoding="utf-8")
    tables = markdown_of(json.loads(out.read_text(encoding="utf-8")))
    out.with_suffix(".md").write_text(f"# Whisper in its two contexts\n\n{tables}\n", encoding="utf-8")
    write_atomically(page, with_tables(page.read_text(encoding="utf-8"), tables))


if __name__ == "__main__":
    main()
