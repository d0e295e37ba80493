"""How good are smaller vectors? A model's embeddings, cut, reduced and quantised, on the tasks of an evaluation.

Every size and precision is judged on the same embeddings, which are computed once. Components, ranges and means come from the
training clips of all tasks, but for those that another task tests.

Shapes: `N` clips, `E` embedding size, `M` the smaller one.
"""

from __future__ import annotations

from wavcse.retrieval.arguments import SIZES, SizesArguments, read_sizes

if __name__ == "__main__":
    SIZES.answer()  # before the imports below, which take seconds

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavcse.data.files import make_folder, write_json
from wavcse.data.pca import PrincipalComponents, fit_pca
from wavcse.eval.embeddings import embed_clips
from wavcse.eval.encoder import WavCSEEncoder
from wavcse.eval.evaluation import STORE_FOLDER, corpus_inspector
from wavcse.eval.metrics import METRICS
from wavcse.eval.metrics.verification import eer
from wavcse.eval.probe import probe_outcomes
from wavcse.eval.task import TaskData, load_task
from wavcse.eval.verification import CosineBackend, score_trials
from wavcse.modeling_wavcse import quantize_embeddings
from wavcse.reports.figures import draw_all, new_axes
from wavcse.reports.page import made_by, markdown_table, opening, write_page
from wavcse.retrieval.nearest import nearest_rows
from wavcse.settings.command import DONE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRECISIONS = {"float32": 32, "int8": 8, "binary": 1}  # -> bits per number
NEAREST = 10  # neighbours that retrieval looks at, at most
PERCENT = 100.0
TITLES = {"accuracy": "probe accuracy, %", "eer": "verification EER, %", "precision": "retrieval precision, %"}


@dataclass(frozen=True)
class Variant:
    """A way to make vectors smaller: `way` "cut" (the first numbers) or "pca", `size` M, and `precision` of `PRECISIONS`."""

    way: str
    size: int
    precision: str

    @property
    def num_bytes(self) -> int:
        """Of a stored vector."""
        return math.ceil(self.size * PRECISIONS[self.precision] / 8)


def variants_of(full: int, most: int, sizes: Sequence[int]) -> list[Variant]:
    """The whole vectors, and of every smaller size both ways, in all precisions.

    Args:
        full: E.
        most: directions in which the embeddings vary; larger sizes are not reduced, only cut.
    """
    ways = [("cut", full), *((way, size) for size in sizes if size < full for way in ("cut", "pca"))]
    return [Variant(way, size, precision) for way, size in ways if way == "cut" or size <= most for precision in PRECISIONS]


def smaller(variant: Variant, embeddings: np.ndarray, train: np.ndarray, pca: PrincipalComponents) -> np.ndarray:
    """Embeddings `[N, E]` as a variant stores them, read back as numbers `[N, M]`.

    int8 is read as the middle of its step, and a bit as 1 or -1. Numbers are centred on the training clips first, so that bits
    tell something.

    Args:
        train: rows of the training clips.
        pca: fitted on them.
    """
    vectors = (pca.project(embeddings) if variant.way == "pca" else embeddings)[:, : variant.size]
    vectors = vectors - vectors[train].mean(0)
    if variant.precision == "float32":
        return vectors
    if variant.precision == "binary":
        return np.where(vectors > 0, np.float32(1), np.float32(-1))
    low, high = ranges = np.stack([vectors[train].min(0), vectors[train].max(0)])
    levels = quantize_embeddings(vectors, "uint8", ranges).astype(np.float32)
    return low + (levels + 0.5) * (high - low) / 255


def figures_of(data: TaskData, vectors: np.ndarray, seed: int) -> Iterator[tuple[str, float]]:
    """Names and values of what a task says of vectors `[N, M]` of its clips.

    A classification gives `accuracy`, of a linear probe, and `precision` of `retrieval_precision` among test clips; a
    verification gives `eer`, of cosine scores.
    """
    if data.trials is not None:
        scores = score_trials(CosineBackend(vectors[data.table.rows("train")]), data.trials, vectors)
        yield "eer", eer(data.trials.labels, scores)
        return
    (outcome,) = probe_outcomes(vectors, data, (seed,))
    yield "accuracy", METRICS["accuracy"].compute(outcome.labels, outcome.runs[0])
    test = data.table.rows("test")
    yield "precision", retrieval_precision(vectors[test], data.labels[test])


def retrieval_precision(vectors: np.ndarray, labels: np.ndarray, most: int = NEAREST) -> float:
    """Mean share of a clip's nearest others by cosine that have its label: of as many as have it, `most` at most.

    So 1 is always within reach, however few clips a label has. Clips that are alone with their label are left out.

    Args:
        vectors: `[N, M]`.
        labels: `[N]`, one of them at least twice.
    """
    found, _ = nearest_rows([vectors], vectors, most + 1)
    rows = np.arange(len(vectors))[:, None]
    others = np.stack([row[row != own][:most] for row, own in zip(found, rows)])
    _, label_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    looked_at = np.minimum(counts[label_of] - 1, most)  # [N]
    hits = (labels[others] == labels[rows]) & (np.arange(others.shape[1]) < looked_at[:, None])
    kept = looked_at > 0
    return float((hits.sum(1)[kept] / looked_at[kept]).mean())


def judged(
    tasks: Sequence[TaskData], embeddings: np.ndarray, rows: Mapping[str, int], sizes: Sequence[int], seed: int
) -> list[dict]:
    """One record per variant: what it is, its bytes, and each figure of the tasks that have it.

    Args:
        embeddings: of all clips, `[N, E]`.
        rows: a clip's place -> its row there.
    """
    of_tasks = [np.array([rows[clip.place] for clip in data.table.clips]) for data in tasks]
    used = {
        split: np.concatenate([own[data.table.rows(split)] for own, data in zip(of_tasks, tasks)])
        for split in ("train", "test")
    }
    train = np.setdiff1d(used["train"], used["test"])
    full = embeddings.shape[1]
    pca = fit_pca([embeddings[train]], min(full, len(train) - 1))
    directions = int((pca.variances > 1e-9 * pca.variances[0]).sum())
    records = []
    for variant in variants_of(full, directions, sizes):
        vectors = smaller(variant, embeddings, train, pca)
        found: dict[str, dict[str, float]] = {}
        for data, own in zip(tasks, of_tasks):
            for name, value in figures_of(data, vectors[own], seed):
                found.setdefault(name, {})[data.task.name] = value
        records.append({**asdict(variant), "bytes": variant.num_bytes, "figures": found})
        print(f"{variant.way} {variant.size} {variant.precision}: {', '.join(_cells(records[-1]))}", flush=True)
    return records


def _means(record: dict) -> dict[str, float]:
    return {name: PERCENT * float(np.mean(list(own.values()))) for name, own in record["figures"].items()}


def _cells(record: dict) -> list[str]:
    means = _means(record)
    return [f"{means[name]:.1f}" for name in TITLES if name in means]


def _cells_by_task(name: str, tasks: Sequence[str], record: dict) -> list[str]:
    return [f"{PERCENT * record['figures'][name][task]:.1f}" for task in tasks]


def _table(columns: Sequence[str], records: Sequence[dict], cells: Callable[[dict], list[str]]) -> str:
    """A table with a row per variant, those of most bytes first; `cells` gives what stands in the further columns."""
    in_order = sorted(records, key=lambda record: (-record["bytes"], record["way"]))
    own = [[record["way"], str(record["size"]), record["precision"], str(record["bytes"])] for record in in_order]
    rows = [[*row, *cells(record)] for row, record in zip(own, in_order)]
    return markdown_table(("vector", "numbers", "precision", "bytes", *columns), rows)


def report(found: dict, folder: Path, command: str) -> None:
    """Write the picture, the table of means and one per figure by task of `sizes.json` into a folder."""
    records = found["records"]
    draw_all({"sizes": draw}, records, folder / "pictures")
    over = [f"{TITLES[name].removesuffix(', %')} of {', '.join(own)}" for name, own in found["tasks"].items()]
    answer = [
        f"Embeddings of {found['name']}: whole, cut to their first numbers, and as principal components of training clips.",
        f"Figures are means over tasks: {'; '.join(over)}.",
        "Retrieval precision is the share of a test clip's nearest other test clips that have its label; as many are looked at"
        f" as have it, at most {NEAREST}.",
    ]
    text = [*opening("Small vectors", ("Size against quality", "pictures/sizes.svg"), answer)]
    text += [_table([TITLES[name] for name in found["tasks"]], records, _cells)]
    for name, tasks in found["tasks"].items():
        if len(tasks) > 1:
            title = TITLES[name].removesuffix(", %")
            text += [f"## {title.capitalize()} by task, %", _table(tasks, records, partial(_cells_by_task, name, tasks))]
    write_page(folder / "README.md", "Small vectors", "\n\n".join([*text, made_by(command, "`sizes.json`")]) + "\n")


def draw(records: Sequence[dict]) -> Figure:
    """Quality against bytes, one axes per figure and one line per way and precision."""
    shown = [name for name in TITLES if any(name in record["figures"] for record in records)]
    figure, axes = new_axes(4 * len(shown), 4, columns=len(shown))
    for one, name in zip(axes, shown):
        for way, style in (("cut", "--"), ("pca", "-")):
            for precision, color in zip(PRECISIONS, ("tab:blue", "tab:orange", "tab:green")):
                own = [record for record in records if (record["way"], record["precision"]) == (way, precision)]
                if not own:  # every size is larger than the embeddings' rank
                    continue
                points = [(record["bytes"], _means(record)[name]) for record in own]
                one.plot(*zip(*sorted(points)), style, color=color, marker="o", markersize=3, label=f"{way}, {precision}")
        one.set(xscale="log", xlabel="bytes per vector", title=TITLES[name])
        one.grid(alpha=0.3)
    axes[0].legend(fontsize=7, loc="lower right")
    return figure


@SIZES.main
def main(args: SizesArguments) -> int:
    """The command line."""
    settings = read_sizes(args.recipe)
    out, work = make_folder(settings.out), make_folder(settings.work)
    inspector = corpus_inspector(work)
    tasks = [load_task(*request, inspector=inspector) for request in settings.requests()]
    encoder = WavCSEEncoder(settings.model)
    clips = {clip.place: clip for data in tasks for clip in data.table.clips}
    embedded = embed_clips([encoder], list(clips.values()), store_dir=work / STORE_FOLDER, inspector=inspector)
    if embedded.skipped:
        raise ValueError(f"{len(embedded.skipped)} clips cannot be used; the first: {embedded.skipped[0].reason}")
    rows = {place: row for row, place in enumerate(clips)}
    records = judged(tasks, embedded.tables[encoder.name], rows, settings.sizes, settings.seed)
    kinds = {name: sorted(records[0]["figures"][name]) for name in TITLES if name in records[0]["figures"]}
    found = {**encoder.identity, "name": settings.name, "tasks": kinds, "seed": settings.seed, "records": records}
    write_json(out / "sizes.json", found, indent=1)
    report(found, out, f"python -m wavcse.retrieval.sizes {args.recipe}")
    print(f"{out / 'README.md'}: {len(records)} variants on {len(tasks)} tasks")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
