"""From whatever a user holds (path, URL, bytes, array) to one clean waveform: mono float32 at the wanted rate.

Decoding is soundfile's (wav, flac, ogg, opus, mp3), resampling soxr's "HQ", the same pair everywhere in this package.
"""

from __future__ import annotations

import io
import os
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    import soundfile
    import soxr
except ImportError:
    soundfile = soxr = None

SAMPLING_RATE_HZ = 16_000
PCM_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
DOWNLOAD_TIMEOUT_S = 60


def load_waveform(source: Any, sampling_rate: int = SAMPLING_RATE_HZ, name: str | None = None) -> np.ndarray:
    """Read one clip from any supported source.

    Args:
        source: a path, an `http(s)://` URL, the bytes of an audio file, a 1-D array that is already at `sampling_rate`,
            or a mapping with `"array"` (or `"raw"`) and `"sampling_rate"`, or with `"bytes"` or `"path"`, as in `datasets`.
        sampling_rate: rate of the result in Hz.
        name: how error messages call the clip; the path if there is one.

    Returns:
        float32 array of shape `[samples]`.

    Raises:
        ValueError: the source cannot be read, is not mono after decoding, is empty, or holds NaN or infinity.
    """
    if isinstance(source, Mapping):
        return _from_mapping(source, sampling_rate, name or "clip")
    if isinstance(source, str | os.PathLike | bytes | bytearray):
        waveform, rate = decode(source, name=name)
        return resample(waveform, rate, sampling_rate)
    return as_waveform(source, name or "clip")


def decode(
    source: str | os.PathLike | bytes, start_s: float = 0.0, end_s: float | None = None, name: str | None = None
) -> tuple[np.ndarray, int]:
    """Decode an audio file, or the part of it from `start_s` to `end_s`, and average its channels.

    A wav or mp3 file whose end is missing is read as far as it goes.

    Returns:
        The waveform, float32 of shape `[samples]`, and its sampling rate in Hz.

    Raises:
        ValueError: the file is missing, is not audio that soundfile reads, or the part is empty.
    """
    _require_audio_libraries()
    name = name or (str(source) if isinstance(source, str | os.PathLike) else "clip")
    try:
        with soundfile.SoundFile(_readable(source)) as file:
            rate = file.samplerate
            start, stop = round(start_s * rate), file.frames if end_s is None else round(end_s * rate)
            if not 0 <= start <= file.frames or stop < start:
                raise ValueError(f"{name}: lasts {file.frames / rate:.1f} s; no part of it is at {start_s} s to {end_s} s.")
            file.seek(start)
            samples = file.read(stop - start, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name}: cannot be read as audio ({error}). Supported are wav, flac, ogg, opus and mp3 files."
        ) from error
    return as_waveform(samples.mean(axis=1, dtype=np.float32), name), rate


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample `[samples]` with soxr's "HQ" setting; the identity when the rates agree."""
    if from_rate == to_rate:
        return waveform
    if from_rate <= 0:
        raise ValueError(f"The sampling rate is {from_rate} Hz; it must be positive.")
    _require_audio_libraries()
    return soxr.resample(waveform, from_rate, to_rate, quality="HQ")


def as_waveform(array: Any, name: str) -> np.ndarray:
    """Check one clip and bring it to float32.

    Integer PCM (int16, int32) is scaled to [-1, 1]; everything else must be floating point. Silence is allowed.

    Raises:
        ValueError: not 1-D (stereo), empty, an unsupported dtype, or NaN or infinity inside; `name` says which clip.
    """
    waveform = np.asarray(array)
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
    if not np.isfinite(waveform).all():
        bad = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise ValueError(f"{name}: holds NaN or infinity (first at sample {bad}). Repair or drop the clip.")
    return waveform


def _from_mapping(source: Mapping, sampling_rate: int, name: str) -> np.ndarray:
    array = source.get("array", source.get("raw"))
    if array is None:
        encoded = source.get("bytes") or source.get("path")
        if encoded is None:
            raise ValueError(f"{name}: a mapping needs 'array' (or 'raw') with 'sampling_rate', 'bytes' or 'path'.")
        return load_waveform(encoded, sampling_rate, None if name == "clip" else name)
    if source.get("sampling_rate") is None:
        raise ValueError(f"{name}: 'sampling_rate' is missing beside 'array'; add the rate in Hz of the samples.")
    return resample(as_waveform(array, name), int(source["sampling_rate"]), sampling_rate)


def _readable(source: str | os.PathLike | bytes) -> Any:
    if isinstance(source, bytes | bytearray):
        return io.BytesIO(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        with urllib.request.urlopen(source, timeout=DOWNLOAD_TIMEOUT_S) as response:
            return io.BytesIO(response.read())
    return os.fspath(source)


def _require_audio_libraries() -> None:
    if soundfile is None:
        raise ImportError("Reading and resampling audio needs soundfile and soxr: pip install soundfile soxr")
