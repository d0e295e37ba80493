"""Emotion recognition (ER): which emotion is expressed, by speakers that training has not heard. The paper's test is Greek."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, WAVCSE_PAPER, Benchmark, Published, Task

EMOTION = Task(
    name="emotion",
    title="Emotion recognition",
    kind="classification",
    targets=("emotion",),
    split_columns=("split_er", "split"),
    metrics=CLASSIFICATION_METRICS,
    benchmark=Benchmark(
        corpus="aesdd",
        languages="el",
        protocol="speaker-disjoint",
        split_source="ours; the paper's figure fits EmoBox's first fold, 149 clips with speakers shared (paper-guess)",
        published={
            "emotion": Published(
                "accuracy", 0.8926, {"data2vec 2.0": 0.8307, "emotion2vec": 0.8485}, f"{WAVCSE_PAPER}; Ma et al. 2024"
            )
        },
    ),
)
