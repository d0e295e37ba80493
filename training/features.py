"""The training table: cached features of a composite set, in memory where they fit, else read from disk batch by batch.

Shapes: `N` clips, `K` selected layers, `D` size of a pooled layer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from wavcse.data.composite import CompositeSet
from wavcse.data.features import FeatureCache
from wavcse.modeling_wavcse import IGNORED_LABEL

MEMORY_SHARE = 0.5  # of the memory that is free now; the rest is for activations and the system


@dataclass(frozen=True)
class PooledLayers:
    """Some clips' layers, still in their table: `table[rows][:, layers]`, `[n, K, D]`, read when it is known how.

    `table` `[N, L, D]` holds more clips and layers than are wanted; `rows` `[n]`, `layers` `[K]`.
    """

    table: Tensor
    rows: Tensor
    layers: Tensor

    def stacked(self) -> Tensor:
        """The copy `[n, K, D]`."""
        num_clips, num_layers, size = self.table.shape
        # One gather over clips and layers; indexing them one after the other would copy all layers of the clips first.
        copied = self.table.view(num_clips * num_layers, size).index_select(0, self._flat().flatten())
        return copied.view(len(self.rows), len(self.layers), size)

    def averaged(self, weights: Tensor) -> Tensor:
        """`sum_k weights_k layer_k`, `[n, D]`, and its gradient in `weights` `[K]`; each layer is read once, not copied."""
        num_clips, num_layers, size = self.table.shape
        weights = weights.expand(len(self.rows), -1).contiguous()
        return nn.functional.embedding_bag(
            self._flat(), self.table.view(num_clips * num_layers, size), mode="sum", per_sample_weights=weights
        )

    def _flat(self) -> Tensor:
        return self.rows[:, None] * self.table.shape[1] + self.layers


class MemoryTable:
    """Features of all clips as one float32 tensor `[N, L, D]` on the training device, of which a run uses some layers.

    Args:
        features: the tensor; tables of several runs may share it.
        layers: positions in it of the layers to use, all of them if not given.
    """

    def __init__(self, features: Tensor, layers: Sequence[int] | None = None):
        self.features = features
        self.layers = torch.tensor(range(features.shape[1]) if layers is None else layers, device=features.device)

    def take(self, rows: Tensor) -> PooledLayers:
        """The given rows, not copied."""
        return PooledLayers(self.features, rows, self.layers)


class DiskTable:
    """Features stay in the memory-mapped cache; a batch reads and copies its own rows only."""

    def __init__(self, cache: FeatureCache, digests: Sequence[str], layers: Sequence[int], device: torch.device):
        self.cache, self.digests, self.layers, self.device = cache, list(digests), list(layers), device

    def take(self, rows: Tensor) -> PooledLayers:
        """The given rows, read now."""
        batch = torch.from_numpy(self.cache.read([self.digests[row] for row in rows.tolist()], self.layers)).to(self.device)
        return MemoryTable(batch).take(torch.arange(len(batch), device=self.device))


def open_table(
    place: str, cache: FeatureCache, digests: Sequence[str], layers: Sequence[int], device: torch.device
) -> MemoryTable | DiskTable:
    """The table for `place` = "memory", "disk", or "auto": memory if half of what is free there suffices."""
    if place == "auto":
        needed = 4 * len(digests) * len(layers) * cache.shards[0].shape[2]
        place = "memory" if needed <= MEMORY_SHARE * free_memory(device) else "disk"
    if place == "memory":
        return MemoryTable(torch.from_numpy(cache.read(digests, layers)).to(device))
    return DiskTable(cache, digests, layers, device)


def free_memory(device: torch.device) -> int:
    """Free bytes on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def cached_digests(cache: FeatureCache, composite: CompositeSet) -> list[str]:
    """Digest of every clip of the set, in order.

    Raises:
        ValueError: clips are unreadable or not cached; the message counts them and says how to add them.
    """
    missing = [clip.clip_id for clip, digest in zip(composite.clips, composite.digests) if digest not in cache]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(composite.clips)} clips are not in the feature cache {cache.folder}, such as "
            f"{missing[0]}. Run `python -m wavcse.data.cache` with all manifests of the recipe; it lists clips that cannot be "
            "read in skipped.csv, which must leave the manifests."
        )
    return composite.digests


def data_fingerprint(cache: FeatureCache, digests: Sequence[str], composite: CompositeSet) -> str:
    """Sixteen hex digits that change with any clip (`digests`, in order), label, class, split, upstream weight or pooling."""
    words = {"cache": cache.key.digest(), "clips": list(digests), "classes": composite.classes}
    if composite.scales:
        words["scales"] = composite.scales
    digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode())
    for split, tasks in sorted(composite.targets.items()):
        for task, targets in sorted(tasks.items()):
            digest.update(f"{split}/{task}".encode() + targets.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class FeatureBatch:
    """One step's share of this process: `n` clips.

    `rows` task -> positions `[n_t]` of the clips that have a label for it, `labels` task -> these labels `[n_t]`, class
    indices or standardised numbers, `num_labelled` task -> labelled clips of the whole batch over all processes, `num_clips`
    its clips.
    """

    features: PooledLayers
    rows: dict[str, Tensor]
    labels: dict[str, Tensor]
    num_labelled: dict[str, int]
    num_clips: int


class SplitFeatures:
    """The clips of one split with their features and labels.

    Orders and counts stay on the CPU, so that on a GPU no step waits for a number to come back.
    """

    def __init__(self, table: MemoryTable | DiskTable, composite: CompositeSet, split: str, device: torch.device):
        self.table, self.device = table, device
        self.rows = torch.from_numpy(composite.rows(split))
        self.scales = composite.scales
        self.labels = {task: torch.from_numpy(targets)[self.rows] for task, targets in composite.targets[split].items()}

    def __len__(self) -> int:
        return len(self.rows)

    def num_labelled(self, task: str) -> int:
        """Clips of this split that have a label for the task."""
        return int((self.labels[task] != IGNORED_LABEL).sum())

    def batches(self, size: int, order: Tensor | None = None, rank: int = 0, world: int = 1) -> Iterator[FeatureBatch]:
        """Batches of `size` clips in the given order; of each, process `rank` of `world` gets every world-th clip."""
        order = torch.arange(len(self)) if order is None else order
        for whole in order.split(size):
            share = whole[rank::world]
            rows, labels, counts = {}, {}, {}
            for task, of_split in self.labels.items():
                counts[task] = int((of_split[whole] != IGNORED_LABEL).sum())
                rows[task] = (of_split[share] != IGNORED_LABEL).nonzero()[:, 0]
                labels[task] = of_split[share][rows[task]]
            features = self.table.take(self._there(self.rows[share]))
            yield FeatureBatch(features, *map(self._all_there, (rows, labels)), counts, len(whole))

    def _all_there(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._there(tensor) for name, tensor in tensors.items()}

    def _there(self, tensor: Tensor) -> Tensor:
        """On the training device, without waiting for what runs there."""
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)


def epoch_order(num_clips: int, seed: int, epoch: int, batch_size: int, drop_last: bool) -> Tensor:
    """The shuffled clips of an epoch, the same in every process; whole batches only if `drop_last` and there is one."""
    # Of (seed, epoch) alone, so that a continued run needs no saved random state.
    generator = np.random.default_rng([seed, epoch])
    order = torch.from_numpy(generator.permutation(num_clips))
    if drop_last and num_clips > batch_size:
        order = order[: num_clips // batch_size * batch_size]
    return order
