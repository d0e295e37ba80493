"""Age recognition (SAR): how old is the speaker, in years; of speakers that training has not heard."""

from wavcse.eval.tasks.definition import WAVCSE_PAPER, Published, Task
from wavcse.eval.tasks.timit import timit_benchmark

AGE = Task(
    name="age",
    title="Age recognition",
    kind="regression",
    targets=("age",),
    split_columns=("split_sar", "split"),
    metrics=("mae", "rmse"),
    benchmark=timit_benchmark(
        "age", Published("mae", 3.79, {"MLP": 6.66, "LSTM": 5.97}, f"{WAVCSE_PAPER}; Wang and Sun 2024")
    ),
)
