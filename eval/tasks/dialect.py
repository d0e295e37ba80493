"""Dialect recognition (SDR): from which region is the speaker, of speakers that training has not heard."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, WAVCSE_PAPER, Published, Task
from wavcse.eval.tasks.timit import timit_benchmark

DIALECT = Task(
    name="dialect",
    title="Dialect recognition",
    kind="classification",
    targets=("dialect",),
    split_columns=("split_sdr", "split"),
    metrics=CLASSIFICATION_METRICS,
    benchmark=timit_benchmark(
        "dialect", Published("accuracy", 0.5127, {"MLP": 0.16, "LSTM": 0.15}, f"{WAVCSE_PAPER}; Wang and Sun 2024")
    ),
)
