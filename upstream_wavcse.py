"""The self-supervised upstream as wavCSE runs it: only the blocks that are needed, pooled while it runs, exact in any batch.

Shapes: `B` clips, `T` frames, `D` upstream width, `K` layers. Layer 0 is the input of the first block, layer i the output of
block i, as in the paper (fairseq numbering). The encoder's final LayerNorm is never part of a layer: transformers versions
differ in whether `hidden_states[-1]` holds it, so layers are read from the blocks themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_wavcse import UPSTREAM_FAMILIES, WavCSEConfig, build_valid, count_frames, is_whisper
from .packed_encoder_wavcse import PackedUpstream, unsupported_part, weights_fingerprint
from .packed_layers_wavcse import fastest_precision
from .pooling_wavcse import num_moments, pooled_frames
from .whisper_wavcse import build_encoder, pool_layers

IN_WAVCSE = r"^(?:wavcse\.)?upstream\."  # where a saved wavCSE model has its upstream, without and with heads
IN_WHISPER = r"^(?:model\.)?encoder\."
NO_SAFETENSORS = (
    "No safetensors weights of {name!r} were found, and pickled ones (pytorch_model.bin) are not read: they can run code. "
    "Name a revision that has model.safetensors (`id@revision` on a command line, `revision=` in Python; on the Hub often "
    "refs/pr/N), or convert a model that you trust with `AutoModel.from_pretrained(id).save_pretrained(folder)`, add its "
    "preprocessor_config.json and give that folder."
)
# Parts of a checkpoint that no selected layer needs, as regular expressions on its names.
LEFT_OUT = (
    r"(encoder|decoder)\.layers\.\d+\.",
    r"^layers\.\d+\.",
    r"^(model\.)?decoder\.",
    r"^quantizer\.",
    r"^project_(q|hid)\.",
    r"^(lm_head|proj_out)\.",
    r"^masked_spec_embed$",
    r"^(wavcse\.)?downstream\.",
    r"^heads\.",
)


@dataclass
class UpstreamOutput:
    """What one pass over a batch yields.

    `pooled_layers` `[B, K, D]`, or `[B, K, 2 D]` with "mean_std"; on request `hidden_states`, one `[B, T, D]` per layer 0..N
    with zeros in the padding, and `attentions`, one `[B, heads, T, T]` per block.
    """

    pooled_layers: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def build_upstream(config: PretrainedConfig) -> PreTrainedModel:
    """The transformers encoder of `config`, random weights, under its own parameter names."""
    return build_encoder(config) if is_whisper(config) else AutoModel.from_config(config)


def read_config(name_or_path: str, **hub_kwargs) -> PretrainedConfig:
    """The configuration of an upstream, or, of a wavCSE model whose upstream is to be taken, its `WavCSEConfig`.

    Python files of the repository are never run: the configuration is read by this version or by transformers.

    Args:
        name_or_path: Hub id or local folder.
        hub_kwargs: `revision`, `token`, `cache_dir`, ... as in `from_pretrained`.

    Raises:
        ValueError: it is of another kind, or a field is out of range.
        OSError: there is no such repository, or no configuration in it.
    """
    fields, _ = PretrainedConfig.get_config_dict(name_or_path, **hub_kwargs)
    model_type = fields.get("model_type") if isinstance(fields, Mapping) else None
    if model_type not in (*UPSTREAM_FAMILIES, WavCSEConfig.model_type):
        raise ValueError(
            f"{name_or_path}: config.json says model_type {model_type!r}; an upstream is one of "
            f"{', '.join(UPSTREAM_FAMILIES)}, or a saved wavCSE model. Code of a repository is not run here."
        )
    if model_type == WavCSEConfig.model_type:
        return WavCSEConfig.from_pretrained(name_or_path, **hub_kwargs)
    what = f"{name_or_path}: config.json"
    return build_valid(what, AutoConfig.from_pretrained, name_or_path, trust_remote_code=False, **hub_kwargs)


def load_upstream(name_or_path: str, config: PretrainedConfig, **hub_kwargs) -> PreTrainedModel:
    """Load the first `config.num_hidden_layers` blocks of a checkpoint; the others are neither built nor kept.

    Args:
        name_or_path: Hub id (`microsoft/wavlm-large`) or local folder, of an upstream or of a wavCSE model with one in it.
        config: the upstream's own configuration, with `num_hidden_layers` already reduced.
        hub_kwargs: `revision`, `token`, `cache_dir`, ... as in `from_pretrained`.

    Raises:
        ValueError: there are no safetensors weights; pickled ones are not read.
    """
    family = type(build_on_meta(config))
    left_out = [*(family._keys_to_ignore_on_load_unexpected or []), *LEFT_OUT]
    own = {"_keys_to_ignore_on_load_unexpected": left_out, "__module__": family.__module__}
    names = {IN_WAVCSE: "", **({IN_WHISPER: ""} if is_whisper(config) else {})}
    try:
        # A subclass, because transformers reads from the class what a checkpoint may hold besides.
        model = type(family.__name__, (family,), own).from_pretrained(
            name_or_path, config=config, dtype=torch.float32, key_mapping=names, use_safetensors=True, **hub_kwargs
        )
    except OSError as error:
        files = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        if any(cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False, **hub_kwargs) for file in files):
            raise
        raise ValueError(NO_SAFETENSORS.format(name=str(name_or_path))) from error
    model.__class__ = family
    vars(model).pop("_weight_conversions", None)  # else saving it would give its weights the checkpoint's names again
    return align_weights(model)


def align_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Copy CPU weights that do not start at a multiple of 64 bytes, where PyTorch allocates its own.

    Weights mapped from a file start anywhere, and CPU kernels then sum in another order: the same weights would give an
    embedding that differs in its last bits.
    """
    for weight in model.parameters():
        if weight.device.type == "cpu" and weight.data_ptr() % 64:
            weight.data = weight.data.clone()
    return model


def build_on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """The encoder with no storage behind its weights: for its class and its parameter counts."""
    with torch.device("meta"):
        return build_upstream(config)


class UpstreamRunner:
    """Runs an encoder in the cheapest way that gives what is asked for.

    Without gradients, and when only the pooled layers are wanted, that is the packed path (`packed_encoder_wavcse`), whose
    derived weights are kept here and made anew when the encoder's weights change; they are no part of any state. Otherwise
    the ordinary transformers module runs (`run_upstream`). Both agree to float32 rounding.
    """

    def __init__(self):
        self.packed: PackedUpstream | None = None
        self.unsupported: tuple | None = None  # fingerprint of weights that cannot run packed

    def __call__(
        self,
        upstream: PreTrainedModel,
        input_values: Tensor | Sequence[Tensor],
        attention_mask: Tensor | None,
        layers: Sequence[int],
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        precision: str = "float32",
        window_frames: int | None = None,
        temporal_pooling: str = "mean",
    ) -> UpstreamOutput:
        """As `run_upstream`; a `precision` other than "float32" and windows need the packed path.

        Raises:
            ValueError: as `run_upstream`, or the precision is not available for this upstream or with gradients.
        """
        wants_frames = output_hidden_states or output_attentions
        if is_whisper(upstream.config):
            if wants_frames or precision != "float32":
                raise ValueError("A Whisper upstream gives pooled layers at precision='float32' only.")
            waveforms = unpadded(upstream.config, input_values, attention_mask)
            return UpstreamOutput(pool_layers(upstream, waveforms, layers, temporal_pooling))
        needs_gradient = torch.is_grad_enabled() and (
            any(waveform.requires_grad for waveform in input_values)
            or any(parameter.requires_grad for parameter in upstream.parameters())
        )
        if needs_gradient or upstream.training:
            self.packed = self.unsupported = None  # fused optimisers, and writing to `.data`, leave no trace on the weights
        is_ordinary = wants_frames or needs_gradient or upstream.training or torch.compiler.is_compiling()
        if precision == "auto":
            precision = "float32" if is_ordinary or unsupported_part(upstream) else fastest_precision(upstream.device)
        packed = None if is_ordinary else self._packed_for(upstream, precision)
        if packed is not None:
            waveforms = [waveform.float() for waveform in unpadded(upstream.config, input_values, attention_mask)]
            return UpstreamOutput(packed(waveforms, layers, window_frames, temporal_pooling))
        if precision != "float32":
            raise ValueError(
                f"precision={precision!r} is for inference on pooled layers: use `model.eval()` and `torch.no_grad()`, "
                "without hidden states or attentions, on a float32 upstream."
            )
        states = (output_hidden_states, output_attentions)
        return run_upstream(upstream, input_values, attention_mask, layers, *states, temporal_pooling)

    def __reduce__(self) -> tuple:
        return UpstreamRunner, ()  # a copy of the encoder has its weights elsewhere, so it arranges its own

    def _packed_for(self, upstream: PreTrainedModel, precision: str) -> PackedUpstream | None:
        """The packed form of the encoder's present weights, or `None` if it has none; found out once for the same weights."""
        fingerprint = weights_fingerprint(upstream)
        if fingerprint == self.unsupported:
            return None
        if self.packed is None or (self.packed.precision, self.packed.fingerprint) != (precision, fingerprint):
            self.packed = None  # not two of them in memory at a time
            if unsupported_part(upstream):
                self.unsupported = fingerprint
                return None
            self.packed = PackedUpstream(upstream, precision)
        return self.packed


def run_upstream(
    upstream: PreTrainedModel,
    input_values: Tensor | Sequence[Tensor],
    attention_mask: Tensor | None,
    layers: Sequence[int],
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    temporal_pooling: str = "mean",
) -> UpstreamOutput:
    """Run the transformers module over a right-padded batch and pool the frames of the wanted layers over time.

    Clips of one length go through together and no padding ever enters the encoder, so a clip's result does not depend on its
    batch: group-norm stems would average over the padding, and on a CPU padding costs more time than batching saves.

    Args:
        input_values: waveforms `[B, samples]`, or a list of waveforms `[samples]`, which has no padding.
        attention_mask: `[B, samples]`, 1 for audio, 0 for padding on the right; `None` = no padding.
        layers: the K layers to pool.
        temporal_pooling: "mean" or "mean_std" (`pooling_wavcse`).

    Raises:
        ValueError: a clip is too short for one frame, the mask is not right-padding, or the pooling is unknown.
    """
    waveforms = unpadded(upstream.config, input_values, attention_mask)
    shape = (len(waveforms), len(layers), num_moments(temporal_pooling) * upstream.config.hidden_size)
    pooled = waveforms[0].new_zeros(shape, dtype=torch.float32)
    num_frames = count_frames(max(map(len, waveforms)), upstream.config)
    frames = _PaddedStates(len(waveforms), num_frames) if output_hidden_states else None
    maps = _PaddedStates(len(waveforms), num_frames) if output_attentions else None
    position = {layer: k for k, layer in enumerate(layers)}
    for length in sorted(set(map(len, waveforms))):
        rows = [clip for clip, waveform in enumerate(waveforms) if len(waveform) == length]
        clips, collected = torch.tensor(rows, device=pooled.device), {}

        def visit(layer: int, hidden: Tensor, collected: dict = collected, clips: Tensor = clips) -> None:
            if layer in position:
                collected[layer] = pooled_frames(hidden, temporal_pooling)
            if frames is not None:
                frames.put(layer, clips, hidden)

        with visiting_layers(upstream, visit):
            batch = torch.stack([waveforms[clip] for clip in rows])
            output = upstream(batch.to(upstream.dtype), output_attentions=output_attentions)
        pooled = pooled.index_copy(0, clips, torch.stack([collected[layer] for layer in layers], dim=1))
        for block, attention in enumerate(output.attentions or ()) if maps is not None else ():
            maps.put(block, clips, attention)
    return UpstreamOutput(pooled, frames and frames.as_tuple(), maps and maps.as_tuple())


@contextmanager
def visiting_layers(upstream: PreTrainedModel, visit: Callable[[int, Tensor], None]) -> Iterator[None]:
    """During one pass, `visit(layer, hidden_states [B, T, D])` is called for layer 0 and after every block, in order.

    The output of a block that LayerDrop skips (a trained upstream only) is its input.
    """
    latest: list = [-1, None]  # layer and hidden states

    def visit_skipped(stop: int) -> None:
        for layer in range(latest[0] + 1, stop):
            visit(layer, latest[1])

    def after(layer: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            visit_skipped(layer)
            latest[:] = layer, output[0] if isinstance(output, tuple) else output
            visit(*latest)

        return hook

    # In every family the blocks' input is what `encoder.dropout` returns; it exists even where no block is needed.
    hooks = [upstream.encoder.dropout.register_forward_hook(after(0))]
    hooks += [block.register_forward_hook(after(i)) for i, block in enumerate(upstream.encoder.layers, start=1)]
    try:
        yield
        visit_skipped(len(upstream.encoder.layers) + 1)
    finally:
        for hook in hooks:
            hook.remove()


class _PaddedStates:
    """Collects per-group tensors into one zero-padded tensor per key; frame axes are every axis of group length."""

    def __init__(self, batch_size: int, num_frames: int):
        self.batch_size, self.num_frames = batch_size, num_frames
        self.states: dict[int, Tensor] = {}

    def put(self, key: int, clips: Tensor, state: Tensor) -> None:
        if len(clips) == self.batch_size:  # one group: keep the encoder's own tensor, so that gradients can be read off it
            self.states[key] = state
            return
        # [b, T, D] pads its axis 1, attention maps [b, H, T, T] their last two
        missing = self.num_frames - state.shape[-2]
        padding = (0, 0, 0, missing) if state.ndim == 3 else (0, missing, 0, missing)
        padded = nn.functional.pad(state, padding)
        if key not in self.states:
            self.states[key] = padded.new_zeros((self.batch_size, *padded.shape[1:]))
        self.states[key] = self.states[key].index_copy(0, clips, padded)

    def as_tuple(self) -> tuple[Tensor, ...]:
        return tuple(self.states[key] for key in sorted(self.states))


def unpadded(
    config: PretrainedConfig, input_values: Tensor | Sequence[Tensor], attention_mask: Tensor | None
) -> Sequence[Tensor]:
    """The waveforms `[samples]` in a right-padded batch `[B, samples]`; a list is taken to have no padding.

    Raises:
        ValueError: a clip is too short for one frame, or the mask is not right-padding.
    """
    if attention_mask is None:
        waveforms = list(input_values)
    else:
        lengths = _lengths(input_values, attention_mask).tolist()
        waveforms = [clip[:length] for clip, length in zip(input_values, lengths)]
    for clip, waveform in enumerate(waveforms):
        if count_frames(len(waveform), config) < 1:
            raise ValueError(f"clip {clip}: has {len(waveform)} samples, too few for one frame; see `min_samples`.")
    return waveforms


def _lengths(input_values: Tensor, attention_mask: Tensor) -> Tensor:
    if attention_mask.shape != input_values.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but input_values {tuple(input_values.shape)}."
        )
    lengths = attention_mask.long().sum(dim=1)
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    if not torch.equal(attention_mask.bool(), positions[None, :] < lengths[:, None]):
        raise ValueError("attention_mask must be 1 for the samples of each clip and 0 for the padding to its right.")
    return lengths
