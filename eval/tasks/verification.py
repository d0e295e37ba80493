"""Speaker verification (SV): are two recordings of one person? PLDA learns what speakers are from others than those tested."""

from wavcse.eval.tasks.definition import WAVCSE_PAPER, Benchmark, Published, Task

VERIFICATION = Task(
    name="verification",
    title="Speaker verification",
    kind="verification",
    targets=("speaker_id",),
    split_columns=("split_sv", "split"),
    metrics=("eer", "min_dcf_01", "min_dcf_05"),
    benchmark=Benchmark(
        corpus="cnceleb1",
        languages="zh",
        protocol="official",
        split_source="the corpus's lists; the validation speakers are ours",
        published={
            "speaker_id": Published("eer", 0.1687, {"i-vector": 0.15, "x-vector": 0.1199}, f"{WAVCSE_PAPER}; Fan et al. 2020")
        },
    ),
)
