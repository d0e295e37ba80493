"""Resemblyzer's speaker encoder: a published specialist for voices, whose weights come with its package.

Three LSTM layers trained by GE2E (Wan et al. 2018). The package is under Apache-2.0 and does not say on whose voices it was
trained. A clip goes through as its own `preprocess_wav` and `embed_utterance` say: level raised to -30 dBFS, long silences cut
out, vectors of slices of 1.6 s averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from wavcse.data.files import sha256_of
from wavcse.settings.libraries import optional_library

WEIGHTS = "pretrained.pt"  # a pickle; torch.load reads tensors of it only, as it does by default


class ResemblyzerEncoder:
    """One vector of 256 numbers, none of them negative, per clip.

    Raises:
        ImportError: the package, or one that it needs, is not installed.
    """

    name = "resemblyzer"
    sampling_rate = 16_000
    embedding_size = 256

    def __init__(self):
        self.library = optional_library("resemblyzer", "resemblyzer")
        self.model = self.library.VoiceEncoder("cpu", verbose=False)
        self.identity = {
            "package": f"resemblyzer {version('resemblyzer')}",
            "licence": "Apache-2.0",
            "weights_sha256": sha256_of(Path(self.library.__file__).parent / WEIGHTS),
        }

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 `[N, 256]`, clip by clip."""
        return np.stack([self.model.embed_utterance(self._prepared(waveform)) for waveform in waveforms]).astype(np.float32)

    def _prepared(self, waveform: np.ndarray) -> np.ndarray:
        """As the package prepares a clip; one in which it finds no voice stays whole, for want of anything else."""
        if not waveform.any():  # digital silence has no level that could be raised
            return waveform
        voiced = self.library.preprocess_wav(waveform)
        return voiced if len(voiced) else waveform
