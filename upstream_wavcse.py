"""The self-supervised upstream as wavCSE runs it: only the blocks that are needed, pooled while it runs, exact in any batch.

Shapes: `B` clips, `T` frames, `D` upstream width, `K` layers. Layer 0 is the input of the first block, layer i the output of
block i, as in the paper (fairseq numbering). The encoder's final LayerNorm is never part of a layer: transformers versions
differ in whether `hidden_states[-1]` holds it, so layers are read from the blocks themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from transformers import AutoConfig, AutoModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_wavcse import (
    MODULE_FAMILIES,
    PRECISIONS,
    SQUEEZING_FAMILIES,
    UPSTREAM_FAMILIES,
    WavCSEConfig,
    as_encoder,
    build_valid,
    count_frames,
    frame_geometry,
    is_whisper,
)
from .packed_encoder_wavcse import (
    PackedUpstream,
    Window,
    blocks_of,
    clip_windows,
    is_norm_before,
    joined_windows,
    unsupported_part,
    weights_fingerprint,
)
from .packed_layers_wavcse import fastest_precision
from .pooling_wavcse import num_moments, pooled_pieces, time_moments
from .wav2vec2_bert_wavcse import filterbank_of_clip
from .whisper_wavcse import build_encoder, log_mel_of_clip, visit_encoder_layers

IN_WAVCSE = r"^(?:wavcse\.)?upstream\."  # where a saved wavCSE model has its upstream, without and with heads
IN_ENCODER_DECODER = r"^(?:model\.)?encoder\."  # Whisper's and Moonshine's
MODULE_FRAMES = 4000  # of windows that go through the modules together, in the families that run by them alone
WHISPER_LONG, WHISPER_WINDOWS = 1000, 4  # of so many mel frames or more, so many windows go through its modules together
NO_SAFETENSORS = (
    "No safetensors weights of {name!r} were found, and pickled ones (pytorch_model.bin) are not read: they can run code. "
    "Name a revision that has model.safetensors (`id@revision` on a command line, `revision=` in Python; on the Hub often "
    "refs/pr/N), or convert a model that you trust with `AutoModel.from_pretrained(id).save_pretrained(folder)`, add its "
    "preprocessor_config.json and give that folder."
)
# Parts of a checkpoint that no selected layer needs, as regular expressions on its names.
LEFT_OUT = (
    r"(encoder|decoder)\.layers?\.\d+\.",
    r"^layers\.\d+\.",
    r"^(model\.)?decoder\.",
    r"^quantizer\.",
    r"^project_(q|hid)\.",
    r"^(lm_head|proj_out)\.",
    r"^masked_spec_embed$",
    r"^(wavcse\.)?downstream\.",
    r"^heads\.",
)


def reduced_weight_norm(module: nn.Module, protocol: int) -> tuple:
    """How to pickle a module with a weight norm, as positional convolutions have it.

    PyTorch refuses to, because it makes a class and a hook for each such module. Here both are made again. To be set as
    `__reduce_ex__` of that class.
    """
    state = {**vars(module), "_load_state_dict_pre_hooks": OrderedDict()}
    return _with_weight_norm, (parametrize.type_before_parametrizations(module), state)


def _with_weight_norm(module_class: type[nn.Module], state: dict) -> nn.Module:
    module = module_class.__new__(module_class)
    modules = dict(state["_modules"])
    lists = modules.pop("parametrizations")
    vars(module).update({**state, "_modules": modules})
    for name, of_weight in lists.items():
        module.register_parameter(name, nn.Parameter(of_weight().detach(), requires_grad=False))
        weight_norm(module, name, dim=of_weight[0].dim)
        module.parametrizations[name] = of_weight  # its two originals, to the bit
    return module


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
    if config.model_type == "moonshine":
        return MoonshineEncoder(config)
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
    return as_encoder(build_valid(what, AutoConfig.from_pretrained, name_or_path, trust_remote_code=False, **hub_kwargs))


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
    names = {IN_WAVCSE: "", **({IN_ENCODER_DECODER: ""} if config.model_type in ("whisper", "moonshine") else {})}
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


def check_precision(upstream: PreTrainedModel, precision: str) -> None:
    """ValueError that names the cause if an upstream cannot run at this precision; it always can at "float32" and "auto"."""
    if precision not in (*PRECISIONS, "auto"):
        raise ValueError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}.")
    reason = None if precision in ("float32", "auto") else unsupported_part(upstream)
    if reason:
        raise ValueError(
            f"precision={precision!r} is not available for this {upstream.config.model_type} upstream: {reason}. It runs by "
            "its transformers module, at precision='float32'."
        )


class UpstreamRunner:
    """Runs an encoder in the cheapest way that gives what is asked for.

    Without gradients, and when only the pooled layers are wanted, that is the packed path (`packed_encoder_wavcse`), whose
    derived weights are kept here and made again when the encoder's weights change; they are not part of any state. Otherwise
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
        context: str | None = None,
    ) -> UpstreamOutput:
        """As `run_upstream`; a `precision` other than "float32" needs the packed path.

        Windows of `window_frames` are for the packed path too, and for the families that never run packed.

        Raises:
            ValueError: as `run_upstream`, or the precision is not available for this upstream or with gradients.
        """
        packed = self._packed_way(upstream, input_values, precision, output_hidden_states or output_attentions)
        if packed is not None:
            waveforms = [waveform.float() for waveform in unpadded(upstream.config, input_values, attention_mask)]
            return UpstreamOutput(packed(waveforms, layers, window_frames, temporal_pooling, context))
        states = (output_hidden_states, output_attentions)
        windows = _windows_of_modules(upstream, window_frames)
        return run_upstream(upstream, input_values, attention_mask, layers, *states, temporal_pooling, context, windows)

    def frames(
        self,
        upstream: PreTrainedModel,
        waveforms: Sequence[Tensor],
        layers: Sequence[int],
        precision: str = "float32",
        window_frames: int | None = None,
        context: str | None = None,
    ) -> list[Tensor]:
        """The wanted layers frame by frame, `[T, K, D]` of every waveform `[samples]`; arguments and errors as of a call."""
        packed = self._packed_way(upstream, waveforms, precision)
        if packed is not None:
            unpadded(upstream.config, waveforms, None)
            return packed.frames([waveform.float() for waveform in waveforms], layers, window_frames, context)
        return run_frames(upstream, waveforms, layers, context, _windows_of_modules(upstream, window_frames))

    def _packed_way(
        self, upstream: PreTrainedModel, input_values: Tensor | Sequence[Tensor], precision: str, wants_states: bool = False
    ) -> PackedUpstream | None:
        """The packed form of the encoder, or `None` where its transformers module has to run."""
        needs_gradient = torch.is_grad_enabled() and (
            any(waveform.requires_grad for waveform in input_values)
            or any(parameter.requires_grad for parameter in upstream.parameters())
        )
        if needs_gradient or upstream.training:
            self.packed = self.unsupported = None  # fused optimisers, and writing to `.data`, leave no trace on the weights
        is_ordinary = wants_states or needs_gradient or upstream.training or torch.compiler.is_compiling()
        if precision == "auto":
            precision = "float32" if is_ordinary or unsupported_part(upstream) else fastest_precision(upstream.device)
        packed = None if is_ordinary else self._packed_for(upstream, precision)
        if packed is None:
            check_precision(upstream, precision)
            if precision != "float32":
                raise ValueError(
                    f"precision={precision!r} is for inference on pooled layers: use `model.eval()` and `torch.no_grad()`, "
                    "without hidden states or attentions."
                )
        return packed

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


def _windows_of_modules(upstream: PreTrainedModel, window_frames: int | None) -> int | None:
    """`window_frames` of a family that never runs packed; others go through their modules in one piece."""
    return window_frames if upstream.config.model_type in MODULE_FAMILIES else None


def run_upstream(
    upstream: PreTrainedModel,
    input_values: Tensor | Sequence[Tensor],
    attention_mask: Tensor | None,
    layers: Sequence[int],
    output_hidden_states: bool = False,
    output_attentions: bool = False,
    temporal_pooling: str = "mean",
    context: str | None = None,
    window_frames: int | None = None,
) -> UpstreamOutput:
    """Run the transformers modules over a right-padded batch and pool the frames of the wanted layers over time.

    Clips of one length go through together and no padding ever enters the encoder, so a clip's result does not depend on its
    batch: group-norm stems would average over the padding, and on a CPU padding costs more time than batching saves.

    Args:
        input_values: waveforms `[B, samples]`, or a list of waveforms `[samples]`, which has no padding.
        attention_mask: `[B, samples]`, 1 for audio, 0 for padding on the right; `None` = no padding.
        layers: the K layers to pool.
        temporal_pooling: "mean" or "mean_std" (`pooling_wavcse`).
        context: of Whisper, "clip" or "window" (`whisper_wavcse`); `None` for all others.
        window_frames: a longer clip goes through in windows, each of them as a clip of its own; `None` = in one piece.

    Raises:
        ValueError: a clip is too short for one frame, the mask is not right-padding, the pooling is unknown, or attentions are
            wanted of a clip that goes through in several windows.
    """
    waveforms = unpadded(upstream.config, input_values, attention_mask)
    windows = clip_windows(waveforms, upstream.config, window_frames, context)
    if output_attentions and len(windows) > len(waveforms):
        raise ValueError(
            "A clip has more frames than go through together (`window_s`; Whisper's positions): no attention map covers it; "
            "cut the clip."
        )
    inputs = _module_inputs(upstream, waveforms, windows, context)
    shape = (len(windows), len(layers), num_moments(temporal_pooling), upstream.config.hidden_size)
    moments = waveforms[0].new_zeros(shape, dtype=torch.float32)
    frames = _PaddedStates(windows, cut=True) if output_hidden_states else None
    maps = _PaddedStates(windows, cut=False) if output_attentions else None
    position = {layer: k for k, layer in enumerate(layers)}
    for rows, kept in _alike(inputs, windows, upstream.config):
        collected: dict[int, Tensor] = {}

        def visit(layer: int, hidden: Tensor, collected: dict = collected, rows: list = rows, kept: slice = kept) -> None:
            if layer in position:
                collected[layer] = time_moments(hidden[:, kept], temporal_pooling)
            if frames is not None:
                frames.put(layer, rows, hidden)

        batch = torch.stack([inputs[row] for row in rows]).to(upstream.dtype)
        attentions = _visit_layers(upstream, batch, visit, output_attentions)
        of_group = torch.stack([collected[layer] for layer in layers], dim=1)
        moments = moments.index_copy(0, torch.tensor(rows, device=moments.device), of_group)
        for block, attention in enumerate(attentions if maps is not None else ()):
            maps.put(block, rows, attention)
    kept_frames = [window.keep_end - window.keep_start for window in windows]
    pooled = pooled_pieces([window.clip for window in windows], kept_frames, moments, len(waveforms))
    return UpstreamOutput(pooled, frames and frames.as_tuple(), maps and maps.as_tuple())


def run_frames(
    upstream: PreTrainedModel,
    waveforms: Sequence[Tensor],
    layers: Sequence[int],
    context: str | None = None,
    window_frames: int | None = None,
) -> list[Tensor]:
    """Run the transformers modules as `run_upstream` does, and keep the frames of the wanted layers: `[T, K, D]` per clip."""
    waveforms = unpadded(upstream.config, waveforms, None)
    windows = clip_windows(waveforms, upstream.config, window_frames, context)
    inputs = _module_inputs(upstream, waveforms, windows, context)
    kept: list[Tensor | None] = [None] * len(windows)
    for rows, span in _alike(inputs, windows, upstream.config):
        collected: dict[int, Tensor] = {}

        def visit(layer: int, hidden: Tensor, collected: dict = collected, span: slice = span) -> None:
            if layer in layers:
                collected[layer] = hidden[:, span].float()

        _visit_layers(upstream, torch.stack([inputs[row] for row in rows]).to(upstream.dtype), visit, False)
        for row, own in zip(rows, torch.stack([collected[layer] for layer in layers], dim=2)):
            kept[row] = own
    return joined_windows(windows, kept)


def _module_inputs(
    upstream: PreTrainedModel, waveforms: Sequence[Tensor], windows: Sequence[Window], context: str | None
) -> Sequence[Tensor]:
    """What the transformers modules take of every window.

    That is a waveform `[samples]`; for Whisper a spectrogram `[2 T, mel bins]`; for Wav2Vec2-BERT a filterbank
    `[T, 2 mel bins]`. The latter two are those of the whole clip, cut into windows.
    """
    config = upstream.config
    if is_whisper(config):
        spectrograms = [log_mel_of_clip(waveform, config, context) for waveform in waveforms]
        return [spectrograms[window.clip][2 * window.start : 2 * window.end] for window in windows]
    if config.model_type == "wav2vec2-bert":
        features = [filterbank_of_clip(waveform, config) for waveform in waveforms]
        return [features[window.clip][window.start : window.end] for window in windows]
    field, hop = frame_geometry(config)
    inputs = []
    for window in windows:
        waveform = waveforms[window.clip]
        is_last = window.end == count_frames(len(waveform), config)
        inputs.append(waveform[window.start * hop : None if is_last else (window.end - 1) * hop + field])
    return inputs


def _alike(inputs: Sequence[Tensor], windows: Sequence[Window], config: PretrainedConfig) -> Iterator[tuple[list[int], slice]]:
    """Rows of `inputs` that go through together, being equally long and pooled over the same frames, with those frames."""
    groups: dict[tuple, list[int]] = {}
    for row, window in enumerate(windows):
        kept = (window.keep_start - window.start, window.keep_end - window.start)
        groups.setdefault((len(inputs[row]), *kept), []).append(row)
    for (length, start, end), rows in sorted(groups.items()):
        together = len(rows)
        if is_whisper(config) and length > WHISPER_LONG:
            together = WHISPER_WINDOWS
        elif config.model_type in MODULE_FAMILIES:
            together = max(1, MODULE_FRAMES // (windows[rows[0]].end - windows[rows[0]].start))
        for first in range(0, len(rows), together):
            yield rows[first : first + together], slice(start, end)


def _visit_layers(
    upstream: PreTrainedModel, batch: Tensor, visit: Callable[[int, Tensor], None], output_attentions: bool
) -> Sequence[Tensor]:
    """One pass over inputs of equal length: `visit(layer, hidden_states)` for every layer; the attention maps if wanted."""
    if is_whisper(upstream.config):
        return visit_encoder_layers(upstream, batch.transpose(1, 2), visit, output_attentions)
    with visiting_layers(upstream, visit):
        return upstream(batch, output_attentions=output_attentions, return_dict=True).attentions or ()


def unread_part(upstream: PreTrainedModel) -> nn.Module | None:
    """The part behind the last block that is in no layer, and so is never trained: a final norm, or SEW's upsampling."""
    family = upstream.config.model_type
    if family in ("whisper", "moonshine"):
        return upstream.layer_norm
    if family in SQUEEZING_FAMILIES:
        return upstream.encoder.upsample
    return upstream.encoder.layer_norm if is_norm_before(upstream) else None


@contextmanager
def visiting_layers(upstream: PreTrainedModel, visit: Callable[[int, Tensor], None]) -> Iterator[None]:
    """During one pass, `visit(layer, hidden_states [B, T, D])` is called for layer 0 and after every block, in order.

    The output of a block that LayerDrop skips (a trained upstream only) is its input.
    """
    latest: list = [-1, None]  # layer and hidden states

    def visit_skipped(stop: int) -> None:
        for layer in range(latest[0] + 1, stop):
            visit(layer, latest[1])

    def before(module: nn.Module, inputs: tuple) -> None:
        latest[:] = 0, inputs[0]
        visit(*latest)

    def after(layer: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            visit_skipped(layer)
            latest[:] = layer, output[0] if isinstance(output, tuple) else output
            visit(*latest)

        return hook

    # The blocks' input, read where a module is even if no block is needed: as it is given to that module, or returned by it.
    blocks, family = blocks_of(upstream), upstream.config.model_type
    if family in ("moonshine", "sew-d"):
        taker = upstream.rotary_emb if family == "moonshine" else upstream.encoder.encoder
        hooks = [taker.register_forward_pre_hook(before)]
    else:
        hooks = [upstream.encoder.dropout.register_forward_hook(after(0))]
    hooks += [block.register_forward_hook(after(i)) for i, block in enumerate(blocks, start=1)]
    try:
        yield
        visit_skipped(len(blocks) + 1)
    finally:
        for hook in hooks:
            hook.remove()


class _PaddedStates:
    """Collects what groups of windows give into one tensor per key over all clips, with zeros in the padding.

    Args:
        windows: of all clips, in order.
        cut: the states are frames `[b, T, D]`, of which a window gives those that it keeps; else attention maps
            `[b, H, T, T]`, of clips of one window each.
    """

    def __init__(self, windows: Sequence[Window], cut: bool):
        self.windows, self.cut = windows, cut
        self.states: dict[int, list[Tensor | None] | Tensor] = {}

    def put(self, key: int, rows: Sequence[int], state: Tensor) -> None:
        first = self.windows[rows[0]]
        start, end = (first.keep_start - first.start, first.keep_end - first.start) if self.cut else (0, state.shape[-2])
        kept = state if end - start == state.shape[-2] else state[:, start:end]
        if len(rows) == 1 + self.windows[-1].clip == len(self.windows):  # one group: keep the encoder's own tensor, so that
            self.states[key] = kept  # gradients can be read off it
            return
        of_windows = self.states.setdefault(key, [None] * len(self.windows))
        for row, own in zip(rows, kept):
            of_windows[row] = own

    def as_tuple(self) -> tuple[Tensor, ...]:
        return tuple(self._padded(self.states[key]) for key in sorted(self.states))

    def _padded(self, state: list[Tensor] | Tensor) -> Tensor:
        if isinstance(state, Tensor):
            return state
        whole = joined_windows(self.windows, state)
        longest = max(frames.shape[-2] for frames in whole)
        # [T, D] pads its axis 0, attention maps [H, T, T] their last two
        missing = [longest - frames.shape[-2] for frames in whole]
        paddings = [(0, 0, 0, n) if self.cut else (0, n, 0, n) for n in missing]
        return torch.stack([nn.functional.pad(frames, padding) for frames, padding in zip(whole, paddings)])


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
