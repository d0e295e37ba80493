"""Baselines behind the same encoder contract, one short file each."""

from __future__ import annotations

from collections.abc import Callable

from wavcse.eval.baselines.last_layer import LastLayerEncoder
from wavcse.eval.baselines.majority import MajorityEncoder
from wavcse.eval.baselines.mfcc import MFCCEncoder
from wavcse.eval.encoder import Encoder, WavCSEEncoder

# Name -> constructor, given the evaluated model; in the order in which tables show them.
BASELINES: dict[str, Callable[[WavCSEEncoder | None], Encoder]] = {
    "last_layer": LastLayerEncoder,
    "mfcc": lambda model: MFCCEncoder(),
    "majority": lambda model: MajorityEncoder(),
}
