"""Linear layers on packed rows, in float32, bfloat16 or int8, and the activation and norm that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# An operator that PyTorch's own compiler emits; where a build lacks it, the ordinary one gives the same numbers.
HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
FEWEST_INT8_ROWS = 32  # that a GPU's int8 product takes
LAYOUT_ROWS = 1024  # of the inputs that the layout of copied weights is chosen for

gelu_ = torch.ops.aten.gelu_  # in place: fresh memory for every activation would cost more than the function itself


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm of rows in float32."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """`x @ weight.T + bias`, `[N, in]` -> `[N, out]`, followed by GELU on request.

    On a CPU by oneDNN, in float32 too: the library behind `torch.nn.functional.linear` there reaches half of what some
    processors can do. The GELU is then applied while a result is still in the cache.
    """
    if uses_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))
    y = F.linear(x, weight, bias)
    return gelu_(y) if gelu else y


def uses_onednn(x: Tensor) -> bool:
    """Whether such rows are multiplied by oneDNN; bfloat16 only where the processor has instructions for it."""
    if x.device.type != "cpu" or not HAS_ONEDNN_LINEAR or not torch._C._get_mkldnn_enabled():
        return False
    return x.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def own_layout(weight: Tensor) -> Tensor:
    """A copied `weight` in the order that oneDNN reads fastest; good for `linear` only."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, LAYOUT_ROWS) if uses_onednn(weight) else weight


class FloatLinear:
    """A linear layer in float32 or bfloat16.

    Args:
        weight: `[out, in]`; float32 stays on this tensor unless it is `own`, a copy that nobody else reads.
        bias: `[out]` or `None`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: str, own: bool = False):
        self.out_features = len(weight)
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        own = own or weight.dtype != self.dtype
        weight = weight.detach().to(self.dtype).contiguous()
        self.weight = own_layout(weight) if own else weight
        self.bias = None if bias is None else bias.detach().to(self.dtype)

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """`[N, out]` in this layer's precision."""
        return linear(x.to(self.dtype), self.weight, self.bias, gelu)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """`residual += linear(x)` in float32."""
        residual.add_(self(x))


class Int8Linear:
    """A linear layer with int8 weights (one scale per output) and inputs (one scale per row, taken as they come)."""

    def __init__(self, weight: Tensor, bias: Tensor):
        weight, self.out_features = weight.detach().float(), len(weight)
        self.scale = _int8_scale(weight, weight_steps(weight.device))  # [out, 1]
        self.weight = (weight / self.scale).round_().to(torch.int8).T  # [in, out]
        self.scale, self.bias = self.scale.T, bias.detach().float()

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """`[N, out]` in bfloat16, or in float32 after a GELU: the next layer takes its scales from it."""
        y = self._product(x)
        return gelu_(y) if gelu else y.to(torch.bfloat16)

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """`residual += linear(x)` in float32."""
        residual.add_(self._product(x))

    def _product(self, x: Tensor) -> Tensor:
        x = x.float()
        scale = _int8_scale(x)  # [N, 1]
        quantised = (x / scale).round_().to(torch.int8)
        if x.device.type != "cpu":
            quantised = F.pad(quantised, (0, 0, 0, max(0, FEWEST_INT8_ROWS - len(x))))
        y = torch._int_mm(quantised, self.weight)[: len(x)].float()
        return torch.addcmul(self.bias, y.mul_(self.scale), scale, out=y)


@cache
def weight_steps(device: torch.device) -> int:
    """The largest int8 weight that `torch._int_mm` multiplies exactly: 127, or 63.

    Processors without VNNI instructions add products in pairs of 16 bits, which 127 overflows without a word.
    """
    ones = torch.ones(32, 64, dtype=torch.int8, device=device)
    is_exact = torch._int_mm(127 * ones, 127 * ones.T) == 127 * 127 * 64
    return 127 if is_exact.all() else 63


def _int8_scale(rows: Tensor, steps: int = 127) -> Tensor:
    return rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12) / steps


def build_linear(layers: Sequence[nn.Linear], precision: str) -> FloatLinear | Int8Linear:
    """One layer, or several of the same input side by side, at the wanted precision."""
    if len(layers) == 1:
        weight, bias = layers[0].weight, layers[0].bias
    else:
        weight, bias = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
    return Int8Linear(weight, bias) if precision == "int8" else FloatLinear(weight, bias, precision)


class Projections:
    """Linear layers of one width that share their input. Below float32 they are one product, whose input is rounded once."""

    def __init__(self, layers: Sequence[nn.Linear], precision: str):
        self.count = len(layers)
        together = [[layer] for layer in layers] if precision == "float32" else [layers]  # float32 keeps the module's weights
        self.products = [build_linear(part, precision) for part in together]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """`[N, in]` -> one `[N, out]` per layer."""
        outputs = [product(x) for product in self.products]
        return outputs[0].chunk(self.count, dim=1) if len(outputs) < self.count else tuple(outputs)
