"""One upstream trained on one task with one seed (LASR): a `FinetunedWavCSE` of a single readout, the best step by accuracy.

The classes are read off the mean over the encoder's last frames. Shapes: `N` clips, `C` classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.data.files import digest_of
from wavcse.eval.task import TaskData
from wavcse.finetuned_wavcse import FinetunedWavCSE, FinetunedWavCSEConfig
from wavcse.finetuning.arguments import FinetuneArguments
from wavcse.finetuning.audio import TaskAudio
from wavcse.finetuning.judging import read_clips
from wavcse.finetuning.loop import LoopProgress, Training
from wavcse.finetuning.losses import MultiTaskNetwork
from wavcse.finetuning.start import NO_EMBEDDING
from wavcse.finetuning.streams import TaskBatch
from wavcse.steps.batches import BatchLoader, CropReader
from wavcse.steps.crops import Crop
from wavcse.steps.encoder import new_encoder
from wavcse.steps.freezing import Freeze, Freezing
from wavcse.steps.loop import new_learner, refuse_divergence
from wavcse.training.fast_parts import use_linear
from wavcse.training.run import Run, new_accelerator

TASK = "classes"  # the readout; checkpoints hold its name, whatever the task is called


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
class FinetuneProgress(LoopProgress):
    """How far a run is, and which step validation likes best so far: by accuracy; ties go to the lower loss."""

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


class ClassLoader(BatchLoader):
    """Batches of crops of the task's training clips; those of an update are parts of one batch."""

    @property
    def max_steps(self) -> int:
        """Updates of the whole training."""
        return self.args.max_steps

    def _batch(self, crops: Sequence[Crop]) -> TaskBatch:
        batch = super()._batch(crops)
        count = len(batch.labels)
        return TaskBatch(TASK, batch.groups, {TASK: batch.labels}, {TASK: count}, count, batch.seconds)


@dataclass(frozen=True)
class UpstreamTraining(Training):
    """The training of one upstream with one seed.

    Args:
        data: the task.
        reader: of all its clips.
    """

    data: TaskData
    reader: CropReader

    def look(self) -> dict[str, float]:
        """Accuracy and loss on the validation split; the weights are kept if they are the best so far, and finite."""
        learner, progress, rows = self.run.learner, self.run.learner.progress, self.data.table.rows("validation")
        scores, labels = self.log_posteriors(rows), self.data.labels[rows]
        accuracy = float(np.mean(scores.argmax(axis=1) == labels))
        loss = float(-np.mean(scores[np.arange(len(labels)), labels]))
        refuse_divergence(self.run.accelerator, learner, {"the validation loss": loss})
        if (accuracy, -loss) > (progress.best_accuracy, -progress.best_loss):
            progress.best_step, progress.best_accuracy, progress.best_loss = progress.step, accuracy, loss
            learner.keep_weights()
        return {"validation_accuracy": accuracy, "validation_loss": loss}

    def line(self, trained: Mapping[str, float], found: Mapping[str, float]) -> dict[str, float]:
        """`train_loss` and `train_accuracy` of the crops, and what was found."""
        return {name.removeprefix(f"{TASK}."): value for name, value in trained.items()} | dict(found)

    def log_posteriors(self, rows: np.ndarray) -> np.ndarray:
        """Log posteriors `[len(rows), C]`, float64, of whole clips; they do not depend on the batch."""
        network = self.run.learner.network.eval()
        read = read_clips(network.model, {TASK: rows}, self.reader, batch_seconds=self.run.args.batch_seconds)[TASK]
        logits = torch.cat([read[int(row)].logits for row in rows])
        return log_softmax(logits.double().numpy(), axis=1)


def finetune_upstream(args: FinetuneArguments, upstream: Upstream, audio: TaskAudio, show_progress: bool = True) -> Finetuned:
    """Fine-tune an upstream with one seed, or continue where that was, and predict the test split with the best step.

    Args:
        args: of one run, as `Variant.runs` gives them.

    Raises:
        ValueError: another run is in the folder, no training clip of a class is long enough, or there are several processes.
        FloatingPointError: the training diverged, or too many steps in a row were not finite.
    """
    training = _set_up(args, upstream, audio)
    training.train(show_progress, f"{upstream.name}, seed {args.seed}")
    started = time.monotonic()
    learner = training.run.learner
    _warn_of_chance(training.run, audio.data.classes)
    learner.network.load_state_dict(learner.best_weights)
    scores = training.log_posteriors(audio.data.table.rows("test"))
    return Finetuned(scores, learner.progress, time.monotonic() - started, training.loader.planner.num_too_short)


def _set_up(args: FinetuneArguments, upstream: Upstream, audio: TaskAudio) -> UpstreamTraining:
    accelerator = new_accelerator(args)
    if accelerator.num_processes > 1:
        raise ValueError("fine-tuning runs in one process; start it without `accelerate launch`.")
    data, train = audio.data, audio.data.table.rows("train")
    clips = data.table.clips
    loader = ClassLoader(args, [clips[row] for row in train], data.labels[train], audio.store, upstream.config)
    _check_lengths(loader, data.classes)
    torch.manual_seed(args.seed)
    # Draws the vector of masked frames if there is none.
    encoder = new_encoder(upstream.config, upstream.source, args.fast_parts)
    network = new_classifier(encoder, data.classes, args.seed, args.fast_parts).to(accelerator.device)
    learner = new_learner(args, network)
    learner.model, learner.optimizer = accelerator.prepare(network, learner.optimizer)
    learner.progress = FinetuneProgress()
    run = Run(args, accelerator, learner, "step")
    fingerprint = digest_of([upstream.identity, data.audio_stamp, [manifest.sha256 for manifest in data.manifests]])
    run.prepare(fingerprint, "clips, labels or weights")
    reader = CropReader(clips, audio.store, upstream.config)
    return UpstreamTraining(run, loader, args.validate_every, {TASK: 1.0}, None, data, reader)


def new_classifier(encoder: PreTrainedModel, classes: Sequence[str], seed: int, fast_parts: bool = True) -> MultiTaskNetwork:
    """What is fine-tuned: all of the encoder, and one linear layer on its time means, the same for all encoders of a width."""
    config = FinetunedWavCSEConfig(
        **NO_EMBEDDING,
        upstream_config=encoder.config,
        selected_layers=[encoder.config.num_hidden_layers],
        freeze_upstream=False,
        readouts={TASK: {"kind": "classes", "labels": list(classes)}},
    )
    model = FinetunedWavCSE(config, encoder)
    torch.manual_seed(seed)
    model.readouts[TASK].head.reset_parameters()
    if fast_parts:
        use_linear(model.readouts)
    network = MultiTaskNetwork(model, Freezing(encoder, Freeze(stem=False)), joins_groups=True)
    network.register_load_state_dict_pre_hook(_with_names_of_today)
    return network


def _with_names_of_today(network: nn.Module, state: MutableMapping[str, Any], *_: Any) -> None:
    """Rename the weights in a checkpoint of an earlier version, which called the parts `encoder` and `head`."""
    for before, now in (("encoder.", "model.upstream."), ("head.", f"model.readouts.{TASK}.head.")):
        for name in [name for name in state if name.startswith(before)]:
            state[now + name.removeprefix(before)] = state.pop(name)


def _check_lengths(loader: ClassLoader, classes: Sequence[str]) -> None:
    """ValueError if no crop can be taken of a class, which would be learnt as one that never occurs."""
    is_long = loader.reader.num_samples >= loader.planner.step_samples
    lacking = sorted(set(classes) - {classes[target] for target in loader.targets[is_long]})
    if lacking:
        raise ValueError(f"length_step_s is {loader.args.length_step_s}; no training clip of {lacking} is as long: lower it.")


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
