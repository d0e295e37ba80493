"""Statistics of MFCCs: what can be had without any model.

13 MFCCs of 25 ms frames every 10 ms, their deltas and delta-deltas (Davis and Mermelstein 1980; regression deltas as in the
HTK book, section 5.9); mean and standard deviation over the frames of a clip.

Shapes: `T` frames, `F` frequency bins, `M` mel bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.fft import dct, rfft
from scipy.signal import get_window, savgol_filter

SAMPLING_RATE_HZ = 16_000
FRAME_SAMPLES = SAMPLING_RATE_HZ * 25 // 1000
HOP_SAMPLES = SAMPLING_RATE_HZ * 10 // 1000
FFT_SAMPLES = 512
NUM_MELS = 40
NUM_MFCC = 13
DELTA_FRAMES = 5  # two frames to either side
POWER_FLOOR = 1e-10  # keeps the logarithm of digital silence finite


class MFCCEncoder:
    """Mean and standard deviation of MFCCs, deltas and delta-deltas: 78 numbers per clip."""

    name = "mfcc"
    sampling_rate = SAMPLING_RATE_HZ
    embedding_size = 2 * 3 * NUM_MFCC

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, 78]`: 39 means (MFCC, delta, delta-delta), then 39 standard deviations."""
        features = map(with_deltas, waveforms)
        return np.stack([np.concatenate([own.mean(axis=0), own.std(axis=0)]) for own in features]).astype(np.float32)

    def frames(self, waveforms: Sequence[np.ndarray], layers: Sequence[int] = (0,)) -> list[np.ndarray]:
        """MFCC, delta and delta-delta of every frame, float32 `[T, 1, 39]` per clip; there is this one layer."""
        return [with_deltas(waveform).astype(np.float32)[:, None] for waveform in waveforms]


def with_deltas(waveform: np.ndarray) -> np.ndarray:
    """MFCC, delta and delta-delta, `[T, 39]`."""
    coefficients = mfcc(waveform)
    first = deltas(coefficients)
    return np.concatenate([coefficients, first, deltas(first)], axis=1)


def mfcc(waveform: np.ndarray) -> np.ndarray:
    """MFCCs `[T, 13]` (orthonormal DCT-II of natural-log mel power) of a waveform `[samples]` at 16 kHz.

    T = 1 + (samples - 400) // 160; a clip of less than one frame is padded with zeros to one.
    """
    padded = np.pad(waveform.astype(np.float64), (0, max(0, FRAME_SAMPLES - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME_SAMPLES)[::HOP_SAMPLES]  # [T, 400]
    power = np.abs(rfft(frames * get_window("hann", FRAME_SAMPLES), FFT_SAMPLES)) ** 2  # [T, F]
    log_mel = np.log(np.maximum(power @ mel_filters().T, POWER_FLOOR))  # [T, M]
    return dct(log_mel, type=2, norm="ortho", axis=1)[:, :NUM_MFCC]


@cache
def mel_filters() -> np.ndarray:
    """Triangular filters `[M, F]`, of height 1 and equally wide on the HTK mel scale from 0 Hz to 8 kHz."""
    top_mel = 2595 * np.log10(1 + SAMPLING_RATE_HZ / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top_mel, NUM_MELS + 2) / 2595) - 1)
    bins_hz = np.fft.rfftfreq(FFT_SAMPLES, 1 / SAMPLING_RATE_HZ)
    left, centre, right = (edges_hz[i : i + NUM_MELS, None] for i in range(3))
    return np.maximum(0, np.minimum((bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre)))


def deltas(features: np.ndarray) -> np.ndarray:
    """Slope over time of `[T, ...]`: least squares over five frames, the outermost frames repeated at the ends."""
    return savgol_filter(features, DELTA_FRAMES, polyorder=1, deriv=1, axis=0, mode="nearest")
