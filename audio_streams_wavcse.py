"""The streams of audio in one file, found in the file itself where libsndfile would miss some of them.

libsndfile reads the first stream of a file as far as its header goes; of MPEG audio without a header that counts the frames it
reads as far as the size of the file and the first frames let it guess. So the rest of a concatenated mp3 or flac file, of a
chained Ogg file, and the end of an mp3 file of variable bit rate would be lost. Frames are walked by their headers alone
(ISO/IEC 11172-3 and 13818-3; Xing, LAME and VBRI as mpg123 reads them), Ogg by its pages (RFC 3533): nothing is decoded here.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import BinaryIO, NamedTuple

CHUNK_BYTES = 1 << 20
JUNK_BYTES = 1024  # between frames, or at the end of a file: what mpg123 passes over
INFLATION = 64  # more than the largest frame of a stream is larger than its smallest

# kbit/s by (is MPEG 1, layer) and the header's index 1..14; index 0 is "free format"
BIT_RATES = {
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES_HZ = (44_100, 48_000, 32_000)  # of MPEG 1
RATE_DIVISORS = {3: 1, 2: 2, 0: 4}  # by the version bits: MPEG 1, 2, 2.5
FRAME_HEAD_BYTES = 256  # a header, and behind it all that a Xing or VBRI frame says
KIND_BITS = 0xFFFFFFC0  # of a header: without the stereo mode extension, copyright and emphasis
SYNC_OR_TAG = re.compile(rb"\xff[\xe0-\xff]|ID3|TAG|APETAGEX")
FLAC_STREAMINFO = (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22")  # its head: 34 bytes long, the last block or not


class Stream(NamedTuple):
    """A part of a file that a decoder can read as a file of its own.

    Attributes:
        start, stop: its bytes.
        audio_start: where its audio begins, behind a frame that only counts the others.
        num_samples: samples per channel, counted; `None` = what its own header says.
        slack: by how many samples the count may be wrong.
    """

    start: int
    stop: int
    audio_start: int
    num_samples: int | None = None
    slack: int = 0


class MpegFrame(NamedTuple):
    """What the four bytes of a frame's header say."""

    kind: tuple  # version, layer, rate and number of channels: the same in all frames of a stream
    length: int  # in bytes; 0 in free format, which does not tell
    samples: int
    xing_offset: int


class StreamView(io.RawIOBase):
    """One stream of a file as a file of its own, read only.

    Args:
        is_open_ended: say that the file is longer than it is, so that a length that is guessed from that is never too short.
            Its supposed last bytes, where tags are looked for, are zeros.
    """

    LAST_BYTES = 128

    def __init__(self, file: BinaryIO, start: int, stop: int, is_open_ended: bool = False):
        self.file, self.start, self.length = file, start, stop - start
        self.said_length = self.length * INFLATION + self.LAST_BYTES if is_open_ended else self.length
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.said_length}[whence]
        self.position = max(0, origin + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        if self.said_length > self.length and self.position >= self.said_length - self.LAST_BYTES:
            content = bytes(min(len(buffer), max(0, self.said_length - self.position)))
        else:
            self.file.seek(self.start + self.position)
            content = self.file.read(max(0, min(len(buffer), self.length - self.position)))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


@dataclass
class _MpegStream:
    kind: tuple
    start: int
    audio_start: int
    frame_samples: int
    trimmed: int = 0  # encoder delay and padding that the decoder takes off
    num_frames: int = 0
    num_gaps: int = 0
    stop: int = 0

    def finished(self) -> Stream:
        samples = max(0, self.num_frames * self.frame_samples - self.trimmed)
        return Stream(self.start, self.stop, self.audio_start, samples, (2 + self.num_gaps) * self.frame_samples)


def mpeg_streams(file: BinaryIO) -> list[Stream]:
    """The streams of an MPEG audio file; none in free format, whose frames do not tell their length.

    A stream ends where the next frame has another rate or other channels, is one that counts, or comes behind a tag.
    """
    streams: list[_MpegStream] = []
    head = _Heads(file)
    position, is_after_tag, is_in_step = 0, True, True
    while position + 4 <= head.size:
        data, at = head.at(position)
        frame = _mpeg_frame(int.from_bytes(data[at : at + 4], "big") & KIND_BITS)
        if is_in_step and frame is not None and not frame.length:
            return []
        current = streams[-1] if streams else None
        is_next = is_in_step and current and frame and frame.kind == current.kind and position + frame.length <= head.size
        if not is_next and not (frame and _is_confirmed(head, position, frame)):
            tag = _tag_length(data, at)
            position = position + tag if tag else head.next_sync(position + 1)
            is_after_tag, is_in_step = is_after_tag or tag > 0, is_in_step and tag > 0
            continue
        if not is_next:
            data, at = head.at(position)  # to confirm it, the file was read further on
        trimmed = _counting_frame(data, at, frame)
        is_counting = trimmed is not None
        if current is None or current.kind != frame.kind or is_after_tag or is_counting:
            audio_start = position + frame.length if is_counting else position
            streams.append(_MpegStream(frame.kind, position, audio_start, frame.samples, trimmed or 0, -int(is_counting)))
        elif not is_in_step:
            current.num_gaps += 1
        position += frame.length
        streams[-1].num_frames += 1
        streams[-1].stop = position
        is_in_step, is_after_tag = True, False
    return [stream.finished() for stream in streams if stream.num_frames > 0]


class _Heads:
    """A file in which one steps from header to header, read in chunks."""

    def __init__(self, file: BinaryIO):
        self.file, self.size = file, file.seek(0, os.SEEK_END)
        self.data, self.first = b"", 0

    def at(self, position: int) -> tuple[bytes, int]:
        """Bytes of the file, and where in them those from `position` on begin: `FRAME_HEAD_BYTES`, or as many as there are."""
        offset = position - self.first
        if offset < 0 or (offset + FRAME_HEAD_BYTES > len(self.data) and self.first + len(self.data) < self.size):
            self.file.seek(position)
            self.data, self.first, offset = self.file.read(CHUNK_BYTES), position, 0
        return self.data, offset

    def next_sync(self, position: int) -> int:
        """Where a frame's header, or a tag, may begin at or behind `position`."""
        data, at = self.at(position)
        found = SYNC_OR_TAG.search(data, at)
        return self.first + found.start() if found else max(position + 1, self.first + len(data) - len(b"APETAGEX") + 1)


@lru_cache(maxsize=4096)
def _mpeg_frame(header: int) -> MpegFrame | None:
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bit_rate, rate, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or bit_rate == 15 or rate == 3:
        return None
    is_mpeg_1, is_mono = version == 3, header >> 6 & 3 == 3
    rate_hz = RATES_HZ[rate] // RATE_DIVISORS[version]
    samples = 384 if layer == 1 else 1152 if layer == 2 or is_mpeg_1 else 576
    length = 0
    if bit_rate:
        slot = 4 if layer == 1 else 1  # bytes
        length = (samples * BIT_RATES[is_mpeg_1, layer][bit_rate - 1] * 125 // (rate_hz * slot) + padding) * slot
    side_info = (17 if is_mono else 32) if is_mpeg_1 else (9 if is_mono else 17)
    return MpegFrame((version, layer, rate_hz, is_mono), length, samples, 4 + side_info)


def _is_confirmed(head: _Heads, position: int, frame: MpegFrame) -> bool:
    """Whether another frame like this one comes next, or nothing."""
    next_position = position + frame.length
    if not frame.length:
        return False
    if next_position + 4 > head.size:
        return next_position <= head.size
    data, at = head.at(next_position)
    following = _mpeg_frame(int.from_bytes(data[at : at + 4], "big") & KIND_BITS)
    return (following is not None and following.kind == frame.kind) or _tag_length(data, at) > 0


def _counting_frame(data: bytes, at: int, frame: MpegFrame) -> int | None:
    """Of a frame that holds no audio but the number of the others: the samples that the decoder takes off the ends."""
    if data[at + 36 : at + 40] == b"VBRI":
        return 0
    xing = at + frame.xing_offset
    if data[xing : xing + 4] not in (b"Xing", b"Info"):
        return None
    flags = int.from_bytes(data[xing + 4 : xing + 8], "big")
    lame = xing + 8 + sum(size for bit, size in enumerate((4, 4, 100, 4)) if flags >> bit & 1)
    if lame + 24 > len(data) or not data[lame]:
        return 0
    delay_and_padding = int.from_bytes(data[lame + 21 : lame + 24], "big")
    return (delay_and_padding >> 12) + (delay_and_padding & 0xFFF)


def _tag_length(data: bytes, at: int) -> int:
    """Bytes of the ID3 or APE tag that begins here; 0 if none does."""
    if data[at : at + 3] == b"TAG":
        return 128
    if data[at : at + 3] == b"ID3" and at + 10 <= len(data) and max(data[at + 6 : at + 10]) < 0x80:
        a, b, c, d = data[at + 6 : at + 10]
        return 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if data[at + 5] & 0x10 else 0)
    if data[at : at + 8] == b"APETAGEX" and at + 16 <= len(data):
        return 32 + int.from_bytes(data[at + 12 : at + 16], "little")
    return 0


def ogg_streams(file: BinaryIO) -> list[Stream]:
    """The links of a chained Ogg file; none if it is not chained."""
    return _between(file, _ogg_starts(file))


def flac_streams(file: BinaryIO) -> list[Stream]:
    """The flac files that follow each other in a file; none if it is only one."""
    return _between(file, _flac_starts(file))


def _between(file: BinaryIO, starts: Iterator[int]) -> list[Stream]:
    borders = [*starts, file.seek(0, os.SEEK_END)]
    return [Stream(start, stop, start) for start, stop in pairwise(borders)] if len(borders) > 2 else []


def _ogg_starts(file: BinaryIO) -> Iterator[int]:
    """Where the links of an Ogg file begin: at a page that begins a logical stream, behind one that does not."""
    size, position, was_beginning = file.seek(0, os.SEEK_END), 0, False
    while position + 27 <= size:
        file.seek(position)
        page = file.read(27 + 255)
        if page[:4] != b"OggS":
            position = next(_places(file, position + 1, b"OggS"), size)
            continue
        is_beginning = bool(page[5] & 2)
        if is_beginning and not was_beginning:
            yield position
        was_beginning = is_beginning
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])


def _flac_starts(file: BinaryIO) -> Iterator[int]:
    """Where the flac streams of a file begin."""
    for place in _places(file, 0, b"fLaC"):
        file.seek(place + 4)
        if file.read(4) in FLAC_STREAMINFO:
            yield place


def _places(file: BinaryIO, position: int, mark: bytes) -> Iterator[int]:
    """Where `mark` is in a file, from `position` on."""
    while True:
        file.seek(position)
        data = file.read(CHUNK_BYTES)
        place = data.find(mark)
        while place >= 0:
            yield position + place
            place = data.find(mark, place + 1)
        if len(data) < CHUNK_BYTES:
            return
        position += len(data) - len(mark) + 1


# By libsndfile's name of the format: finds the streams of a file; none where libsndfile can be trusted to read all of it.
CONTAINERS: dict[str, Callable[[BinaryIO], list[Stream]]] = {"MP3": mpeg_streams, "OGG": ogg_streams, "FLAC": flac_streams}
