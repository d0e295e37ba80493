"""Word and character error rates of texts, by jiwer.

A rate is that of a whole split: the errors of all clips over the words (characters) of all references, so that a long clip
counts more than a short one; it can exceed 1. Texts are compared as they are: whoever writes them normalises both sides alike.

Shapes: `N` clips, `R` bootstrap resamples. A label is the reference text, a prediction the text that was recognised.
"""

from __future__ import annotations

import numpy as np

from wavcse.settings.libraries import optional_library

PROCESS = {"words": "process_words", "characters": "process_characters"}  # of jiwer


def wer(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Word error rate: substitutions, deletions and insertions of the best alignments over the words of the references.

    Raises:
        ValueError: the references hold no word.
    """
    return _rate(labels, predictions, "words")


def cer(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Character error rate, as `wer`; blanks between words are characters."""
    return _rate(labels, predictions, "characters")


def resampled_wer(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`wer` of every resample, `[R]`: its errors over its reference words; NaN where it has none."""
    return _resampled(labels, predictions, weights, "words")


def resampled_cer(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`cer` of every resample, `[R]`."""
    return _resampled(labels, predictions, weights, "characters")


def error_counts(labels: np.ndarray, predictions: np.ndarray, units: str) -> tuple[np.ndarray, np.ndarray]:
    """Errors and reference length of every clip, int64 `[N]` each.

    Args:
        units: "words" or "characters".
    """
    process = getattr(optional_library("jiwer", "eval"), PROCESS[units])
    output = process(list(map(str, labels)), list(map(str, predictions)))
    errors = [
        sum(max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx) for part in parts)
        for parts in ([part for part in alignment if part.type != "equal"] for alignment in output.alignments)
    ]
    return np.array(errors, dtype=np.int64), np.array([len(own) for own in output.references], dtype=np.int64)


def _rate(labels: np.ndarray, predictions: np.ndarray, units: str) -> float:
    errors, lengths = error_counts(labels, predictions, units)
    if not lengths.sum():
        raise ValueError(f"the {len(lengths)} reference texts hold no {units}; an error rate needs some.")
    return float(errors.sum() / lengths.sum())


def _resampled(labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray, units: str) -> np.ndarray:
    errors, lengths = (counts.astype(np.float64) for counts in error_counts(labels, predictions, units))
    totals = weights @ lengths
    return np.divide(weights @ errors, totals, out=np.full(len(weights), np.nan), where=totals > 0)
