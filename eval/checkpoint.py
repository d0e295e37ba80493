"""A model on the disk or on the Hub before it is loaded: what it says it is, and the hash of its weights.

No code of a model is run here and nothing is unpickled: a checkpoint whose weights are not safetensors is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import (
    CONFIG_NAME,
    FEATURE_EXTRACTOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from wavcse.eval.paths import shown_path
from wavcse.upstream_wavcse import NO_SAFETENSORS


@dataclass(frozen=True)
class Checkpoint:
    """Where a model is.

    Args:
        path: its folder, or its Hub id.
        revision: branch, tag or commit on the Hub; `None` = main.
    """

    path: str
    revision: str | None = None

    @classmethod
    def parse(cls, model: str) -> Checkpoint:
        """Read what a user writes: a folder, a Hub id, or `id@revision`."""
        path, at, revision = model.rpartition("@")
        return cls(path, revision) if at and not Path(model).exists() else cls(model)

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @cached_property
    def model_type(self) -> str:
        """`model_type` of its configuration, "" if it names none; ValueError if there is no configuration."""
        with self.loading():
            fields, _ = PretrainedConfig.get_config_dict(self.path, revision=self.revision)
            if not fields:
                raise OSError(f"There is no {CONFIG_NAME}.")
            return str(fields.get("model_type", ""))

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Turns what transformers raises on a missing or damaged model into a ValueError that says what to give."""
        try:
            yield
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            needs_code = "trust_remote_code" in str(error)  # transformers advises to allow it, which nobody can here
            raise ValueError(
                f"The model {str(self)!r} cannot be loaded; give the folder of a saved wavCSE model or of a transformers "
                f"audio model, or a Hub id. {'It needs code of its own, which is not run here.' if needs_code else error}"
            ) from error

    def identity(self, precision: str | None = None) -> dict[str, str]:
        """What a result file keeps: all that changes a vector, and where it came from.

        Args:
            precision: as asked for; the model's own is in its configuration.

        Raises:
            ValueError: as `weights_sha256`.
        """
        asked = {"revision": self.revision, "precision": precision}
        return {
            "model": shown_path(self.path),
            "weights_sha256": self.weights_sha256(),
            "config_sha256": self.config_sha256(),
            **{name: value for name, value in asked.items() if value},
        }

    def config_sha256(self) -> str:
        """SHA-256 over the files that configure the model and its feature extractor."""
        files = [self._file(CONFIG_NAME), self._file(FEATURE_EXTRACTOR_NAME, needed=False)]
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files if file)).hexdigest()

    def weights_sha256(self) -> str:
        """SHA-256 of the safetensors file, as the Hub shows it; over the hashes of all shards if there are several.

        Raises:
            ValueError: there is no safetensors file.
        """
        single = self._file(SAFE_WEIGHTS_NAME, needed=False)
        if single:
            return _sha256(single)
        index = self._file(SAFE_WEIGHTS_INDEX_NAME, needed=False)
        if index is None:
            raise ValueError(NO_SAFETENSORS.format(name=str(self)))
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return hashlib.sha256("".join(_sha256(self._file(shard)) for shard in shards).encode()).hexdigest()

    def num_parameters(self) -> int:
        """Numbers in its one safetensors file, of which only the shapes are read."""
        with safe_open(self._file(SAFE_WEIGHTS_NAME), framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())

    def _file(self, name: str, needed: bool = True) -> Path | None:
        with self.loading():
            found = cached_file(self.path, name, revision=self.revision, _raise_exceptions_for_missing_entries=needed)
        return Path(found) if found else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
