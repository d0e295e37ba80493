"""What an encoder achieves in one row of the table: predictions of test clips or trials, and figures with their intervals.

Shapes: `N` test clips or trials, `E` embedding size, `T` targets of a regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from wavcse.eval.metrics import CONFIDENCE, METRICS, NUM_RESAMPLES, bootstrap_interval


@dataclass(frozen=True)
class Outcome:
    """One row of the table for one encoder.

    Args:
        target: label column, or column of the speaker that trials are about.
        labels: true class indices, numbers, or 1/0 of trials, `[N]`.
        runs: predictions `[N]` of one or more seeds; of trials their scores.
        names: columns that say which clip or trial each entry is, `[N]` each.
        groups: column name -> what a bootstrap draws, `[N]`: one column, or two for the speakers of a trial.
        unit: what the groups are: "speaker" or "clip".
        probe: what was fitted and chosen, see `wavcse.eval.probing` and `wavcse.eval.verifying`.
        figures: data of pictures, see `wavcse.eval.figures`.
        others: further figures under names of their own: name -> (metric, runs).
    """

    target: str
    labels: np.ndarray
    runs: Sequence[np.ndarray]
    names: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]
    unit: str
    probe: dict
    figures: dict = field(default_factory=dict)
    others: Mapping[str, tuple[str, Sequence[np.ndarray]]] = field(default_factory=dict)

    def measured(self, metrics: Sequence[str], seed: int) -> dict[str, dict]:
        """Name -> value (mean of the runs), 95 % interval, direction and unit, of the metrics and of `others`."""
        wanted = {name: (name, self.runs) for name in metrics} | dict(self.others)
        return {name: self._measured(metric, runs, seed) for name, (metric, runs) in wanted.items()}

    def _measured(self, name: str, runs: Sequence[np.ndarray], seed: int) -> dict:
        metric = METRICS[name]
        return {
            "value": float(np.mean([metric.compute(self.labels, run) for run in runs])),
            "interval": bootstrap_interval(metric, self.labels, runs, self._units, seed),
            "greater_is_better": metric.greater_is_better,
            "unit": metric.unit,
        }

    @cached_property
    def _units(self) -> np.ndarray:
        """Groups as numbers, `[N]` or `[N, 2]`; one numbering for all columns, in the order of the names."""
        columns = list(self.groups.values())
        units = pd.factorize(np.concatenate(columns), sort=True)[0].reshape(len(columns), -1).T
        return units if len(columns) > 1 else units[:, 0]

    def interval_record(self, seed: int) -> dict:
        """How the intervals were made, and from how many units."""
        return {
            "method": "percentile bootstrap",
            "confidence": CONFIDENCE,
            "resamples": NUM_RESAMPLES,
            "seed": seed,
            "unit": self.unit,
            "units": len(np.unique(self._units)),
        }

    def predictions(self, classes: Sequence[str]) -> pd.DataFrame:
        """The table that is kept: names and groups, label, `prediction_0` ..; classes by name."""

        def shown(values: np.ndarray) -> np.ndarray:
            return np.array(classes, dtype=object)[values] if classes else values

        columns = {**self.names, **self.groups, "label": shown(self.labels)}
        return pd.DataFrame(columns | {f"prediction_{seed}": shown(run) for seed, run in enumerate(self.runs)})
