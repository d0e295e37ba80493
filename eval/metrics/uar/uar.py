"""Unweighted average recall as a module for `evaluate.load("eval/metrics/uar")`; needs the package `wavcse`, no network."""

import datasets
import evaluate

from wavcse.eval.metrics import classification

INPUTS = """
Args:
    predictions: predicted classes.
    references: true classes.

Returns:
    {"uar": from 0 to 1, greater is better}
"""


class UnweightedAverageRecall(evaluate.Metric):
    """`wavcse.eval.metrics.classification.uar`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(classification.uar.__doc__, "", features, INPUTS)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"uar": classification.uar(references, predictions)}
