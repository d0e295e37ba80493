"""What `fast_parts` exchanges in a network in training: parts that compute the same as PyTorch's own, faster.

`fast_parts: false` in a recipe trains with PyTorch's and transformers' own modules. docs/training.md lists every part with its
plain form and how far the two may be apart, which tests measure. Here are the linear layers and dropout; `heads.py` has the
penalties, the averaged layers and the folded heads, `steps/fast_encoder.py` those of encoders.

**Linear layers**: on a CPU in float32, forward and both backward products by oneDNN. PyTorch's own float32 products there come
from a library that reaches half of what some processors can do, and most of a training step is three products of every layer.
Unlike inference, training does not measure which library is faster (`kernels_wavcse`): a run that is continued in another
process must go on to the bit. `WAVCSE_KERNELS=mkl` is obeyed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wavcse.kernels_wavcse import HAS_ONEDNN_LINEAR, forced_library, onednn_linear


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def use_linear(network: nn.Module) -> None:
    """Turn every `nn.Linear` of a network into a `Linear`, its parameters and their names untouched."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear  # a new module would draw random weights, and shift the seed of those that follow


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, `[..., in]` -> `[..., out]`, by oneDNN if all is float32 on a CPU; any order of gradient.

    Autocast, `torch.func` and `torch.compile` have their own ways with the ordinary operator, which they get.
    """
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    if _is_special() or 0 in x.shape or not all(_is_exact(tensor) for tensor in tensors):  # oneDNN refuses sums of nothing
        return F.linear(x, weight, bias)
    y = _Product.apply(x.reshape(-1, x.shape[-1]).contiguous(), _dense(weight), bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)


def _is_special() -> bool:
    is_transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return is_transformed or torch.is_autocast_enabled("cpu")


def _is_exact(tensor: Tensor) -> bool:
    is_possible = HAS_ONEDNN_LINEAR and torch._C._get_mkldnn_enabled() and forced_library() != "mkl"
    return is_possible and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _dense(weight: Tensor) -> Tensor:
    """A contiguous matrix or the transpose of one, which oneDNN takes at full speed; a slice is a thousand times slower."""
    return weight if weight.T.is_contiguous() else weight.contiguous()


class _Product(torch.autograd.Function):
    """`x @ weight.T + bias` of rows."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = linear(gradient, weight.T) if ctx.needs_input_grad[0] else None
        of_weight = linear(gradient.T, x.T) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum(dim=0) if ctx.needs_input_grad[2] else None


class Dropout(nn.Module):
    """`nn.Dropout` at a fifth of its time on a CPU: one 64-bit random number decides over four values.

    The rate is rounded to 1/65536, and kept in a buffer, so that networks that train together can have different ones.
    """

    STEPS = 2**16

    def __init__(self, rate: float):
        super().__init__()
        steps = min(round(rate * self.STEPS), self.STEPS - 1)
        self.is_off = steps == 0
        self.register_buffer("rate", torch.tensor(steps / self.STEPS), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_off or not self.training:
            return x
        numbers = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
        numbers = numbers.view(torch.int16)[: x.numel()].view(x.shape)
        is_kept = numbers >= (self.STEPS * self.rate - self.STEPS // 2).to(torch.int16)
        return x * is_kept.to(x.dtype).div_((1 - self.rate).to(x.dtype))
