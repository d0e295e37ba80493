"""One row of a plan becomes one waveform: speak, shape the vocal tract, colour, set the level, add the room."""

from __future__ import annotations

import math

import numpy as np
import soxr

from .espeak import ENGINE_RATE_HZ, Phone, Word, speak
from .plan import EQ_NODES_HZ, Utterance

SAMPLING_RATE_HZ = 16_000
PEAK_LIMIT = 0.98
BREATH_WINDOW_S = 0.02  # breath noise follows the loudness of the voice over this time


def render(utterance: Utterance) -> tuple[np.ndarray, list[Word]]:
    """Speak one clip: its waveform, and its words and phones with their times in it.

    The waveform is a function of the row alone: history, process and other clips do not matter.

    Returns:
        float32 array of shape `[samples]` within [-1, 1] at `SAMPLING_RATE_HZ`, and the words.

    Raises:
        ImportError, ValueError, EspeakError: see :func:`wavcse.data.synthetic.espeak.speak`.
    """
    speech, words = _speak_with_tract(utterance)
    if utterance.breath_db is not None:
        speech += _breath(speech, utterance.noise_seed) * _amplitude(utterance.breath_db) * _rms(speech)
    speech = _colour(speech, utterance.speaker.eq_db, utterance.tilt_db_per_octave)
    speech *= _amplitude(utterance.level_dbfs) / _rms(speech)
    wave = _add_room(speech, utterance)
    return (wave * min(1.0, PEAK_LIMIT / np.abs(wave).max())).astype(np.float32), _placed(words, utterance)


def words_of(utterance: Utterance) -> list[Word]:
    """The words of :func:`render` alone, without the work on the sound."""
    return _placed(_speak(utterance)[1], utterance)


def _placed(words: list[Word], utterance: Utterance) -> list[Word]:
    """Times in the speech as espeak-ng says it -> times in the clip: played faster, after the silence before."""
    before, _ = _silences(utterance)

    def placed(seconds: float) -> float:
        return seconds / utterance.speaker.tract_ratio + before / SAMPLING_RATE_HZ

    def phone(own: Phone) -> Phone:
        return Phone(own.symbol, placed(own.start_s), placed(own.end_s))

    return [Word(own.text, placed(own.start_s), placed(own.end_s), tuple(map(phone, own.phones))) for own in words]


def _speak_with_tract(utterance: Utterance) -> tuple[np.ndarray, list[Word]]:
    """Speech at 16 kHz with all formants scaled by the speaker's `tract_ratio`; its words before that."""
    wave, words = _speak(utterance)
    ratio = utterance.speaker.tract_ratio
    return soxr.resample(wave, ENGINE_RATE_HZ * ratio, SAMPLING_RATE_HZ).astype(np.float64), words


def _speak(utterance: Utterance) -> tuple[np.ndarray, list[Word]]:
    """What espeak-ng says, at its own rate, and its words."""
    ratio = utterance.speaker.tract_ratio
    # Played `ratio` times as fast, formants, pitch and rate all rise; asking for less pitch and rate leaves formants.
    return speak(
        utterance.text,
        utterance.speaker.accent,
        utterance.speaker.variant,
        rate_wpm=utterance.rate_wpm / ratio,
        pitch_semitones=utterance.pitch_semitones - 12 * math.log2(ratio),
        pitch_range=utterance.pitch_range,
        seed=utterance.noise_seed,
    )


def _breath(speech: np.ndarray, seed: int) -> np.ndarray:
    """White noise with the envelope of the speech, of RMS 1: what leaks through vocal folds that do not close."""
    window = round(BREATH_WINDOW_S * SAMPLING_RATE_HZ)
    envelope = np.sqrt(np.convolve(np.square(speech), np.full(window, 1 / window), mode="same"))
    noise = np.random.default_rng([seed, 1]).standard_normal(len(speech)) * envelope
    return noise / _rms(noise)


def _colour(wave: np.ndarray, eq_db: tuple[float, ...], tilt_db_per_octave: float) -> np.ndarray:
    """Apply gains at `EQ_NODES_HZ`, and a tilt around 1 kHz."""
    hz = np.maximum(np.fft.rfftfreq(len(wave), 1 / SAMPLING_RATE_HZ), EQ_NODES_HZ[0])
    gain_db = np.interp(np.log2(hz), np.log2(EQ_NODES_HZ), eq_db) + tilt_db_per_octave * np.log2(hz / 1000)
    return np.fft.irfft(np.fft.rfft(wave) * _amplitude(gain_db), len(wave))


def _add_room(speech: np.ndarray, utterance: Utterance) -> np.ndarray:
    """Silence around the speech, noise at the clip's signal-to-noise ratio, and what the microphone makes of both."""
    wave = np.pad(speech, _silences(utterance))
    noise = _pink_noise(len(wave), utterance.noise_seed)
    if utterance.noise_tilt_db_per_octave is not None:
        noise = _colour(noise, (0.0,) * len(EQ_NODES_HZ), utterance.noise_tilt_db_per_octave)
        noise /= _rms(noise)
    wave = wave + noise * _amplitude(utterance.level_dbfs - utterance.snr_db)
    return wave if utterance.session_eq_db is None else _colour(wave, utterance.session_eq_db, 0.0)


def _silences(utterance: Utterance) -> tuple[int, int]:
    """Samples of silence before and after the speech."""
    return round(utterance.lead_s * SAMPLING_RATE_HZ), round(utterance.tail_s * SAMPLING_RATE_HZ)


def _pink_noise(samples: int, seed: int) -> np.ndarray:
    """Noise with equal power in every octave above 50 Hz, of RMS 1."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(samples))
    hz = np.fft.rfftfreq(samples, 1 / SAMPLING_RATE_HZ)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(hz, 50)), samples)
    return noise / _rms(noise)


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave))))


def _amplitude(db: float | np.ndarray) -> float | np.ndarray:
    return 10 ** (db / 20)
