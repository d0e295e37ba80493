"""`wavcse analyze`: read the settings, load, embed, run the analyses, write the report; `--help` has an example."""

from __future__ import annotations

from wavcse.analysis.arguments import ANALYZE, AnalyzeArguments, EncoderSettings

if __name__ == "__main__":
    ANALYZE.answer()  # before the imports below, which take seconds

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import torch
from huggingface_hub import constants
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from wavcse.analysis.analyses import ANALYSES, load_analysis
from wavcse.analysis.encoders import MFCCS, AnalyzedEncoder, build_encoder
from wavcse.analysis.report import write_report
from wavcse.analysis.study import Analysis, Study, run_analysis
from wavcse.data.corpus_pass import write_skipped
from wavcse.data.files import locked, make_folder, remove_partials
from wavcse.data.inspection import Inspector
from wavcse.eval.arguments import TaskRequest
from wavcse.eval.embeddings import EmbeddedClips, embed_clips
from wavcse.eval.encoder import SavedModel, check_encoder
from wavcse.eval.evaluation import STORE_FOLDER, EvaluationSummary, corpus_inspector
from wavcse.eval.task import TaskData, load_task
from wavcse.settings.command import DONE
from wavcse.settings.fields import section_from, usable_device
from wavcse.settings.libraries import optional_library

GIGABYTE = 1e9
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_PATIENCE_S = 3.0


def asked_analyses(args: AnalyzeArguments) -> tuple[dict[str, tuple[Analysis, Any]], list[str]]:
    """Name -> analysis and its settings, in the order in which they run; and a word for what has to be left out.

    Raises:
        ValueError: a section has unknown or wrong fields.
        ImportError: an analysis was named whose library is not installed; where none is named, and in a dry run, it is left
            out instead.
    """
    named, found, left_out = args.analyses or {name: {} for name in ANALYSES}, {}, []
    for name in ANALYSES:
        if name not in named:
            continue
        own = load_analysis(name)
        settings = section_from(own.settings, f"analyses.{name}", named[name])
        if own.library and args.analyses and not args.dry_run:
            optional_library(*own.library)
        elif own.library and importlib.util.find_spec(own.library[0]) is None:
            left_out.append(
                f'`{name}` is left out: {own.library[0]} is not installed (pip install "wavcse[{own.library[1]}]").'
            )
            continue
        found[name] = (own, settings)
    while needed := {need for own, _ in found.values() for need in own.needs} - set(found):
        found |= {name: (own := load_analysis(name), own.settings()) for name in needed}
    return {name: found[name] for name in ANALYSES if name in found}, left_out


def built_encoders(args: AnalyzeArguments, device: str) -> tuple[list[AnalyzedEncoder], list[str]]:
    """The encoders, and a word for each that is not on this machine and may be left out.

    Raises:
        ValueError: one that may not be left out cannot be loaded, two share a name, or none is left.
    """
    encoders, left_out = [], []
    for name, settings in args.encoder_settings().items():
        if settings.optional and (absence := _absence(settings.model)):
            left_out.append(f"`{name}` is left out: {settings.model} is {absence}.")
        else:
            encoders.append(build_encoder(name, settings, args.every, args.seed, device))
    names = [own.name for own in encoders]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"The encoders are {names}; at least one is needed, each with its own name.")
    return encoders, left_out


def _absence(model: str) -> str:
    """Why a model cannot be had, in a few words; empty for one on this machine, and for one that the Hub has and answers.

    The Hub is asked for a model only if it has answered once, as a look at each would wait for it again and again.
    """
    if model in MFCCS or _is_here(model):
        return ""
    own = SavedModel.parse(model)
    if Path(model).exists() or not HUB_ID.fullmatch(own.path):
        return "not on this machine"
    if not _hub_answers():
        return "not in the cache, and the Hub cannot be reached"
    try:
        return "" if own.model_type else "no model with a type on the Hub"
    except ValueError:
        return "neither in the cache nor on the Hub"


def _is_here(model: str) -> bool:
    """Whether its configuration and weights are in a folder or in the cache; the Hub is not asked."""
    own = SavedModel.parse(model)
    here = {"revision": own.revision, "local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    try:
        found = [cached_file(own.path, name, **here) for name in (CONFIG_NAME, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)]
    except (OSError, ValueError):  # of a name that is neither a folder nor an id
        return False
    return bool(found[0] and (found[1] or found[2]))


@cache
def _hub_answers() -> bool:
    """Whether the Hub is there, by one quick attempt in the life of the process."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_PATIENCE_S):
            return True
    except HTTPError:  # an answer, too
        return True
    except (OSError, ValueError):
        return False


def loaded_tasks(args: AnalyzeArguments, inspector: Inspector) -> dict[str, TaskData]:
    """Name -> the task, its splits checked. ValueError as `load_task`."""
    return {name: load_task(*request, inspector=inspector) for name, request in args.requests().items()}


def check_disk(encoders: list[AnalyzedEncoder], num_clips: int, disk_gb: float) -> None:
    """ValueError if the vectors of so many clips take more than `disk_gb`."""
    needed_gb = num_clips * sum(own.bytes_per_clip for own in encoders) / GIGABYTE
    if needed_gb > disk_gb:
        raise ValueError(
            f"the vectors of {num_clips:,} clips take {needed_gb:.2g} GB, more than --disk_gb {disk_gb:g}: keep fewer layers "
            "(--every, or `layers:` of an encoder), or allow more."
        )


def study_of(args: AnalyzeArguments, encoders: list[AnalyzedEncoder], show_progress: bool = True) -> Study:
    """Load the tasks and embed their clips, each once.

    Raises:
        ValueError: as `load_task`, `check_encoder`, `check_disk` and `TaskData.keep`.
    """
    folder, inspector = args.output_dir, corpus_inspector(args.output_dir)
    tasks = loaded_tasks(args, inspector)
    for data in tasks.values():
        print(data.training_counts())
    clips = {clip.place: clip for data in tasks.values() for clip in data.table.clips}
    check_disk(encoders, len(clips), args.disk_gb)
    readers = [reader for own in encoders for reader in own.readers]
    for reader in readers:
        check_encoder(reader)
    folder = make_folder(folder)
    remove_partials(folder)
    how = {"workers": args.workers, "device": torch.device(usable_device(args.device)), "first_s": args.first_s}
    where = {"store_dir": folder / STORE_FOLDER, "inspector": inspector, "show_progress": show_progress}
    embedded = embed_clips(readers, list(clips.values()), args.batch_seconds, **where, **how)
    write_skipped(folder / "skipped.csv", embedded.skipped)
    kept, rows = _kept(tasks, embedded, {place: row for row, place in enumerate(clips)})
    device = usable_device(args.device)
    lost = {name: len(data.table.clips) - len(rows[name]) for name, data in tasks.items()}
    how = {"first_s": args.first_s, "note": args.note, "disk_gb": args.disk_gb, "lost": lost, "workers": args.workers}
    return Study(folder, encoders, kept, rows, args.languages(), embedded, args.seed, device, **how)


def _kept(
    tasks: dict[str, TaskData], embedded: EmbeddedClips, row_of: dict[tuple, int]
) -> tuple[dict[str, TaskData], dict[str, np.ndarray]]:
    """The tasks without the clips that could not be embedded, and the rows of the others in the tables."""
    kept, rows = {}, {}
    for name, data in tasks.items():
        of_task = np.array([row_of[clip.place] for clip in data.table.clips])
        usable = embedded.embedded[of_task]
        kept[name], rows[name] = data.keep(usable), of_task[usable]
    return kept, rows


def analyze(args: AnalyzeArguments, show_progress: bool = True) -> int:
    """Run the study and write its report; returns the exit code."""
    analyses, left_out = asked_analyses(args)
    encoders, absent = built_encoders(args, usable_device(args.device))
    for line in (*absent, *left_out):
        print(line)
    with locked(make_folder(args.output_dir)):
        study = study_of(args, encoders, show_progress)
        found = {
            name: (own, run_analysis(study, own, settings, args.overwrite, show_progress))
            for name, (own, settings) in analyses.items()
        }
        text = write_report(study, found, [*absent, *left_out])
    summary = EvaluationSummary([], study.embedded.skipped, f"{text}\n{study.folder}/report.md\n", study.embedded.quiet)
    return summary.announce(study.folder)


@ANALYZE.main
def main(args: AnalyzeArguments) -> int:
    """Analyse, print the answers; returns 0, or 3 if some clips had to be skipped."""
    if args.dry_run:
        return dry_run(args)
    return analyze(args)


def dry_run(args: AnalyzeArguments) -> int:
    """Say which analyses would run on what, what every table is made of, and what is missing."""
    analyses, left_out = asked_analyses(args)
    encoders, requests = args.encoder_settings(), args.requests()
    absences = {name: _absence(own.model) for name, own in encoders.items()}
    print("\n".join([f"analyses: {', '.join(analyses)}", *left_out, "encoders:"]))
    for name, own in encoders.items():
        print(f"  {name}: {_shown(args, own)}{_missing(absences[name], own.made_by)}")
    print("tasks:")
    for name, request in requests.items():
        print(f"  {name}: {_origin(request)}")
        absent = [table for table in request.manifests if not Path(table).is_file()]
        print("".join(f"    MISSING: {table}\n" for table in absent), end="")
        if request.task.note:
            print(f"    {request.task.note}")
    for name, own in args.table_settings().items():
        print(f"{name}: section {own.section}" + (f", layers of the paper: {own.paper_layers}" if own.paper_layers else ""))
        for task in own.tasks:
            print(f"  {task}: {_origin(requests[task])}")
            shown = (
                _shown(args, encoders[one], own.layers.get(task, {}).get(one)) for one in own.encoders.get(task, encoders)
            )
            print(f"    checkpoints and layers: {'; '.join(shown)}")
        if own.missing:
            print(f"  MISSING: {own.missing}")
    return DONE


def _shown(args: AnalyzeArguments, own: EncoderSettings, layer: int | None = None) -> str:
    """The checkpoint of an encoder, and the layer of the paper or all that are kept; MFCCs and words have none."""
    if own.model in MFCCS or own.words:
        return own.model
    kept = f"layers {', '.join(map(str, own.layers)) or f'every {args.every}'}"
    return f"{own.model}, {kept if layer is None else f'layer {layer}'}"


def _missing(absence: str, made_by: str) -> str:
    """What follows an encoder that is not there."""
    made = f"; made by: {made_by}" if made_by else ""
    return f"; MISSING: {absence}{made}" if absence else ""


def _origin(request: TaskRequest) -> str:
    """Title, which names the corpus, files, label and split of a task."""
    task = request.task
    return f"{task.title}; {', '.join(request.manifests)}, label {task.targets[0]}, split by {' or '.join(task.split_columns)}"


if __name__ == "__main__":
    sys.exit(main())
