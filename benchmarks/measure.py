"""How the benchmarks measure: the machine's product rate, interleaved rounds, paired ratios, errors, peak memory."""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import psutil
import torch
import transformers
from torch import Tensor

from wavcse.configuration_wavcse import PRECISIONS
from wavcse.kernels_wavcse import HAS_ONEDNN_LINEAR, FbgemmProduct, float32_library, has_bfloat16, onednn_linear, uses_fbgemm
from wavcse.settings.processes import processor_name

SPREAD_LIMIT = 0.10  # a ratio that varies by more between rounds is marked
GEMM_ROWS = 1024
QUICK_GEMM_ROWS = 8  # for tests: without its instructions a processor takes seconds for one int8 product of 1024 rows
# glibc settings that keep freed memory in the process: without them every large tensor is paid for in page faults.
WARM_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, with the device's queue drained."""
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def gemm_rate(
    device: torch.device,
    precision: str = "float32",
    rows: int = GEMM_ROWS,
    repeats: int = 12,
    inner: int = 1024,
    columns: int = 4096,
) -> float:
    """Best rate in operations per second (a multiply-add is two) of the product `rows` x 1024 x 4096, the upstream's own.

    The faster of the libraries that the installed PyTorch offers, so that a share of the limit cannot flatter.
    """
    a, b = torch.randn(rows, inner, device=device), torch.randn(columns, inner, device=device)
    if precision == "int8":
        a, b = (tensor.mul(40).clamp(-127, 127).to(torch.int8) for tensor in (a, b))
        products = [lambda: torch._int_mm(a, b.T)]
        if uses_fbgemm(device):  # which takes rows as float32 and rounds them as part of the product
            products = [
                partial(FbgemmProduct(b.clamp(-FbgemmProduct.STEPS, FbgemmProduct.STEPS), torch.ones(columns)), a.float())
            ]
    else:
        a, b = (tensor.to(getattr(torch, precision)) for tensor in (a, b))
        products = [lambda: torch.mm(a, b.T)]
        if device.type == "cpu" and HAS_ONEDNN_LINEAR and (precision == "float32" or has_bfloat16()):
            layout = torch.ops.mkldnn._reorder_linear_weight(b, rows)
            products += [partial(onednn_linear, a, weight) for weight in (b, layout)]
    seconds = []
    for product in products:
        product()
        seconds += [timed(product, device) for _ in range(repeats)]
    return 2 * rows * inner * columns / min(seconds)


def gemm_rates(device: torch.device, rows: int = GEMM_ROWS) -> dict[str, float]:
    """`gemm_rate` of every precision; one that the device does not offer is left out."""
    rates = {}
    for precision in PRECISIONS:
        try:
            rates[precision] = gemm_rate(device, precision, rows)
        except RuntimeError as error:
            print(f"no {precision} products here: {error}")
    return rates


def read_rate(device: torch.device) -> float:
    """Best rate in bytes per second at which a large tensor is read."""
    values = torch.randn(2**26, device=device)
    return 4 * len(values) / min(timed(values.sum, device) for _ in range(5))


def interleaved(
    functions: Mapping[Hashable, Callable[[], object]],
    rounds: int,
    device: torch.device,
    before_round: Callable[[], object] = lambda: None,
) -> dict[Hashable, list[float]]:
    """Seconds of every function in every round; each round calls all of them in turn, so that a busy spell hits all."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        before_round()
        for name, function in functions.items():
            seconds[name].append(timed(function, device))
    return seconds


@dataclass(frozen=True)
class Work:
    """A call to be timed, and the number of clips that it handles."""

    run: Callable[[], object]
    clips: int


@dataclass(frozen=True)
class Measured:
    """What `measure_work` found, each a list with one figure per round.

    Attributes:
        rates: products in operations per second by precision, and "bytes" per second of reading.
        seconds_per_clip: of every work, by its name.
    """

    rates: dict[str, list[float]]
    seconds_per_clip: dict[Hashable, list[float]]


def measure_work(work: Mapping[Hashable, Work], rounds: int, device: torch.device) -> Measured:
    """Time every work in interleaved rounds, with the machine's rates at the beginning of each."""
    for own in work.values():
        own.run()  # the first call allocates and compiles
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": [], "bytes": []}

    def note_rates() -> None:
        for precision in ("float32", "bfloat16"):
            rates[precision].append(gemm_rate(device, precision))
        rates["bytes"].append(read_rate(device))

    seconds = interleaved({name: own.run for name, own in work.items()}, rounds, device, note_rates)
    return Measured(rates, {name: [s / work[name].clips for s in own] for name, own in seconds.items()})


@dataclass(frozen=True)
class PairedRatio:
    """How many times faster than `base`, as the median over rounds, and its spread.

    `spread` is (largest - smallest) / median of the ratios of single rounds; `None` with one round.
    """

    ratio: float
    spread: float | None

    @classmethod
    def of(cls, base_s: Sequence[float], seconds: Sequence[float]) -> PairedRatio:
        """From the times of the base and of the measured function, round by round."""
        ratios = [base / own for base, own in zip(base_s, seconds, strict=True)]
        median = statistics.median(ratios)
        return cls(median, (max(ratios) - min(ratios)) / median if len(ratios) > 1 else None)


@dataclass(frozen=True)
class Errors:
    """Difference of pooled layers `[B, K, D]` from a reference.

    `relative` is the largest |difference| / |reference| (Euclidean) of a clip's layer; cosines are per layer, the smallest
    over the clips.
    """

    max_abs: float
    relative: float
    min_cosine_per_layer: tuple[float, ...]

    @classmethod
    def of(cls, output: Tensor, reference: Tensor) -> Errors:
        """Computed in float64 on the CPU."""
        output, reference = output.double().cpu(), reference.double().cpu()
        difference = output - reference
        cosines = torch.nn.functional.cosine_similarity(output, reference, dim=-1)
        return cls(
            difference.abs().max().item(),
            (difference.norm(dim=-1) / reference.norm(dim=-1)).max().item(),
            tuple(cosines.amin(dim=0).tolist()),
        )

    @property
    def min_cosine(self) -> float:
        """The smallest cosine of any clip and layer."""
        return min(self.min_cosine_per_layer)


class PeakMemory:
    """Context that finds the largest resident set of this process (on CUDA: allocated memory), sampled every few ms.

    After it, `peak_mb` holds megabytes.
    """

    INTERVAL_S = 0.003

    def __init__(self, device: torch.device):
        self.device = device
        self.process = psutil.Process()
        self.peak_mb = 0.0
        self.done = threading.Event()

    def now_mb(self) -> float:
        """Memory of this moment."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) / 1e6
        return self.process.memory_info().rss / 1e6

    def _watch(self) -> None:
        while not self.done.wait(self.INTERVAL_S):
            self.peak_mb = max(self.peak_mb, self.now_mb())

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.peak_mb = self.now_mb()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.done.set()
        self.watcher.join()
        last_mb = torch.cuda.max_memory_allocated(self.device) / 1e6 if self.device.type == "cuda" else self.now_mb()
        self.peak_mb = max(self.peak_mb, last_mb)


def machine_facts(device: torch.device) -> dict[str, str | int | float | bool]:
    """Processor or GPU, cores, memory and versions, for the head of a report."""
    facts: dict[str, str | int | float | bool] = {
        "processor": processor_name(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.type == "cpu":
        facts |= {"instructions": torch.backends.cpu.get_cpu_capability(), "library": float32_library()}
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["tf32"] = torch.backends.cuda.matmul.allow_tf32
    return facts


def device_class(device: str) -> str:
    """What results are kept by: "cpu-avx2", "cpu-avx512", ...; of a GPU "cuda"."""
    return f"{device}-{torch.backends.cpu.get_cpu_capability().lower()}" if device == "cpu" else device
