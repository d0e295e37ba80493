"""Train a wavCSE embedding on several tasks at once, from the feature cache (Phase 1 of the paper).

    accelerate launch train_accelerate.py conf/quickstart.yaml --out runs/mine

What is trained (the paper, section 3 and Figure 1). For every clip the cache holds the K selected layers of the frozen
upstream, each pooled over time: x_1 .. x_K, of D numbers.

    embedding = FC2(dropout(pool_k(FC1(x_k))))                  D -> 512 -> 2000 numbers, no activation
                                                                (`layer_scaling: standard`: of (x_k - mean_k) / scale_k)
    logits_t  = head_t(dropout(embedding))                      one linear layer for each of T tasks
    loss      = 1/T sum_t w_t CE_t + l1 sum |w| + l2 sum w^2    CE_t: mean over the clips labelled for task t; w: all weights
                                                                (`kind: regression`: 1 - CCC or absolute error in its place)
                (`reconstruction_weight`: + it * mean_kd (x_kd - decoder(embedding)_kd)^2 of the scaled layers)
                (`matryoshka_sizes`: CE_t is the mean over these of CE_t of the embedding's first m numbers, and of all)

The first two lines are `WavCSEDownstream` and `WavCSEHeads` in modeling_wavcse.py; the loss is in `train_step`. Read on from
the inside out: `train_step` (forward, loss, backward, step), `train_epoch`, `train`; then what comes before (`set_up`) and
after it (`finish`).

The run folder receives the resolved configuration, a JSON-lines log, checkpoints, the test figures of the best epoch, and
`hub/`, which `AutoModel.from_pretrained(..., trust_remote_code=True)` loads. A killed run goes on where it was when the same
command is given again, and ends with the same numbers to the bit.
"""

from __future__ import annotations

from wavcse.training.arguments import TRAIN, RunArguments

if __name__ == "__main__":
    TRAIN.answer()  # before the imports below, which take seconds

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data import SPLITS
from wavcse.data.composite import TaskSource, load_composite
from wavcse.data.features import open_cache
from wavcse.data.files import locked, named_errors
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest
from wavcse.modeling_wavcse import IGNORED_LABEL, WavCSEForMultiTask
from wavcse.settings.command import DONE
from wavcse.training.features import FeatureBatch, SplitFeatures, cached_digests, data_fingerprint, open_table
from wavcse.training.heads import (
    Evaluation,
    begin_epoch,
    end_epoch,
    epoch_batches,
    evaluate,
    load_network,
    losses_of,
    model_config,
    new_learner,
    total_loss,
)
from wavcse.training.hub_model import model_on_upstream
from wavcse.training.linear_probe import linear_probes, underfitted
from wavcse.training.run import OTHER_SETTINGS, Learner, Run, new_accelerator
from wavcse.training.start import start_network

NUMBERS = ("ccc", "mae")  # figures of a regression task
PROBE = "linear probe on the layers, validation"


def train_step(accelerator: Accelerator, learner: Learner, batch: FeatureBatch) -> dict[str, Tensor]:
    """One update: forward, loss, backward, step. Returns this process's part of each task's loss.

    The gradient of the penalties is known in closed form: as one of the fast parts it is added after the backward pass.
    """
    args, network = learner.args, learner.network
    with accelerator.autocast():
        output = learner.model(batch.features, batch.rows)  # task -> [n_t, C_t], of the clips that have a label for it
        losses = losses_of(network, output, batch.labels, batch.num_labelled, batch.num_clips)  # task -> CE_t, or of a number
    # Data-parallel training averages gradients over the processes: each one's part counts `num_processes` times.
    loss = accelerator.num_processes * total_loss(losses, args)
    if args.fast_parts:
        accelerator.backward(loss)
        network.add_penalty_gradient(args.l1, args.l2)
    else:
        accelerator.backward(loss + network.penalty(args.l1, args.l2))
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return {task: own.detach() for task, own in losses.items()}


def train_epoch(accelerator: Accelerator, learner: Learner, splits: Mapping[str, SplitFeatures], epoch: int) -> dict:
    """One pass over the training clips, in the order of (seed, epoch), then validation; returns the log's entry.

    Epochs count from 1. A learner that has diverged is marked, see `end_epoch`.
    """
    started = time.perf_counter()
    begin_epoch(accelerator, learner, epoch)
    total, steps = {}, 0
    for batch in epoch_batches(accelerator, learner.args, splits["train"], epoch):
        losses = train_step(accelerator, learner, batch)
        total = {task: total.get(task, 0.0) + losses[task] for task in losses}
        steps += 1
    train_loss = {task: float(accelerator.reduce(own, "sum")) / steps for task, own in total.items()}
    return end_epoch(accelerator, learner, splits, epoch, train_loss, steps, time.perf_counter() - started)


@dataclass
class Data:
    """What a run learns from and, in the main process, the model that it will be saved as."""

    config: WavCSEConfig
    splits: dict[str, SplitFeatures]
    hub_model: WavCSEForMultiTask | None  # on its upstream; only if it will be saved


def train(args: RunArguments) -> dict:
    """Train, or continue, the run that `args` describes.

    Returns:
        The result that is also written to `output_dir/results/phase1.json`: per task the test accuracy and counts, and the
        validation figures of the chosen epoch.

    Raises:
        ValueError: the recipe, the manifests or the cache do not fit, or another run is at work in `output_dir`; nothing has
            been computed or overwritten then.
        FloatingPointError: the training diverged. Of that epoch nothing is kept, and no Hub folder is left.
    """
    accelerator = new_accelerator(args)
    with locked(Path(args.output_dir), holds=accelerator.is_main_process):
        run, data = set_up(args, accelerator)
        run.resume()
        learner = run.learner
        with run.bar(args.num_epochs, "train") as bar:
            for epoch in range(run.num_done + 1, args.num_epochs + 1):
                entry = train_epoch(accelerator, learner, data.splits, epoch)
                if learner.divergence:
                    raise FloatingPointError(f"{args.output_dir}: {learner.divergence}{OTHER_SETTINGS}")
                log_epoch(run, entry, bar)
                run.save_when_due(must=epoch == args.num_epochs)
        return finish(run, data)


def set_up(args: RunArguments, accelerator: Accelerator) -> tuple[Run, Data]:
    """Read the data, build model and optimiser; every mistake in the recipe shows here."""
    cache = open_cache(args.cache_dir)
    composite = load_composite(args.task_sources(), Inspector(cache.folder.parent))
    if accelerator.is_main_process:
        print(composite.class_counts())
    config = model_config(args, cache.key.upstream_config, composite.classes, cache.key.layer_fields, composite.scales)
    digests, hub_model = cached_digests(cache, composite), None
    if accelerator.is_main_process and args.save_hub:
        fields = {**args.model_fields(), **cache.key.layer_fields, "tasks": config.tasks}
        hub_model = model_on_upstream(args.upstream, args.revision, fields, cache, composite.clips[0], digests[0])
    run = Run(args, accelerator, new_learner(args, config, accelerator.device), "epoch")
    what = f"clips or labels of {', '.join(args.tasks)} (or their cache's upstream or pooling)"
    run.prepare(data_fingerprint(cache, digests, composite), what)
    table = open_table(args.features_in, cache, digests, config.selected_layers, accelerator.device)
    splits = {split: SplitFeatures(table, composite, split, accelerator.device) for split in SPLITS}
    learner = run.learner
    if not run.is_begun:  # a checkpoint has it
        start_network(args, learner.network, splits["train"])
    learner.model, learner.optimizer = accelerator.prepare(learner.network, learner.optimizer)
    return run, Data(config, splits, hub_model)


def log_epoch(run: Run, entry: dict, bar: tqdm) -> None:
    """Write the entry to the log, the tracker and the progress bar."""
    accuracy = entry["validation"]["accuracy"]
    scalars = {f"train_loss/{task}": loss for task, loss in entry["train_loss"].items()}
    scalars |= {f"validation_accuracy/{task}": value for task, value in accuracy.items()}
    ccc = entry["validation"].get("ccc", {})
    scalars |= {f"validation_ccc/{task}": value for task, value in ccc.items()}
    run.log(entry, {**scalars, "validation_loss": entry["validation"]["loss"]})
    shown = {task: f"{100 * value:.1f}%" for task, value in accuracy.items()}
    bar.set_postfix({**shown, **{task: f"CCC {value:.2f}" for task, value in ccc.items()}}, refresh=False)
    bar.update()


def finish(run: Run, data: Data) -> dict:
    """Test the best epoch, write the result and the Hub folder, print the table."""
    learner, tasks = run.learner, data.config.tasks
    learner.network.load_state_dict(learner.best_weights)
    training, validation, test = (evaluate(run.accelerator, learner, data.splits[split]) for split in SPLITS)
    probes = probes_of(run.args, data) if run.is_main else {}
    warnings = [_nothing_learnt(run.args, data, task, training) or _behind(task, probes, validation) for task in tasks]
    result = run.write_result(
        "phase1",
        {
            "tasks": {task: _task_result(run.args, data, task, validation, test) for task in tasks},
            "mean_accuracy": {"validation": validation.mean_accuracy, "test": test.mean_accuracy},
            "warnings": [words for words in warnings if words],
            "best_epoch": learner.progress.best_epoch,
            "num_epochs": learner.progress.epoch,
            **({"probe": probes} if probes else {}),
        },
    )
    if run.is_main:
        if data.hub_model is not None:
            load_network(data.hub_model, learner.best_weights)
            with named_errors(run.folder.hub):
                data.hub_model.save_pretrained(run.folder.hub)
        print(table(result))
    run.end()
    return result


def _task_result(args: RunArguments, data: Data, task: str, validation: Evaluation, test: Evaluation) -> dict:
    counts = {split: features.num_labelled(task) for split, features in data.splits.items()}
    if task in validation.ccc:
        figures = {
            name: {"validation": getattr(validation, name)[task], "test": getattr(test, name)[task]} for name in NUMBERS
        }
        return {"kind": "regression", **figures, "num_clips": counts, "protocol": protocol_of(args.task_sources()[task])}
    return {
        "accuracy": {"validation": validation.accuracy[task], "test": test.accuracy[task]},
        "num_classes": len(data.config.tasks[task]["labels"]),
        "num_clips": counts,
        "protocol": protocol_of(args.task_sources()[task]),
    }


def _nothing_learnt(args: RunArguments, data: Data, task: str, training: Evaluation) -> str:
    """A warning where the very clips that the task was trained on are named no better than by chance; else empty."""
    remedies = (
        f"nothing was learnt. Try a smaller learning_rate ({args.learning_rate:g} here) or penalty "
        f"(l1 {args.l1:g}, l2 {args.l2:g}), or more epochs; else look at the labels."
    )
    if task in training.ccc:
        ccc = training.ccc[task]
        return "" if ccc > 0 else f"{task}: CCC {ccc:.3f} on the training clips is no better than a constant: {remedies}"
    accuracy = training.accuracy[task]
    labels = data.splits["train"].labels[task]
    labels = labels[labels != IGNORED_LABEL]
    chance = float(labels.bincount().max()) / len(labels)
    if accuracy > chance:
        return ""
    return (
        f"{task}: {accuracy:.2%} accuracy on the training clips is no better than chance ({chance:.2%}, always naming the "
        f"most frequent class): {remedies}"
    )


def probes_of(args: RunArguments, data: Data) -> dict[str, dict]:
    """Task -> what a linear classifier reads from the layers that the run was trained on; empty where it is not wanted."""
    classes = {task: len(own["labels"]) for task, own in data.config.tasks.items() if own["kind"] == "classification"}
    return linear_probes(data.splits, classes, data.config.selected_layers) if args.probe else {}


def _behind(task: str, probes: Mapping[str, Mapping], validation: Evaluation) -> str:
    """A warning where a linear classifier on the layers names clearly more clips than the trained heads; else empty."""
    words = underfitted(probes[task], validation.accuracy[task]) if task in probes else ""
    return (
        f"{task}: {words}. Try layer_scaling standard, more epochs, another learning_rate, or less dropout." if words else ""
    )


def protocol_of(source: TaskSource) -> str:
    """How the task's corpora were labelled and split, as their manifests say; empty where they say nothing."""
    return ", ".join(sorted({Manifest(path).protocol for path in source.manifests} - {""}))


def table(result: dict) -> str:
    """The final figures as a text table."""
    probes = result.get("probe", {})
    head = f"{'task':<12} {'classes':>7} {'test clips':>10} {'validation':>11} {'test':>8}"
    lines = [head + (f"   {PROBE}: layers together, best layer" if probes else "")]
    for task, figures in result["tasks"].items():
        if figures.get("kind") == "regression":
            lines.append(_numbers_line(task, figures))
            continue
        accuracy = figures["accuracy"]
        lines.append(
            f"{task:<12} {figures['num_classes']:>7} {figures['num_clips']['test']:>10} "
            f"{accuracy['validation']:>11.2%} {accuracy['test']:>8.2%}" + _probe_cells(probes.get(task))
        )
    mean = result["mean_accuracy"]
    lines.append(f"{'mean':<12} {'':>7} {'':>10} {mean['validation']:>11.2%} {mean['test']:>8.2%}")
    lines.append(f"accuracy of epoch {result['best_epoch']}, the best on validation of {result['num_epochs']}")
    lines += [f"warning: {words}" for words in result["warnings"]]
    return "\n".join([*lines, *([result["note"]] if result["note"] else [])])


def _probe_cells(probe: Mapping | None) -> str:
    return f"   {probe['together']:.2%}, {probe['best_layer']:.2%} (layer {probe['layer']})" if probe else ""


def _numbers_line(task: str, figures: Mapping) -> str:
    ccc, mae = figures["ccc"], figures["mae"]
    line = f"{task:<12} {'CCC':>7} {figures['num_clips']['test']:>10} {ccc['validation']:>11.3f} {ccc['test']:>8.3f}"
    return f"{line}  (mean absolute error {mae['validation']:.4g}, {mae['test']:.4g})"


@TRAIN.main
def main(args: RunArguments) -> int:
    """The command line."""
    train(args)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
