"""Gender recognition (SGR), of speakers that training has not heard."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, WAVCSE_PAPER, Published, Task
from wavcse.eval.tasks.timit import timit_benchmark

GENDER = Task(
    name="gender",
    title="Gender recognition",
    kind="classification",
    targets=("gender",),
    split_columns=("split_sgr", "split"),
    metrics=CLASSIFICATION_METRICS,
    benchmark=timit_benchmark(
        "gender", Published("accuracy", 0.9984, {"MLP": 0.98, "LSTM": 0.99}, f"{WAVCSE_PAPER}; Wang and Sun 2024")
    ),
)
