"""Minimum detection cost as a module for `evaluate.load("eval/metrics/min_dcf")`; needs the package `wavcse`, no network."""

import datasets
import evaluate

from wavcse.eval.metrics import verification

INPUTS = """
Args:
    predictions: scores of trials, higher for more alike.
    references: 1 for trials of the same speaker, 0 for others.
    p_target: prior probability of the same speaker.

Returns:
    {"min_dcf": from 0 to 1, smaller is better}
"""


class MinimumDetectionCost(evaluate.Metric):
    """`wavcse.eval.metrics.verification.min_dcf`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(verification.min_dcf.__doc__, "", features, INPUTS)

    def _compute(self, predictions, references, p_target: float = 0.01) -> dict[str, float]:
        return {"min_dcf": verification.min_dcf(references, predictions, p_target)}
