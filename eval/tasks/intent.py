"""Intent classification (IC): what a spoken command asks for, by speakers that training has not heard."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, WAVCSE_PAPER, Benchmark, Published, Task

INTENT = Task(
    name="intent",
    title="Intent classification",
    kind="classification",
    targets=("intent",),
    split_columns=("split_ic", "split"),
    metrics=CLASSIFICATION_METRICS,
    benchmark=Benchmark(
        corpus="fluent_speech_commands",
        languages="en",
        protocol="official",
        split_source="the corpus's lists; the paper's figure fits 2,693 of 3,793 clips",
        published={
            "intent": Published(
                "accuracy", 0.71, {"HuBERT Large": 0.9876, "WavLM Large": 0.9931}, f"{WAVCSE_PAPER}; Chen et al. 2022"
            )
        },
    ),
)
