"""What Wav2Vec2-BERT takes of a clip: Kaldi's log-mel filterbank, normalised over the clip, two mel frames to a frame.

As transformers' `SeamlessM4TFeatureExtractor` makes it of a clip alone. An odd mel frame at the end counts for the
normalisation and is in no frame: there, too, the model's mask hides it.

Shapes: `M` mel frames (25 ms, every 10 ms), `T` = M // 2 frames, `F` mel bins.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank
from transformers.configuration_utils import PretrainedConfig

from .configuration_wavcse import FILTERBANK_STEM

SAMPLING_RATE_HZ = 16_000
(WINDOW_SAMPLES, HOP_SAMPLES), (STACKED, _) = FILTERBANK_STEM
FFT_SAMPLES = 512
LOWEST_HZ = 20
INT16_SCALE = 2**15  # Kaldi takes samples as whole numbers
PREEMPHASIS = 0.97
LEAST_POWER = 1.192092955078125e-07  # the smallest difference of float32 at 1, as in Kaldi
VARIANCE_FLOOR = 1e-7
MEL_FRAMES_PER_BLOCK = 2**13  # whose spectra are in memory at a time, 34 MB


def filterbank_of_clip(waveform: Tensor, config: PretrainedConfig) -> Tensor:
    """The frames of a whole clip `[samples]`, `[T, 2 F]`, float32.

    Computed in float64, as transformers does: the logarithm makes much of what is small. A mel bin that never changes, as of
    digital silence, is exactly 0 here, and rounding noise (up to 0.01) there.
    """
    levels = log_mel_energies(waveform, config.feature_projection_input_dim // STACKED)
    variance, mean = torch.var_mean(levels, dim=0)
    normalised = (levels - mean) / (variance + VARIANCE_FLOOR).sqrt()
    num_frames = len(levels) // STACKED
    return normalised[: num_frames * STACKED].reshape(num_frames, -1).float()


def log_mel_energies(waveform: Tensor, num_mel_bins: int) -> Tensor:
    """Kaldi's `fbank` of `[samples]`, at least 400 of them: `[M, F]`, float64."""
    window, filters = _window_and_filters(num_mel_bins, waveform.device)
    levels = []
    for frames in waveform.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES).split(MEL_FRAMES_PER_BLOCK):
        frames = INT16_SCALE * frames.double()
        frames = frames - frames.mean(dim=1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        spectra = torch.view_as_real(torch.fft.rfft((frames - PREEMPHASIS * before) * window, n=FFT_SAMPLES))
        levels.append((spectra.square().sum(dim=-1) @ filters).clamp(min=LEAST_POWER).log())
    return torch.cat(levels)


@lru_cache(maxsize=8)
def _window_and_filters(num_mel_bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Povey's window `[400]` and the mel filters `[257, F]`, float64."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + FFT_SAMPLES // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=LOWEST_HZ,
        max_frequency=SAMPLING_RATE_HZ // 2,
        sampling_rate=SAMPLING_RATE_HZ,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    window = torch.hann_window(WINDOW_SAMPLES, periodic=False, dtype=torch.float64, device=device) ** 0.85
    return window, torch.from_numpy(filters).to(device, torch.float64)
