"""Age recognition (SAR): how old is the speaker, in years; of speakers that training has not heard."""

from wavcse.eval.tasks.definition import Task
from wavcse.eval.tasks.timit import TIMIT

AGE = Task(
    name="age",
    title="Age recognition",
    kind="regression",
    targets=("age",),
    split_columns=("split_sar", "split"),
    metrics=("mae", "rmse"),
    benchmark=TIMIT,
)
