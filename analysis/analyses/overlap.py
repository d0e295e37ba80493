"""Do tasks share dimensions? Overlaps of the lists of `dimensions`, beside what chance and another seed give.

Two lists of M of E dimensions share M * M / E by chance; how likely as many or more are, the hypergeometric distribution says.
All pairs of an encoder are corrected together (Holm, Scandinavian Journal of Statistics 6 (1979)). How far the lists of one
task agree from seed to seed is what an overlap of two tasks could reach at most.

Shapes: `E` dimensions, `M` of them in a list, `S` seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import hypergeom

from wavcse.analysis.attribution import LIBRARY
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


def overlaps(records: Sequence[dict]) -> dict[str, Any]:
    """All pairs of tasks of one encoder, from its records of `dimensions`."""
    found = {record["about"]["task"]: record["found"] for record in records}
    pairs = []
    for one, other in combinations(found, 2):
        a, b = found[one], found[other]
        if a["size"] != b["size"]:
            continue
        own = overlap_of(a["lists"][0], b["lists"][0], a["size"])
        shares = [len(set(x) & set(y)) / len(x) for x, y in product(a["lists"], b["lists"])]
        pair = {"tasks": [one, other], "views": [a["view"], b["view"]], "kept": a["kept"], "size": a["size"]}
        pairs.append({**pair, **own._asdict(), "share": own.shared / a["kept"], "share_of_seeds": [min(shares), max(shares)]})
    for pair, corrected in zip(pairs, holm([pair["p"] for pair in pairs])):
        pair["p_holm"] = corrected
    return {"pairs": pairs, "ceilings": {task: _ceiling(own) for task, own in found.items()}}


def _ceiling(found: dict) -> dict[str, Any] | None:
    """How far the lists of one task agree between seeds; None with one seed."""
    shares = [len(set(one) & set(other)) / found["kept"] for one, other in combinations(found["lists"], 2)]
    if not shares:
        return None
    chance = found["kept"] / found["size"]
    return {"value": float(np.mean(shares)), "interval": [min(shares), max(shares)], "n": len(shares), "floor": chance}


def cells(study: Study, settings: OverlapSettings) -> list[Cell]:
    """Every encoder that has several tasks."""
    found = []
    for encoder in study.encoders:
        own = [record for record in study.records["dimensions"].values() if record["about"]["encoder"] == encoder.name]
        if len(own) > 1:
            keys = [record["key"] for record in own]
            found.append(Cell(cell_name(encoder.name), {"encoder": encoder.name}, keys, partial(overlaps, own)))
    return found


# ---- what is shown ----


def answers(records: Sequence[dict]) -> list[str]:
    """Which tasks share more dimensions than chance gives."""
    pairs = [(record["about"]["encoder"], pair) for record in records for pair in record["found"]["pairs"]]
    if not pairs:
        return []
    told = [(name, pair) for name, pair in pairs if pair["p_holm"] < SIGNIFICANT]
    most = sorted(told, key=lambda own: own[1]["p_holm"])[:3]
    words = ", ".join(f"`{name}` {' and '.join(pair['tasks'])} ({pair['shared']} of {pair['kept']})" for name, pair in most)
    ceilings = [own["value"] for record in records for own in record["found"]["ceilings"].values() if own]
    between = f"; two seeds of one task share {100 * float(np.median(ceilings)):.0f} % (median)" if ceilings else ""
    begin = f"{len(told)} of {len(pairs)} pairs of tasks share more dimensions than chance (Holm-corrected{between})"
    return [f"{begin}: {words}." if words else f"{begin}."]


HOW = (
    "Dimensions in the top lists of both tasks; in brackets what chance gives. p: as many or more by chance (hypergeometric), "
    "corrected by Holm over all pairs of the encoder. Over seeds: the smallest and largest share that probes of other seeds "
    "give. Where the two lists are of different layers, the pair says so: a dimension need not mean the same in both."
)


def section(records: Sequence[dict]) -> list[str]:
    """Every pair, and the ceilings."""
    lines, ceilings = [], []
    for record in records:
        name, found = record["about"]["encoder"], record["found"]
        for pair in found["pairs"]:
            views = [view.removeprefix("layer ") for view in pair["views"]]
            low, high = (f"{100 * end:.0f}" for end in pair["share_of_seeds"])
            lines.append(
                [
                    *(name, *pair["tasks"], views[0] if views[0] == views[1] else f"{views[0]} / {views[1]}"),
                    f"{pair['shared']} of {pair['kept']} ({pair['expected']:.1f})",
                    *(f"{100 * pair['share']:.0f} [{low}, {high}]", f"{pair['p']:.2g}"),
                    f"{pair['p_holm']:.2g}{' *' if pair['p_holm'] < SIGNIFICANT else ''}",
                ]
            )
        for task, own in found["ceilings"].items():
            if own:
                low, high = (f"{100 * end:.0f}" for end in own["interval"])
                values = [f"{100 * own['value']:.0f} [{low}, {high}]", str(own["n"]), f"{100 * own['floor']:.0f}"]
                ceilings.append([name, task, *values])
    columns = ["encoder", "task", "other task", "vector", "shared (by chance)", "share, % [over seeds]", "p", "p, Holm"]
    return [
        HOW,
        *(f"![{name}: shared dimensions](pictures/{NAME}_{name}.png)" for name in _drawn(records)),
        markdown_table(columns, lines),
        "The ceiling: lists of one task by probes of different seeds.",
        markdown_table(["encoder", "task", "shared, % [range]", "pairs of seeds", "by chance, %"], ceilings),
    ]


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
