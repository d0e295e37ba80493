"""Concordance correlation as a module for `evaluate.load("eval/metrics/ccc")`; needs the package `wavcse`, no network."""

import datasets
import evaluate
import numpy as np

from wavcse.eval.metrics import regression

CITATION = """@article{lin1989concordance,
  title = {A concordance correlation coefficient to evaluate reproducibility},
  author = {Lin, Lawrence I-Kuei},
  journal = {Biometrics},
  volume = {45},
  number = {1},
  pages = {255--268},
  year = {1989}
}"""
INPUTS = """
Args:
    predictions: predicted quantities.
    references: true quantities, on the same scale.

Returns:
    {"ccc": from -1 to 1, greater is better}
"""


class ConcordanceCorrelation(evaluate.Metric):
    """`wavcse.eval.metrics.regression.ccc`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})
        return evaluate.MetricInfo(regression.ccc.__doc__, CITATION, features, INPUTS)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"ccc": regression.ccc(np.asarray(references), np.asarray(predictions))}
