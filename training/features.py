"""The training table: cached features of a composite set, in memory where they fit, else read from disk batch by batch.

Shapes: `N` clips, `K` selected layers, `D` upstream width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from wavcse.data.composite import IGNORED_LABEL, CompositeSet
from wavcse.data.features import FeatureCache
from wavcse.data.inspection import Inspector

MEMORY_SHARE = 0.5  # of the memory that is free now; the rest is for activations and the system


class MemoryTable:
    """All features as one float32 tensor `[N, K, D]` on the training device: a batch is one `index_select`."""

    def __init__(self, features: Tensor):
        self.features = features

    def take(self, rows: Tensor) -> Tensor:
        """`[n, K, D]` of the given rows."""
        return self.features.index_select(0, rows)


class DiskTable:
    """Features stay in the memory-mapped cache; a batch reads and copies its own rows only."""

    def __init__(self, cache: FeatureCache, digests: Sequence[str], layers: Sequence[int], device: torch.device):
        self.cache, self.digests, self.layers, self.device = cache, list(digests), list(layers), device

    def take(self, rows: Tensor) -> Tensor:
        """`[n, K, D]` of the given rows."""
        batch = self.cache.read([self.digests[row] for row in rows.tolist()], self.layers)
        return torch.from_numpy(batch).to(self.device)


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
    facts = Inspector(cache.folder.parent).inspect(composite.clips, save=False)
    missing = [clip.clip_id for clip, fact in zip(composite.clips, facts) if fact.digest not in cache]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(facts)} clips are not in the feature cache {cache.folder}, such as {missing[0]}. "
            "Run `python -m wavcse.data.cache` with all manifests of the recipe; it lists clips that cannot be read in "
            "skipped.csv, which must leave the manifests."
        )
    return [fact.digest for fact in facts]


@dataclass(frozen=True)
class Batch:
    """One step's share of this process.

    `features` `[n, K, D]`; `labels` task -> `[n]` with -100 = no label; `num_labelled` task -> labelled clips of the whole
    batch over all processes.
    """

    features: Tensor
    labels: dict[str, Tensor]
    num_labelled: dict[str, int]


class SplitFeatures:
    """The clips of one split with their features and labels.

    Orders and counts stay on the CPU, so that on a GPU no step waits for a number to come back.
    """

    def __init__(self, table: MemoryTable | DiskTable, composite: CompositeSet, split: str, device: torch.device):
        self.table, self.device = table, device
        rows = torch.from_numpy(composite.rows(split))
        targets = {task: torch.from_numpy(targets)[rows] for task, targets in composite.targets[split].items()}
        self.is_labelled = {task: target != IGNORED_LABEL for task, target in targets.items()}
        self.rows = rows.to(device)
        self.labels = {task: target.to(device) for task, target in targets.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def num_labelled(self, task: str) -> int:
        """Clips of this split that have a label for the task."""
        return int(self.is_labelled[task].sum())

    def batches(self, size: int, order: Tensor | None = None, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches of `size` clips in the given order; of each, process `rank` of `world` gets every world-th clip."""
        order = torch.arange(len(self)) if order is None else order
        for whole in order.split(size):
            counts = {task: int(is_labelled[whole].sum()) for task, is_labelled in self.is_labelled.items()}
            share = whole[rank::world].to(self.device)
            labels = {task: labels[share] for task, labels in self.labels.items()}
            yield Batch(self.table.take(self.rows[share]), labels, counts)


def epoch_order(num_clips: int, seed: int, epoch: int, batch_size: int, drop_last: bool) -> Tensor:
    """The shuffled clips of an epoch, the same in every process; whole batches only if `drop_last` and there is one."""
    generator = np.random.default_rng([seed, epoch])
    order = torch.from_numpy(generator.permutation(num_clips))
    if drop_last and num_clips > batch_size:
        order = order[: num_clips // batch_size * batch_size]
    return order
