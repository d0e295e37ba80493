"""Language identification (SLI): which language is spoken, by speakers that training has not heard."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, WAVCSE_PAPER, Benchmark, Published, Task

LANGUAGE = Task(
    name="language",
    title="Language identification",
    kind="classification",
    targets=("language",),
    split_columns=("split_sli", "split"),
    metrics=CLASSIFICATION_METRICS,
    benchmark=Benchmark(
        corpus="voxforge",
        languages="de, en, es, fr, it, ru",
        protocol="speaker-disjoint",
        split_source="ours; none is published, and the paper does not name its own",
        published={
            "language": Published(
                "accuracy", 0.9923, {"1D ConvNet": 0.9370, "2D ConvNet": 0.9430}, f"{WAVCSE_PAPER}; Sarthak et al. 2019"
            )
        },
    ),
)
