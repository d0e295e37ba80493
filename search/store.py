"""Results of fits on disk, so that none is done twice: one JSON each, named by its settings, data and version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from wavcse.data.files import kept_json, write_json
from wavcse.search.fit import settings_of
from wavcse.training.arguments import RunArguments

FIT_VERSION = 1  # raised whenever a change to the code changes the figures of a fit, so that older stored fits are not reused


class FitStore:
    """`folder/<key>.json`, each with its checksum.

    A file is complete or does not exist, so a killed search continues from the fits it has; a damaged file is set aside.
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
