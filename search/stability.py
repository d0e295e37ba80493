"""What several seeds of the layer recursion agree on, and which set is best against their spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest, kendalltau, spearmanr, t

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
    """Of trials or fits of one setting with several seeds: per split the moments of the mean accuracy, and of the `tasks`."""
    figures = {}
    for split in ("validation", "test"):
        tasks = {task: moments([trial[split]["accuracy"][task] for trial in trials]) for task in trials[0][split]["accuracy"]}
        figures[split] = {**moments([trial[split]["mean_accuracy"] for trial in trials]), "tasks": tasks}
    return figures


def moments(values: Sequence[float]) -> dict:
    """Mean, deviation (`None` of a single value) and the values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation, "values": list(values)}


def choose(points: Sequence[Mapping], num_validation: Mapping[str, int]) -> dict:
    """The size with the best mean validation accuracy, and the smallest that is within one standard error of it.

    A rule of thumb, no test. The deviation over seeds is pooled over the sizes, for that of one size is too uncertain.

    Args:
        points: `curve` of the consensus sets, every one with the same seeds.
        num_validation: task -> labelled validation clips; with one seed the error is that of drawing these clips.
    """
    best = max(points, key=lambda point: (point["validation"]["mean"], -point["size"]))
    figures = best["validation"]
    if figures["deviation"] is not None:
        pooled = math.sqrt(np.mean([point["validation"]["deviation"] ** 2 for point in points]))
        error, basis = pooled / math.sqrt(len(figures["values"])), "seeds"
    else:
        shares = {task: own["mean"] for task, own in figures["tasks"].items()}
        error = math.sqrt(sum(p * (1 - p) / num_validation[task] for task, p in shares.items())) / len(shares)
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


def against_chance(test: Mapping[str, Mapping], majority: Mapping[str, float], num_test: Mapping[str, int]) -> dict[str, dict]:
    """Is a test accuracy above that of naming the most frequent class?

    The chosen set has not seen the test clips, so their accuracy carries no optimism of the choice. The Wilson interval of the
    mean accuracy over seeds is widened for the number of tasks (Bonferroni).
    """
    verdicts = {}
    for task, figures in test.items():
        correct = round(figures["mean"] * num_test[task])
        confidence = 1 - ERROR_RATE / len(test)
        interval = binomtest(correct, num_test[task]).proportion_ci(confidence, method="wilson")
        verdicts[task] = {
            "accuracy": figures["mean"],
            "interval": [float(interval.low), float(interval.high)],
            "confidence": confidence,
            "majority": majority[task],
            "num_clips": num_test[task],
            "is_above": bool(interval.low > majority[task]),
        }
    return verdicts
