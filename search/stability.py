"""What several seeds of the layer recursion agree on, and which set is best against their spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy.stats import binomtest, kendalltau, norm, spearmanr, t

ERROR_RATE = 0.05


def removal_ranks(rounds: Sequence[Mapping]) -> dict[int, int]:
    """Layer -> the round that it was dropped after, from 1; the last layer has rank L."""
    ranks = {}
    for i, (before, after) in enumerate(zip(rounds, [*rounds[1:], {"layers": []}])):
        (dropped,) = set(before["layers"]) - set(after["layers"])
        ranks[dropped] = i + 1
    return ranks


def consensus_order(ranks: Sequence[Mapping[int, int]]) -> list[int]:
    """Layers in the order of their removal, by their mean rank over seeds; ties remove the higher layer first."""
    return sorted(ranks[0], key=lambda layer: (np.mean([own[layer] for own in ranks]), -layer))


def consensus_set(order: Sequence[int], size: int) -> list[int]:
    """The `size` layers that stay longest."""
    return sorted(order[len(order) - size :])


def stability(ranks: Sequence[Mapping[int, int]], order: Sequence[int]) -> dict:
    """Rank agreement between seeds, and how often each layer went in each round.

    Returns:
        `kendall_tau` and `spearman` of the removal orders: mean, smallest and largest over pairs of seeds (`None` with one
        seed); `layers`, layer -> mean, smallest and largest rank; `removals`, per round layer -> share of seeds that dropped
        it then; `agreement`, per round the share of seeds that had by then dropped what the consensus drops.
    """
    pairs = list(itertools.combinations([[own[layer] for layer in order] for own in ranks], 2))
    layers = {layer: [own[layer] for own in ranks] for layer in sorted(order)}
    rounds = range(1, len(order) + 1)
    return {
        "kendall_tau": _spread([float(kendalltau(a, b).statistic) for a, b in pairs]) if len(order) > 1 else None,
        "spearman": _spread([float(spearmanr(a, b).statistic) for a, b in pairs]) if len(order) > 1 else None,
        "layers": {layer: _spread(own) for layer, own in layers.items()},
        "removals": [{layer: own.count(i) / len(own) for layer, own in layers.items() if i in own} for i in rounds],
        "agreement": [float(np.mean([own[layer] <= i for own in ranks])) for i, layer in zip(rounds, order)],
    }


def _spread(values: Sequence[float]) -> dict | None:
    return {"mean": float(np.mean(values)), "min": min(values), "max": max(values)} if values else None


def rank_agreement(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> dict:
    """Do two settings rank the same candidates alike, measured by how alike seeds of one setting rank them?

    Args:
        first, second: per seed, a figure of every candidate in one order.

    Returns:
        `spearman` and `kendall_tau` of the means over seeds; `across`, Spearman's rho between a seed of the first and another
        seed of the second, and `within`, between two seeds of one setting: mean, smallest and largest pair. `None` where
        there is no pair (one seed), or where all candidates are equal.
    """
    means = [np.mean(own, axis=0) for own in (first, second)]
    across = [_rho(a, b) for i, a in enumerate(first) for j, b in enumerate(second) if i != j]
    within = [_rho(*pair) for own in (first, second) for pair in itertools.combinations(own, 2)]
    return {
        "spearman": _rho(*means),
        "kendall_tau": None if _rho(*means) is None else float(kendalltau(*means).statistic),
        "across": _spread([rho for rho in across if rho is not None]),
        "within": _spread([rho for rho in within if rho is not None]),
    }


def _rho(first: Sequence[float], second: Sequence[float]) -> float | None:
    is_constant = min(np.ptp(first), np.ptp(second)) == 0
    return None if is_constant else float(spearmanr(first, second).statistic)


def curve(trials: Mapping[int, Sequence[Mapping]]) -> list[dict]:
    """Seed -> trials, as one point per number of layers: `size`, then per split mean, deviation and values, and per task."""
    of_size: dict[int, list[Mapping]] = {}
    for own in trials.values():
        for trial in own:
            of_size.setdefault(len(trial["layers"]), []).append(trial)
    points = []
    for size, own in sorted(of_size.items()):
        points.append({"size": size, **moments_of(own)})
    return points


def moments_of(trials: Sequence[Mapping]) -> dict[str, dict]:
    """Of trials or fits of one setting with several seeds: per split the moments of the mean, and of the `tasks`."""
    figures = {}
    for split in ("validation", "test"):
        values = [task_figures(trial[split]) for trial in trials]
        tasks = {task: moments([own[task] for own in values]) for task in values[0]}
        figures[split] = {**moments([trial[split]["mean_accuracy"] for trial in trials]), "tasks": tasks}
    return figures


def task_figures(of_split: Mapping) -> dict[str, float]:
    """Task -> the figure that models are compared by, of one split of a fit or trial: accuracy, of numbers the CCC."""
    return {**of_split["accuracy"], **of_split.get("ccc", {})}


def moments(values: Sequence[float]) -> dict:
    """Mean, deviation (`None` of a single value) and the values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation, "values": list(values)}


def choose(points: Sequence[Mapping], num_validation: Mapping[str, int], numbers: Collection[str] = ()) -> dict:
    """The size with the best mean validation accuracy, and the smallest that is within one standard error of it.

    A rule of thumb, no test. The deviation over seeds is pooled over the sizes, for that of one size is too uncertain.

    Args:
        points: `curve` of the consensus sets, every one with the same seeds.
        num_validation: task -> labelled validation clips; with one seed the error is that of drawing these clips.
        numbers: regression tasks, whose figure is the CCC.
    """
    best = max(points, key=lambda point: (point["validation"]["mean"], -point["size"]))
    figures = best["validation"]
    if figures["deviation"] is not None:
        pooled = math.sqrt(np.mean([point["validation"]["deviation"] ** 2 for point in points]))
        error, basis = pooled / math.sqrt(len(figures["values"])), "seeds"
    else:
        variances = [
            _variance_of_ccc(own["mean"], num_validation[task])
            if task in numbers
            else own["mean"] * (1 - own["mean"]) / num_validation[task]
            for task, own in figures["tasks"].items()
        ]
        error = math.sqrt(sum(variances)) / len(variances)
        basis = "validation clips"
    within = [point["size"] for point in points if point["validation"]["mean"] >= figures["mean"] - error]
    return {"best": best["size"], "smallest": min(within), "within": within, "standard_error": error, "basis": basis}


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict:
    """Mean of first minus second, one of each per seed, with a 95 % t interval (`None` with one seed)."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    figures = moments(differences)
    if figures["deviation"] is None:
        return {**figures, "interval": None}
    half = float(t.ppf(1 - ERROR_RATE / 2, len(differences) - 1)) * figures["deviation"] / math.sqrt(len(differences))
    return {**figures, "interval": [figures["mean"] - half, figures["mean"] + half]}


def _variance_of_ccc(value: float, num_clips: int) -> float:
    """Of drawing the clips, from Fisher's z, whose variance is 1 / (N - 3)."""
    return (1 - value**2) ** 2 / max(1, num_clips - 3)


def against_chance(
    test: Mapping[str, Mapping], majority: Mapping[str, float], num_test: Mapping[str, int], numbers: Collection[str] = ()
) -> dict[str, dict]:
    """Is a test accuracy above that of naming the most frequent class, and the CCC of numbers above a constant's, 0?

    The chosen set has not seen the test clips, so their accuracy carries no optimism of the choice. The Wilson interval of the
    mean accuracy over seeds, that of Fisher's z for a CCC, is widened for the number of tasks (Bonferroni).

    Args:
        test: task -> `mean` of its figure.
        majority: task -> what chance gives.
        num_test: task -> labelled test clips.
        numbers: regression tasks; `accuracy` of their verdicts is the CCC.
    """
    verdicts = {}
    confidence = 1 - ERROR_RATE / len(test)
    for task, figures in test.items():
        if task in numbers:
            low, high = _interval_of_ccc(figures["mean"], num_test[task], confidence)
        else:
            correct = round(figures["mean"] * num_test[task])
            low, high = binomtest(correct, num_test[task]).proportion_ci(confidence, method="wilson")
        verdicts[task] = {
            "accuracy": figures["mean"],
            "interval": [float(low), float(high)],
            "confidence": confidence,
            "majority": majority[task],
            "num_clips": num_test[task],
            "is_above": bool(low > majority[task]),
        }
    return verdicts


def _interval_of_ccc(value: float, num_clips: int, confidence: float) -> tuple[float, float]:
    """By Fisher's z (Fisher 1921; Lin 1989 for the CCC), as if the numbers had no shift or scale against each other.

    A CCC is never farther from 0 than Pearson's correlation, and both have one sign: that of 0 is judged with caution.
    """
    half = norm.ppf((1 + confidence) / 2) / math.sqrt(max(1, num_clips - 3))
    middle = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, value)))
    return math.tanh(middle - half), math.tanh(middle + half)
