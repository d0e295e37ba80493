"""The feature cache on disk: shards of time-pooled layers, addressed by audio content, read through memory maps.

    ROOT/digests.json                   hash of path -> size, mtime, content digest, seconds; so no file is hashed twice
    ROOT/<key>/cache.json               what the vectors depend on, in words; the key is its hash
    ROOT/<key>/<name>.safetensors       `pooled_layers` [n, L, D] and, in its header, the digests of the n clips

A shard is written under another name and renamed when whole, so a half-written one is never read. Its name ends with the
checksum of its bytes, which is compared before anything of it is read, once per process. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from wavcse.data.files import (
    DamagedFile,
    check_piece,
    read_json,
    remove_partials,
    set_aside,
    write_json,
    write_piece,
)
from wavcse.settings.processes import thread_pool

FORMAT_VERSION = 3  # since 3 all of the audio in a file counts: concatenated files, MP3s without a count of their frames
NUMPY_DTYPES = {"F32": np.float32, "F16": np.float16}
CHECK_THREADS = 4
REPAIR = "Run the command that made the cache again: it sets the file aside and computes its contents again."


@dataclass(frozen=True)
class CacheKey:
    """Everything that changes a cached vector. Two caches with equal keys hold equal numbers."""

    upstream: str  # Hub id, or name of the local folder
    revision: str | None
    weights_sha256: str
    upstream_config: dict
    sampling_rate: int
    do_normalize: bool
    window_s: float  # longer clips go through in windows
    max_duration_s: float  # longer clips are refused, never cropped
    temporal_pooling: str  # "mean" or "mean_std"
    dtype: str  # "float32" or "float16"
    context: str | None = None  # of Whisper, "clip" or "window"
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, path: Path) -> CacheKey:
        """The key in a `cache.json`; ValueError if its fields are not those of this version, DamagedFile if it is damaged."""
        key = read_json(path)
        is_whisper = isinstance(key.get("upstream_config"), dict) and key["upstream_config"].get("model_type") == "whisper"
        key.setdefault("context", "window" if is_whisper else None)  # made before there was a choice
        differing = sorted({field.name for field in fields(cls)} ^ set(key))
        if differing or key["format_version"] != FORMAT_VERSION:
            what = ", ".join(differing) or "format_version"
            raise ValueError(
                f"{path}: was made by another version of wavCSE (differs in {what}). "
                "Build the cache again with `python -m wavcse.data.cache`."
            )
        return cls(**key)

    @property
    def layer_fields(self) -> dict:
        """How layers are made and pooled over time, as fields of `WavCSEConfig`."""
        return {"temporal_pooling": self.temporal_pooling, "context": self.context}

    def digest(self) -> str:
        """Twelve hex digits that name the cache's folder; the upstream's display name does not count."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("upstream", "revision")}
        if self.context != "clip":
            del fields["context"]  # as in caches that were made before there was a choice
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


class FeatureCache:
    """Time-pooled layers of many clips: `[N, L, D]` over all layers 0..L-1 of one upstream.

    Args:
        folder: `ROOT/<key>`, made by `create`, or found by `open_cache`.

    Raises:
        DamagedFile: its description is damaged, or a shard cannot be opened.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.key = CacheKey.read(self.folder / "cache.json")
        self.checked: set[Path] = set()  # shards whose checksum this process has compared
        self.refresh()

    @classmethod
    def create(cls, root: Path, key: CacheKey, repair: bool = True) -> FeatureCache:
        """Open the cache of this key below `root` to add to it, making it if need be.

        Args:
            repair: set damaged shards aside, so that their clips count as missing, and remove what a killed run left half
                written. It reads all shards once, so only one of several processes does it.
        """
        folder = Path(root) / key.digest()
        if not repair:
            return cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)
        about = folder / "cache.json"
        try:
            is_there = about.exists() and bool(CacheKey.read(about))
        except DamagedFile as error:
            set_aside(about, error)
            is_there = False
        if not is_there:
            write_json(about, asdict(key), indent=1)
        sound = _set_damaged_aside(folder)
        cache = cls(folder)
        cache.checked |= sound
        return cache

    def refresh(self) -> None:
        """Read the index again: all shards that are complete now."""
        self.paths: list[Path] = []
        self.shards: list[np.ndarray] = []
        self.location: dict[str, tuple[int, int]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            array, digests = open_shard(path)
            self.location.update({digest: (len(self.shards), row) for row, digest in enumerate(digests)})
            self.shards.append(array)
            self.paths.append(path)

    def __len__(self) -> int:
        return len(self.location)

    def __contains__(self, digest: str) -> bool:
        return digest in self.location

    def read(self, digests: Sequence[str], layers: Sequence[int]) -> np.ndarray:
        """Copy the wanted clips and layers: float32 `[n, K, D]`, in the order asked for.

        Raises:
            DamagedFile: a shard that holds some of them is damaged.
        """
        shard_of, row_of = np.array([self.location[digest] for digest in digests], dtype=np.int64).reshape(-1, 2).T
        size = self.shards[0].shape[2] if self.shards else 0
        features = np.empty((len(digests), len(layers), size), dtype=np.float32)
        for shard in np.unique(shard_of):
            wanted = np.flatnonzero(shard_of == shard)
            wanted = wanted[np.argsort(row_of[wanted])]  # in file order: sequential reads
            self._check(self.paths[shard])
            features[wanted] = self.shards[shard][row_of[wanted][:, None], np.asarray(layers)[None, :]]
        return features

    def _check(self, path: Path) -> None:
        if path not in self.checked:
            try:
                check_piece(path)
            except DamagedFile as error:
                raise DamagedFile(f"{error} {REPAIR}") from error
            self.checked.add(path)

    def write_shard(self, features: np.ndarray, digests: Sequence[str]) -> None:
        """Add a shard: `features` `[n, L, D]` of the clips `digests`. Values must be finite and fit the cache's dtype."""
        features = features.astype(self.key.dtype)
        if not np.isfinite(features).all():
            raise FloatingPointError(
                f"The upstream gave values that are not finite in {self.key.dtype}. Check its weights, or use --dtype float32."
            )
        metadata = {"digests": json.dumps(list(digests))}
        path = write_piece(
            self.folder, ".safetensors", lambda partial: save_file({"pooled_layers": features}, partial, metadata=metadata)
        )
        self.checked.add(path)


def _set_damaged_aside(folder: Path) -> set[Path]:
    """Compare the checksums of all shards and set damaged ones aside; returns the others."""

    def damage(path: Path) -> DamagedFile | None:
        try:
            check_piece(path)
            open_shard(path)
        except DamagedFile as error:
            return error
        return None

    paths = sorted(folder.glob("*.safetensors"))
    with thread_pool(CHECK_THREADS) as pool:
        found = dict(zip(paths, pool.map(damage, paths)))
    for path, error in found.items():
        if error is not None:
            set_aside(path, error)
    return {path for path, error in found.items() if error is None}


def open_cache(root: str | Path) -> FeatureCache:
    """Open the only cache below `root` (or `root` itself, if it is one); caches of another version are skipped.

    Raises:
        ValueError: there is none, or more than one to choose from, another version made it, or it is damaged.
    """
    root = Path(root)
    folders = [root] if (root / "cache.json").exists() else sorted(path.parent for path in root.glob("*/cache.json"))
    if not folders:
        raise ValueError(f"{root}: holds no feature cache. Make one with `python -m wavcse.data.cache`.")
    keys = {folder: _key_of_this_version(folder) for folder in folders}
    readable = [folder for folder in folders if keys[folder]] or folders[-1:]
    if len(readable) > 1:
        names = ", ".join(f"{own} ({keys[own].upstream}, {keys[own].temporal_pooling}, {keys[own].dtype})" for own in readable)
        raise ValueError(f"{root}: holds several feature caches; name one of them: {names}.")
    return FeatureCache(readable[0])


def _key_of_this_version(folder: Path) -> CacheKey | None:
    try:
        return CacheKey.read(folder / "cache.json")
    except DamagedFile as error:  # not skipped: it may be the cache that the caller wants
        raise DamagedFile(f"{error} {REPAIR}") from error
    except ValueError:
        return None


def open_shard(path: Path) -> tuple[np.ndarray, list[str]]:
    """Memory-map a shard: `pooled_layers` `[n, L, D]` (read-only, nothing loaded) and the digests of its n clips.

    Raises:
        DamagedFile: the file's header is damaged, or the file ends before its last number.
    """
    try:
        with open(path, "rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_size))
        entry = header["pooled_layers"]
        offset = 8 + header_size + entry["data_offsets"][0]
        array = np.memmap(path, NUMPY_DTYPES[entry["dtype"]], mode="r", offset=offset, shape=tuple(entry["shape"]))
        digests = json.loads(header["__metadata__"]["digests"])
        if len(digests) != len(array):
            raise ValueError(f"it names {len(digests)} clips and holds {len(array)}")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DamagedFile(f"{path}: is damaged ({error}). {REPAIR}") from error
    return array, digests


def clips_per_shard(num_layers: int, size: int, dtype: str, shard_mb: float = 64.0) -> int:
    """How many clips make a shard of about `shard_mb` megabytes."""
    return max(1, math.floor(shard_mb * 1e6 / (num_layers * size * np.dtype(dtype).itemsize)))
