"""TIMIT, on which the paper tests gender, age and dialect."""

from wavcse.eval.tasks.definition import Benchmark, Published


def timit_benchmark(target: str, published: Published) -> Benchmark:
    """The corpus with the published figures of one of its labels."""
    return Benchmark(
        corpus="timit",
        languages="en",
        protocol="official",
        split_source="the corpus, validation is ours; the paper's figures fit every tenth sentence, speakers shared",
        published={target: published},
    )
