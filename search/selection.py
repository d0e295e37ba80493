"""Ways to choose layers, each as a plan of fits (`search/runner.py`): the paper's recursion and its rivals.

All train the paper's initial model, a weighted average over the set, from scratch for every set, with one budget. A trial is
what is kept of a fit: its layers, their weights and its figures, or why it diverged. A set that diverged is never taken
before one that did not; a plan that cannot go on without it ends there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from wavcse.search.fit import has_diverged
from wavcse.search.runner import Fit, Plan
from wavcse.training.arguments import RunArguments

RANDOM_SETS = 3  # per size and seed


def layer_fit(args: RunArguments, layers: Sequence[int], seed: int, label: str) -> Fit:
    """The fit of a set of layers, in ascending order, so that equal sets are the same fit."""
    changed = args.with_pooling("weighted_average", {}, selected_layers=sorted(layers), seed=seed)
    return Fit(changed, f"seed {seed}, {label}")


def trial_of(result: Mapping) -> dict:
    """What a search keeps of a fit."""
    if has_diverged(result):
        return {"layers": result["settings"]["selected_layers"], "diverged": result["diverged"]}
    names = ("accuracy", "mean_accuracy", "ccc", "mae")  # the last two where there are numbers
    figures = {
        split: {name: result[split][name] for name in names if name in result[split]} for split in ("validation", "test")
    }
    trial = {"layers": result["settings"]["selected_layers"], "layer_weights": result["layer_weights"]}
    return {**trial, **figures, "best_epoch": result["best_epoch"], "seconds": result["seconds"]}


def accuracy_of(trial: Mapping, split: str = "validation") -> float:
    """The mean of the tasks' accuracies, and of CCCs of numbers; what sets are chosen by is that on the validation clips.

    Diverged is below all.
    """
    return -math.inf if has_diverged(trial) else trial[split]["mean_accuracy"]


def recursion(args: RunArguments, layers: Sequence[int], seed: int) -> Plan:
    """Section 4 of the paper: train, drop the layer with the smallest weight, train again from scratch, down to one layer.

    Returns the trials, from all layers to one, or to one that diverged. Ties drop the highest layer, which is the most
    expensive.
    """
    rounds: list[dict] = []
    remaining = sorted(layers)
    while remaining:
        label = f"round {len(rounds) + 1} of {len(layers)}"
        (result,) = yield [layer_fit(args, remaining, seed, label)]
        rounds.append(trial_of(result))
        if has_diverged(result):
            break
        # Negative layers, so that among equal weights the highest layer is the smallest pair.
        smallest = min(zip(rounds[-1]["layer_weights"], (-layer for layer in remaining)))
        remaining = [layer for layer in remaining if layer != -smallest[1]]
    return rounds


def all_layers(args: RunArguments, layers: Sequence[int], seed: int, sizes: Sequence[int]) -> Plan:
    """Every layer: what leaving any out is to be measured against."""
    results = yield [layer_fit(args, layers, seed, "all layers")]
    return [trial_of(result) for result in results]


def top_weights(args: RunArguments, layers: Sequence[int], seed: int, sizes: Sequence[int]) -> Plan:
    """The k largest weights of the first round: no retraining between removals."""
    (first,) = yield [layer_fit(args, layers, seed, "all layers")]
    if has_diverged(first):
        return [trial_of(first)]
    order = [layer for _, layer in sorted(zip(first["layer_weights"], sorted(layers)), key=lambda pair: (-pair[0], pair[1]))]
    return (yield from _top(args, order, seed, sizes, "top weights"))


def top_single(args: RunArguments, layers: Sequence[int], seed: int, sizes: Sequence[int]) -> Plan:
    """The k layers that are best alone."""
    singles = yield [layer_fit(args, [layer], seed, f"layer {layer} alone") for layer in layers]
    order = [layer for _, layer in sorted(zip(map(accuracy_of, singles), layers), key=lambda pair: (-pair[0], pair[1]))]
    return (yield from _top(args, order, seed, sizes, "top single layers"))


def _top(args: RunArguments, order: Sequence[int], seed: int, sizes: Sequence[int], label: str) -> Plan:
    results = yield [layer_fit(args, order[:size], seed, f"{label}, {size} layers") for size in sizes]
    return [trial_of(result) for result in results]


def greedy(args: RunArguments, layers: Sequence[int], seed: int, sizes: Sequence[int]) -> Plan:
    """Forward selection: add the layer that raises the validation accuracy most, up to the largest size."""
    chosen: list[int] = []
    trials: list[dict] = []
    while len(chosen) < max(sizes):  # every size on the way is trained anyhow; those that were asked for are returned
        left = [layer for layer in layers if layer not in chosen]
        label = f"greedy, layer {len(chosen) + 1} of {max(sizes)}"
        results = yield [layer_fit(args, [*chosen, layer], seed, label) for layer in left]
        best = int(np.argmax([accuracy_of(result) for result in results]))
        chosen.append(left[best])
        trials.append(trial_of(results[best]))
        if has_diverged(results[best]):
            return [trial for trial in trials if len(trial["layers"]) in sizes or has_diverged(trial)]
    return [trial for trial in trials if len(trial["layers"]) in sizes]


def random_sets(args: RunArguments, layers: Sequence[int], seed: int, sizes: Sequence[int]) -> Plan:
    """`RANDOM_SETS` sets of every size, other sets for every seed; a size's sets do not depend on the other sizes."""
    generators = {size: np.random.default_rng([seed, len(layers), size]) for size in sizes}
    sets = [own.permutation(list(layers))[:size].tolist() for size, own in generators.items() for _ in range(RANDOM_SETS)]
    results = yield [layer_fit(args, chosen, seed, f"random, {len(chosen)} layers") for chosen in sets]
    return [trial_of(result) for result in results]


RIVALS: dict[str, Callable[..., Plan]] = {
    "all": all_layers,
    "top_weights": top_weights,
    "top_single": top_single,
    "greedy": greedy,
    "random": random_sets,
}


def fixed_sets(args: RunArguments, sets: Sequence[Sequence[int]], seed: int) -> Plan:
    """Given sets."""
    results = yield [layer_fit(args, chosen, seed, f"consensus, {len(chosen)} layers") for chosen in sets]
    return [trial_of(result) for result in results]


def count_fits(name: str, num_layers: int, sizes: Sequence[int]) -> int:
    """How many fits a plan will want, shared ones counted too."""
    return {
        "recursion": num_layers,
        "all": 1,
        "top_weights": 1 + len(sizes),
        "top_single": num_layers + len(sizes),
        "greedy": sum(num_layers - i for i in range(max(sizes))),
        "random": RANDOM_SETS * len(sizes),
        "consensus": len(sizes),
    }[name]
