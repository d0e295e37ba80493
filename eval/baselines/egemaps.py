"""eGeMAPS: the acoustic parameters that phoneticians chose for emotion (Eyben et al. 2016), computed by openSMILE.

88 functionals of pitch, loudness, formants, spectrum and voice quality over a whole clip, set eGeMAPSv02. openSMILE is under
audEERING's research licence: products need another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from wavcse.settings.libraries import optional_library

SHORTEST_SAMPLES = 1_600  # 0.1 s: of less openSMILE makes NaN, as pitch needs frames of 60 ms
LOUDEST = 1 - 2**-15  # openSMILE casts 32768 x to 16 bits without clipping: 1.0 would become -1.0


class EGeMAPSEncoder:
    """88 numbers per clip, each in its own unit.

    Raises:
        ImportError: the package, or one that it needs, is not installed.
    """

    name = "egemaps"
    sampling_rate = 16_000
    embedding_size = 88

    def __init__(self):
        library = optional_library("opensmile", "egemaps")
        self.smile = library.Smile(library.FeatureSet.eGeMAPSv02, library.FeatureLevel.Functionals)
        self.identity = {"package": f"opensmile {version('opensmile')}", "licence": "openSMILE's, for research only"}

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, 88]`; a clip shorter than 0.1 s is filled up with zeros."""
        return np.stack([self._functionals(waveform) for waveform in waveforms]).astype(np.float32)

    def _functionals(self, waveform: np.ndarray) -> np.ndarray:
        padded = np.pad(waveform, (0, max(0, SHORTEST_SAMPLES - len(waveform))))
        return self.smile.process_signal(padded.clip(-1, LOUDEST), self.sampling_rate).to_numpy()[0]
