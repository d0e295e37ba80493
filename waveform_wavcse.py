"""Clips in memory, in whatever type a user holds them: told apart, checked, brought to mono float32.

What has to be decoded first is in `audio_wavcse.py`.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

PCM_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
MAX_AMPLITUDE = 2.0**31  # 32-bit PCM read as floats without scaling; squares and sums of more overflow float32
NUM_OUTLIERS = 16  # 1 ms at 16 kHz: no sound beyond full scale has most of its energy in so few samples
QUIET_RMS = (
    1e-3  # -60 dB of full scale; below it the variance floor of the normalisation (1e-7) takes 5 % of the level or more
)
USUAL_RMS = 0.1  # where a quiet clip is scaled to: the level of close speech, -20 dB of full scale


def as_clips(inputs: Any) -> tuple[Sequence[Any], bool]:
    """The clips in what a user gave, and whether that was a single one.

    One clip: a path, bytes, an open file, a mapping, a decoder, a 1-D array, tensor or column of numbers, a list of numbers.
    Several: a list, tuple, iterator, array or column of such clips; a 2-D array or tensor.

    Raises:
        ValueError: a table, a set, or nothing that holds clips.
    """
    if hasattr(inputs, "column_names") or hasattr(inputs, "columns"):
        raise ValueError(
            f"The input is a table ({type(inputs).__name__}). Give the column that holds the clips, such as "
            "table['file_name'] or dataset['audio']."
        )
    if hasattr(inputs, "__array__"):
        return _clips_of_array(as_array(inputs, "The input"))
    if isinstance(inputs, str | os.PathLike | bytes | bytearray | memoryview | Mapping):
        return [inputs], True
    if is_open_file(inputs) or is_decoder(inputs):
        return [inputs], True
    if isinstance(inputs, Set):
        raise ValueError("The input is a set, which has no order; give a list of clips.")
    if isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"):
        clips = inputs if isinstance(inputs, Sequence) else list(inputs)
        return ([as_array(clips, "clip 0")], True) if len(clips) and _is_number(clips[0]) else (clips, False)
    raise ValueError(
        f"The input is of type {type(inputs).__name__}. Give one clip or a list of clips: paths, URLs, bytes, open files, 1-D "
        "arrays, or mappings with 'array' and 'sampling_rate'."
    )


def _clips_of_array(array: np.ndarray) -> tuple[Sequence[Any], bool]:
    if array.ndim == 0:
        return as_clips(array.item())
    if array.dtype.kind == "S":
        raise ValueError("The input is an array of bytes, from which NumPy drops zeros at the end; give a list.")
    if array.ndim == 1 and array.dtype.kind in "OUT":
        return as_clips(list(array))
    return ([array], True) if array.ndim == 1 else (list(array), False)


def _is_number(value: Any) -> bool:
    if isinstance(value, str | bytes):  # NumPy's have an `ndim`
        return False
    return isinstance(value, numbers.Number) or getattr(value, "ndim", None) == 0


def is_open_file(source: Any) -> bool:
    """Whether it is a file object, such as `open(path, "rb")` or `io.BytesIO`."""
    return callable(getattr(source, "read", None))


def is_decoder(source: Any) -> bool:
    """Whether it decodes audio on demand as torchcodec's `AudioDecoder` does, which columns of `datasets` hold."""
    return callable(getattr(source, "get_all_samples", None))


def as_array(values: Any, name: str) -> np.ndarray:
    """Any array, tensor (on any device, of any float type) or nested list as a NumPy array; ValueError if it is none."""
    if np.ma.is_masked(values):
        raise ValueError(f"{name}: holds masked samples. Fill them or cut them out.")
    try:
        if isinstance(values, list | tuple) and values and isinstance(values[0], torch.Tensor):
            values = torch.stack(list(values))
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16
        array = np.asarray(values)
        if array.dtype == object and array.ndim == 1 and array.size and all(map(_is_number, array)):
            array = np.asarray(array.tolist())
        return array
    except Exception as error:  # a type's own conversion may raise anything
        words = f"{name}: cannot be read as an array of samples ({type(values).__name__}: {' '.join(str(error).split())})."
        raise ValueError(words) from error


def as_waveform(array: Any, name: str) -> np.ndarray:
    """Check one clip and bring it to float32.

    Integer PCM (int16, int32) is scaled to [-1, 1]; everything else must be floating point. Silence is allowed.

    Raises:
        ValueError: not 1-D (stereo), empty, an unsupported dtype, or a sample is NaN, infinite or absurd (beyond
            `MAX_AMPLITUDE`, or one of a few beyond full scale that outweigh all others); `name` says which clip.
    """
    waveform = as_array(array, name)
    if array is None or (waveform.ndim == 0 and waveform.dtype.kind == "f" and np.isnan(waveform)):
        raise ValueError(f"{name}: is missing ({array}). Drop its row.")
    is_text = waveform.dtype.kind not in "fiubc" and (waveform.ndim == 0 or isinstance(array, Mapping))
    if waveform.dtype == object or is_text:
        raise ValueError(
            f"{name}: is of type {type(array).__name__}, which holds no samples. A clip is a 1-D array of floats; `encode`, "
            "the pipeline and `load_waveform` also take paths, URLs, bytes, open files, and mappings with 'array' and "
            "'sampling_rate'."
        )
    if waveform.ndim == 0:
        raise ValueError(
            f"{name}: has shape (), a single number, but one clip is an array of shape (samples,). To give the rate of an "
            'array, write {"array": samples, "sampling_rate": rate}.'
        )
    if waveform.ndim != 1:
        raise ValueError(
            f"{name}: has shape {waveform.shape}, but one clip is one mono waveform of shape (samples,). "
            "Average the channels first, for example `array.mean(axis=channel_axis)`."
        )
    if waveform.size == 0:
        raise ValueError(f"{name}: is empty (0 samples). Drop it, or check how it was read.")
    if waveform.dtype in PCM_FULL_SCALE:
        return (waveform / PCM_FULL_SCALE[waveform.dtype]).astype(np.float32)
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(f"{name}: has dtype {waveform.dtype}; give floats in [-1, 1], or PCM as int16 or int32.")
    with np.errstate(over="ignore"):  # beyond float32 is infinity, refused below
        waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    _refuse_bad_samples(waveform, name)
    return waveform


def _refuse_bad_samples(waveform: np.ndarray, name: str) -> None:
    low, high = waveform.min(), waveform.max()
    if low >= -1.0 and high <= 1.0:  # false for NaN too
        return
    if not np.isfinite(waveform).all():
        bad = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise ValueError(f"{name}: holds NaN or infinity (first at sample {bad}). Repair or drop the clip.")
    if max(-low, high) > MAX_AMPLITUDE:
        bad = int(np.flatnonzero(np.abs(waveform) > MAX_AMPLITUDE)[0])
        raise ValueError(
            f"{name}: sample {bad} is {waveform[bad]:.3g}, beyond any audio format (full scale is 1, or 2^31 for PCM that was "
            "not scaled). Repair or drop the clip."
        )
    energies = np.square(waveform - waveform.mean(dtype=np.float64), dtype=np.float64)
    if waveform.size > NUM_OUTLIERS and np.partition(energies, -NUM_OUTLIERS)[-NUM_OUTLIERS:].sum() > energies.sum() / 2:
        bad = int(energies.argmax())
        raise ValueError(
            f"{name}: sample {bad} is {waveform[bad]:.3g} (full scale is 1), and at most {NUM_OUTLIERS} such samples outweigh "
            "all others: the embedding would be that of a click. Repair or drop the clip."
        )


def rms(waveform: np.ndarray) -> float:
    """Root mean square of `[samples]` about their mean, which is the level that normalisation sees; 1 is full scale."""
    if waveform.min() == waveform.max():
        return 0.0
    return float(np.sqrt(waveform.var(dtype=np.float64)))


def is_quiet(waveform: np.ndarray) -> bool:
    """Whether `[samples]`, digital silence included, is so quiet that its embedding drifts to that of silence."""
    return rms(waveform) < QUIET_RMS


def scale_quiet(waveform: np.ndarray) -> np.ndarray:
    """A quiet clip `[samples]`, without its mean, at the level of usual speech; any other, and digital silence, unchanged."""
    level = rms(waveform)
    if level == 0.0 or level >= QUIET_RMS:
        return waveform
    mean = waveform.mean(dtype=np.float64)
    return ((waveform - mean) * (USUAL_RMS / level)).astype(np.float32)


def check_duration(duration_s: float, max_duration_s: float, name: str) -> None:
    """ValueError if the clip `name` is longer than allowed."""
    if duration_s > max_duration_s:
        raise ValueError(
            f"{name}: lasts {duration_s:.1f} s, more than max_duration_s={max_duration_s:g}. "
            "Cut it into parts, or raise `max_duration_s` of the feature extractor if memory allows."
        )
