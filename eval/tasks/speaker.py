"""Speaker identification (SID): which of the known speakers it is; every speaker is in every split, with other clips."""

from wavcse.eval.tasks.definition import CLASSIFICATION_METRICS, WAVCSE_PAPER, Benchmark, Published, Task

SPEAKER = Task(
    name="speaker",
    title="Speaker identification",
    kind="classification",
    targets=("speaker_id",),
    split_columns=("split_sid",),
    metrics=CLASSIFICATION_METRICS,
    disjoint_by=None,
    benchmark=Benchmark(
        corpus="kathbath",
        languages="bn, gu, hi, kn, ml, mr, or, pa, sa, ta, te, ur",
        protocol="official",
        split_source="IndicSUPERB; the paper does not name its list",
        published={
            "speaker_id": Published(
                "accuracy",
                0.9733,
                {"IndicWav2Vec": 0.7926, "Sritharan et al.": 0.9796},
                f"{WAVCSE_PAPER}; Sritharan and Thayasivam 2025",
            )
        },
    ),
)
