"""The ways of computing pooled upstream layers that are compared: transformers as it is used, and ours.

All give the time means `[B, K, D]` of the selected layers of the same random weights, float32, for a list of waveforms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel

from wavcse.benchmarks.measure import GEMM_ROWS, QUICK_GEMM_ROWS, Errors
from wavcse.configuration_wavcse import PAPER_LAYERS, WAVLM_LARGE, count_frames
from wavcse.kernels_wavcse import FbgemmProduct, low_type, uses_fbgemm, weight_steps
from wavcse.packed_encoder_wavcse import PackedUpstream
from wavcse.upstream_wavcse import visiting_layers

ORDINARY = "ordinary"
ORDINARY_BATCH = 16
WINDOW_S = 60.0  # the configuration's default: a longer clip goes through in windows
# A size for tests: the same parts, computed in milliseconds.
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TINY_LAYERS = (0, 1, 3)


@dataclass(frozen=True)
class Contender:
    """One way to compute the pooled layers.

    `run(waveforms, batch_size)` gives `[B, K, D]`. `batch_sizes` are tried before a workload, and the fastest is timed
    (`None` = all clips in one call). `precision_of` names the arithmetic of the products, part by part of `count_flop`.
    """

    name: str
    title: str
    is_rival: bool
    run: Callable[[Sequence[Tensor], int | None], Tensor]
    num_blocks: int
    precision_of: dict[str, str]
    max_relative_error: float | None = None
    min_cosine: float | None = None
    batch_sizes: tuple[int | None, ...] = (None,)
    engine: str | None = None  # that runs it, if that is not PyTorch

    def accepts(self, errors: Errors) -> bool:
        """Whether the errors are within this variant's tolerance."""
        if self.max_relative_error is not None and not errors.relative <= self.max_relative_error:
            return False
        return self.min_cosine is None or errors.min_cosine >= self.min_cosine


@dataclass
class UpstreamBench:
    """The upstream in full and truncated to what the selected layers need, on shared weights."""

    full: PreTrainedModel
    truncated: PreTrainedModel
    layers: tuple[int, ...]
    device: torch.device
    gemm_rows: int

    @property
    def config(self) -> PretrainedConfig:
        """Configuration of the full upstream."""
        return self.full.config


def make_bench(quick: bool, device: torch.device) -> UpstreamBench:
    """WavLM-Large (`quick`: a tiny shape) with random weights and the paper's selection of layers."""
    layers = TINY_LAYERS if quick else PAPER_LAYERS
    full = _random_upstream(_config(quick)).to(device)
    config = copy.deepcopy(full.config)
    config.num_hidden_layers = max(layers)
    with torch.device("meta"):
        truncated = AutoModel.from_config(config)
    # Own modules on shared weights: transformers hooks the modules, and a second model with the same ones hooks them twice.
    truncated.load_state_dict(full.state_dict(), strict=False, assign=True)
    return UpstreamBench(full, truncated.eval().requires_grad_(False), layers, device, QUICK_GEMM_ROWS if quick else GEMM_ROWS)


def _config(quick: bool) -> PretrainedConfig:
    fields = {**WAVLM_LARGE, **(TINY if quick else {})}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _random_upstream(config: PretrainedConfig) -> PreTrainedModel:
    """Random weights whose gates and position bias matter, so that an error in them would show."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for block in model.encoder.layers:
            block.attention.gru_rel_pos_const.uniform_(0.5, 1.5)
            nn.init.normal_(block.attention.gru_rel_pos_linear.weight, std=0.1)
            nn.init.normal_(block.attention.gru_rel_pos_linear.bias, std=0.1)
        nn.init.normal_(model.encoder.layers[0].attention.rel_attn_embed.weight, std=0.5)
    return model.eval().requires_grad_(False)


def stacked_states(bench: UpstreamBench, waveforms: Sequence[Tensor], always_mask: bool) -> Tensor:
    """The ordinary recipe: pad, run every block, keep all hidden states, stack the wanted ones, mean over real frames."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True).to(bench.device)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(bench.device)
    needs_mask = always_mask or len(set(lengths.tolist())) > 1
    states = bench.full(padded, attention_mask=mask if needs_mask else None, output_hidden_states=True).hidden_states
    stacked = torch.stack([states[layer] for layer in bench.layers], dim=1).float()  # [B, K, T, D]
    if not needs_mask:
        return stacked.mean(dim=2)
    frames = count_frames(lengths, bench.config).to(bench.device)
    real = (torch.arange(stacked.shape[2], device=bench.device) < frames[:, None]).to(stacked.dtype)
    return (stacked * real[:, None, :, None]).sum(dim=2) / frames[:, None, None]


def hooked_means(bench: UpstreamBench, waveforms: Sequence[Tensor]) -> Tensor:
    """The best plain use: no more blocks than needed, hooks keep time means only; clips of a call are padded."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True).to(bench.device)
    needs_mask = len(set(lengths.tolist())) > 1
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(bench.device) if needs_mask else None
    frames = count_frames(lengths, bench.config).to(bench.device)
    means: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        if layer not in bench.layers:
            return
        real = (torch.arange(hidden.shape[1], device=bench.device) < frames[:, None]).to(hidden.dtype)
        means[layer] = (torch.bmm(real[:, None], hidden)[:, 0] / frames[:, None]).float()

    with visiting_layers(bench.truncated, keep):
        bench.truncated(padded, attention_mask=mask)
    return torch.stack([means[layer] for layer in bench.layers], dim=1)


def in_batches(
    compute: Callable[[Sequence[Tensor]], Tensor], waveforms: Sequence[Tensor], batch_size: int | None, by_length: bool
) -> Tensor:
    """`compute` on batches, in the given order or longest first; results in the given order."""
    order = sorted(range(len(waveforms)), key=lambda i: -len(waveforms[i])) if by_length else range(len(waveforms))
    size = batch_size or len(waveforms)
    parts = [compute([waveforms[i] for i in order[a : a + size]]) for a in range(0, len(waveforms), size)]
    return torch.cat(parts)[torch.tensor(list(order)).argsort()]


def rivals(bench: UpstreamBench) -> list[Contender]:
    """transformers in float32; on a GPU, the sorted ones under bfloat16 autocast, their fastest setting."""
    on_gpu = bench.device.type == "cuda"
    low = "bfloat16" if on_gpu else "float32"
    suffix = ", bfloat16 autocast" if on_gpu else ""
    tolerance = {"min_cosine": 0.9995} if on_gpu else {"max_relative_error": 1e-5}
    sweep = (1, 8, 32, 128) if on_gpu else (1, 2)

    def sorted_by(compute: Callable[[Sequence[Tensor]], Tensor]) -> Callable[[Sequence[Tensor], int | None], Tensor]:
        def run(waveforms: Sequence[Tensor], batch_size: int | None) -> Tensor:
            with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16, enabled=on_gpu):
                return in_batches(compute, waveforms, batch_size, by_length=True)

        return run

    @torch.inference_mode()
    def ordinary(waveforms: Sequence[Tensor], batch_size: int | None) -> Tensor:
        return in_batches(lambda clips: stacked_states(bench, clips, True), waveforms, batch_size, by_length=False)

    num_blocks, truncated = bench.config.num_hidden_layers, max(bench.layers)
    return [
        Contender(
            ORDINARY,
            f"HF{num_blocks} padded",
            True,
            ordinary,
            num_blocks,
            _everywhere("float32"),
            max_relative_error=1e-5,
            batch_sizes=sweep if on_gpu else (ORDINARY_BATCH,),
        ),
        Contender(
            "sorted",
            f"HF{num_blocks} sorted{suffix}",
            True,
            sorted_by(lambda clips: stacked_states(bench, clips, False)),
            num_blocks,
            _everywhere(low),
            batch_sizes=sweep,
            **tolerance,
        ),
        Contender(
            "hooks",
            f"HF{truncated} + hooks, {'sorted' if on_gpu else 'one by one'}{suffix}",
            True,
            sorted_by(lambda clips: hooked_means(bench, clips)),
            truncated,
            _everywhere(low),
            batch_sizes=sweep if on_gpu else (1,),
            **tolerance,
        ),
    ]


def ours(bench: UpstreamBench) -> list[Contender]:
    """The packed path in its three precisions."""
    steps = FbgemmProduct.STEPS if uses_fbgemm(bench.device) else weight_steps(bench.device)
    of_int8 = {127: 0.9995, 63: 0.999}  # by the steps that a weight has on this processor
    tolerances = {
        "float32": {"max_relative_error": 1e-5},
        "bfloat16": {"min_cosine": 0.9998},
        "int8": {"min_cosine": of_int8[steps]},
    }
    return [_packed_variant(bench, precision, tolerance) for precision, tolerance in tolerances.items()]


def _packed_variant(bench: UpstreamBench, precision: str, tolerance: dict[str, float]) -> Contender:
    packed: list[PackedUpstream] = []  # made at the first call: a memory measurement wants only one of the three
    window_frames = int(count_frames(torch.tensor(round(WINDOW_S * 16_000)), bench.config))

    @torch.inference_mode()
    def run(waveforms: Sequence[Tensor], batch_size: int | None) -> Tensor:
        if not packed:
            packed.append(PackedUpstream(bench.truncated, precision))
        on_device = [waveform.to(bench.device) for waveform in waveforms]
        return packed[0](on_device, bench.layers, window_frames)

    low = str(low_type(bench.device)).removeprefix("torch.") if precision == "int8" else precision
    precision_of = {"stem": low, "position": "float32", "linear": precision, "attention": low}
    return Contender(precision, f"wavCSE {precision}", False, run, max(bench.layers), precision_of, **tolerance)


def _everywhere(precision: str) -> dict[str, str]:
    return dict.fromkeys(("stem", "position", "linear", "attention"), precision)


def all_variants(bench: UpstreamBench) -> list[Contender]:
    """Rivals first; the first of them, the ordinary recipe in float32, is the reference."""
    return [*rivals(bench), *ours(bench)]
