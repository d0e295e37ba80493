"""Several variants of a pre-training recipe, trained, judged as frozen upstreams, and set side by side.

`pretraining/arguments.py` says what a study's file holds and what is left in its folder.
"""

from __future__ import annotations

from wavcse.pretraining.arguments import STUDY, StudyArguments

if __name__ == "__main__":
    STUDY.answer()  # before the imports below, which take seconds

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from multiprocessing import get_context

import torch

from wavcse.data.files import json_text, locked, write_atomically
from wavcse.data.inspection import Inspector
from wavcse.eval.baselines import LAYER_BASELINES, build_encoders
from wavcse.eval.evaluation import EvalSettings, EvaluationSummary, corpus_inspector, evaluate
from wavcse.eval.task import load_task
from wavcse.pretrain_accelerate import data_fingerprint, initial_network, pretrain, start_folder
from wavcse.pretraining.arguments import PretrainArguments
from wavcse.pretraining.clips import PretrainingClips, load_clips, with_label_faults
from wavcse.pretraining.study_config import Study, Variant, read_study
from wavcse.pretraining.study_facts import READOUT, study_facts
from wavcse.pretraining.study_report import write_study_report
from wavcse.pretraining.study_speed import kept_speed
from wavcse.settings.command import DONE, SOME_SKIPPED
from wavcse.settings.fields import usable_device
from wavcse.settings.processes import WorkerPool, end_with_parent
from wavcse.steps.encoder import save_upstream
from wavcse.training.run import RunFolder

UNTRAINED = "untrained"  # in place of a fingerprint of data


def run_study(study: Study, only: Sequence[str] = (), workers: int = 1) -> EvaluationSummary:
    """Train what is not trained yet, judge every variant that is, and write study.json, study.md and study.html.

    Args:
        only: names of the variants to train; empty = all. The others are judged if they are finished.
        workers: how many variants are trained at a time.

    Raises:
        ValueError: settings or data of a variant have changed; another run is at work in the study's folder; a variant could
            not be trained (the others are, and the study is written before this is raised); no variant is finished; or as
            `evaluate`.
    """
    unknown = sorted(set(only) - {variant.name for variant in study.variants})
    if unknown:
        raise ValueError(f"--only: {unknown} are no variants; there are {', '.join(v.name for v in study.variants)}.")
    with locked(study.folder):
        return _run_study(study, only, workers)


def _run_study(study: Study, only: Sequence[str], workers: int) -> EvaluationSummary:
    finished = {variant.name for variant in study.variants if is_finished(variant)}
    wanted = [v for v in study.variants if v.name not in finished and (not only or v.name in only)]
    print(f"{study.path}: {len(study.variants)} variants, {len(finished)} finished, {len(wanted)} to do.", flush=True)
    failures = train_all(wanted, workers)
    there = [v for v in study.variants if v.name in finished or (v in wanted and v.name not in failures)]
    words = " ".join(f"variants.{name}: {failure}" for name, failure in failures.items())
    if not there:
        raise ValueError(words or "no variant is finished.")
    evaluation = judge(study, there)
    if words:
        raise ValueError(words)
    return evaluation


def is_finished(variant: Variant) -> bool:
    """Whether the variant's encoder is there; ValueError if its folder holds another run than the study describes."""
    folder = RunFolder(variant.folder)
    if not (folder.path / "config.yaml").exists():
        return False
    try:
        folder.prepare(variant.args, _fingerprint(variant), data="clips, labels or training")
    except ValueError as error:
        hint = "In a study: give the variant another name, or remove that folder."
        raise ValueError(f"variants.{variant.name}: {error} {hint}") from error
    last = variant.upstream / "preprocessor_config.json" if variant.untrained else folder.results / "pretraining.json"
    return last.exists()


def _fingerprint(variant: Variant) -> str:
    """Of what a variant learns from: clips, labels, and the run that it goes on from."""
    if variant.untrained:
        return UNTRAINED
    args, clips = variant.args, _clips(*_data_of(variant.args))
    targets = with_label_faults(clips, args.missing_label_rate, args.noisy_label_rate, args.seed)
    return data_fingerprint(clips.names, targets.tolist(), start_folder(args.init_from))


def _data_of(args: PretrainArguments) -> tuple[str, ...]:
    fields = (args.data, args.label_column, args.exclude_speakers_of, args.exclude_split_columns, args.audio_dir)
    return tuple(map(json.dumps, fields))  # sources in the recipe's order, which is that of the clips


@lru_cache(maxsize=1)
def _clips(*fields: str) -> PretrainingClips:
    """Most variants of a study share their data."""
    data, label_column, *held_out, audio_dir = map(json.loads, fields)
    return load_clips(PretrainArguments(data=data).clip_sources(), label_column, *held_out, Inspector(audio_dir))


def train_all(variants: Sequence[Variant], workers: int) -> dict[str, str]:
    """Train variants, `workers` at a time; returns those that failed, by name, and why."""
    failures: dict[str, str] = {}

    def finish(name: str, result: Callable[[], object]) -> None:
        failure = _failure(result)
        failures.update({name: failure} if failure else {})
        print(f"{name}: {failure or 'done'}", flush=True)

    for variant in variants:
        if variant.untrained:
            finish(variant.name, partial(_save_untrained, variant))
    with ThreadPoolExecutor(workers) as pool:
        futures = {variant.name: pool.submit(_train, variant, workers) for variant in variants if not variant.untrained}
        try:
            for name, future in futures.items():
                finish(name, future.result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failures


def _save_untrained(variant: Variant) -> None:
    encoder = initial_network(variant.args).encoder
    RunFolder(variant.folder).prepare(variant.args, _fingerprint(variant))
    save_upstream(encoder, variant.upstream)


def _train(variant: Variant, workers: int) -> None:
    """Train in a process of its own, as it would be without a study."""
    threads = max(1, torch.get_num_threads() // workers) if workers > 1 else 0
    with WorkerPool(1, get_context("spawn"), _start_process, (threads,)) as pool:
        pool.submit(pretrain, variant.args).result()


def _start_process(threads: int) -> None:
    end_with_parent()
    if threads:
        torch.set_num_threads(threads)


def _failure(result: Callable[[], object]) -> str:
    """What went wrong, in a line; empty if nothing did. Whatever it was, the other variants go on."""
    try:
        result()
    except BrokenProcessPool:
        return "its process died, perhaps for lack of memory."
    except (ValueError, OSError, FloatingPointError) as error:
        return " ".join(str(error).split())
    except Exception as error:
        traceback.print_exception(error)  # an unexpected error: its traceback says more than one line
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""


def judge(study: Study, variants: Sequence[Variant]) -> EvaluationSummary:
    """Evaluate the upstreams of finished variants and baselines together, measure their speed, write the study's files."""
    settings = study.evaluation
    device = usable_device(settings.device)
    baselines = [name for name in settings.baselines if name not in LAYER_BASELINES]
    encoders = build_encoders(None, None, baselines, device)  # first: the first encoder's records hold more than the others'
    how = {"device": device, "temporal_pooling": settings.temporal_pooling}
    for variant in variants:
        encoders += build_encoders(str(variant.upstream), variant.name, [READOUT], **how)
    inspector = corpus_inspector(settings.output_dir)
    evaluation = evaluate(
        encoders,
        [load_task(*request, inspector=inspector) for request in settings.requests()],
        settings.output_dir,
        EvalSettings(tuple(range(settings.seed, settings.seed + settings.seeds)), settings.note),
        batch_seconds=settings.batch_seconds,
        device=device,
        overwrite=settings.overwrite,
        inspector=inspector,
    )
    upstreams = {variant.name: variant.upstream for variant in variants}
    speed = kept_speed(upstreams, study.folder / "speed.json") if study.measure_speed else None
    facts = study_facts(study, variants, baselines, speed)
    text = json_text(facts, indent=1, ensure_ascii=False) + "\n"
    write_atomically(study.folder / "study.json", text)
    write_study_report(json.loads(text), study.folder)
    return evaluation


@STUDY.main
def main(options: StudyArguments) -> int:
    """The command line; returns 0, or 3 if clips of the evaluation had to be skipped."""
    study = read_study(options.config, options.output_dir)
    evaluation = run_study(study, options.only, options.workers)
    print((study.folder / "study.md").read_text(encoding="utf-8"))
    return SOME_SKIPPED if evaluation.skipped else DONE


if __name__ == "__main__":
    sys.exit(main())
