"""Embeddings that an evaluation has computed, so that a killed one goes on, and another task costs only its own clips.

    embeddings/<encoder>.<key>/<name>.safetensors    `embeddings` [n, E] and, in its header, the digests of the n clips

The key is a hash of what the encoder says of itself. A file appears whole or not at all, and its name ends with the checksum
of its bytes: a damaged one is set aside, and its clips are embedded anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wavcse.data.files import DamagedFile, check_piece, remove_partials, set_aside, write_piece
from wavcse.eval.encoder import Encoder, candidates_of, identity_of

FORMAT_VERSION = 2  # since 2 all of the audio in a file counts, see `data/features.py`


def encoder_record(encoder: Encoder) -> dict:
    """What a result file keeps of an encoder."""
    shape = {"embedding_size": encoder.embedding_size, "sampling_rate": encoder.sampling_rate}
    candidates = {"num_candidates": candidates_of(encoder)} if candidates_of(encoder) > 1 else {}
    return {"name": encoder.name, **shape, **candidates, **identity_of(encoder)}


def digest_of(settings: object) -> str:
    """Short hash of JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


class EmbeddingStore:
    """Embeddings of one encoder by content digest of the clip.

    Args:
        root: folder of all stores; made when something is written.
    """

    def __init__(self, root: Path, encoder: Encoder):
        described = {**encoder_record(encoder), "wavcse": version("wavcse"), "format": FORMAT_VERSION}
        self.folder = root / f"{encoder.name}.{digest_of(described)}"
        self._location: dict[str, tuple[Path, int]] = {}
        if self.folder.exists():
            remove_partials(self.folder)
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                check_piece(path)
                with safe_open(path, "np") as file:
                    digests = json.loads(file.metadata()["digests"])
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                set_aside(path, error if isinstance(error, DamagedFile) else f"{path}: is damaged ({error}).")
                continue
            self._location.update({digest: (path, row) for row, digest in enumerate(digests)})

    def __contains__(self, digest: str) -> bool:
        return digest in self._location

    def read(self, digests: Sequence[str], out: np.ndarray, rows: Sequence[int]) -> None:
        """Copy the embeddings of `digests` to `out[rows]`, a file at a time."""
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for digest, row in zip(digests, rows):
            path, place = self._location[digest]
            wanted.setdefault(path, []).append((row, place))
        for path, pairs in wanted.items():
            to, places = zip(*pairs)
            with safe_open(path, "np") as file:
                out[list(to)] = file.get_tensor("embeddings")[list(places)]

    def write(self, digests: Sequence[str], embeddings: np.ndarray) -> None:
        """Add the embeddings `[n, E]` of n clips."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors, metadata = {"embeddings": np.ascontiguousarray(embeddings)}, {"digests": json.dumps(list(digests))}
        path = write_piece(self.folder, ".safetensors", lambda partial: save_file(tensors, partial, metadata))
        self._location.update({digest: (path, row) for row, digest in enumerate(digests)})
