"""From whatever a user holds (path, URL, bytes, array) to one clean waveform: mono float32 at the wanted rate.

Decoding is soundfile's (wav, flac, ogg, opus, mp3), resampling soxr's "HQ", the same pair everywhere in this package. In
order: any source to a waveform (`load_waveform`); clips in memory, told apart and checked (`as_clips`, `as_waveform`), and
their level; an audio file with all the audio in it (`AudioFile`); its download.
"""

from __future__ import annotations

import http.client
import io
import math
import numbers
import os
import re
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch
from transformers.utils import logging

from .audio_streams_wavcse import CONTAINERS, JUNK_BYTES, Stream, StreamView

try:
    import soundfile
    import soxr
except ImportError:
    soundfile = soxr = None


logger = logging.get_logger(__name__)


SAMPLING_RATE_HZ = 16_000
AUDIO_SUFFIXES = (  # of the formats that libsndfile finds by their content: whatever a file is called, `decode` reads it
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mp1"),
    *(".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc", ".sf", ".ircam"),
    *(".avr", ".htk", ".iff", ".svx", ".8svx", ".paf", ".fap", ".pvf", ".sds", ".wve"),
)
ENCODED = (str, os.PathLike, bytes, bytearray, memoryview)  # types of audio that is to be decoded
PCM_FULL_SCALE = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
MAX_AMPLITUDE = 2.0**31  # 32-bit PCM read as floats without scaling; squares and sums of more overflow float32
NUM_OUTLIERS = 16  # 1 ms at 16 kHz: no sound beyond full scale has most of its energy in so few samples
QUIET_RMS = (
    1e-3  # -60 dB of full scale; below it the variance floor of the normalisation (1e-7) takes 5 % of the level or more
)
USUAL_RMS = 0.1  # where a quiet clip is scaled to: the level of close speech, -20 dB of full scale
RATES_HZ = (1_000, 10_000_000)  # resampling from any other takes memory or time without end
END_TOLERANCE_S = 0.1  # how far beyond the end of a file a part of it may end: times in tables are rounded
MAX_DECODED_BYTES = 2**33  # samples x channels x 4: two hours of six channels at 48 kHz
LONGEST_FILE_S = 1e6  # eleven days; a header that claims more is damaged
BLOCK_VALUES = 2**20  # what is decoded at a time
SIZE_CORRECTED = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)  # in libsndfile's log
STREAMED_BYTES = 0x7FFF0000  # a size that says "until the end"
UNKNOWN_LENGTH = 2**63 - 1  # as libsndfile says it
EMPTY_FILE_BYTES = 1024  # more is not only a header
NO_LIBRARIES = "Reading and resampling audio needs soundfile and soxr: pip install soundfile soxr"
SUPPORTED = "Supported are wav, flac, ogg, opus and mp3 files."
CONNECT_TIMEOUT_S = 60  # without any answer
DOWNLOAD_TIMEOUT_S = 600  # for the whole file
MAX_DOWNLOAD_BYTES = 2**31  # six hours of 16-bit stereo at 24 kHz
CHUNK_BYTES = 1 << 16
URL_SAFE = "/:?#[]@!$&'()*+,;=%~"


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
        ValueError: the source cannot be read, is not mono after decoding, is empty, or holds samples that are not audio (see
            `as_waveform`).
    """
    if isinstance(source, ENCODED):
        waveform, rate = decode(source, name=name, max_duration_s=max_duration_s)
        return resample(waveform, rate, sampling_rate)
    if isinstance(source, Mapping):
        return _from_mapping(source, sampling_rate, name or "clip", max_duration_s)
    if is_decoder(source):
        return _from_decoder(source, sampling_rate, name or "clip")
    if is_open_file(source) and not hasattr(source, "__array__"):
        return load_waveform(_content(source, name), sampling_rate, name or _file_name(source), max_duration_s)
    return as_waveform(source, name or "clip")


def has_own_rate(source: Any) -> bool:
    """Whether a clip comes with its sampling rate: a file in any form, a mapping or a decoder; an array does not."""
    if isinstance(source, (*ENCODED, Mapping)) or is_decoder(source):
        return True
    return is_open_file(source) and not hasattr(source, "__array__")


def decode(
    source: str | os.PathLike | bytes | memoryview,
    start_s: float = 0.0,
    end_s: float | None = None,
    name: str | None = None,
    max_duration_s: float | None = None,
) -> tuple[np.ndarray, int]:
    """Decode an audio file, or the part of it from `start_s` to `end_s`, and average its channels.

    All of the audio is read, also that of concatenated files and of mp3 files that do not count their frames (see
    `audio_streams_wavcse`). A wav, mp3 or Ogg file that was cut off is read as far as it goes, with a warning where its header
    tells. Memory is taken for what has been decoded, never for what a header claims.

    Args:
        name: how error messages call the clip; the path if there is one.
        max_duration_s: a longer clip is refused, before it is decoded where its header tells.

    Returns:
        The waveform, float32 of shape `[samples]`, and its sampling rate in Hz.

    Raises:
        ValueError: the file is missing, not a regular file, not audio that soundfile reads, damaged, or takes more than
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
        if not (isinstance(encoded, ENCODED) or is_open_file(encoded)):
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


# ---- clips in memory, in whatever type a user holds them ----


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
    if isinstance(inputs, (*ENCODED, Mapping)):
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
            f"{name}: is of type {type(array).__name__}, which holds no samples. A clip is a 1-D array of floats, a path, "
            "a URL, bytes, an open file, or a mapping with 'array' and 'sampling_rate'."
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
    low, high = waveform.min(), waveform.max()
    if not (low >= -1.0 and high <= 1.0):  # NaN compares false
        _refuse_bad_samples(waveform, max(-low, high), name)
    return waveform


def _refuse_bad_samples(waveform: np.ndarray, peak: float, name: str) -> None:
    """ValueError for samples of a clip beyond full scale that no recording has."""
    if not np.isfinite(waveform).all():
        bad = int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise ValueError(f"{name}: holds NaN or infinity (first at sample {bad}). Repair or drop the clip.")
    if peak > MAX_AMPLITUDE:
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


# ---- audio files ----


class AudioFile(AbstractContextManager):
    """An audio file, open for reading, with all the streams that are in it.

    Args:
        source: a path, an `http(s)://` URL, or the bytes of an audio file.
        name: how error messages call it.
        max_duration_s: refuse to read more than this.

    Attributes:
        sampling_rate: in Hz; of several streams that of the first, to which the others are resampled.
        num_samples: samples per channel; `None` if only decoding can tell.

    Raises:
        ValueError: it cannot be read as audio.
    """

    def __init__(self, source: str | os.PathLike | bytes | memoryview, name: str, max_duration_s: float | None = None):
        if soundfile is None:
            raise ImportError(NO_LIBRARIES)
        self.name, self._max_duration_s = printable(name), max_duration_s
        with self._named_errors():
            if isinstance(source, str) and is_url(source):
                source = download(source)
            self._is_path = not isinstance(source, bytes | bytearray | memoryview)
            self._source = _regular_file(source) if self._is_path else bytes(source)
            self._file = soundfile.SoundFile(self._source if self._is_path else self._open())
            try:
                self._look_for_streams()
            except BaseException:
                self._file.close()
                raise

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def duration_s(self) -> float:
        """Length in seconds; where only decoding can tell, estimated from headers or from the size."""
        if self.num_samples is not None:
            return self.num_samples / self.sampling_rate
        with self._named_errors():
            return sum(self._seconds_of(stream) for stream in self._streams) or _guessed_s(self._file, self._num_bytes)

    def read(self, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
        """The mean of the channels from `start_s` to `end_s`, float32 `[samples]`; see `decode`."""
        if self._cut_off:
            logger.warning(f"{self.name}: was cut off; its header announces {self._cut_off}. It is read as far as it goes.")
        start, end = part_in_samples(start_s, end_s, self.sampling_rate, self.name)
        wanted = end
        if self.num_samples is not None:
            check_part(start, end, self.num_samples, self.sampling_rate, self.name)
            end = self.num_samples if end is None else min(end, self.num_samples)
            self._check_size(end - start, self._file)
        with self._named_errors():
            samples = self._together(self._part(start, end), self._file)
        check_part(start, wanted, start + len(samples), self.sampling_rate, self.name)
        return samples

    def _look_for_streams(self) -> None:
        """Find out what there is to read, and whether libsndfile would read all of it."""
        self.sampling_rate = self._file.samplerate
        low, high = RATES_HZ
        if not low <= self.sampling_rate <= high:
            raise ValueError(f"{self.name}: has {self.sampling_rate:,} Hz by its header; {low:,} to {high:,} Hz can be read.")
        self._num_bytes = os.path.getsize(self._source) if self._is_path else len(self._source)
        self._streams: list[Stream] = []
        if self._file.format in CONTAINERS:
            with self._open() as file:
                self._streams = CONTAINERS[self._file.format](file)
        first = self._streams[0] if self._streams else None
        self._sure, self._cut_off = self._sure_samples(self._file, first), _cut_off(self._file, first)
        is_whole = len(self._streams) == 1 and self._num_bytes - self._streams[0].stop <= JUNK_BYTES
        if is_whole and self._file.frames >= self._sure:
            self._streams = []
        is_known = not self._streams and self._file.frames < UNKNOWN_LENGTH
        self.num_samples = self._file.frames if is_known else None
        if (self.num_samples or 0) > LONGEST_FILE_S * self.sampling_rate:
            raise ValueError(
                f"{self.name}: claims to last {self.num_samples / self.sampling_rate:.3g} s; its header is damaged. Repair or "
                "drop it."
            )
        if self.num_samples == 0 and self._num_bytes > EMPTY_FILE_BYTES:
            raise ValueError(
                f"{self.name}: is empty (0 samples) by its header, but has {self._num_bytes} bytes: what wrote it did not "
                "finish the header. Repair it (`sox --ignore-length`, ffmpeg) or drop it."
            )

    def _sure_samples(self, file: Any, stream: Stream | None) -> int:
        """Samples per channel that decoding must give, unless the file is damaged."""
        if stream is not None and stream.num_samples is not None:
            return stream.num_samples - stream.slack
        if file.format == "MP3" or file.frames >= UNKNOWN_LENGTH:
            return 0
        return file.frames - round(END_TOLERANCE_S * file.samplerate)

    def _part(self, start: int, end: int | None) -> Iterator[np.ndarray]:
        """Mono blocks from sample `start` to `end`; to the end of the file if that is `None`."""
        is_seekable = self.num_samples is not None and self._file.seekable()
        position = self._file.seek(start) if is_seekable else 0
        blocks = self._of_streams() if self._streams else self._mono_blocks(self._file, position, end, self._sure)
        for block in blocks:
            kept = block[max(0, start - position) : None if end is None else max(0, end - position)]
            position += len(block)
            if len(kept):
                yield kept
            if end is not None and position >= end:
                return

    def _of_streams(self) -> Iterator[np.ndarray]:
        """The mono blocks of all streams, at the rate of the first."""
        for stream in self._streams:
            with self._opened(stream) as file:
                blocks = self._mono_blocks(file, 0, None, self._sure_samples(file, stream))
                if file.samplerate == self.sampling_rate:
                    yield from blocks
                else:
                    yield resample(self._together(blocks, file), file.samplerate, self.sampling_rate)

    def _together(self, blocks: Iterable[np.ndarray], file: Any) -> np.ndarray:
        """Join blocks; ValueError as soon as they are too many."""
        pieces, num_samples = [np.zeros(0, np.float32)], 0
        for block in blocks:
            pieces.append(block)
            num_samples += len(block)
            self._check_size(num_samples, file)
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def _mono_blocks(self, file: Any, position: int, end: int | None, sure: int) -> Iterator[np.ndarray]:
        # soundfile seeks after every read, which neither GSM 6.10 nor a flac stream of unknown length can.
        file.seekable = lambda: False
        size = max(1, BLOCK_VALUES // file.channels)
        while end is None or position < end:
            block = file.read(size if end is None else min(size, end - position), dtype="float32", always_2d=True)
            if not len(block):
                if position < (sure if end is None else min(sure, end)):
                    raise ValueError(
                        f"{self.name}: is damaged: of at least {sure / file.samplerate:.1f} s of audio only the first "
                        f"{position / file.samplerate:.1f} s can be decoded. Repair or drop it."
                    )
                return
            position += len(block)
            yield block.mean(axis=1, dtype=np.float32)

    @contextmanager
    def _opened(self, stream: Stream) -> Iterator[Any]:
        with self._open() as raw:
            file = soundfile.SoundFile(StreamView(raw, stream.start, stream.stop))
            if stream.num_samples is not None and file.frames < self._sure_samples(file, stream):
                file.close()
                file = soundfile.SoundFile(StreamView(raw, stream.audio_start, stream.stop, is_open_ended=True))
            with file:
                yield file

    def _seconds_of(self, stream: Stream) -> float:
        with self._opened(stream) as file:
            num_samples = file.frames if stream.num_samples is None else stream.num_samples
            if num_samples >= UNKNOWN_LENGTH:
                return _guessed_s(file, stream.stop - stream.start)
            return num_samples / file.samplerate

    def _open(self) -> BinaryIO:
        return open(self._source, "rb") if self._is_path else io.BytesIO(self._source)

    def _check_size(self, num_samples: int, file: Any) -> None:
        if self._max_duration_s is not None:
            check_duration(num_samples / file.samplerate, self._max_duration_s, self.name)
        num_bytes = num_samples * file.channels * np.dtype(np.float32).itemsize
        if num_bytes > MAX_DECODED_BYTES:
            raise ValueError(
                f"{self.name}: takes {num_bytes / 1e9:.3g} GB decoded ({num_samples} samples, {file.channels} channels), more "
                f"than {MAX_DECODED_BYTES / 1e9:.3g} GB. Cut it into parts."
            )

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn what libraries and the system raise into a ValueError that names the file."""
        try:
            yield
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # soundfile's own is a RuntimeError
            if isinstance(error, ValueError) and str(error).startswith(f"{self.name}: "):
                raise
            reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
            raise ValueError(f"{self.name}: cannot be read as audio ({reason.rstrip('.')}). {SUPPORTED}") from error


def _regular_file(path: str | os.PathLike) -> bytes:
    """The path as the system wants it; ValueError or OSError unless a file is there that can be read without waiting."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("no file name has a NUL in it")
    mode = os.stat(encoded).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"it is {'a folder' if stat.S_ISDIR(mode) else 'a pipe, socket or device'}, not a file")
    return encoded


def printable(name: str) -> str:
    """A file name that every text file can hold: bytes that are not UTF-8, and NUL, are spelled out."""
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no file name, but a string can hold it
        encoded = name.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def part_in_samples(start_s: float, end_s: float | None, sampling_rate: int, name: str) -> tuple[int, int | None]:
    """The first sample of a part of the clip `name` and the one after its last, `None` where it goes to the end.

    Raises:
        ValueError: a time is not finite or negative, or they are out of order.
    """
    if not 0.0 <= start_s < math.inf or not (end_s is None or start_s <= end_s < math.inf):
        raise ValueError(f"{name}: start is {start_s} s and end {end_s} s; they must be finite, not negative, and in order.")
    return round(start_s * sampling_rate), None if end_s is None else round(end_s * sampling_rate)


def check_part(start: int, end: int | None, num_samples: int, sampling_rate: int, name: str) -> None:
    """ValueError unless the clip `name`, samples `start` to `end`, lies in a file of `num_samples`."""
    if start > num_samples or (end is not None and end > num_samples + END_TOLERANCE_S * sampling_rate):
        there = f"{start / sampling_rate:g} s to {'the end' if end is None else f'{end / sampling_rate:g} s'}"
        raise ValueError(f"{name}: its file lasts {num_samples / sampling_rate:.2f} s; no part of it is at {there}.")


def _cut_off(file: Any, stream: Stream | None) -> str | None:
    """How much is missing of what the header announces, where it tells."""
    if stream is not None and stream.num_samples is not None and stream.audio_start > stream.start:
        if file.frames > stream.num_samples + stream.slack:
            return f"{file.frames / file.samplerate:.1f} s of audio, {stream.num_samples / file.samplerate:.1f} s are there"
    found = SIZE_CORRECTED.search(file.extra_info)
    if found and int(found[2]) < int(found[1]) < STREAMED_BYTES:
        return f"{found[1]} bytes of audio, {found[2]} are there"
    return None


def _guessed_s(file: Any, num_bytes: int) -> float:
    return num_bytes / (file.samplerate * file.channels)  # 16 bits a sample, compressed to half


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample `[samples]` with soxr's "HQ" setting; the identity when the rates agree."""
    if from_rate == to_rate:
        return waveform
    if from_rate <= 0:
        raise ValueError(f"The sampling rate is {from_rate} Hz; it must be positive.")
    if soundfile is None:  # the two come together
        raise ImportError(NO_LIBRARIES)
    return soxr.resample(waveform, from_rate, to_rate, quality="HQ")


# ---- a file from a URL: whole, of bounded size, in bounded time ----


def is_url(source: object) -> bool:
    """Whether a clip is given by its `http(s)://` address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def download(url: str, max_bytes: int | None = None) -> bytes:
    """The content of an `http(s)://` URL. Blanks and letters outside ASCII are quoted; redirects lead to such URLs only.

    Args:
        max_bytes: the largest answer; `MAX_DOWNLOAD_BYTES` if not given.

    Raises:
        ValueError: there is no such server or file, its answer is broken, not whole, larger than `max_bytes`, or takes longer
            than `DOWNLOAD_TIMEOUT_S`.
    """
    answer: list[bytes | Exception] = []
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S

    def fetch() -> None:
        try:
            answer.append(_fetch(quoted(url), deadline, MAX_DOWNLOAD_BYTES if max_bytes is None else max_bytes))
        except Exception as error:
            answer.append(error)

    # A server that sends its headers byte by byte never runs into a socket's timeout; so the whole is waited for from here.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()) + 1.0)
    content = answer[0] if answer else _too_slow()
    if isinstance(content, OSError | ValueError | http.client.HTTPException):
        raise ValueError(_words(content)) from content
    if isinstance(content, Exception):
        raise content
    return content


def quoted(url: str) -> str:
    """The URL in ASCII: blanks and other letters as %XX, a host's as IDNA. What is quoted already stays so."""
    parts = urllib.parse.urlsplit(url.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    path, query = (urllib.parse.quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", part), URL_SAFE) for part in parts[2:4])
    return urllib.parse.urlunsplit((parts.scheme.lower(), host, path, query, ""))


def _fetch(url: str, deadline: float, max_bytes: int) -> bytes:
    with _opener().open(url, timeout=min(CONNECT_TIMEOUT_S, DOWNLOAD_TIMEOUT_S)) as response:
        announced = response.length or 0
        content = bytearray()
        while announced <= max_bytes:
            if time.monotonic() > deadline:
                raise _too_slow()
            chunk = response.read1(CHUNK_BYTES)
            content += chunk
            if not chunk or len(content) > max_bytes:
                break
        if max(announced, len(content)) > max_bytes:
            raise ValueError(f"it is larger than {max_bytes / 1e9:.3g} GB, the most that is downloaded")
        if len(content) < announced:
            raise ValueError(f"the connection broke off after {len(content)} of {announced} bytes")
        return bytes(content)


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS with redirects and proxies; no files, FTP or data URLs, whatever a server redirects to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _too_slow() -> ValueError:
    return ValueError(f"the download took longer than {DOWNLOAD_TIMEOUT_S:g} s")


def _words(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return f"the connection broke off after {len(error.partial)} bytes"
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason if isinstance(error.reason, Exception) else error
    return " ".join(str(error).split()) or type(error).__name__
