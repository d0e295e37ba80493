"""Offline, seeded corpora of synthesised speech: one for three tasks at once, and a twin of each downstream corpus."""

from .corpus import write_corpus, write_plan
from .plan import Plan, Speaker, Utterance
from .table import plan_corpus
from .twins import TWINS, plan_twin

__all__ = ["TWINS", "Plan", "Speaker", "Utterance", "plan_corpus", "plan_twin", "write_corpus", "write_plan"]
