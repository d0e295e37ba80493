"""Keyword spotting (KS): which word is spoken, by speakers that training has not heard."""

from wavcse.eval.task import Task

KEYWORD = Task(
    name="keyword",
    title="Keyword spotting",
    label_column="keyword",
    split_columns=("split_ks", "split"),
    disjoint_by="speaker_id",
)
