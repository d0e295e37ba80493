"""What is said and drawn of principal components, from results/pca.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavcse.reports.figures import draw_all, new_axes
from wavcse.reports.page import inert, made_by, markdown_table, opening, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = (1, 2, 5, 10, 20, 50, 100, 128, 200, 256, 500, 512, 1000, 1024, 2000, 2048, 4096)  # sizes that the table shows


def write_report(result: Mapping, folder: Path) -> None:
    """Write `pca.md`, `pca.html` and the picture below `folder`."""
    draw_all({"explained_variance": _explained}, result, folder / "pictures")
    picture = ("Variance that the first components hold", "pictures/explained_variance.png")
    own = inert(result)
    parts = opening("Principal components", picture, [_answer(own)])
    parts += ["## Explained variance", _table(own), made_by("wavcse pca", "results/pca.json")]
    write_page(folder / "pca.md", "Principal components", "\n\n".join(parts) + "\n")


def card_section(result: Mapping) -> str:
    """What the card says of how the model was made."""
    own = inert(result)
    return f"Made without labels, by `wavcse pca`: {_answer(own)}\n\n{_table(own)}"


def _answer(result: Mapping) -> str:
    whitened = f" Each is divided by its deviation to the power of {result['pca_whiten']:g}." if result["pca_whiten"] else ""
    rotated = " A fixed rotation spreads them over all numbers." if result["pca_rotate"] else ""
    return (
        f"The embedding is the first {result['embedding_size']} of {result['rank']} principal components of "
        f"{result['num_clips']} clips: {result['explained_in_all']:.1%} of the variance of their {len(result['layers'])} "
        f"standardised layers side by side, {result['numbers']} numbers, of the upstream {result['upstream']}."
        f"{whitened}{rotated}"
    )


def _table(result: Mapping) -> str:
    held = np.cumsum(result["explained"])
    sizes = sorted({size for size in MARKS if size < len(held)} | {len(held)})
    return markdown_table(["components", "variance held"], [[str(size), f"{held[size - 1]:.1%}"] for size in sizes])


def _explained(result: Mapping) -> Figure:
    held = 100 * np.cumsum(result["explained"])
    figure, (axes,) = new_axes(6, 3.5)
    axes.plot(np.arange(1, len(held) + 1), held, color="black")
    axes.set(xlabel="components", ylabel="variance held in %", xscale="log", ylim=(0, 100))
    axes.grid(alpha=0.3)
    return figure
