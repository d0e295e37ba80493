"""An offline, seeded corpus of synthesised speech for keyword spotting, speaker and emotion recognition."""

from .corpus import write_corpus
from .table import Speaker, Utterance, plan_corpus

__all__ = ["Speaker", "Utterance", "plan_corpus", "write_corpus"]
