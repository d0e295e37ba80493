"""The gradients of several tasks as one: clipped, put together, compared.

Every task has a list of gradients that is aligned with one list of parameters; `None` stands where the task does not reach a
parameter: another task's head, or a block above the one that it reads.

With `sum` the weighted gradients are added, which is one backward pass of the weighted sum of losses (Vaessen and van Leeuwen,
Eq. 2). With `mean` a parameter gets their mean over the tasks that reach it, as in the authors' code: what is shared by two
tasks gets half of the sum, and heads get their own gradient whole. Clipped is `each` task's gradient by itself (their Table
1) or the `total` (Table 2). In their code the head of the first task, clipped already, still counts in the norm of the second;
here each task's norm is of what it reaches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COMBINES = ("sum", "mean")
CLIPS = ("each", "total")
CLIP_KINDS = ("norm", "value")
TINY = 1e-6  # beside a norm, as in torch.nn.utils.clip_grad_norm_

Gradients = Sequence[Tensor | None]


def combined(gradients: Sequence[Gradients], how: str) -> list[Tensor | None]:
    """The tasks' gradients as one, by `sum` or `mean`; new tensors, `None` where no task reaches a parameter.

    Raises:
        ValueError: another `how`, or the lists differ in length.
    """
    if how not in COMBINES:
        raise ValueError(f"combine is {how!r}; allowed: {', '.join(COMBINES)}.")
    together: list[Tensor | None] = []
    for of_tasks in zip(*gradients, strict=True):
        there = [gradient for gradient in of_tasks if gradient is not None]
        total = torch.stack(there).sum(dim=0) if there else None
        together.append(total if total is None or how == "sum" else total / len(there))
    return together


@torch.no_grad()
def clip(gradients: Gradients, kind: str, most: float) -> Tensor:
    """Clip in place: scaled so that the norm over all of them is at most `most`, or every value cut to [-most, most].

    Returns:
        The norm before; it is not finite where a gradient is not, and then nothing that is left is of use.

    Raises:
        ValueError: another `kind`.
    """
    if kind not in CLIP_KINDS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(CLIP_KINDS)}.")
    there = [gradient for gradient in gradients if gradient is not None]
    norm = norm_of(there)
    if not there:
        return norm
    if kind == "norm":
        torch._foreach_mul_(there, (most / (norm + TINY)).clamp(max=1.0))
    else:
        torch._foreach_clamp_min_(there, -most)
        torch._foreach_clamp_max_(there, most)
    return norm


def norm_of(gradients: Gradients) -> Tensor:
    """Euclidean norm over all of them, a scalar; 0 of none."""
    there = [gradient for gradient in gradients if gradient is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(there))) if there else torch.zeros(())


def cosine(one: Gradients, other: Gradients) -> Tensor | None:
    """Cosine of two tasks' gradients over the parameters that both reach, a scalar; `None` if there is no such parameter.

    Below 0 a step for the one task is a step back for the other. 0 where a gradient is 0.
    """
    shared = [(first, second) for first, second in zip(one, other, strict=True) if first is not None and second is not None]
    if not shared:
        return None
    firsts, seconds = zip(*shared)
    product = torch.stack([torch.sum(first * second) for first, second in shared]).sum()
    lengths = norm_of(firsts) * norm_of(seconds)
    return torch.where(lengths > 0, product / lengths, torch.zeros_like(product))
