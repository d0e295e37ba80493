"""Equal error rate as a module for `evaluate.load("eval/metrics/eer")`; needs the package `wavcse`, no network."""

import datasets
import evaluate

from wavcse.eval.metrics import verification

INPUTS = """
Args:
    predictions: scores of trials, higher for more alike.
    references: 1 for trials of the same speaker, 0 for others.

Returns:
    {"eer": from 0 to 1, smaller is better}
"""


class EqualErrorRate(evaluate.Metric):
    """`wavcse.eval.metrics.verification.eer`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(verification.eer.__doc__, "", features, INPUTS)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"eer": verification.eer(references, predictions)}
