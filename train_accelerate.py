"""Train a wavCSE embedding on several tasks at once, from the feature cache (Phase 1 of the paper).

    accelerate launch train_accelerate.py conf/quickstart.yaml --output_dir runs/mine

The run folder receives the resolved configuration, a JSON-lines log, checkpoints, the test figures of the best epoch, and
`hub/`, which `AutoModel.from_pretrained(..., trust_remote_code=True)` loads. A killed run goes on where it was when the same
command is given again, and ends with the same numbers to the bit.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import accelerate
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm.auto import tqdm

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data.composite import IGNORED_LABEL, CompositeSet, load_composite
from wavcse.data.features import FeatureCache, open_cache
from wavcse.data.manifest import SPLITS, Clip
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.modeling_wavcse import WavCSEForMultiTask, combine_losses, cross_entropy_per_task
from wavcse.training.arguments import RunArguments, parse_arguments
from wavcse.training.checkpoint import Checkpoint
from wavcse.training.features import Batch, SplitFeatures, cached_digests, epoch_order, open_table
from wavcse.training.network import MultiTaskNetwork, load_network
from wavcse.training.run_folder import RunFolder

EVALUATION_BATCH = 4096  # clips; evaluation keeps no gradients


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint. `epoch` counts finished epochs."""

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -math.inf
    train_seconds: float = 0.0


@dataclass
class Run:
    """Everything the loop works on."""

    args: RunArguments
    accelerator: Accelerator
    folder: RunFolder
    config: WavCSEConfig
    splits: dict[str, SplitFeatures]
    network: MultiTaskNetwork  # the bare one, for penalty and weights
    model: nn.Module  # the one Accelerate prepared (data-parallel with several processes)
    optimizer: Optimizer
    scheduler: ReduceLROnPlateau
    hub_model: WavCSEForMultiTask | None  # on its upstream; only in the main process, and only if it will be saved
    progress: Progress = field(default_factory=Progress)
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def train(args: RunArguments) -> dict:
    """Train, or continue, the run that `args` describes.

    Returns:
        The result that is also written to `output_dir/results/phase1.json`: per task the test accuracy and counts, and the
        validation figures of the chosen epoch.

    Raises:
        ValueError: the recipe, the manifests or the cache do not fit; nothing has been computed or overwritten then.
    """
    run = set_up(args)
    checkpoint = Checkpoint(run.folder.last, run.network, run.optimizer, run.scheduler)
    resume(run, checkpoint)
    epochs = range(run.progress.epoch + 1, args.num_epochs + 1)
    saved_at = time.monotonic()
    with tqdm(epochs, "train", unit="epoch", disable=not run.accelerator.is_main_process) as bar:
        for epoch in bar:
            entry = train_epoch(run, epoch)
            log_epoch(run, entry, bar)
            if epoch == args.num_epochs or time.monotonic() - saved_at >= args.checkpoint_every_s:
                save(run, checkpoint)
                saved_at = time.monotonic()
    return finish(run)


def set_up(args: RunArguments) -> Run:
    """Read the data, build model and optimiser; every mistake in the recipe shows here."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    composite = load_composite(args.task_sources())
    cache = open_cache(args.cache_dir)
    config = model_config(args, cache, composite)
    digests = cached_digests(cache, composite)
    folder, hub_model = RunFolder(args.output_dir), None
    if accelerator.is_main_process:
        if args.save_hub:
            hub_model = load_hub_model(args, config, cache, composite.clips[0], digests[0])
        folder.prepare(args)
    accelerator.wait_for_everyone()
    if args.report_to:
        accelerator.init_trackers("wavcse", config={name: str(value) for name, value in args.identity().items()})
    torch.manual_seed(args.seed)
    network = MultiTaskNetwork(config)
    optimizer = AdamW(network.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    model, optimizer = accelerator.prepare(network, optimizer)
    scheduler = ReduceLROnPlateau(optimizer, "min", factor=args.scheduler_factor, patience=args.scheduler_patience)
    table = open_table(args.features_in, cache, digests, config.selected_layers, accelerator.device)
    splits = {split: SplitFeatures(table, composite, split, accelerator.device) for split in SPLITS}
    bare = accelerator.unwrap_model(model)
    return Run(args, accelerator, folder, config, splits, bare, model, optimizer, scheduler, hub_model)


def model_config(args: RunArguments, cache: FeatureCache, composite: CompositeSet) -> WavCSEConfig:
    """The configuration of the model to train: the recipe's sizes, the cache's upstream, the tasks' labels."""
    weights = args.loss_weights()
    tasks = {
        name: {"kind": "classification", "labels": labels, "loss_weight": weights[name]}
        for name, labels in composite.classes.items()
    }
    return WavCSEConfig(upstream_config=cache.key.upstream_config, **args.model_fields(), tasks=tasks)


def load_hub_model(
    args: RunArguments, config: WavCSEConfig, cache: FeatureCache, clip: Clip, digest: str
) -> WavCSEForMultiTask:
    """The model that will be saved, its upstream proven to be the one that made the cache: by one clip's pooled layers.

    Raises:
        ValueError: it is another one.
    """
    model = WavCSEForMultiTask.from_upstream(args.upstream, **args.model_fields(), tasks=config.tasks, revision=args.revision)
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    inputs = feature_extractor(clip.load(config.sampling_rate), sampling_rate=config.sampling_rate, return_tensors="pt")
    with torch.no_grad():
        pooled = model.wavcse(**inputs).pooled_layers[0].numpy()
    cached = cache.read([digest], config.selected_layers)[0]
    if not np.allclose(pooled, cached, rtol=1e-2, atol=1e-2 * np.abs(cached).max()):
        raise ValueError(
            f"upstream {args.upstream!r} is not the one that made the cache {cache.folder} ({cache.key.upstream}): it gives "
            f"other numbers for {clip.clip_id}. Name that upstream, or build a cache with this one."
        )
    return model


def resume(run: Run, checkpoint: Checkpoint) -> None:
    """Continue from the last checkpoint if there is one, and cut the log back to it."""
    restored = checkpoint.load(run.accelerator.device)
    if restored is not None:
        run.progress, run.best_weights = Progress(**restored[0]), restored[1]
    if run.accelerator.is_main_process:
        run.folder.keep_log_until(run.progress.epoch)


def train_epoch(run: Run, epoch: int) -> dict:
    """One pass over the training clips, then validation; returns the log entry."""
    started = time.perf_counter()
    args, rank, world = run.args, run.accelerator.process_index, run.accelerator.num_processes
    # Dropout draws from here on; a continued run repeats it.
    torch.manual_seed(int(np.random.SeedSequence([args.seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1))
    run.model.train()
    split, steps, totals = run.splits["train"], 0, {}
    order = epoch_order(len(split), args.seed, epoch, args.batch_size, args.drop_last)
    for batch in split.batches(args.batch_size, order, rank, world):
        losses = train_step(run, batch, world)
        totals = {task: totals.get(task, 0.0) + loss for task, loss in losses.items()}
        steps += 1
    train_loss = {task: float(run.accelerator.reduce(total, "sum")) / steps for task, total in totals.items()}
    seconds = time.perf_counter() - started
    validation = evaluate(run, "validation")
    run.scheduler.step(validation["loss"])
    update_progress(run, epoch, validation, seconds)
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "validation": validation,
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "seconds": round(seconds, 4),
        "clips_per_s": round(len(order) / seconds, 1),
    }


def train_step(run: Run, batch: Batch, world: int) -> dict[str, Tensor]:
    """One update; returns this process's part of each task's loss."""
    with run.accelerator.autocast():
        logits = run.model(batch.features)
    losses = cross_entropy_per_task(logits, batch.labels, batch.num_labelled)
    # Data-parallel training averages gradients over the processes: each one's part counts `world` times.
    loss = world * combine_losses(losses, run.args.loss_weights()) + run.network.penalty(run.args.l1, run.args.l2)
    run.accelerator.backward(loss)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return {task: loss.detach() for task, loss in losses.items()}


@torch.no_grad()
def evaluate(run: Run, split: str) -> dict:
    """Loss (with penalties, as it drives the schedule) and per task the accuracy on a split; every process sees all of it."""
    run.network.eval()
    features = run.splits[split]
    logits: dict[str, list[Tensor]] = {task: [] for task in features.labels}
    for batch in features.batches(EVALUATION_BATCH):
        with run.accelerator.autocast():
            for task, values in run.network(batch.features).items():
                logits[task].append(values.float())
    joined = {task: torch.cat(values) for task, values in logits.items()}
    losses = cross_entropy_per_task(joined, features.labels)
    loss = combine_losses(losses, run.args.loss_weights()) + run.network.penalty(run.args.l1, run.args.l2)
    accuracy = {task: _accuracy(joined[task], labels) for task, labels in features.labels.items()}
    return {
        "loss": float(loss),
        "task_loss": {task: float(value) for task, value in losses.items()},
        "accuracy": accuracy,
        "mean_accuracy": sum(accuracy.values()) / len(accuracy),
    }


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    labelled = labels != IGNORED_LABEL
    return (logits.argmax(dim=1)[labelled] == labels[labelled]).double().mean().item()


def update_progress(run: Run, epoch: int, validation: dict, seconds: float) -> None:
    """Count the epoch, and keep its weights if the mean of the validation accuracies is the best so far."""
    run.progress.epoch = epoch
    run.progress.train_seconds += seconds
    if validation["mean_accuracy"] > run.progress.best_accuracy:
        run.progress.best_epoch, run.progress.best_accuracy = epoch, validation["mean_accuracy"]
        run.best_weights = {name: tensor.detach().clone() for name, tensor in run.network.state_dict().items()}


def log_epoch(run: Run, entry: dict, bar: tqdm) -> None:
    """Write the entry to the log, the tracker and the progress bar."""
    if run.accelerator.is_main_process:
        run.folder.append_log(entry)
    accuracy = entry["validation"]["accuracy"]
    if run.args.report_to:
        scalars = {f"train_loss/{task}": loss for task, loss in entry["train_loss"].items()}
        scalars |= {f"validation_accuracy/{task}": value for task, value in accuracy.items()}
        run.accelerator.log({**scalars, "validation_loss": entry["validation"]["loss"]}, step=entry["epoch"])
    bar.set_postfix({task: f"{100 * value:.1f}%" for task, value in accuracy.items()})


def save(run: Run, checkpoint: Checkpoint) -> None:
    """Checkpoint from the main process. No barrier: the processes' clocks differ, so only one of them may get here."""
    if run.accelerator.is_main_process:
        checkpoint.save(vars(run.progress), run.best_weights)


def finish(run: Run) -> dict:
    """Test the best epoch, write the result and the Hub folder, print the table."""
    run.network.load_state_dict(run.best_weights)
    validation, test = evaluate(run, "validation"), evaluate(run, "test")
    result = {
        "tasks": {task: _task_result(run, task, validation, test) for task in run.config.tasks},
        "mean_accuracy": {"validation": validation["mean_accuracy"], "test": test["mean_accuracy"]},
        "best_epoch": run.progress.best_epoch,
        "num_epochs": run.progress.epoch,
        "train_seconds": round(run.progress.train_seconds, 2),
        "num_processes": run.accelerator.num_processes,
        "device": str(run.accelerator.device),
        "note": run.args.note,
        "config": run.args.identity(),
        "versions": versions(),
    }
    if run.accelerator.is_main_process:
        run.folder.write_result("phase1", result)
        if run.hub_model is not None:
            load_network(run.hub_model, run.best_weights)
            run.hub_model.save_pretrained(run.folder.hub)
        print(table(result))
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    return result


def _task_result(run: Run, task: str, validation: dict, test: dict) -> dict:
    counts = {split: features.num_labelled(task) for split, features in run.splits.items()}
    return {
        "accuracy": {"validation": validation["accuracy"][task], "test": test["accuracy"][task]},
        "num_classes": len(run.config.tasks[task]["labels"]),
        "num_clips": counts,
    }


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def table(result: dict) -> str:
    """The final figures as a text table."""
    lines = [f"{'task':<12} {'classes':>7} {'test clips':>10} {'validation':>11} {'test':>8}"]
    for task, figures in result["tasks"].items():
        accuracy = figures["accuracy"]
        lines.append(
            f"{task:<12} {figures['num_classes']:>7} {figures['num_clips']['test']:>10} "
            f"{accuracy['validation']:>11.2%} {accuracy['test']:>8.2%}"
        )
    mean = result["mean_accuracy"]
    lines.append(f"{'mean':<12} {'':>7} {'':>10} {mean['validation']:>11.2%} {mean['test']:>8.2%}")
    lines.append(f"accuracy of epoch {result['best_epoch']}, the best on validation of {result['num_epochs']}")
    return "\n".join([*lines, *([result["note"]] if result["note"] else [])])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 with one line of explanation where the recipe or the data do not fit."""
    try:
        train(parse_arguments(argv))
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
