"""Results of fits on disk: one JSON each, under a name made of settings and data, so that no fit is ever done twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from wavcse.data.features import write_atomically
from wavcse.search.fit import settings_of
from wavcse.training.arguments import RunArguments


class FitStore:
    """`folder/<key>.json`. A file is there as a whole or not at all, so a killed search goes on with what is there."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, args: RunArguments, fingerprint: str) -> str:
        """Sixteen hex digits of the fit with these settings on the data of this fingerprint."""
        words = json.dumps([settings_of(args), fingerprint], sort_keys=True)
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def get(self, key: str) -> dict | None:
        """The result, `None` if there is none yet."""
        path = self._path(key)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def put(self, key: str, result: dict) -> None:
        """Keep a result."""
        write_atomically(self._path(key), json.dumps(result))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
