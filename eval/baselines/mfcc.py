"""Statistics of MFCCs: what can be had without any model.

13 MFCCs of 25 ms frames every 10 ms, their deltas and delta-deltas (Davis and Mermelstein 1980; regression deltas as in the
HTK book, section 5.9); mean and standard deviation over the frames of a clip. Other numbers of coefficients and neighbours
beside each frame on request.

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
# The frames of Porjazovski et al. 2024 (doi:10.1109/TASLP.2024.3426301, section III), arguments of `MFCCEncoder`.
PAPER_FRAMES = {"num_mfcc": 23, "context_frames": 5}
POWER_FLOOR = 1e-10  # keeps the logarithm of digital silence finite


class MFCCEncoder:
    """Mean and standard deviation of MFCCs, deltas and delta-deltas: 78 numbers per clip.

    Args:
        num_mfcc: coefficients of a frame, at most 40.
        context_frames: neighbours to either side that are put beside each frame.
    """

    sampling_rate = SAMPLING_RATE_HZ

    def __init__(self, num_mfcc: int = NUM_MFCC, context_frames: int = 0):
        self.name = "mfcc"
        self.num_mfcc, self.context_frames = num_mfcc, context_frames
        self.frame_size = 3 * num_mfcc * (2 * context_frames + 1)
        self.embedding_size = 2 * self.frame_size
        if (num_mfcc, context_frames) != (NUM_MFCC, 0):  # stored vectors of the others keep their key
            self.identity = {"num_mfcc": str(num_mfcc), "context_frames": str(context_frames)}

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, 78]`: 39 means (MFCC, delta, delta-delta), then 39 standard deviations."""
        features = map(self._frames, waveforms)
        return np.stack([np.concatenate([own.mean(axis=0), own.std(axis=0)]) for own in features]).astype(np.float32)

    def frames(self, waveforms: Sequence[np.ndarray], layers: Sequence[int] = (0,)) -> list[np.ndarray]:
        """MFCC, delta and delta-delta of every frame, float32 `[T, 1, 39]` per clip; there is this one layer."""
        return [self._frames(waveform).astype(np.float32)[:, None] for waveform in waveforms]

    def _frames(self, waveform: np.ndarray) -> np.ndarray:
        return with_context(with_deltas(waveform, self.num_mfcc), self.context_frames)


def with_deltas(waveform: np.ndarray, num_mfcc: int = NUM_MFCC) -> np.ndarray:
    """MFCC, delta and delta-delta, `[T, 39]`."""
    coefficients = mfcc(waveform, num_mfcc)
    first = deltas(coefficients)
    return np.concatenate([coefficients, first, deltas(first)], axis=1)


def with_context(features: np.ndarray, context_frames: int) -> np.ndarray:
    """Frames `[T, F]` with their neighbours: `[T, (2 * context_frames + 1) * F]`, from the earliest to the latest.

    At the ends of a clip the outermost frame stands for those that are not there.
    """
    width = 2 * context_frames + 1
    padded = np.pad(features, ((context_frames, context_frames), (0, 0)), mode="edge")
    return np.concatenate([padded[place : place + len(features)] for place in range(width)], axis=1)


def mfcc(waveform: np.ndarray, num_mfcc: int = NUM_MFCC) -> np.ndarray:
    """MFCCs `[T, num_mfcc]` (orthonormal DCT-II of natural-log mel power) of a waveform `[samples]` at 16 kHz.

    T = 1 + (samples - 400) // 160; a clip of less than one frame is padded with zeros to one.
    """
    padded = np.pad(waveform.astype(np.float64), (0, max(0, FRAME_SAMPLES - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME_SAMPLES)[::HOP_SAMPLES]  # [T, 400]
    power = np.abs(rfft(frames * get_window("hann", FRAME_SAMPLES), FFT_SAMPLES)) ** 2  # [T, F]
    log_mel = np.log(np.maximum(power @ mel_filters().T, POWER_FLOOR))  # [T, M]
    return dct(log_mel, type=2, norm="ortho", axis=1)[:, :num_mfcc]


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
