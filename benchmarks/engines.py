"""Another inference engine as a rival: ONNX Runtime on the same truncated upstream, in float32 and dynamic int8.

`onnxruntime` and `onnx` are no dependencies of this project. Where they are not installed (`pip install --target FOLDER
onnxruntime onnx`, and `PYTHONPATH=FOLDER`), these rivals are left out with a word. The module is exported by `torch.onnx` at
the first call, the means over time in the graph, so that nothing but the result leaves the engine. Clips go one at a time: a
batch would be padded, as in transformers.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from wavcse.benchmarks.rivals import Contender, UpstreamBench

ENGINE = "ONNX Runtime"
PACKAGES = ("onnxruntime", "onnx")
OPSET = 17
EXPORT_SAMPLES = 16_000


class PooledStates(nn.Module):
    """Waveforms `[1, samples]` -> time means `[1, K, D]`, as one graph."""

    def __init__(self, bench: UpstreamBench):
        super().__init__()
        self.upstream, self.layers = bench.truncated, bench.layers

    def forward(self, waveforms: Tensor) -> Tensor:
        states = self.upstream(waveforms, output_hidden_states=True).hidden_states
        return torch.stack([states[layer].mean(dim=1) for layer in self.layers], dim=1)


def engine_variants(bench: UpstreamBench) -> list[Contender]:
    """ONNX Runtime's two precisions; none on a GPU or where the packages are missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if bench.device.type != "cpu" or missing:
        if missing:
            print(f"{ENGINE} is left out: {', '.join(missing)} not installed.")
        return []
    blocks = max(bench.layers)
    return [
        _variant(bench, "onnx", "float32", blocks, max_relative_error=1e-5),
        _variant(bench, "onnx_int8", "int8", blocks, min_cosine=0.99),
    ]


def _variant(bench: UpstreamBench, name: str, precision: str, num_blocks: int, **tolerance: float) -> Contender:
    sessions: list = []

    def run(waveforms: Sequence[Tensor], batch_size: int | None) -> Tensor:
        if not sessions:
            sessions.append(session_of(bench, precision))
        return torch.cat([sessions[0](waveform) for waveform in waveforms])

    other = "float32"  # dynamic quantisation replaces the products of matrices and leaves the convolutions
    precision_of = {"stem": other, "position": other, "linear": precision, "attention": other}
    title = f"{ENGINE} {precision}, {num_blocks} blocks, one by one"
    return Contender(name, title, True, run, num_blocks, precision_of, batch_sizes=(1,), engine=ENGINE, **tolerance)


def session_of(bench: UpstreamBench, precision: str) -> Callable[[Tensor], Tensor]:
    """The exported upstream, loaded with as many threads as PyTorch has: `[samples]` -> `[1, K, D]`."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    with tempfile.TemporaryDirectory() as folder:
        path = export(bench, Path(folder) / "upstream.onnx")
        if precision == "int8":
            path = quantised(path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda waveform: torch.from_numpy(session.run(None, {"waveforms": waveform[None].numpy()})[0])


def export(bench: UpstreamBench, path: Path) -> Path:
    """Write the graph, for clips of any length."""
    given = torch.randn(1, EXPORT_SAMPLES, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's remarks on transformers' code
        torch.onnx.export(
            PooledStates(bench).eval(),
            (given,),
            str(path),
            input_names=["waveforms"],
            output_names=["means"],
            dynamic_axes={"waveforms": {1: "samples"}},
            opset_version=OPSET,
            dynamo=False,
        )
    return path


def quantised(path: Path) -> Path:
    """ONNX Runtime's dynamic quantisation: weights of 8 bits, inputs scaled as they come, all rows of a product alike."""
    quantization = importlib.import_module("onnxruntime.quantization")
    smaller = path.with_name("int8.onnx")
    quantization.quantize_dynamic(
        str(path), str(smaller), op_types_to_quantize=["MatMul"], weight_type=quantization.QuantType.QInt8
    )
    return smaller
