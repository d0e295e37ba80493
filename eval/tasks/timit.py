"""TIMIT, on which the paper tests gender, age and dialect."""

from wavcse.eval.tasks.definition import WAVCSE_PAPER, Benchmark, Published

_ORIGIN = f"{WAVCSE_PAPER}; Wang and Sun 2024"

TIMIT = Benchmark(
    corpus="timit",
    languages="en",
    protocol="official",
    split_source="the corpus, validation is ours; the paper's figures fit every tenth sentence, speakers shared",
    published={
        "gender": Published("accuracy", 0.9984, {"MLP": 0.98, "LSTM": 0.99}, _ORIGIN),
        "age": Published("mae", 3.79, {"MLP": 6.66, "LSTM": 5.97}, _ORIGIN),
        "dialect": Published("accuracy", 0.5127, {"MLP": 0.16, "LSTM": 0.15}, _ORIGIN),
    },
)
