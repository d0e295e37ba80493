"""Synthetic twins of the public corpora of the downstream tasks, one short file each, by the corpus's name."""

from .aesdd import AESDD
from .cnceleb1 import CNCELEB1
from .dyads import DYADS
from .fluent import FLUENT
from .football import FOOTBALL
from .iemocap import IEMOCAP
from .kathbath import KATHBATH
from .librispeech import LIBRISPEECH
from .timit import TIMIT
from .twin import Twin, plan_twin
from .voxforge import VOXFORGE

TWINS: dict[str, Twin] = {
    twin.name: twin for twin in (FOOTBALL, VOXFORGE, KATHBATH, CNCELEB1, TIMIT, AESDD, IEMOCAP, FLUENT, LIBRISPEECH, DYADS)
}

__all__ = ["TWINS", "Twin", "plan_twin"]
