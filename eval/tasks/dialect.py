"""Dialect recognition (SDR): from which region is the speaker, of speakers that training has not heard."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, Task
from wavcse.eval.tasks.timit import TIMIT

DIALECT = Task(
    name="dialect",
    title="Dialect recognition",
    kind="classification",
    targets=("dialect",),
    split_columns=("split_sdr", "split"),
    metrics=CLASSIFICATION_METRICS,
    benchmark=TIMIT,
)
