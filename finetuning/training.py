"""One fine-tuning: an encoder and a seed on a task, continued where it was, the best step by validation accuracy.

Shapes: `N` clips, `C` classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import log_softmax
from tqdm.auto import tqdm
from transformers import PretrainedConfig

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.data.files import digest_of
from wavcse.eval.task import TaskData
from wavcse.finetuning.arguments import FinetuneArguments
from wavcse.finetuning.audio import TaskAudio, whole_clips
from wavcse.finetuning.network import ClassFigures, ClassifierNetwork, loss_of
from wavcse.steps.batches import BatchLoader, CropReader
from wavcse.steps.encoder import new_encoder
from wavcse.steps.loop import StepProgress, new_learner, refuse_divergence, update
from wavcse.training.run import Run, new_accelerator


@dataclass(frozen=True)
class Upstream:
    """An encoder before its fine-tuning; what result files say of an encoder.

    Args:
        name: in tables.
        source: folder or Hub id of a WavLM, wav2vec2 or HuBERT, or of a wavCSE model with one in it.
        config: of the encoder that is trained.
        identity: model and hashes of its weights and configuration.
    """

    name: str
    source: str
    config: PretrainedConfig
    identity: Mapping[str, str]
    sampling_rate: int = SAMPLING_RATE_HZ

    @property
    def embedding_size(self) -> int:
        """Width of the vector that the classifier sees."""
        return self.config.hidden_size


@dataclass
class FinetuneProgress(StepProgress):
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


def finetune_upstream(args: FinetuneArguments, upstream: Upstream, audio: TaskAudio, show_progress: bool = True) -> Finetuned:
    """Fine-tune an upstream with one seed, or continue where that was, and predict the test split with the best step.

    Args:
        args: of one run, as `Variant.runs` gives them.

    Raises:
        ValueError: another run is in the folder, no training clip of a class is long enough, or there are several processes.
        FloatingPointError: the training diverged, or too many steps in a row were not finite.
    """
    run, loader = _set_up(args, upstream, audio)
    reader = CropReader(audio.data.table.clips, audio.store, upstream.config)
    run.resume()
    learner, progress, figures = run.learner, run.learner.progress, ClassFigures()
    with run.bar(args.max_steps, f"{upstream.name}, seed {args.seed}", show_progress) as bar:
        for batches in loader.updates(progress.step):
            update(run.accelerator, learner, batches, figures, loss_of)
            bar.update()
            is_last = progress.step == args.max_steps
            if progress.step % args.validate_every and not is_last:
                continue
            found = _validate(run, audio.data, reader)
            _log(run, figures, found, run.lap())
            figures = ClassFigures()
            bar.set_postfix({name: f"{value:.3g}" for name, value in found.items()})
            run.save_when_due(must=is_last)
    started = time.monotonic()
    _warn_of_chance(run, audio.data.classes)
    learner.network.load_state_dict(learner.best_weights)
    scores = log_posteriors(learner.network, reader, audio.data.table.rows("test"), args.batch_seconds)
    return Finetuned(scores, progress, time.monotonic() - started, loader.planner.num_too_short)


def _set_up(args: FinetuneArguments, upstream: Upstream, audio: TaskAudio) -> tuple[Run, BatchLoader]:
    accelerator = new_accelerator(args)
    if accelerator.num_processes > 1:
        raise ValueError("fine-tuning runs in one process; start it without `accelerate launch`.")
    data, train = audio.data, audio.data.table.rows("train")
    clips = data.table.clips
    loader = BatchLoader(args, [clips[row] for row in train], data.labels[train], audio.store, upstream.config)
    _check_lengths(loader, data.classes)
    torch.manual_seed(args.seed)
    # Draws the vector of masked frames if there is none.
    encoder = new_encoder(upstream.config, upstream.source, args.fast_parts)
    torch.manual_seed(args.seed)  # so that all upstreams start under the same classifier
    network = ClassifierNetwork(encoder, len(data.classes), args.fast_parts).to(accelerator.device)
    learner = new_learner(args, network)
    learner.model, learner.optimizer = accelerator.prepare(network, learner.optimizer)
    learner.progress = FinetuneProgress()
    run = Run(args, accelerator, learner, "step")
    fingerprint = digest_of([upstream.identity, data.audio_stamp, [manifest.sha256 for manifest in data.manifests]])
    run.prepare(fingerprint, "clips, labels or weights")
    return run, loader


def _check_lengths(loader: BatchLoader, classes: Sequence[str]) -> None:
    """ValueError if no crop can be taken of a class, which would be learnt as one that never occurs."""
    is_long = loader.reader.num_samples >= loader.planner.step_samples
    lacking = sorted(set(classes) - {classes[target] for target in loader.targets[is_long]})
    if lacking:
        raise ValueError(f"length_step_s is {loader.args.length_step_s}; no training clip of {lacking} is as long: lower it.")


def _validate(run: Run, data: TaskData, reader: CropReader) -> dict[str, float]:
    """Accuracy and loss on the validation split; the weights are kept if they are the best so far, and finite."""
    learner, progress, rows = run.learner, run.learner.progress, data.table.rows("validation")
    scores, labels = log_posteriors(learner.network, reader, rows, run.args.batch_seconds), data.labels[rows]
    accuracy = float(np.mean(scores.argmax(axis=1) == labels))
    loss = float(-np.mean(scores[np.arange(len(labels)), labels]))
    refuse_divergence(run.accelerator, learner, {"the validation loss": loss})
    if (accuracy, -loss) > (progress.best_accuracy, -progress.best_loss):
        progress.best_step, progress.best_accuracy, progress.best_loss = progress.step, accuracy, loss
        learner.keep_weights()
    return {"validation_accuracy": accuracy, "validation_loss": loss}


def _log(run: Run, figures: ClassFigures, found: dict[str, float], seconds: float) -> None:
    progress = run.learner.progress
    entry = {"step": progress.step, **figures.entry(), **found, "learning_rate": run.learner.scheduler.get_last_lr()[0]}
    entry |= {"skipped_steps": progress.skipped, "seconds": round(seconds, 3)}
    run.log(entry | {"audio_s_per_s": round(figures.audio_s / max(seconds, 1e-9), 1)})


def _warn_of_chance(run: Run, classes: Sequence[str]) -> None:
    """Say so where the last crops that were trained on are named no better than by chance; batches share classes evenly."""
    last, num_classes = run.folder.keep_log_until(run.num_done, by="step")[-1], len(classes)
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
