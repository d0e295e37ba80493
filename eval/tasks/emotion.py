"""Emotion recognition (ER): which emotion is expressed, by speakers that training has not heard."""

from wavcse.eval.task import Task

EMOTION = Task(
    name="emotion",
    title="Emotion recognition",
    label_column="emotion",
    split_columns=("split_er", "split"),
    disjoint_by="speaker_id",
)
