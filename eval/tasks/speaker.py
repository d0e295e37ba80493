"""Speaker identification (SID): which of the known speakers it is; every speaker is in every split, with other clips."""

from wavcse.eval.task import Task

SPEAKER = Task(
    name="speaker",
    title="Speaker identification",
    label_column="speaker_id",
    split_columns=("split_sid",),
    disjoint_by=None,
)
