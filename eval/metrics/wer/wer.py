"""Word error rate as a module for `evaluate.load("eval/metrics/wer")`; needs `wavcse` and jiwer, no network."""

import datasets
import evaluate

from wavcse.eval.metrics import transcription

INPUTS = """
Args:
    predictions: recognised texts.
    references: true texts.

Returns:
    {"wer": errors of all texts over the words of all references, from 0 on, smaller is better}
"""


class WordErrorRate(evaluate.Metric):
    """`wavcse.eval.metrics.transcription.wer`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(transcription.wer.__doc__, "", features, INPUTS)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"wer": transcription.wer(references, predictions)}
