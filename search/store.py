"""Results of fits on disk: one JSON each, named by settings, data and version, so that none is done twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from wavcse.data.files import kept_json, write_json
from wavcse.search.fit import settings_of
from wavcse.training.arguments import RunArguments

FIT_VERSION = 1  # of what a fit computes: a new number where figures change, so that no stored fit of the old way is taken


class FitStore:
    """`folder/<key>.json`, each with its checksum.

    A file is there as a whole or not at all, so a killed search goes on with what is there; a damaged one is set aside.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, args: RunArguments, fingerprint: str) -> str:
        """Sixteen hex digits of the fit with these settings on the data of this fingerprint, by this version and PyTorch's."""
        words = json.dumps([FIT_VERSION, torch.__version__, settings_of(args), fingerprint], sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def get(self, key: str) -> dict | None:
        """The result, `None` if there is none yet."""
        return kept_json(self._path(key))

    def put(self, key: str, result: dict) -> None:
        """Keep a result."""
        write_json(self._path(key), result)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
