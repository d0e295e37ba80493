"""What heads say of clips: labels with their probabilities, or numbers.

Shapes: `B` clips, `C` classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def chosen_tasks(tasks: Mapping[str, Mapping[str, Any]], task: str | None, top_k: int | None) -> dict[str, Mapping[str, Any]]:
    """The tasks that are asked for, out of `tasks` of a configuration: the one that is named, or all.

    Raises:
        ValueError: there is no such task, or none at all, or `top_k` is no positive whole number.
    """
    if not tasks:
        raise ValueError("This model has no heads, so it names no labels. Train some, or use its embeddings.")
    if task is not None and task not in tasks:
        raise ValueError(f"task is {task!r}; the model has {', '.join(tasks)}.")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k is {top_k!r}; a whole number from 1 on is needed, or None for all labels.")
    return dict(tasks) if task is None else {task: tasks[task]}


def predictions(
    logits: Mapping[str, Tensor], tasks: Mapping[str, Mapping[str, Any]], task: str | None = None, top_k: int | None = None
) -> list[Any]:
    """What `WavCSEForMultiTask.predict` returns, one entry per clip.

    Args:
        logits: task -> `[B, C]`, of the tasks that are asked for.
        tasks: these tasks as the configuration has them.
        task, top_k: as of `predict`.
    """
    found = {name: _of_task(values, tasks[name], top_k) for name, values in logits.items()}
    if task is not None or len(found) == 1:
        return next(iter(found.values()))
    return [dict(zip(found, of_clip)) for of_clip in zip(*found.values())]


def _of_task(logits: Tensor, task: Mapping[str, Any], top_k: int | None) -> list[Any]:
    if task["kind"] == "regression":
        return (task["mean"] + task["std"] * logits[:, 0].double()).tolist()
    return _ranked(logits, task["labels"], top_k)


def _ranked(logits: Tensor, labels: list[str], top_k: int | None) -> list[list[dict[str, Any]]]:
    """Of every row of logits `[B, C]` the most likely labels, with softmax probabilities over all of them."""
    kept = len(labels) if top_k is None else min(top_k, len(labels))
    scores, indices = logits.float().softmax(dim=1).topk(kept, dim=1)
    return [
        [{"label": labels[index], "score": score} for index, score in zip(*row)]
        for row in zip(indices.tolist(), scores.tolist())
    ]
