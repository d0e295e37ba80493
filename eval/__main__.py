"""`python -m wavcse.eval`: read the settings, load, evaluate, show the table; `--help` has an example."""

from __future__ import annotations

import sys

from wavcse.eval.arguments import EVAL, EvalArguments
from wavcse.settings.fields import usable_device


@EVAL.main
def main(arguments: EvalArguments) -> int:
    """Evaluate and print the table; returns 0, or 3 if some clips had to be skipped."""
    # Imported late: a wrong option or path is answered before the libraries are loaded.
    from wavcse.eval.baselines import build_encoders
    from wavcse.eval.evaluation import EvalSettings, corpus_inspector, evaluate
    from wavcse.eval.task import load_task

    inspector = corpus_inspector(arguments.output_dir)
    tasks = [load_task(*request, inspector=inspector) for request in arguments.requests()]
    for data in tasks:
        print(data.training_counts())
    device = usable_device(arguments.device)
    how = {"device": device, "temporal_pooling": arguments.temporal_pooling, "context": arguments.context}
    encoders = build_encoders(arguments.model, arguments.name, arguments.baselines, **how)
    evaluation = evaluate(
        encoders,
        tasks,
        arguments.output_dir,
        EvalSettings(tuple(range(arguments.seed, arguments.seed + arguments.seeds)), arguments.note, arguments.first_s),
        batch_seconds=arguments.batch_seconds,
        device=device,
        overwrite=arguments.overwrite,
        inspector=inspector,
        workers=arguments.workers,
    )
    return evaluation.announce(arguments.output_dir)


if __name__ == "__main__":
    sys.exit(main())
