"""Keyword spotting (KS): which word is spoken, by speakers that training has not heard. The paper's test is Persian."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, WAVCSE_PAPER, Benchmark, Published, Task

KEYWORD = Task(
    name="keyword",
    title="Keyword spotting",
    kind="classification",
    targets=("keyword",),
    split_columns=("split_ks", "split"),
    metrics=CLASSIFICATION_METRICS,
    benchmark=Benchmark(
        corpus="football",
        languages="fa",
        protocol="official",
        split_source="the corpus's folders, which the paper calls standard; validation is ours",
        published={
            "keyword": Published(
                "accuracy", 0.9646, {"ResNet": 0.9588, "EfficientNet": 0.9583}, f"{WAVCSE_PAPER}; Rostami et al. 2022"
            )
        },
    ),
)
