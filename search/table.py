"""The table that a search trains on: pooled layers of all clips, all layers, in memory once, shared by its processes.

Shapes: `N` clips, `L` all layers, `D` size of a pooled layer.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data import SPLITS
from wavcse.data.composite import CompositeSet, load_composite
from wavcse.data.features import open_cache
from wavcse.data.files import allocate
from wavcse.data.inspection import Inspector
from wavcse.data.pca import PrincipalComponents
from wavcse.modeling_wavcse import WavCSEDownstream
from wavcse.search.bootstrap import groups_of
from wavcse.training.arguments import RunArguments
from wavcse.training.features import MemoryTable, SplitFeatures, cached_digests, data_fingerprint, free_memory
from wavcse.training.heads import model_config
from wavcse.training.linear_probe import linear_probes
from wavcse.training.start import Scaling, layer_blocks, layer_components, layer_scaling

CHUNK = 4096  # clips copied at a time
LARGEST_SHARE = 0.8  # of the memory, and for a file of the disk space, that is free


@dataclass(frozen=True)
class SearchTable:
    """Features of all layers with the tasks' labels.

    Attributes:
        features: float32 `[N, L, D]` on the training device.
        composite: labels and splits, without the clips.
        upstream_config: fields of the upstream that made the features.
        fingerprint: hex digits that change with any clip, label, split or upstream weight.
        path: the file that `features` are mapped from, if any.
        groups: task -> number of each clip's speaker, `[N]`, for tasks whose splits have no speaker in common.
        layer_fields: how the features were made and pooled over time (`CacheKey.layer_fields`).
        components: the last that `components_of` has found.
    """

    features: Tensor
    composite: CompositeSet
    upstream_config: dict
    fingerprint: str
    path: Path | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    layer_fields: dict = field(default_factory=dict)
    components: dict[tuple, PrincipalComponents] = field(default_factory=dict, compare=False)

    @property
    def layers(self) -> list[int]:
        """All layers, 0..L-1."""
        return list(range(self.features.shape[1]))

    def splits(self, args: RunArguments) -> dict[str, SplitFeatures]:
        """The splits as a run with these layers sees them; nothing is copied."""
        table = MemoryTable(self.features, args.selected_layers)
        return {split: SplitFeatures(table, self.composite, split, self.features.device) for split in SPLITS}

    @cached_property
    def scaling(self) -> Scaling:
        """Of the training clips, of all layers: `[L, D]` each; found once for all fits of a process."""
        return layer_scaling(
            layer_blocks(SplitFeatures(MemoryTable(self.features), self.composite, "train", self.features.device))
        )

    def scaling_of(self, args: RunArguments) -> Scaling | None:
        """`scaling` of the layers that `args` selects, `None` where they are not scaled."""
        if args.layer_scaling == "none":
            return None
        mean, scale = self.scaling
        return mean[args.selected_layers], scale[args.selected_layers]

    def components_of(self, args: RunArguments) -> PrincipalComponents | None:
        """What `start: pca` begins at, `None` for another start; found once while its layers and sizes stay the same."""
        if args.start != "pca":
            return None
        key = (tuple(args.selected_layers), args.layer_scaling, args.embedding_size)
        if key not in self.components:
            downstream = WavCSEDownstream(self.config(args))
            if downstream.is_scaled:
                downstream.layer_mean, downstream.layer_scale = self.scaling_of(args)
            self.components.clear()  # they can be large
            self.components[key] = layer_components(downstream, layer_blocks(self.splits(args)["train"]), args.embedding_size)
        return self.components[key]

    def probes_of(self, args: RunArguments) -> dict[str, dict]:
        """Task with classes -> what a linear classifier reads from the layers of `args`; empty where it is not wanted."""
        classes = {task: len(labels) for task, labels in self.composite.classes.items() if task not in self.composite.scales}
        return linear_probes(self.splits(args), classes, args.selected_layers) if args.probe else {}

    def config(self, args: RunArguments) -> WavCSEConfig:
        """The configuration of the model that `args` describes on these features."""
        return model_config(args, self.upstream_config, self.composite.classes, self.layer_fields, self.composite.scales)


def read_table(args: RunArguments, device: torch.device | None = None, folder: Path | None = None) -> SearchTable:
    """The recipe's clips with all layers of its cache.

    Args:
        device: where fits will run; on a GPU the table lies in its memory.
        folder: keep the features in a file there, mapped into memory, so that processes can share them; else in memory.

    Raises:
        ValueError: as `load_composite`, `open_cache` and `cached_digests`; or memory or disk are too small.
    """
    device = device or torch.device("cpu")
    sources = args.task_sources()
    cache = open_cache(args.cache_dir)
    composite = load_composite(sources, Inspector(cache.folder.parent))
    digests = cached_digests(cache, composite)
    shape = (len(digests), *cache.shards[0].shape[1:])
    fingerprint = data_fingerprint(cache, digests, composite)
    _refuse_too_large(shape, device)
    path = None if folder is None else _new_file(folder, fingerprint, shape)
    features = torch.empty(shape, device=device) if path is None else _mapped(path, shape)
    for start in range(0, len(digests), CHUNK):
        part = cache.read(digests[start : start + CHUNK], range(shape[1]))
        features[start : start + CHUNK] = torch.from_numpy(part)
    groups = groups_of(sources, composite.clips)
    labels, key = replace(composite, clips=[], digests=[]), cache.key
    return SearchTable(features, labels, key.upstream_config, fingerprint, path, groups, key.layer_fields)


@contextmanager
def table_for(args: RunArguments, folder: Path, workers: int) -> Iterator[SearchTable]:
    """`read_table` on the GPU if there is one, else in memory; for several workers in a file in `folder` meanwhile."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = read_table(args, device, folder if workers > 1 and device.type == "cpu" else None)
    try:
        yield table
    finally:
        if table.path is not None:
            table.path.unlink(missing_ok=True)


@contextmanager
def shared(table: SearchTable, folder: Path) -> Iterator[Callable[[], SearchTable]]:
    """What another process calls to get the same table without a copy of its features; valid while the context lasts.

    Raises:
        ValueError: memory or disk have no space for the file.
    """
    shape = tuple(table.features.shape)
    if table.path is None:
        _refuse_too_large(shape, torch.device("cpu"))  # the pages of the file
    path = table.path or _new_file(folder, table.fingerprint, shape)
    rest = replace(table, features=torch.empty(0), path=path)
    try:
        if table.path is None:
            _mapped(path, shape).copy_(table.features)
        yield partial(_reopened, rest, shape)
    finally:
        if table.path is None:
            path.unlink(missing_ok=True)


def _reopened(rest: SearchTable, shape: tuple[int, int, int]) -> SearchTable:
    return replace(rest, features=_mapped(rest.path, shape))


def _refuse_too_large(shape: tuple[int, int, int], place: torch.device | Path) -> None:
    """ValueError where float32 features of this shape would fill a device's memory or a folder's disk."""
    is_disk = isinstance(place, Path)
    needed, free = 4 * math.prod(shape), shutil.disk_usage(place).free if is_disk else free_memory(place)
    if needed > LARGEST_SHARE * free:
        raise ValueError(
            f"The features of {shape[0]} clips x {shape[1]} layers need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            f"free {f'in {place}' if is_disk else 'in memory'}. Search on fewer clips, or where there is more room."
        )


def _mapped(path: Path, shape: tuple[int, int, int]) -> Tensor:
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=torch.float32).view(shape)


def _new_file(folder: Path, fingerprint: str, shape: tuple[int, int, int]) -> Path:
    """Allocate a file named after this process, after removing the files of processes that were killed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("features-*-*.f32"):
        if not psutil.pid_exists(int(left.stem.rpartition("-")[2])):
            left.unlink()
    _refuse_too_large(shape, folder)
    path = folder / f"features-{fingerprint}-{os.getpid()}.f32"
    allocate(path, 4 * math.prod(shape))
    return path
