"""Valence, activation and dominance (VR, AR, DR) of an utterance, rated from 1 to 5: one layer with three outputs."""

from wavcse.eval.tasks.definition import WAVCSE_PAPER, Benchmark, Published, Task

_ORIGIN = f"{WAVCSE_PAPER}; Messaoudi et al. 2024"

AFFECT = Task(
    name="affect",
    title="Affect",
    kind="regression",
    targets=("valence", "activation", "dominance"),
    split_columns=("split_vad", "split"),
    metrics=("ccc",),
    label_range=(1.0, 5.0),
    benchmark=Benchmark(
        corpus="iemocap",
        languages="en",
        protocol="session-5",
        split_source="ours, tested on the session of SUPERB's fifth fold; the paper does not name its split",
        published={
            "valence": Published("ccc", 0.67, {"LSTM": 0.32, "CNN1D": 0.35}, _ORIGIN),
            "activation": Published("ccc", 0.68, {"LSTM": 0.67, "CNN1D": 0.65}, _ORIGIN),
            "dominance": Published("ccc", 0.59, {"LSTM": 0.53, "CNN1D": 0.53}, _ORIGIN),
        },
    ),
)
