"""Speech recognition (ASR): what is said, as text; of sentences by speakers that training has not heard."""

from wavcse.eval.tasks.definition import Benchmark, Task

TRANSCRIPTION = Task(
    name="transcription",
    title="Speech recognition",
    kind="transcription",
    targets=("text",),
    split_columns=("split_asr", "split"),
    metrics=("wer", "cer"),
    benchmark=Benchmark(
        corpus="librispeech",
        languages="en",
        protocol="other",
        split_source="the corpus's dev-other and test-other",
        published={},
    ),
)
