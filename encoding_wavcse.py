"""What surrounds the model in `encode` and `encode_frames`: clips read one after another, cut, put into batches; results.

Shapes: `n` windows of a clip, `T` frames, `K` layers, `D` upstream width, `E` embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from transformers.utils import logging

from .audio_wavcse import QUIET_RMS, rms
from .audio_wavcse import scale_quiet as scaled_if_quiet
from .feature_extraction_wavcse import WavCSEFeatureExtractor

logger = logging.get_logger(__name__)

MANY_QUIET = (
    f"{{num_quiet}} of {{num_clips}} clips are quieter than {20 * math.log10(QUIET_RMS):.0f} dB of full scale: their "
    "embeddings drift to that of silence. `encode(..., scale_quiet=True)` brings them to the level of usual speech."
)


class WavCSEWindows(NamedTuple):
    """One clip in windows: `embeddings` `[n, E]` with the start and end of each in seconds, `[n]`."""

    embeddings: np.ndarray | Tensor
    start_s: np.ndarray
    end_s: np.ndarray


class WavCSEFrames(NamedTuple):
    """One clip frame by frame: `frames` `[T, K, D]`, without padding, and the centre of each in ms, `[T]`."""

    frames: np.ndarray | Tensor
    times_ms: np.ndarray


def read_clips(
    clips: Sequence[Any], feature_extractor: WavCSEFeatureExtractor, scale_quiet: bool, show_progress_bar: bool | None
) -> Iterator[np.ndarray]:
    """Clips one after another as waveforms `[samples]`, scaled where that is asked for; at the end a word on quiet ones.

    Raises:
        ValueError: a clip cannot be read or served; the message names it by its path or position.
    """
    if show_progress_bar is None:
        show_progress_bar = logger.getEffectiveLevel() <= logging.INFO
    num_quiet = 0
    for position, clip in enumerate(logging.tqdm(clips, desc="encode", unit="clip", disable=not show_progress_bar)):
        waveform = feature_extractor.load(clip, position)
        num_quiet += 0.0 < rms(waveform) < QUIET_RMS
        yield scaled_if_quiet(waveform) if scale_quiet else waveform
    if num_quiet and not scale_quiet:
        logger.warning(MANY_QUIET.format(num_quiet=num_quiet, num_clips=len(clips)))


def batches_in_order(
    waveforms: Iterable[np.ndarray], sampling_rate: int, batch_seconds: float, batch_size: int | None
) -> Iterator[list[np.ndarray]]:
    """Batches of at most `batch_size` waveforms and about `batch_seconds`; no more than one batch is held.

    The packed upstream computes no padding, so clips need no sorting by length and results come in input order.

    Raises:
        ValueError: one of the two is out of range.
    """
    if not (isinstance(batch_seconds, int | float) and batch_seconds > 0):
        raise ValueError(f"batch_seconds is {batch_seconds}; it must be a positive number of seconds.")
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size > 0):
        raise ValueError(f"batch_size is {batch_size}; it must be a positive number of clips.")
    budget = batch_seconds * sampling_rate
    batch: list[np.ndarray] = []
    used = 0
    for waveform in waveforms:
        if batch and (used + waveform.size > budget or len(batch) == batch_size):
            yield batch
            batch, used = [], 0
        batch.append(waveform)
        used += waveform.size
    if batch:
        yield batch


# ---- windows ----


class WindowCutter:
    """Cuts clips into windows, and afterwards says where they lie.

    Args:
        window_s, hop_s: length of a window and distance of their starts in seconds; `hop_s=None` = no overlap.
        feature_extractor: of the model; a window must suit it.

    Raises:
        ValueError: a length is out of range.
    """

    def __init__(self, window_s: float, hop_s: float | None, feature_extractor: WavCSEFeatureExtractor):
        hop_s = window_s if hop_s is None else hop_s
        shortest = feature_extractor.min_samples / feature_extractor.sampling_rate
        longest = feature_extractor.max_duration_s
        if not shortest <= window_s <= longest:
            raise ValueError(f"window_s is {window_s}; a window of this model has {shortest:g} to {longest:g} s.")
        if not 0 < hop_s <= window_s:
            raise ValueError(f"hop_s is {hop_s} and window_s {window_s}; 0 < hop_s <= window_s must hold.")
        self.rate = feature_extractor.sampling_rate
        self.window, self.hop = in_samples(window_s, self.rate), in_samples(hop_s, self.rate)
        self.bounds: list[list[tuple[int, int]]] = []  # of every clip that was cut

    def __call__(self, waveforms: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The windows of all clips, one after another."""
        for waveform in waveforms:
            self.bounds.append(window_bounds(len(waveform), self.window, self.hop))
            yield from (waveform[start:end] for start, end in self.bounds[-1])

    def of_clips(self, embeddings: Tensor, convert_to_numpy: bool) -> list[WavCSEWindows]:
        """From the embeddings of all windows, `[N, E]`, those of every clip with their times."""
        results = []
        for bounds, rows in zip(self.bounds, embeddings.split([len(bounds) for bounds in self.bounds])):
            start_s, end_s = (np.array(bounds) / self.rate).T
            results.append(WavCSEWindows(rows.numpy() if convert_to_numpy else rows, start_s, end_s))
        return results


def in_samples(seconds: float, sampling_rate: int) -> int:
    """A length in whole samples, at least one."""
    return max(1, round(seconds * sampling_rate))


def window_bounds(num_samples: int, window: int | None, hop: int | None) -> list[tuple[int, int]]:
    """`(start, end)` in samples of the windows that cover a clip.

    All have the same length: they start at multiples of `hop`, and if the last of these does not reach the clip's end, one
    more ends there. A clip that is no longer than a window is one stretch of its own length.
    """
    if window is None or hop is None or num_samples <= window:
        return [(0, num_samples)]
    starts = list(range(0, num_samples - window + 1, hop))
    if starts[-1] + window < num_samples:
        starts.append(num_samples - window)
    return [(start, start + window) for start in starts]
