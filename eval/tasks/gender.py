"""Gender recognition (SGR), of speakers that training has not heard."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, Task
from wavcse.eval.tasks.timit import TIMIT

GENDER = Task(
    name="gender",
    title="Gender recognition",
    kind="classification",
    targets=("gender",),
    split_columns=("split_sgr", "split"),
    metrics=CLASSIFICATION_METRICS,
    benchmark=TIMIT,
)
