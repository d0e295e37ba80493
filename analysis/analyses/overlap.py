"""Do tasks share dimensions? Overlaps of the lists of `dimensions`, beside what chance and another seed give.

Two lists of M of E dimensions share M * M / E by chance; how likely as many or more are, the hypergeometric distribution says.
The lists of an encoder are all of one vector, the one that most tasks have chosen, as a dimension of another layer is another
one: tasks that have chosen another vector are attributed again at this one. How far the lists of one task agree from seed to
seed is what an overlap of two tasks could reach at most. All pairs of tasks of all encoders are corrected together (Holm,
Scandinavian Journal of Statistics 6 (1979)), and so are all pairs of seeds.

Shapes: `E` dimensions, `M` of them in a list, `S` seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import hypergeom

from wavcse.analysis.analyses.dimensions import DimensionsSettings, Ranker, kept
from wavcse.analysis.analyses.layers import Judge
from wavcse.analysis.attribution import LIBRARY
from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.study import Analysis, Cell, Study, cell_name
from wavcse.reports.figures import heat_map, new_axes
from wavcse.reports.page import markdown_table
from wavcse.settings.fields import CheckedFields

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "overlap"
SIGNIFICANT = 0.05


@dataclass
class OverlapSettings(CheckedFields):
    """There are none."""


class Overlap(NamedTuple):
    """How many dimensions two lists share, how many chance gives, and the probability of as many or more by chance."""

    shared: int
    expected: float
    p: float


def overlap_of(one: Sequence[int], other: Sequence[int], size: int) -> Overlap:
    """Two lists of dimensions, of vectors of `size`; ValueError where a list names one twice or beyond the size."""
    for own in (one, other):
        if len(set(own)) < len(own) or not all(0 <= dimension < size for dimension in own):
            raise ValueError(f"a list of dimensions of {size} must name each once: {sorted(own)[:5]} ...")
    shared = len(set(one) & set(other))
    return Overlap(shared, len(one) * len(other) / size, float(hypergeom.sf(shared - 1, size, len(one), len(other))))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number by Holm's step-down method, in their order."""
    order, corrected, largest = np.argsort(probabilities, kind="stable"), [0.0] * len(probabilities), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * probabilities[index]))
        corrected[index] = largest
    return corrected


def overlaps(lists: Mapping[str, Sequence[Sequence[int]]], size: int, view: str) -> dict[str, Any]:
    """All pairs of tasks of one encoder, and of each task all pairs of seeds.

    Args:
        lists: task -> the list of every seed, all of dimensions of one vector of `size`.
        view: the vector.
    """
    pairs = []
    for one, other in combinations(lists, 2):
        own = overlap_of(lists[one][0], lists[other][0], size)
        shares = [len(set(x) & set(y)) / len(x) for x, y in product(lists[one], lists[other])]
        share = own.shared / len(lists[one][0])
        pairs.append({"tasks": [one, other], **own._asdict(), "share": share, "share_of_seeds": [min(shares), max(shares)]})
    num_kept = len(next(iter(lists.values()))[0])
    ceilings = {task: _ceiling(own, size) for task, own in lists.items()}
    return {"view": view, "size": size, "kept": num_kept, "pairs": pairs, "ceilings": ceilings}


def _ceiling(lists: Sequence[Sequence[int]], size: int) -> dict[str, Any] | None:
    """How far the lists of one task agree between seeds; None with one seed."""
    pairs = []
    for (i, one), (j, other) in combinations(enumerate(lists), 2):
        own = overlap_of(one, other, size)
        pairs.append({"seeds": [i, j], **own._asdict(), "share": own.shared / len(one)})
    if not pairs:
        return None
    shares = [own["share"] for own in pairs]
    summary = {"value": float(np.mean(shares)), "interval": [min(shares), max(shares)], "n": len(pairs)}
    return {**summary, "floor": len(lists[0]) / size, "pairs": pairs}


def shared_view(records: Sequence[dict]) -> str:
    """The vector that most tasks of an encoder have chosen; of equally many the one of the earlier task."""
    return Counter(record["found"]["view"] for record in records).most_common(1)[0][0]


def _compute(study: Study, encoder: AnalyzedEncoder, records: Sequence[dict]) -> dict[str, Any]:
    """Overlaps of one encoder, from its records of `dimensions` and what has to be attributed at another vector."""
    view, lists = shared_view(records), {}
    for record in records:
        task, found = record["about"]["task"], record["found"]
        is_there = found["view"] == view
        lists[task] = found["lists"] if is_there else _lists_at(study, encoder, task, view, record["settings"])
    return overlaps(lists, encoder.size(encoder.view(view)), view)


def _lists_at(study: Study, encoder: AnalyzedEncoder, task: str, view: str, settings: dict) -> list[list[int]]:
    """The lists of a task at a vector, by probes of every seed, made as those of `dimensions`."""
    settings, vectors = DimensionsSettings(**settings), study.vectors(encoder, view, task)
    ranker = Ranker(Judge(study.tasks[task], study.seed), vectors, settings, study.device)
    most, seeds = kept(vectors.shape[1], settings.share), range(study.seed, study.seed + settings.seeds)
    return [ranker.order(ranker.attribution(ranker.probe(seed)))[:most].tolist() for seed in seeds]


def cells(study: Study, settings: OverlapSettings) -> list[Cell]:
    """Every encoder that has several tasks."""
    found = []
    for encoder in study.encoders:
        own = [record for record in study.records["dimensions"].values() if record["about"]["encoder"] == encoder.name]
        if len(own) > 1:
            keys = [record["key"] for record in own]
            compute = partial(_compute, study, encoder, own)
            found.append(Cell(cell_name(encoder.name), {"encoder": encoder.name}, keys, compute))
    return found


# ---- what is shown ----


def corrected(records: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """All pairs of tasks, and all pairs of seeds, of all encoders, each with `encoder` and `p_holm` over its kind."""
    tasks, seeds = [], []
    for record in records:
        about, found = {"encoder": record["about"]["encoder"]}, record["found"]
        tasks += [{**about, "view": found["view"], "kept": found["kept"], **pair} for pair in found["pairs"]]
        for task, own in found["ceilings"].items():
            seeds += [{**about, "task": task, **pair} for pair in (own["pairs"] if own else ())]
    for family in (tasks, seeds):
        for pair, p in zip(family, holm([pair["p"] for pair in family])):
            pair["p_holm"] = p
    return tasks, seeds


def answers(records: Sequence[dict]) -> list[str]:
    """Which tasks share more dimensions than chance gives."""
    pairs, _ = corrected(records)
    if not pairs:
        return []
    told = [pair for pair in pairs if pair["p_holm"] < SIGNIFICANT]
    most = sorted(told, key=lambda pair: pair["p_holm"])[:3]
    words = ", ".join(f"`{own['encoder']}` {' and '.join(own['tasks'])} ({own['shared']} of {own['kept']})" for own in most)
    ceilings = [own["value"] for record in records for own in record["found"]["ceilings"].values() if own]
    between = f"; two seeds of one task share {100 * float(np.median(ceilings)):.0f} % (median)" if ceilings else ""
    begin = (
        f"{len(told)} of {len(pairs)} pairs of tasks, at one vector per encoder, share more dimensions than chance "
        f"(Holm-corrected over all of them{between})"
    )
    return [f"{begin}: {words}." if words else f"{begin}."]


HOW = (
    "Dimensions in the top lists of both tasks; in brackets what chance gives. All lists of an encoder are of one vector, the "
    "one that most tasks have chosen, since a dimension does not mean the same in another; tasks that have chosen another are "
    "attributed again at this one. p: as many or more by chance (hypergeometric), corrected by Holm over all pairs of tasks "
    "of all encoders. Over seeds: the smallest and largest share that probes of other seeds give."
)


def section(records: Sequence[dict]) -> list[str]:
    """Every pair, and the ceilings."""
    pairs, seeds = corrected(records)
    lines = []
    for pair in pairs:
        low, high = (f"{100 * end:.0f}" for end in pair["share_of_seeds"])
        lines.append(
            [
                *(pair["encoder"], *pair["tasks"], pair["view"].removeprefix("layer ")),
                f"{pair['shared']} of {pair['kept']} ({pair['expected']:.1f})",
                *(f"{100 * pair['share']:.0f} [{low}, {high}]", f"{pair['p']:.2g}"),
                f"{pair['p_holm']:.2g}{' *' if pair['p_holm'] < SIGNIFICANT else ''}",
            ]
        )
    columns = ["encoder", "task", "other task", "vector", "shared (by chance)", "share, % [over seeds]", "p", "p, Holm"]
    return [
        HOW,
        *(f"![{name}: shared dimensions](pictures/{NAME}_{name}.png)" for name in _drawn(records)),
        markdown_table(columns, lines),
        "The ceiling: lists of one task by probes of different seeds; p by Holm over all pairs of seeds.",
        _ceiling_table(seeds),
    ]


def _ceiling_table(seeds: Sequence[dict]) -> str:
    lines = []
    for pair in seeds:
        number = " and ".join(map(str, pair["seeds"]))
        words = [f"{pair['shared']} ({pair['expected']:.1f})", f"{100 * pair['share']:.0f}", f"{pair['p']:.2g}"]
        mark = " *" if pair["p_holm"] < SIGNIFICANT else ""
        lines.append([pair["encoder"], pair["task"], number, *words, f"{pair['p_holm']:.2g}{mark}"])
    columns = ["encoder", "task", "seeds", "shared (by chance)", "share, %", "p", "p, Holm"]
    return markdown_table(columns, lines)


def _drawn(records: Sequence[dict]) -> list[str]:
    return [record["about"]["encoder"] for record in records if record["found"]["pairs"]]


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """A map per encoder."""
    return {f"{NAME}_{name}": partial(draw, encoder=name) for name in _drawn(records)}


def draw(records: Sequence[dict], encoder: str) -> Figure:
    """Tasks x tasks: share of dimensions that both lists hold; on the diagonal that of two seeds."""
    found = next(record["found"] for record in records if record["about"]["encoder"] == encoder)
    tasks = list(found["ceilings"])
    values = np.full((len(tasks), len(tasks)), np.nan)
    for pair in found["pairs"]:
        i, j = (tasks.index(task) for task in pair["tasks"])
        values[i, j] = values[j, i] = 100 * pair["share"]
    for place, own in enumerate(found["ceilings"].values()):
        values[place, place] = 100 * own["value"] if own else np.nan
    figure_, (axes,) = new_axes(3 + 0.9 * len(tasks), 2 + 0.6 * len(tasks))
    heat_map(axes, values, values, tasks, tasks, "shared, % (diagonal: two seeds)", ".0f")
    axes.tick_params(axis="x", rotation=30)
    axes.set_title(encoder)
    return figure_


ANALYSIS = Analysis(
    *(NAME, "Overlap: do tasks share dimensions?", OverlapSettings, cells, answers, section, drawings),
    needs=("dimensions",),
    library=LIBRARY,
)
