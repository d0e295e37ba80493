"""The analyses, one file each, in the order of the report.

A module has `ANALYSIS` (`wavcse.analysis.study.Analysis`). It is loaded when it is asked for: names alone are needed to read a
recipe, and an analysis may need a library that is not installed everywhere.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wavcse.analysis.study import Analysis

ANALYSES: dict[str, str] = {  # name -> module, in the order in which they run and are shown
    "layers": "layers",
    "prosody": "prosody",
    "phones": "phones",
    "discrimination": "discrimination",
    "dimensions": "dimensions",
    "overlap": "overlap",
    "geometry": "geometry",
    "sequence": "sequence",
    "robustness": "robustness",
    "maps": "maps",
    "cost": "cost",
}


def load_analysis(name: str) -> Analysis:
    """The analysis of this name; ImportError, which says what to type, where a library of it is not installed."""
    return import_module(f"{__name__}.{ANALYSES[name]}").ANALYSIS
