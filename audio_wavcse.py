"""From whatever a user holds (path, URL, bytes, array) to one clean waveform: mono float32 at the wanted rate.

Decoding is soundfile's (wav, flac, ogg, opus, mp3), resampling soxr's "HQ", the same pair everywhere in this package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .audio_file_wavcse import RATES_HZ, AudioFile, resample
from .waveform_wavcse import as_array, as_waveform, is_decoder, is_open_file

SAMPLING_RATE_HZ = 16_000
AUDIO_SUFFIXES = (  # of the formats that libsndfile finds by their content: whatever a file is called, `decode` reads it
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mp1"),
    *(".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc", ".sf", ".ircam"),
    *(".avr", ".htk", ".iff", ".svx", ".8svx", ".paf", ".fap", ".pvf", ".sds", ".wve"),
)


def load_waveform(
    source: Any, sampling_rate: int = SAMPLING_RATE_HZ, name: str | None = None, max_duration_s: float | None = None
) -> np.ndarray:
    """Read one clip from any supported source.

    Args:
        source: a path, an `http(s)://` URL, the bytes of an audio file, a file opened with "rb", a 1-D array, tensor or list
            of floats that is already at `sampling_rate`, a mapping with `"array"` (or `"raw"`) and `"sampling_rate"`, or with
            `"bytes"` or `"path"`, as in `datasets`, or an `AudioDecoder` as of `datasets` and torchcodec.
        sampling_rate: rate of the result in Hz.
        name: how error messages call the clip; the path if there is one.
        max_duration_s: refuse a longer file before it is decoded, where its header tells.

    Returns:
        float32 array of shape `[samples]`.

    Raises:
        ValueError: the source cannot be read, is not mono after decoding, is empty, or holds samples that are no audio (see
            `as_waveform`).
    """
    if isinstance(source, Mapping):
        return _from_mapping(source, sampling_rate, name or "clip", max_duration_s)
    if is_decoder(source):
        return _from_decoder(source, sampling_rate, name or "clip")
    if is_open_file(source) and not hasattr(source, "__array__"):
        source, name = _content(source, name), name or _file_name(source)
    if isinstance(source, memoryview):
        source = source.tobytes()
    if isinstance(source, str | os.PathLike | bytes | bytearray):
        waveform, rate = decode(source, name=name, max_duration_s=max_duration_s)
        return resample(waveform, rate, sampling_rate)
    return as_waveform(source, name or "clip")


def decode(
    source: str | os.PathLike | bytes,
    start_s: float = 0.0,
    end_s: float | None = None,
    name: str | None = None,
    max_duration_s: float | None = None,
) -> tuple[np.ndarray, int]:
    """Decode an audio file, or the part of it from `start_s` to `end_s`, and average its channels.

    All of the audio is read, also that of concatenated files and of mp3 files that do not count their frames (see
    `streams_wavcse`). A wav, mp3 or Ogg file that was cut off is read as far as it goes, with a warning where its header
    tells. Memory is taken for what has been decoded, never for what a header claims.

    Args:
        name: how error messages call the clip; the path if there is one.
        max_duration_s: a longer clip is refused, before it is decoded where its header tells.

    Returns:
        The waveform, float32 of shape `[samples]`, and its sampling rate in Hz.

    Raises:
        ValueError: the file is missing, is no regular file, is not audio that soundfile reads, is damaged, or takes more than
            `max_duration_s` or `MAX_DECODED_BYTES`; or there is no such part: `start_s` or `end_s` is not finite, out of
            order, or more than `END_TOLERANCE_S` beyond the end of the file.
    """
    name = name or (str(source) if isinstance(source, str | os.PathLike) else "clip")
    with AudioFile(source, name, max_duration_s) as file:
        return as_waveform(file.read(start_s, end_s), file.name), file.sampling_rate


def _from_mapping(source: Mapping, sampling_rate: int, name: str, max_duration_s: float | None) -> np.ndarray:
    array = source.get("array", source.get("raw"))
    if array is None:
        encoded = next((source[key] for key in ("bytes", "path") if _is_given(source.get(key))), None)
        if encoded is None:
            raise ValueError(
                f"{name}: a mapping needs 'array' (or 'raw') with 'sampling_rate', 'bytes' or 'path'; this one has "
                f"{', '.join(map(repr, source)) or 'nothing'}."
            )
        if not (isinstance(encoded, str | os.PathLike | bytes | bytearray | memoryview) or is_open_file(encoded)):
            raise ValueError(f"{name}: 'bytes' or 'path' holds {type(encoded).__name__}; give an array as 'array'.")
        return load_waveform(encoded, sampling_rate, None if name == "clip" else name, max_duration_s)
    if source.get("sampling_rate") is None:
        raise ValueError(f"{name}: 'sampling_rate' is missing beside 'array'; add the rate in Hz of the samples.")
    return resample(as_waveform(array, name), _checked_rate(source["sampling_rate"], name), sampling_rate)


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, str | bytes) and not value)


def _checked_rate(rate: Any, name: str) -> int:
    low, high = RATES_HZ
    try:
        if float(rate).is_integer() and low <= float(rate) <= high:
            return int(float(rate))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise ValueError(f"{name}: 'sampling_rate' is {rate!r}; it must be a whole number of Hz, {low:,} to {high:,}.")


def _from_decoder(decoder: Any, sampling_rate: int, name: str) -> np.ndarray:
    try:
        samples = decoder.get_all_samples()
        channels, rate = as_array(samples.data, name), samples.sample_rate
    except Exception as error:  # the decoder's library raises what it likes
        raise ValueError(f"{name}: cannot be decoded ({' '.join(str(error).split())}).") from error
    if channels.ndim == 2:
        channels = np.ascontiguousarray(channels.T).mean(axis=1, dtype=np.float32)  # summed as `decode` does
    return resample(as_waveform(channels, name), _checked_rate(rate, name), sampling_rate)


def _content(file: Any, name: str | None) -> bytes:
    """What is left to read of an open file; its position is put back, so that it can be read again."""
    name = name or _file_name(file) or "clip"
    try:
        position = file.tell() if file.seekable() else None
    except (AttributeError, OSError, ValueError):
        position = None
    try:
        content = file.read()
        if position is not None:
            file.seek(position)
    except Exception as error:  # closed, not open for reading, or what the object's own library raises
        raise ValueError(f"{name}: the open file cannot be read ({error}).") from error
    if isinstance(content, str):
        raise ValueError(f'{name}: the file is open as text; open it with open(path, "rb").')
    if not isinstance(content, bytes | bytearray):
        raise ValueError(f"{name}: read() gave {type(content).__name__}, not the bytes of an audio file.")
    if not content:
        raise ValueError(f"{name}: the open file has nothing left to read; after writing, call its seek(0).")
    return bytes(content)


def _file_name(file: Any) -> str | None:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else None
