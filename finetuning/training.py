"""One fine-tuning: an encoder and a seed on a task, continued where it was, the best step by validation accuracy.

Shapes: `N` clips, `C` classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import log_softmax
from torch import Tensor
from tqdm.auto import tqdm
from transformers import WavLMConfig

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.data.files import digest_of
from wavcse.eval.task import TaskData
from wavcse.finetuning.arguments import FinetuneArguments
from wavcse.finetuning.audio import TaskAudio, whole_clips
from wavcse.finetuning.network import ClassFigures, ClassifierNetwork, loss_of
from wavcse.steps.batches import BatchLoader, CropReader
from wavcse.steps.encoder import new_encoder
from wavcse.steps.loop import Learner, Progress, new_learner, refuse_divergence, update
from wavcse.training.checkpoint import Checkpoint
from wavcse.training.run_folder import RunFolder


@dataclass(frozen=True)
class Upstream:
    """An encoder before its fine-tuning; what result files say of an encoder.

    Args:
        name: in tables.
        source: folder or Hub id of a WavLM, or of a wavCSE model with one in it.
        config: of the encoder that is trained.
        identity: model and hashes of its weights and configuration.
    """

    name: str
    source: str
    config: WavLMConfig
    identity: Mapping[str, str]
    sampling_rate: int = SAMPLING_RATE_HZ

    @property
    def embedding_size(self) -> int:
        """Width of the vector that the classifier sees."""
        return self.config.hidden_size


@dataclass
class FinetuneProgress(Progress):
    """How far a run is, and which step validation likes best so far: by accuracy; ties go to the lower loss."""

    best_step: int = 0
    best_accuracy: float = -math.inf
    best_loss: float = math.inf


@dataclass(frozen=True)
class Finetuned:
    """What a run gave.

    Attributes:
        scores: log posteriors of the test clips, float64 `[N, C]`.
        progress: the step chosen, and how long training took.
        predict_s: seconds that the test split took.
        num_too_short: training clips that are shorter than `length_step_s`, of which no crop can be taken.
    """

    scores: np.ndarray
    progress: FinetuneProgress
    predict_s: float
    num_too_short: int


@dataclass
class Run:
    """One fine-tuning at work."""

    args: FinetuneArguments
    data: TaskData
    accelerator: Accelerator
    folder: RunFolder
    reader: CropReader
    loader: BatchLoader
    learner: Learner
    checkpoint: Checkpoint
    best: dict[str, Tensor] = field(default_factory=dict)


def finetune_upstream(args: FinetuneArguments, upstream: Upstream, audio: TaskAudio, show_progress: bool = True) -> Finetuned:
    """Fine-tune an upstream with one seed, or continue where that was, and predict the test split with the best step.

    Args:
        args: of one run, see `FinetuneArguments.of_run`.

    Raises:
        ValueError: another run is in the folder, no training clip of a class is long enough, or there are several processes.
        FloatingPointError: the training diverged, or too many steps in a row were not finite.
    """
    run = _set_up(args, upstream, audio)
    _resume(run)
    _train(run, f"{upstream.name}, seed {args.seed}", show_progress)
    started = time.monotonic()
    _warn_of_chance(run)
    run.learner.network.load_state_dict(run.best)
    scores = log_posteriors(run.learner.network, run.reader, run.data.table.rows("test"), args.batch_seconds)
    return Finetuned(scores, run.learner.progress, time.monotonic() - started, run.loader.planner.num_too_short)


def _set_up(args: FinetuneArguments, upstream: Upstream, audio: TaskAudio) -> Run:
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision=args.mixed_precision)
    if accelerator.num_processes > 1:
        raise ValueError("fine-tuning runs in one process; start it without `accelerate launch`.")
    data, train = audio.data, audio.data.table.rows("train")
    clips = data.table.clips
    loader = BatchLoader(args, [clips[row] for row in train], data.labels[train], audio.store, upstream.config)
    _check_lengths(loader, data.classes)
    torch.manual_seed(args.seed)
    encoder = new_encoder(upstream.config, upstream.source)  # draws the vector of masked frames if there is none
    torch.manual_seed(args.seed)  # so that all upstreams start under the same classifier
    network = ClassifierNetwork(encoder, len(data.classes)).to(accelerator.device)
    learner = new_learner(args, network)
    learner.model, learner.optimizer = accelerator.prepare(network, learner.optimizer)
    learner.progress = FinetuneProgress()
    folder = RunFolder(args.output_dir)
    fingerprint = digest_of([upstream.identity, data.audio_stamp, [manifest.sha256 for manifest in data.manifests]])
    folder.prepare(args, fingerprint, "clips, labels or weights")
    checkpoint = Checkpoint(folder.last, network, learner.optimizer, learner.scheduler)
    reader = CropReader(clips, audio.store, upstream.config)
    return Run(args, data, accelerator, folder, reader, loader, learner, checkpoint)


def _check_lengths(loader: BatchLoader, classes: Sequence[str]) -> None:
    """ValueError if no crop can be taken of a class, which would be learnt as one that never occurs."""
    is_long = loader.reader.num_samples >= loader.planner.step_samples
    lacking = sorted(set(classes) - {classes[target] for target in loader.targets[is_long]})
    if lacking:
        raise ValueError(f"length_step_s is {loader.args.length_step_s}; no training clip of {lacking} is as long: lower it.")


def _resume(run: Run) -> None:
    restored = run.checkpoint.load(run.accelerator.device)
    if restored is not None:
        run.learner.progress, run.best = FinetuneProgress(**restored[0]), restored[1]
    run.folder.keep_log_until(run.learner.progress.step, by="step")


def _train(run: Run, words: str, show_progress: bool) -> None:
    args, progress = run.args, run.learner.progress
    clock = saved_at = time.monotonic()
    figures = ClassFigures()
    with tqdm(initial=progress.step, total=args.max_steps, desc=words, unit="step", disable=not show_progress) as bar:
        for batches in run.loader.updates(progress.step):
            update(run.accelerator, run.learner, batches, figures, loss_of)
            bar.update()
            if progress.step % args.validate_every and progress.step < args.max_steps:
                continue
            found = _validate(run)
            now = time.monotonic()
            progress.train_seconds += now - clock
            _log(run, figures, found, now - clock)
            figures, clock = ClassFigures(), now
            bar.set_postfix({name: f"{value:.3g}" for name, value in found.items()})
            if progress.step == args.max_steps or now - saved_at >= args.checkpoint_every_s:
                run.checkpoint.save(vars(progress), run.best)
                saved_at = now


def _validate(run: Run) -> dict[str, float]:
    """Accuracy and loss on the validation split; the weights are kept if they are the best so far, and finite."""
    network, progress, rows = run.learner.network, run.learner.progress, run.data.table.rows("validation")
    scores, labels = log_posteriors(network, run.reader, rows, run.args.batch_seconds), run.data.labels[rows]
    accuracy = float(np.mean(scores.argmax(axis=1) == labels))
    loss = float(-np.mean(scores[np.arange(len(labels)), labels]))
    refuse_divergence(run.accelerator, run.learner, {"the validation loss": loss})
    if (accuracy, -loss) > (progress.best_accuracy, -progress.best_loss):
        progress.best_step, progress.best_accuracy, progress.best_loss = progress.step, accuracy, loss
        run.best = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return {"validation_accuracy": accuracy, "validation_loss": loss}


def _log(run: Run, figures: ClassFigures, found: dict[str, float], seconds: float) -> None:
    progress = run.learner.progress
    entry = {"step": progress.step, **figures.entry(), **found, "learning_rate": run.learner.scheduler.get_last_lr()[0]}
    entry |= {"skipped_steps": progress.skipped, "seconds": round(seconds, 3)}
    run.folder.append_log(entry | {"audio_s_per_s": round(figures.audio_s / max(seconds, 1e-9), 1)})


def _warn_of_chance(run: Run) -> None:
    """Say so where the last crops that were trained on are named no better than by chance; batches share classes evenly."""
    last, num_classes = run.folder.keep_log_until(run.learner.progress.step, by="step")[-1], len(run.data.classes)
    accuracy = last.get("train_accuracy", 0.0)
    if accuracy * num_classes <= 1:
        tqdm.write(
            f"warning: {run.folder.path}: {accuracy:.2%} accuracy on the last training crops is no better than chance "
            f"({1 / num_classes:.2%} of {num_classes} classes): nothing was learnt. Try a smaller learning_rate "
            f"({run.args.learning_rate:g} here) or more steps."
        )


@torch.inference_mode()
def log_posteriors(network: ClassifierNetwork, reader: CropReader, rows: np.ndarray, batch_seconds: float) -> np.ndarray:
    """Log posteriors `[len(rows), C]`, float64, of whole clips.

    Clips of one length go together; nothing is padded, so a clip's logits do not depend on its batch.
    """
    network.eval()
    device = network.head.weight.device
    logits = np.empty((len(rows), network.head.out_features))
    for places, group in whole_clips(reader, rows, batch_seconds):
        logits[places] = network.logits([group.to(device)]).cpu().numpy()
    return log_softmax(logits, axis=1)
