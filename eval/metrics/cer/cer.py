"""Character error rate as a module for `evaluate.load("eval/metrics/cer")`; needs `wavcse` and jiwer, no network."""

import datasets
import evaluate

from wavcse.eval.metrics import transcription

INPUTS = """
Args:
    predictions: recognised texts.
    references: true texts.

Returns:
    {"cer": errors of all texts over the characters of all references, from 0 on, smaller is better}
"""


class CharacterErrorRate(evaluate.Metric):
    """`wavcse.eval.metrics.transcription.cer`."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(transcription.cer.__doc__, "", features, INPUTS)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"cer": transcription.cer(references, predictions)}
