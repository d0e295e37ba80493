"""One network trained on several tasks at once: from a recipe to a folder with its figures and what is kept of it.

config.yaml  log.jsonl  checkpoints/  results/finetuning.json  predictions/  card.md  upstream/  ctc/  hub/
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from wavcse.coattention_wavcse import LayerMix
from wavcse.data.corpus_pass import readable_clips
from wavcse.data.files import digest_of, locked
from wavcse.data.inspection import Inspector
from wavcse.eval.encoder import SavedModel
from wavcse.eval.metrics import METRICS
from wavcse.finetuned_wavcse import LAST, FinetunedWavCSE, FinetunedWavCSEConfig
from wavcse.finetuning.arguments import LOSS, NEWBOB, MultiTaskArguments, without_later
from wavcse.finetuning.attention import block_shares, example_attention
from wavcse.finetuning.card import write_run_card
from wavcse.finetuning.ctc_folder import has_ctc_class, save_ctc
from wavcse.finetuning.folds import fold_record
from wavcse.finetuning.judging import Judged, judged
from wavcse.finetuning.labelled_clips import LabelledClips, labelled_clips, leave_out_unusable
from wavcse.finetuning.loop import LoopProgress, Training
from wavcse.finetuning.losses import MultiTaskNetwork
from wavcse.finetuning.newbob import NewBob
from wavcse.finetuning.predictions import keep_predictions
from wavcse.finetuning.stages import stages_of
from wavcse.finetuning.start import network_config, new_network
from wavcse.finetuning.streams import StreamLoader
from wavcse.finetuning.update import StreamGradients
from wavcse.settings.libraries import optional_library
from wavcse.steps.audio_store import build_store
from wavcse.steps.batches import CropReader
from wavcse.steps.encoder import save_upstream
from wavcse.steps.freezing import Freezing
from wavcse.steps.loop import new_learner, refuse_divergence
from wavcse.training.run import Learner, Run, RunFolder, new_accelerator


@dataclass
class MultiTaskProgress(LoopProgress):
    """How far a run is, which step validation likes best so far, and since when its loss has not fallen."""

    best_score: float = math.inf
    best_loss: float = math.inf
    looks_without_gain: int = 0


@dataclass(frozen=True)
class Prepared(Training):
    """A run with its data and its network."""

    labelled: LabelledClips
    reader: CropReader

    @property
    def model(self) -> FinetunedWavCSE:
        """The network that is trained."""
        return self.run.learner.network.model

    def look(self) -> dict[str, float]:
        """Figures of the validation split by "task.figure"; the weights are kept if they are the best so far."""
        run, args = self.run, self.run.args
        learner, progress = run.learner, run.learner.progress
        average_buffers(run.accelerator, learner.network)
        by_task = judged(self.model, self.labelled.tasks, self.reader, "validation")
        found = {f"{task}.{name}": value for task, own in by_task.items() for name, value in own.figures().items()}
        (found,) = broadcast_object_list([found])  # all processes decide alike
        losses = {task: found[f"{task}.loss"] for task in by_task if not math.isnan(found[f"{task}.loss"])}
        loss = sum(losses.values())
        found[LOSS] = sum(args.learnt_tasks()[task].weight * own for task, own in losses.items())
        refuse_divergence(run.accelerator, learner, {"the validation loss": loss})
        score = score_of(found, args.chosen_by(), loss)
        if isinstance(learner.scheduler, NewBob):
            learner.scheduler.look(score + most_of(args.chosen_by()))
        if score < progress.best_score:
            progress.best_step, progress.best_score = progress.step, score
            learner.keep_weights()
        stalled_by = loss if losses else score
        if stalled_by < progress.best_loss:
            progress.best_loss, progress.looks_without_gain = stalled_by, 0
        else:
            progress.looks_without_gain += 1
        progress.is_stopped = bool(args.patience) and progress.looks_without_gain >= args.patience
        return {name: value for name, value in found.items() if not math.isnan(value)} | {"score": score}

    def line(self, trained: Mapping[str, float], found: Mapping[str, float]) -> dict[str, float]:
        """Figures of training by "task.figure", and those that were found by "validation.task.figure"."""
        return {**trained, **{f"validation.{name}": value for name, value in found.items()}}


def finetune_tasks(args: MultiTaskArguments, show_progress: bool = True) -> dict[str, Any]:
    """Train, or continue, the run that `args` describes; the step that validation likes best is tested and saved.

    A recipe with stages is a run per stage, in folders `stage1`, `stage2`, ... below `output_dir`.

    Returns:
        The result that is also written to `output_dir/results/finetuning.json`; of several stages the last one's.

    Raises:
        ValueError: recipe, manifests or `init_from` do not fit, something leaks between splits, or another run is at work in
            `output_dir`; nothing has been computed or overwritten then.
        FloatingPointError: the training diverged, or too many steps in a row were not finite. Nothing of that is kept.
    """
    if args.stages:
        return finetune_stages(args, show_progress)
    accelerator = new_accelerator(args)
    with locked(Path(args.output_dir), holds=accelerator.is_main_process):
        prepared = set_up(args, accelerator, show_progress)
        prepared.train(show_progress)
        return finish(prepared)


def finetune_stages(args: MultiTaskArguments, show_progress: bool = True) -> dict[str, Any]:
    """Train the stages of `args` that are not finished, one after another; returns the last one's result."""
    stages = stages_of(args)  # every mistake in any of them, before hours of training
    for stage in stages:
        found = None if args.overwrite_output_dir else result_of(stage)
        found = found or finetune_tasks(stage, show_progress)
    return found


def result_of(args: MultiTaskArguments) -> dict[str, Any] | None:
    """What a finished training, or the last of its stages, found; `None` if it is not finished.

    Raises:
        ValueError: what is there is another training than `args` describes.
    """
    if args.stages:
        return result_of(stages_of(args)[-1])
    path = RunFolder(args.output_dir).results / "finetuning.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    mine, theirs = json.loads(json.dumps(args.identity())), without_later(result["config"])
    different = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    if different:
        raise ValueError(
            f"{args.output_dir}: holds a training with other settings ({', '.join(different)}); choose another --out, or pass "
            "--overwrite."
        )
    return result


def set_up(args: MultiTaskArguments, accelerator: Accelerator, show_progress: bool) -> Prepared:
    """Read the data, build network and optimiser; every mistake in the recipe shows here."""
    args.check_sections()
    if any(task.kind == "ctc" for task in args.learnt_tasks().values()):
        optional_library("jiwer", "eval")  # not after hours, when the first texts are judged
    with accelerator.main_process_first():  # it reads every file; the others find what it has noted
        is_main = accelerator.is_main_process
        inspector = Inspector(args.audio_dir)
        labelled = labelled_clips(args, inspector)
        config = network_config(args, {name: task.readout for name, task in labelled.tasks.items()})
        readable, _ = readable_clips(labelled.clips, inspector.inspect(labelled.clips, save=is_main))
        shown = show_progress and is_main
        store = build_store(args.audio_dir, [one.clip.path for one in readable], show_progress=shown, repair=is_main)
    reader = CropReader(labelled.clips, store, config.upstream_config, config.do_normalize)
    leave_out_unusable(labelled, args, reader, config.min_samples)
    started_from = fingerprint(args, labelled)
    model = new_network(args, config, labelled)
    labelled = labelled.only(args.learnt_tasks())
    loader = StreamLoader(args, labelled, reader, config.min_samples, accelerator.process_index, accelerator.num_processes)
    learner = _new_learner(replace(args, max_steps=loader.max_steps), model, accelerator)
    run = Run(args, accelerator, learner, "step")
    run.prepare(started_from, "clips, labels or weights", project="wavcse-finetune")
    if accelerator.is_main_process:
        print(labelled.described())
    weights = {name: task.weight for name, task in args.learnt_tasks().items()}
    gradients_of = StreamGradients(args.gradient_settings())
    every = args.validate_every or loader.steps_per_epoch
    return Prepared(run, loader, every, weights, gradients_of, labelled, reader)


def _new_learner(args: MultiTaskArguments, model: FinetunedWavCSE, accelerator: Accelerator) -> Learner:
    """The network with its optimiser, which has all that is ever trained."""
    freeze = args.freeze_settings()
    network = MultiTaskNetwork(model, Freezing(model.upstream, freeze, frozen_parts(args, model)))
    network.freezing.at(freeze.encoder_until)
    rates = {model.upstream: args.encoder_learning_rate} if args.encoder_learning_rate else {}  # first, see `Training`
    rates |= {model.readouts[name]: own.learning_rate for name, own in args.learnt_tasks().items() if own.learning_rate}
    how = args.newbob_settings()
    newbob = (lambda optimizer: NewBob(optimizer, how.factor, how.threshold)) if args.decay == NEWBOB else None
    learner = new_learner(args, network.to(accelerator.device), rates, newbob)
    learner.optimizer = accelerator.prepare(learner.optimizer)
    learner.progress = MultiTaskProgress()
    return learner


def frozen_parts(args: MultiTaskArguments, model: FinetunedWavCSE) -> list[nn.Module]:
    """What is frozen beside the encoder: heads of tasks that are not learnt, and what else the recipe says."""
    freeze = args.freeze_settings()
    others = [readout for name, readout in model.readouts.items() if name not in args.learnt_tasks()]
    mixes = [module for module in model.modules() if isinstance(module, LayerMix)] if freeze.ari else []
    return [*mixes, *(others if freeze.auxiliary else [readout.head for readout in others])]


def fingerprint(args: MultiTaskArguments, labelled: LabelledClips) -> str:
    """Changes when a clip, a label, a split or the weights that training starts from do."""
    known: list[Any] = [labelled.digests]
    for name, task in labelled.all.items():
        known.append([name, task.labels.tolist(), task.splits.tolist(), task.readout])
    known.append(None if args.start is None else dict(SavedModel.parse(args.start).identity()))
    if args.stage_before is not None:
        known.append(dict(SavedModel.parse(str(args.stage_before / "hub")).identity()))
    return digest_of(known)


def average_buffers(accelerator: Accelerator, network: nn.Module) -> None:
    """Give all processes one set of batch norms: each has seen its own share of the clips."""
    if accelerator.num_processes == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer /= accelerator.num_processes


def score_of(found: Mapping[str, float], weights: Mapping[str, float], loss: float) -> float:
    """What the best step has least of: the weighted sum of figures, less those that are better when greater; or the loss.

    Raises:
        ValueError: a figure cannot be computed of this validation split.
    """
    if not weights:
        return loss
    score = 0.0
    for name, weight in weights.items():
        value = found.get(name, math.nan)
        if math.isnan(value):
            known = ", ".join(one for one, known in found.items() if not math.isnan(known))
            raise ValueError(f"choose: {name} cannot be computed of the validation split, which has {known}.")
        score += -weight * value if _is_better_when_greater(name) else weight * value
    return score


def most_of(weights: Mapping[str, float]) -> float:
    """What makes an error, 0 or greater, of a `score_of`: 1 for each figure that is better when greater, by its weight."""
    greater = [weight for name, weight in weights.items() if _is_better_when_greater(name)]
    return sum(greater)


def _is_better_when_greater(name: str) -> bool:
    figure = name.rpartition(".")[2]
    return figure != LOSS and METRICS[figure].greater_is_better


def finish(prepared: Prepared) -> dict[str, Any]:
    """Test the best step and write what is kept of the run."""
    run, args = prepared.run, prepared.run.args
    progress, model = run.learner.progress, prepared.model
    run.learner.network.load_state_dict(run.learner.best_weights)
    tested = {name: task for name, task in prepared.labelled.all.items() if len(task.rows("test"))}
    by_task = judged(model, tested, prepared.reader, "test")
    result = {}
    if run.is_main:
        log = run.folder.keep_log_until(progress.step, by="step")
        save_all(model, prepared.labelled, run.folder.path)
        attention = example_attention(model, prepared.labelled, prepared.reader)
        keep_predictions(by_task, prepared.labelled, run.folder.path)  # before the result: a result has its predictions
        result = run.write_result(
            "finetuning",
            {
                "tasks": {name: own.records(args.seed) for name, own in by_task.items()},
                "test_loss": {name: own.loss for name, own in by_task.items()},
                "validation": next((entry for entry in log if entry["step"] == progress.best_step), {}),
                "best_step": progress.best_step,
                "steps": progress.step,
                "skipped_steps": progress.skipped,
                "is_stopped_early": progress.is_stopped,
                "left_out": {name: dict(reasons) for name, reasons in prepared.labelled.left_out.items()},
                "clips": {name: _counts(task) for name, task in prepared.labelled.all.items()},
                "num_parameters": model.num_parameters(),
                "block_shares": block_shares(model),
                "attention": attention,
                **fold_record(args),
            },
        )
        write_run_card(run.folder.path, model.config, result)
        print(described(by_task))
    run.end()
    return result


def _counts(task: Any) -> dict[str, int]:
    return {split: len(task.rows(split)) for split in ("train", "validation", "test")}


def described(by_task: Mapping[str, Judged]) -> str:
    """The test split's figures, a line per task."""
    lines = []
    for name, own in by_task.items():
        figures = ", ".join(f"{figure} {value:.4g}" for figure, value in own.figures().items() if not math.isnan(value))
        lines.append(f"{name} (test): {figures}")
    return "\n".join(lines)


def save_all(model: FinetunedWavCSE, labelled: LabelledClips, folder: Path) -> None:
    """Write `hub/`, `upstream/`, and `ctc/` of the first text that one linear layer reads off the last layer.

    transformers has no CTC model on a Whisper encoder, so that there is none.
    """
    config: FinetunedWavCSEConfig = model.config
    model.eval()
    model.save_pretrained(folder / "hub")
    save_upstream(model.upstream, folder / "upstream", config.do_normalize)
    read_last = {name: one for name, one in config.readouts.items() if one["tap"] == LAST and "hidden" not in one}
    texts = [name for name, one in read_last.items() if one["kind"] == "ctc"]
    if texts and has_ctc_class(config.upstream_config):
        head = model.readouts[texts[0]].head
        vocabulary = config.readouts[texts[0]]["vocabulary"]
        save_ctc(folder / "ctc", model.upstream, head, vocabulary, config.do_normalize)
