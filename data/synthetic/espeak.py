"""espeak-ng through ctypes: one short text in, one waveform out, and when each word and phone is said.

espeak-ng keeps global state (flutter phase, echo buffer, random numbers), so the same words come out different after a
different history. Every call of :func:`speak` therefore loads the library afresh and unloads it again, which makes a
waveform a function of its arguments alone and costs about 2 ms.
"""

import _ctypes
import ctypes
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from wavcse.settings.command import CommandError

ENGINE_RATE_HZ = 22050  # the only rate of espeak-ng's formant synthesiser
MIN_RATE_WPM, MAX_RATE_WPM = 80, 450  # speak_lib.h, espeakRATE

# speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001  # events of phones beside those of words; the audio is the same
_INITIALIZE_DONT_EXIT = 0x8000  # without it a missing data folder ends the Python process
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_LIST_TERMINATED, _WORD, _END, _PHONEME = 0, 1, 5, 7  # espeak_EVENT_TYPE

_MAX_DATA_PATH = 120  # espeak-ng cuts its data path at 160 characters, file names below it included


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # in characters, from 1
        ("length", ctypes.c_int),  # of a word, in characters
        ("audio_position", ctypes.c_int),  # in ms
        ("sample", ctypes.c_int),  # from the start of the waveform
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Phone:
    """A phone in espeak-ng's notation (stress before the vowel, as in `'i:`), from `start_s` to `end_s`."""

    symbol: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Word:
    """A word as it is written, from `start_s` to `end_s`; a pause after it is not part of it."""

    text: str
    start_s: float
    end_s: float
    phones: tuple[Phone, ...]


class EspeakError(CommandError):
    """espeak-ng is present but did not do what it was asked."""


def speak(
    text: str,
    voice: str,
    variant: str,
    *,
    rate_wpm: float,
    pitch_semitones: float = 0.0,
    pitch_range: float = 1.0,
    seed: int = 0,
) -> tuple[np.ndarray, list[Word]]:
    """Speak `text`: its waveform, and its words and phones with their times in it, exact to the sample.

    What espeak-ng says as one word (some pairs such as "of the") is one.

    Args:
        text: what to say.
        voice: an espeak-ng voice, which is a language or an accent, such as `en-us`.
        variant: a voice variant, such as `f3`: a file in `voices/!v` of the espeak-ng data.
        rate_wpm: speaking rate in words per minute, limited to 80..450.
        pitch_semitones: above (+) or below (-) the variant's own pitch, limited to -12..+12.
        pitch_range: size of the pitch movements, 0 (monotone) to 2; 1 is the variant's own.
        seed: of espeak-ng's random numbers (flutter, roughness, breath).

    Returns:
        float32 array of shape `[samples]` within [-1, 1] at `ENGINE_RATE_HZ`, and the words.

    Raises:
        ImportError: the package espeakng-loader is not installed.
        ValueError: unknown voice or variant.
        EspeakError: espeak-ng failed, said nothing, or is in use by another package in this process.
    """
    if not (_data_folder() / "voices" / "!v" / variant).is_file():  # espeak-ng would silently use no variant
        raise ValueError(f"espeak-ng has no voice variant {variant!r}")
    with _fresh_library() as library:
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        if library.espeak_SetVoiceByName(f"{voice}+{variant}".encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        _set(library, _RATE, np.clip(rate_wpm, MIN_RATE_WPM, MAX_RATE_WPM))
        _set(library, _PITCH, np.clip(50 + 50 * pitch_semitones / 12, 0, 100))  # 50 points of this scale = 1 octave
        _set(library, _RANGE, np.clip(50 * pitch_range, 0, 100))
        return _synthesise(library, text)


def engine_version() -> str:
    """The version of the espeak-ng library, such as `1.52.0`. Raises like :func:`speak`."""
    with _fresh_library() as library:
        return library.espeak_Info(None).decode()


def _set(library: ctypes.CDLL, parameter: int, value: float) -> None:
    if library.espeak_SetParameter(parameter, round(float(value)), 0) != 0:
        raise EspeakError(f"espeak-ng refused the value {value:.0f} for its parameter {parameter}")


def _synthesise(library: ctypes.CDLL, text: str) -> tuple[np.ndarray, list[Word]]:
    chunks, marks = [], []

    def collect(samples, count, events):
        marks.extend(_marks(events, text))
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())  # espeak-ng reuses its buffer
        return 0

    callback = _CALLBACK(collect)  # must stay alive until espeak_Synth returns
    library.espeak_SetSynthCallback(callback)
    utf8 = text.encode() + b"\0"
    status = library.espeak_Synth(utf8, ctypes.c_size_t(len(utf8)), 0, 0, 0, _CHARS_UTF8, None, None)
    if status != 0 or not chunks:
        raise EspeakError(f"espeak-ng returned status {status} and {len(chunks)} blocks of audio for {text!r}")
    return np.concatenate(chunks).astype(np.float32) / 32768, _words(marks)


def _marks(events, text: str) -> Iterator[tuple[int, str, float]]:
    """Type, text and time in seconds of the events of words, phones and ends, in order."""
    for event in _listed(events):
        seconds = event.sample / ENGINE_RATE_HZ
        if event.type == _WORD:
            start = event.text_position - 1
            yield _WORD, text[start : start + event.length], seconds
        elif event.type == _PHONEME:
            yield _PHONEME, event.id.string.decode(errors="replace"), seconds
        elif event.type == _END:
            yield _END, "", seconds


def _listed(events) -> Iterator[_Event]:
    place = 0
    while events and events[place].type != _LIST_TERMINATED:
        yield events[place]
        place += 1


def _words(marks: list[tuple[int, str, float]]) -> list[Word]:
    """Words with their phones; each mark lasts until the next one. Phones that begin with `_` are pauses."""
    words: list[tuple[str, float, list[Phone]]] = []
    for (kind, text, start), (_, _, end) in pairwise(marks):
        if kind == _WORD:
            words.append((text, start, []))
        elif kind == _PHONEME and words and not text.startswith("_") and end > start:
            words[-1][2].append(Phone(text, start, end))
    return [Word(text, start, phones[-1].end_s, tuple(phones)) for text, start, phones in words if phones]


@contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    """espeak-ng in the state of a new process."""
    library = ctypes.CDLL(_loader().get_library_path())
    try:
        library.espeak_Info.restype = ctypes.c_char_p
        data_path = ctypes.c_char_p()
        library.espeak_Info(ctypes.byref(data_path))
        if data_path.value:  # set by espeak_Initialize, empty in a library just loaded
            raise EspeakError(
                "espeak-ng is already in use in this process, so clips would depend on what it spoke before. "
                "Write the corpus in a process that uses no other espeak-ng package, or with workers >= 2."
            )
        path = str(_data_folder()).encode()
        options = _INITIALIZE_DONT_EXIT | _INITIALIZE_PHONEME_EVENTS
        if library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, path, options) != ENGINE_RATE_HZ:
            raise EspeakError(f"espeak-ng could not read its data in {path.decode()}")
        yield library
        library.espeak_Terminate()
    finally:
        unload = _ctypes.FreeLibrary if os.name == "nt" else _ctypes.dlclose
        unload(library._handle)


def _data_folder() -> Path:
    """The espeak-ng data, by a path that is short enough for espeak-ng."""
    folder = Path(_loader().get_data_path())
    if len(str(folder)) <= _MAX_DATA_PATH:
        return folder
    # A link under a name of its own is safe to share between processes and to leave behind.
    link = Path(tempfile.gettempdir()) / f"espeak-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    try:
        link.symlink_to(folder, target_is_directory=True)
    except FileExistsError:
        if link.resolve() != folder.resolve():
            raise EspeakError(f"{link} does not lead to {folder}; remove it") from None
    return link


def _loader():
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "The synthetic corpus is spoken by espeak-ng, which comes with the package espeakng-loader: "
            "pip install espeakng-loader"
        ) from error
    return espeakng_loader
