"""One model from the feature table: `fit(table, args)` -> a JSON-able result. What every search is made of.

    args = TRAIN.parse(["conf/quickstart.yaml"])                             # a training recipe
    table = read_table(args)                                                 # search/table.py: features of all layers
    result = fit(table, replace(args, selected_layers=[2, 5], seed=1))       # replace() of dataclasses changes settings
    result["validation"]["mean_accuracy"], result["layer_weights"]

Many of them, stored, resumed, spread over processes or trained together on a GPU: `search/runner.py`.

    results = fit_all([Fit(replace(args, seed=s), f"seed {s}") for s in range(5)], table, FitStore(folder), workers=2)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from accelerate import Accelerator

from wavcse.configuration_wavcse import LAYER_POOLINGS
from wavcse.search.table import SearchTable
from wavcse.search.together import train_epoch_together
from wavcse.train_accelerate import train_epoch
from wavcse.training.arguments import RunArguments
from wavcse.training.features import SplitFeatures
from wavcse.training.heads import Evaluation, evaluate, new_learner
from wavcse.training.run import Learner
from wavcse.training.start import start_network

# Fields of a run's identity that do not reach a fit: where data come from, for which the table's fingerprint stands.
NOT_OF_A_FIT = ("tasks", "cache_dir", "upstream", "revision")
# Settings that may differ between models that train together.
FREE_TOGETHER = ("seed", "learning_rate", "weight_decay", "l1", "l2", "scheduler_patience", "scheduler_factor")

AfterEpoch = Callable[[int, list[float]], None]


def settings_of(args: RunArguments) -> dict:
    """Everything in a recipe that changes a fit on given data, defaults written out."""
    settings = {name: value for name, value in args.identity().items() if name not in NOT_OF_A_FIT}
    settings["num_epochs"] = args.num_epochs
    kwargs = {**LAYER_POOLINGS.get(args.pooling_type, {}), **args.pooling_kwargs}
    losses: dict = {task: loss for task, loss in args.task_losses().items() if loss}  # that are no plain cross-entropy
    losses |= {task: {"kind": "regression", "loss": loss} for task, loss in args.number_losses().items()}
    return {
        **settings,
        "pooling_kwargs": kwargs,
        "loss_weights": args.loss_weights(),
        **({"losses": losses} if losses else {}),
    }


def fit(table: SearchTable, args: RunArguments) -> dict:
    """Train a model as `train_accelerate.py` would, and judge the epoch with the best mean validation accuracy.

    Returns:
        `settings` and `data` (what it was fitted on); `best_epoch`; `validation` and `test`, each with `accuracy` per task,
        their `mean_accuracy` and `is_correct`, task -> a string of 0 and 1 per clip in the order of the split; where there are
        regression tasks `ccc`, which counts in the mean as an accuracy does, `mae` in the unit of the labels, and `outputs`,
        task -> a standardised number per clip;
        `layer_weights`, what the pooling gives each of `selected_layers` (`None` where it has no such weights); `curve`, mean
        validation accuracy per epoch; `seconds`, `device` and `together`, how many models shared these seconds.

    Raises:
        ValueError: the settings are out of range, or name layers that the table does not have.
        FloatingPointError: the fit diverged; the message names its settings.
    """
    result = fit_together(table, [args])[0]
    if has_diverged(result):
        raise FloatingPointError(result["diverged"])
    return result


def has_diverged(result: Mapping) -> bool:
    """Whether a fit of `fit_together` diverged, so that it has no figures."""
    return "diverged" in result


def fit_together(table: SearchTable, many: Sequence[RunArguments], after_epoch: AfterEpoch | None = None) -> list[dict]:
    """`fit` of several models of one shape (`shape_of`), trained in step; they differ from fits one by one in dropout only.

    A model that diverges does not stop the others: in place of figures its result holds `diverged`, the reason, and its
    `curve` ends before that epoch.

    `after_epoch` gets every epoch's number, from 1, and the models' mean validation accuracies, 0 of those that have diverged;
    what it raises ends the fits.
    """
    started = time.perf_counter()
    device = table.features.device
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=many[0].mixed_precision)
    learners, splits = [started_learner(table, args) for args in many], [table.splits(args) for args in many]
    curves = train_learners(accelerator, learners, splits, after_epoch)
    results = []
    for learner, own_splits, curve in zip(learners, splits, curves):
        if learner.divergence:
            results.append({**_diverged(table, learner), "curve": curve, "together": len(many)})
            continue
        learner.network.load_state_dict(learner.best_weights)
        figures = {split: _figures(evaluate(accelerator, learner, own_splits[split])) for split in ("validation", "test")}
        results.append({**_described(table, learner), **figures, "curve": curve, "together": len(many)})
    seconds = round(time.perf_counter() - started, 3)
    return [{**result, "seconds": seconds, "device": str(device)} for result in results]


def started_learner(table: SearchTable, args: RunArguments) -> Learner:
    """A model of the recipe before its first step, with what it starts from in the training clips of the table."""
    learner = new_learner(args, table.config(args), table.features.device)
    train = table.splits(args)["train"]
    start_network(args, learner.network, train, table.scaling_of(args), table.components_of(args))
    return learner


def train_learners(
    accelerator: Accelerator,
    learners: Sequence[Learner],
    splits: Sequence[Mapping[str, SplitFeatures]],
    after_epoch: AfterEpoch | None = None,
) -> list[list[float]]:
    """Train models of one shape in step; returns each one's mean validation accuracies, up to where it diverged."""
    curves: list[list[float]] = [[] for _ in learners]
    for epoch in range(1, learners[0].args.num_epochs + 1):
        # 1 - CCC is no sum over clips, which is what training together adds up.
        if len(learners) == 1 or learners[0].args.number_losses():
            entries = [train_epoch(accelerator, learner, own, epoch) for learner, own in zip(learners, splits)]
        else:
            entries = train_epoch_together(accelerator, learners, splits, epoch)
        for learner, curve, entry in zip(learners, curves, entries):
            if not learner.divergence:
                curve.append(entry["validation"]["mean_accuracy"])
        if all(learner.divergence for learner in learners):
            break
        if after_epoch is not None:
            after_epoch(epoch, [0.0 if own.divergence else curve[-1] for own, curve in zip(learners, curves)])
    return curves


def shape_of(args: RunArguments) -> tuple:
    """Fits with equal shapes can train together."""
    settings = settings_of(args)
    layers, rates = len(settings.pop("selected_layers")), [settings.pop("layer_dropout"), settings.pop("embedding_dropout")]
    fixed = sorted((name, str(value)) for name, value in settings.items() if name not in FREE_TOGETHER)
    # Networks of fast parts each keep their own dropout rate; PyTorch's dropout in a stack has that of the first.
    return layers, *((rate == 0 for rate in rates) if args.fast_parts else rates), *fixed


def _diverged(table: SearchTable, learner: Learner) -> dict:
    settings = settings_of(learner.args)
    named = ", ".join(f"{name} {settings[name]}" for name in ("selected_layers", "pooling_type", "batch_size", *FREE_TOGETHER))
    return {"settings": settings, "data": table.fingerprint, "diverged": f"{learner.divergence} The fit has {named}."}


def _described(table: SearchTable, learner: Learner) -> dict:
    pooling = learner.network.downstream.layer_pooling
    weights = pooling.layer_weights.tolist() if pooling.is_linear else None
    best = {"best_epoch": learner.progress.best_epoch, "layer_weights": weights}
    return {"settings": settings_of(learner.args), "data": table.fingerprint, **best}


def _figures(evaluation: Evaluation) -> dict:
    is_correct = {task: "".join(map(str, values.int().tolist())) for task, values in evaluation.is_correct.items()}
    figures = {"accuracy": evaluation.accuracy, "mean_accuracy": evaluation.mean_accuracy, "is_correct": is_correct}
    if not evaluation.ccc:
        return figures
    outputs = {task: [float(f"{value:.6g}") for value in own.tolist()] for task, own in evaluation.outputs.items()}
    return {**figures, "ccc": evaluation.ccc, "mae": evaluation.mae, "outputs": outputs}
