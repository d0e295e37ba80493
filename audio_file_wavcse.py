"""An audio file of any kind that libsndfile reads, with all the audio in it, whatever its header claims."""

from __future__ import annotations

import io
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from transformers.utils import logging

from .download_wavcse import download, is_url
from .streams_wavcse import CONTAINERS, JUNK_BYTES, Stream, StreamView
from .waveform_wavcse import check_duration

try:
    import soundfile
    import soxr
except ImportError:
    soundfile = soxr = None

RATES_HZ = (1_000, 10_000_000)  # resampling from any other takes memory or time without end
END_TOLERANCE_S = 0.1  # how far beyond the end of a file a part of it may end: times in tables are rounded
MAX_DECODED_BYTES = 2**33  # samples x channels x 4: two hours of six channels at 48 kHz
LONGEST_FILE_S = 1e6  # eleven days; a header that claims more is damaged
BLOCK_VALUES = 2**20  # what is decoded at a time
SIZE_CORRECTED = re.compile(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)  # in libsndfile's log
STREAMED_BYTES = 0x7FFF0000  # a size that says "until the end"
UNKNOWN_LENGTH = 2**63 - 1  # as libsndfile says it
EMPTY_FILE_BYTES = 1024  # more is not only a header
SUPPORTED = "Supported are wav, flac, ogg, opus and mp3 files."

logger = logging.get_logger(__name__)


class AudioFile:
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

    def __init__(self, source: str | os.PathLike | bytes, name: str, max_duration_s: float | None = None):
        _require_audio_libraries()
        self.name, self._max_duration_s = printable(name), max_duration_s
        with self._named_errors():
            if isinstance(source, str) and is_url(source):
                source = download(source)
            self._is_path = not isinstance(source, bytes | bytearray)
            self._source = regular_file(source) if self._is_path else source
            self._file = soundfile.SoundFile(self._source if self._is_path else self._open())
            try:
                self._look_for_streams()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> AudioFile:
        return self

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
        for block in self._blocks(position, end):
            kept = block[max(0, start - position) : None if end is None else max(0, end - position)]
            position += len(block)
            if len(kept):
                yield kept
            if end is not None and position >= end:
                return

    def _blocks(self, position: int, end: int | None) -> Iterator[np.ndarray]:
        """All mono blocks from `position` on, which is where the file must be; to `end` or further."""
        if not self._streams:
            yield from self._mono_blocks(self._file, position, end, self._sure)
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


def regular_file(path: str | os.PathLike) -> bytes:
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
    _require_audio_libraries()
    return soxr.resample(waveform, from_rate, to_rate, quality="HQ")


def _require_audio_libraries() -> None:
    if soundfile is None:
        raise ImportError("Reading and resampling audio needs soundfile and soxr: pip install soundfile soxr")
