"""Which library multiplies matrices on this processor: measured once, at first use.

PyTorch has two libraries for float32 products on a CPU, and which of them is faster depends on the processor and on the shape:
with AVX-512 oneDNN reached twice MKL's rate; on an EPYC with AVX2 MKL is 5-25 % ahead, but up to a third behind where few rows
meet a large weight. So each kind of product is measured by itself. Both are float32 throughout; they add in different orders,
so results differ in the last bits. `WAVCSE_KERNELS=onednn` or `mkl` takes the choice away, for results that are equal to the
bit on any run.

For int8 there is `torch._int_mm`, which needs VNNI instructions to be fast, and fbgemm, which does not.

What is measured is written to the environment, so that processes that this one starts choose alike without measuring again.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

LIBRARIES = ("onednn", "mkl")
FORCED = "WAVCSE_KERNELS"
MEASURED = "WAVCSE_KERNELS_MEASURED"  # what a process found out, for those that it starts: all of them must agree
# MKL is taken from so many times oneDNN's speed on. Measurements vary by a tenth, so the bound for long products lies between
# the processors: half of it with AVX-512, 1.05 to 1.25 with AVX2. Near one of them it would choose now this, now that.
MARGINS = {"long": 0.9, "short": 1.05}
GELU_MARGIN = 1.05  # likewise, of oneDNN's GELU
SHORT_ROWS, LARGE_WEIGHT = 256, 2**21  # products of up to so many rows with a weight of so many numbers or more are "short"
SHAPES = {  # rows, in, out
    "long": ((128, 192, 768), (128, 768, 192), (48, 1024, 1024), (64, 1536, 512)),
    "short": ((32, 1024, 2048),),
}
ROUNDS = 9

# An operator that PyTorch's own compiler emits; where a build lacks it, the ordinary one gives the same numbers.
HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def times_faster(base: Callable[[], object], other: Callable[[], object]) -> float:
    """How many times faster than `base` the other function is on one core: the median over rounds in which both are called.

    Counted is this thread's processor time, as the machine may be busy with something else.
    """
    num_threads, ratios = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS + 1):
            started = time.thread_time()
            base()
            between = time.thread_time()
            other()
            ratios.append((between - started) / max(time.thread_time() - between, 1e-9))
    finally:
        torch.set_num_threads(num_threads)
    return statistics.median(ratios[1:])  # the first call does what is done once


def forced_library() -> str | None:
    """What the environment variable `WAVCSE_KERNELS` says; ValueError if that is no library."""
    name = os.environ.get(FORCED) or None
    if name not in (None, *LIBRARIES):
        raise ValueError(f"{FORCED} is {name!r}; allowed: {', '.join(LIBRARIES)}.")
    return name


def once(name: str, measure: Callable[[], Any]) -> Any:
    """What `measure` gives, in this process or in the one that started it; it is found out once, under this name."""
    try:
        known = json.loads(os.environ.get(MEASURED) or "{}")
    except ValueError:
        known = {}
    if not isinstance(known, dict) or name not in known:
        value = measure()
        known = {**(known if isinstance(known, dict) else {}), name: value}
        os.environ[MEASURED] = json.dumps(known)
    return known[name]


@cache
def float32_library(kind: str = "long") -> str:
    """The library for products of a kind of `SHAPES`, as forced or the faster one (0.1 s, once)."""
    if not HAS_ONEDNN_LINEAR or not torch.backends.mkl.is_available():
        return "onednn" if HAS_ONEDNN_LINEAR else "mkl"
    return forced_library() or once(f"float32 {kind}", lambda: "mkl" if mkl_speed(kind) > MARGINS[kind] else "onednn")


def mkl_speed(kind: str) -> float:
    """How many times faster than oneDNN MKL multiplies, the geometric mean over the shapes of a kind."""
    ratios = []
    for rows, inner, outer in SHAPES[kind]:
        operands = torch.rand(rows, inner), torch.rand(outer, inner), torch.rand(outer)
        ratios.append(times_faster(partial(onednn_linear, *operands), partial(F.linear, *operands)))
    return statistics.geometric_mean(ratios)


def kind_of(x: Tensor, weight: Tensor) -> str:
    """Which of `SHAPES` a product is like: "short" ones take as long to arrange the weight as to multiply."""
    return "short" if len(x) <= SHORT_ROWS and weight.numel() >= LARGE_WEIGHT else "long"


@cache
def gelu_in_onednn() -> bool:
    """Whether oneDNN's GELU, while a product is in the cache, is as fast as PyTorch's afterwards: not with AVX2."""
    if forced_library() is not None:  # oneDNN: to the bit what it always was; MKL: never asked
        return True
    operands = torch.rand(96, 1024), torch.rand(1024, 1024), torch.rand(1024)

    def separate() -> Tensor:
        return torch.ops.aten.gelu_(onednn_linear(*operands))

    return once("gelu", lambda: times_faster(partial(onednn_linear, *operands, gelu=True), separate) < GELU_MARGIN)


def measure_products() -> None:
    """All that is measured of products at first use, now: before processes are forked, which must choose alike."""
    for kind in SHAPES:
        float32_library(kind)
    gelu_in_onednn()
    uses_fbgemm(torch.device("cpu"))


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """`x @ weight.T + bias`, `[N, in]` -> `[N, out]`, and a GELU while the result is still in the cache."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))


def has_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16, by oneDNN."""
    return HAS_ONEDNN_LINEAR and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def low_type(device: torch.device) -> torch.dtype:
    """What goes with int8 products: bfloat16, or float32 where bfloat16 would be slower."""
    is_slow = device.type == "cpu" and not has_bfloat16() and forced_library() != "onednn"
    return torch.float32 if is_slow else torch.bfloat16


@cache
def weight_steps(device: torch.device) -> int:
    """The largest int8 weight that is multiplied exactly by inputs up to 127: 127, or 63.

    Processors without VNNI instructions add products in pairs of 16 bits, which 127 overflows without a word.
    """
    ones = torch.ones(32, 64, dtype=torch.int8, device=device)
    is_exact = torch._int_mm(127 * ones, 127 * ones.T) == 127 * 127 * 64
    return 127 if is_exact.all() else 63


@cache
def uses_fbgemm(device: torch.device) -> bool:
    """Whether int8 products go to fbgemm: on CPUs where `torch._int_mm` is slower than float32 (0.06 times, without VNNI)."""
    if device.type != "cpu" or forced_library() == "onednn" or "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    return once("fbgemm", _fbgemm_is_better)


def _fbgemm_is_better() -> bool:
    x, weight = torch.full((64, 256), -127, dtype=torch.int8), torch.full((256, 256), 63, dtype=torch.int8)
    rows, matrix = x.float(), weight.float()
    if times_faster(partial(F.linear, rows, matrix), partial(torch._int_mm, x, weight.T)) > 1:
        return False
    try:
        product = FbgemmProduct(weight, torch.ones(256))(rows)
    except (AttributeError, RuntimeError):  # a PyTorch without this operator
        return False
    return torch.equal(product, F.linear(rows, matrix))


class FbgemmProduct:
    """`(x @ weight.T) * scale` of whole numbers: `x` float32 `[N, in]` in -127..127, weight int8 `[out, in]` in -63..63.

    fbgemm adds products in pairs of 16 bits; with weights of `STEPS` none of them overflows, and sums are exact.
    """

    STEPS = 63
    ZERO = 128  # inputs are taken as 0..255

    def __init__(self, weight: Tensor, scale: Tensor):
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*quantize")  # PyTorch 2.13 announces another way to make these
                zeros = torch.zeros(len(weight), dtype=torch.long)
                quantised = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(quantised, None)
        finally:
            torch.backends.quantized.engine = engine

    def __call__(self, x: Tensor) -> Tensor:
        """Rounds `x` to whole numbers; `[N, out]`, float32."""
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1.0, self.ZERO, self.packed)
