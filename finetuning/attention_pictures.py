"""Pictures of what networks attend to: weights of blocks, and of the frames of a clip of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wavcse.reports.figures import new_axes

FRAME_S = 0.02


def draw_blocks(facts: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """A line per variant and mix: what each block is multiplied with, as the mean over the trainings."""
    figure, (axes,) = new_axes(6.0, 3.2)
    for name in names:
        shares = facts["variants"][name]["block_shares"]
        for mix in shares[0]:
            mean = np.mean([of_run[mix] for of_run in shares], axis=0)
            axes.plot(range(1, len(mean) + 1), mean, marker="o", label=f"{name}: {mix}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("block")
    axes.set_ylabel("weight")
    axes.legend(fontsize="small")
    return figure


def draw_attention(facts: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """A panel per class, a line per variant: the weight of each frame over time, 1 = as much as all frames on average."""
    by_name = {name: next(iter(facts["variants"][name]["attention"].values())) for name in names}
    classes = list(dict.fromkeys(label for own in by_name.values() for label in own))
    figure, panels = new_axes(3.2 * len(classes), 2.8, columns=len(classes))
    for axes, label in zip(panels, classes):
        for name, own in by_name.items():
            weights = np.array(own.get(label, {"weights": []})["weights"])
            if weights.size:
                axes.plot(FRAME_S * np.arange(len(weights)), weights / max(weights.mean(), 1e-12), label=name)
        axes.set_title(label)
        axes.set_xlabel("s")
    panels[0].legend(fontsize="small")
    return figure
