"""Whisper's encoder as an upstream: its log-mel spectrogram, and its transformers modules run on as many frames as a clip has.

transformers' own `WhisperEncoder.forward` takes 30 s and nothing else, so every clip is filled up with silence, which the
encoder attends to. The modules themselves need no such length: their positions are a table whose first rows serve a shorter
input. `context` of the configuration says which of the two a model does:

- "clip": the clip is filled up with zeros to whole frames of 20 ms (fewer than 320 samples), and its spectrogram is what
  transformers makes of it without further padding. A clip of more frames than there are positions goes in overlapping windows
  of the one spectrogram.
- "window": every 30 s of the clip are a spectrogram of their own, filled up with silence, as `WhisperFeatureExtractor` does by
  default; pooled are the frames that hold audio.

Shapes: `T` frames (20 ms each), `M` = 2 T mel frames (10 ms each), `D` encoder width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.audio_utils import mel_filter_bank
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .configuration_wavcse import WHISPER_SAMPLES_PER_FRAME, count_frames

SAMPLING_RATE_HZ = 16_000
FFT_SAMPLES = 400  # 25 ms
HOP_SAMPLES = WHISPER_SAMPLES_PER_FRAME // 2  # of mel frames; the second convolution halves them
MEL_FRAMES_PER_BLOCK = 2**13  # whose spectra are in memory at a time, 13 MB
LEAST_POWER = 1e-10
DYNAMIC_RANGE = 8.0  # powers of ten below the loudest value of a spectrogram; what is quieter is raised to that


def build_encoder(config: PretrainedConfig) -> WhisperEncoder:
    """The encoder of `config`, random weights."""
    return WhisperEncoder(config)


def visit_encoder_layers(
    encoder: PreTrainedModel,
    features: Tensor,
    visit: Callable[[int, Tensor], None],
    output_attentions: bool = False,
    attention_mask: Tensor | None = None,
) -> list[Tensor]:
    """Run the encoder's modules as `WhisperEncoder.forward` does, on any number of frames up to that of its positions.

    Args:
        features: spectrograms `[B, mel bins, 2 T]` of one length, without padding.
        visit: is called with (0, input of the first block `[B, T, D]`) and with (i, output of block i); the final LayerNorm
            is not run.
        output_attentions: needs an encoder that was loaded with `attn_implementation="eager"`.
        attention_mask: is added to the scores, `[B, 1, 1, T]`; `None` = every frame attends to all.

    Returns:
        One attention map `[B, heads, T, T]` per block, if they are wanted and the attention gives them.
    """
    hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = F.dropout(hidden, p=encoder.dropout, training=encoder.training)
    visit(0, hidden)
    maps: list[Tensor | None] = []
    watched = encoder.layers if output_attentions else ()
    hooks = [block.self_attn.register_forward_hook(lambda module, inputs, output: maps.append(output[1])) for block in watched]
    try:
        for layer, block in enumerate(encoder.layers, start=1):
            is_dropped = encoder.training and encoder.layerdrop > 0 and torch.rand([]) < encoder.layerdrop  # LayerDrop
            if not is_dropped:
                output = block(hidden, attention_mask)
                hidden = output[0] if isinstance(output, tuple) else output  # transformers 5.0 gives a tuple
            visit(layer, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return [attention for attention in maps if attention is not None]


# ---- the log-mel spectrogram ----


def log_mel_of_clip(waveform: Tensor, config: PretrainedConfig, context: str) -> Tensor:
    """The spectrogram of a whole clip `[samples]`, `[M, mel bins]`, one of the module's two contexts."""
    bins, most = config.num_mel_bins, 2 * config.max_source_positions
    if context == "window":
        pieces = waveform.split(most * HOP_SAMPLES)
        return torch.cat([log_mel(piece, bins, most) for piece in pieces])
    return log_mel(waveform, bins, 2 * count_frames(len(waveform), config))


def log_mel(waveform: Tensor, num_mel_bins: int, num_frames: int) -> Tensor:
    """transformers' spectrogram (`WhisperFeatureExtractor`) of `[samples]`, filled up with zeros to `num_frames` mel frames.

    Frames that see zeros only are not computed. Differences to transformers are those of rounding, up to 1e-6.

    Returns:
        `[num_frames, mel bins]`, float32; time goes down the rows, so that a convolution is a product of rows.
    """
    heard = min(num_frames, (len(waveform) + FFT_SAMPLES // 2) // HOP_SAMPLES + 1)  # from there on, a frame is all zeros
    padded = F.pad(waveform.float(), (0, heard * HOP_SAMPLES - len(waveform)))
    padded = F.pad(padded[None], (FFT_SAMPLES // 2, FFT_SAMPLES // 2), mode="reflect")[0]
    window, filters = window_and_filters(num_mel_bins, waveform.device)
    levels = []
    for frames in padded.unfold(0, FFT_SAMPLES, HOP_SAMPLES)[:heard].split(MEL_FRAMES_PER_BLOCK):
        spectra = torch.view_as_real(torch.fft.rfft(frames * window))  # [frames, frequencies, 2]
        levels.append((spectra.square().sum(dim=-1) @ filters).clamp_(min=LEAST_POWER).log10_())
    level = F.pad(torch.cat(levels), (0, 0, 0, num_frames - heard), value=-10.0)  # log10 of the least power
    return torch.maximum(level, level.max() - DYNAMIC_RANGE).add_(4.0).div_(4.0)


@lru_cache(maxsize=8)
def window_and_filters(num_mel_bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The Hann window `[400]` and the mel filters `[201, mel bins]` of every published Whisper."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + FFT_SAMPLES // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=SAMPLING_RATE_HZ / 2,
        sampling_rate=SAMPLING_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.hann_window(FFT_SAMPLES, device=device), torch.from_numpy(filters).to(device, torch.float32)
