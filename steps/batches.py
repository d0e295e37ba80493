"""Batches of crops with their audio, as they are planned from (seed, step).

Every process works out the whole batch and loads its own share, so that one and several processes train on the same data, a
continued run repeats an undisturbed one, and the losses can be divided by counts over all processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from wavcse.audio_wavcse import SAMPLING_RATE_HZ, resample
from wavcse.configuration_wavcse import count_frames
from wavcse.data.manifest import Clip
from wavcse.feature_extraction_wavcse import normalized
from wavcse.steps.arguments import StepArguments
from wavcse.steps.audio_store import AudioStore
from wavcse.steps.crops import PLAIN_SPEED, Crop, CropPlanner, at_speed
from wavcse.steps.encoder import receptive_field
from wavcse.steps.fast_encoder import takes_packs

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Group:
    """Crops of one length: normalised `waveforms` `[b, samples]`, `mask` bool `[b, T]`, never padded."""

    waveforms: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Group:
        """The group on another device."""
        return Group(self.waveforms.to(device, non_blocking=True), self.mask.to(device, non_blocking=True))


@dataclass(frozen=True)
class CropBatch:
    """One process's share of a batch, and what it must know of the whole.

    Crop i of the whole belongs to process `i % num_processes`, as its crop `i // num_processes`.

    Attributes:
        groups: this process's crops, longest first.
        labels: int64 `[n]` of the whole batch.
        num_masked: masked frames of the whole batch.
        seconds: audio of the whole batch.
    """

    groups: list[Group]
    labels: Tensor
    num_masked: int
    seconds: float

    def to(self, device: torch.device) -> CropBatch:
        """The batch on another device."""
        groups = [group.to(device) for group in self.groups]
        return CropBatch(groups, self.labels.to(device), self.num_masked, self.seconds)


def encode_groups(encoder: PreTrainedModel, groups: Sequence[Group]) -> tuple[list[Tensor], Tensor]:
    """The encoder's output for each group, `[b, T, D]`, and its means over frames in the order of the batch, `[B, D]` float32.

    Every group brings its mask, an empty one too: without one the encoder would draw one itself in training.
    """

    def run(waveforms: Tensor | Sequence[Tensor], mask: Tensor) -> dict[str, Tensor]:
        return {"frames": encoder(waveforms, mask_time_indices=mask).last_hidden_state}

    frames = [output["frames"] for output in run_groups(encoder, groups, run)]
    return frames, torch.cat([output.float().mean(dim=1) for output in frames])


def run_groups(encoder: PreTrainedModel, groups: Sequence[Group], run: Callable[..., Mapping[Any, Tensor]]) -> list[dict]:
    """What `run(waveforms, mask)` finds in groups, each `[b, T, D]` by its name: in one pass if the encoder takes packs."""
    if len(groups) == 1 or not takes_packs(encoder):
        return [dict(run(group.waveforms, group.mask)) for group in groups]
    mask = torch.cat([group.mask.flatten() for group in groups])[None]
    rows = run([group.waveforms for group in groups], mask)
    parts = {name: encoder.feature_extractor.pack.groups(row) for name, row in rows.items()}
    return [{name: own[place] for name, own in parts.items()} for place in range(len(groups))]


def gathered(embeddings: Tensor, count: int) -> Tensor:
    """The `count` embeddings of all processes in the order of the batch, with gradients to the process that made them."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return embeddings
    most = -(-count // torch.distributed.get_world_size())
    padded = F.pad(embeddings, (0, 0, 0, most - len(embeddings)))
    parts = differentiable.all_gather(padded.contiguous())
    return torch.stack(list(parts), dim=1).flatten(0, 1)[:count]  # crop i is crop i // W of process i % W


class CropReader:
    """Audio of crops, equal lengths together.

    Args:
        do_normalize: bring every crop to zero mean and unit variance, as the encoder expects it.

    Attributes:
        num_samples: length of every clip, `[N]`; 0 of clips that cannot be used.
        unusable: why not, by the clip's number.
    """

    def __init__(self, clips: Sequence[Clip], store: AudioStore, config: PretrainedConfig, do_normalize: bool = True):
        self.clips, self.store, self.config, self.do_normalize = clips, store, config, do_normalize
        self.first, self.num_samples = np.zeros((2, len(clips)), dtype=np.int64)
        self.unusable: dict[int, str] = {}
        for row, clip in enumerate(clips):
            try:
                self.first[row], self.num_samples[row] = store.samples_of(clip)
            except ValueError as error:
                self.unusable[row] = str(error)
        self._frames: dict[int, int] = {}

    def num_frames(self, num_samples: int) -> int:
        """Frames that the encoder makes of so many samples."""
        if num_samples not in self._frames:
            self._frames[num_samples] = count_frames(num_samples, self.config)
        return self._frames[num_samples]

    def whole(self, clip: int, most: int | None = None) -> Crop:
        """All of a clip, or its first `most` samples, without a mask."""
        length = int(self.num_samples[clip])
        length = length if most is None else min(length, most)
        return Crop(clip, 0, length, np.zeros(self.num_frames(length), dtype=bool))

    def groups(self, crops: Sequence[Crop]) -> list[Group]:
        """The crops in their order; neighbours of one length are a group."""
        return [self._group(list(some)) for _, some in itertools.groupby(crops, key=lambda crop: crop.length)]

    def _group(self, crops: Sequence[Crop]) -> Group:
        parts = [self._read(crop) for crop in crops]
        masks = torch.from_numpy(np.stack([crop.mask for crop in crops]))
        if not any(crop.silence for crop in crops):
            return Group(self._normalized(torch.from_numpy(np.stack(parts))), masks)
        waveforms = [self._normalized(torch.from_numpy(part)[None]) for part in parts]
        return Group(torch.cat([F.pad(one, (0, crop.length - one.shape[1])) for one, crop in zip(waveforms, crops)]), masks)

    def _read(self, crop: Crop) -> np.ndarray:
        """The samples of a crop at its speed, without the silence."""
        clip = self.clips[crop.clip]
        return played_at(self.store.read(clip.path, self.first[crop.clip] + crop.start, crop.num_samples), crop.speed)

    def _normalized(self, waveforms: Tensor) -> Tensor:
        return normalized(waveforms) if self.do_normalize else waveforms


def played_at(waveform: np.ndarray, speed: int) -> np.ndarray:
    """A waveform at `speed` percent, pitch and all, as a tape would be: `[n]` -> `[round(100 n / speed)]`.

    Speed perturbation by resampling (Ko et al. 2015).
    """
    if speed == PLAIN_SPEED:
        return waveform
    length = int(at_speed(len(waveform), speed))
    changed = resample(waveform, speed, PLAIN_SPEED)[:length]
    return np.pad(changed, (0, length - len(changed)))


def loaded_ahead(load: Callable[[int], Loaded], steps: range) -> Iterator[Loaded]:
    """What `load` gives for each step, read while the step before is trained on."""
    with ThreadPoolExecutor(1) as pool:
        futures = [pool.submit(load, step) for step in steps[:1]]
        for step in steps:
            batches = futures.pop().result()
            if step + 1 in steps:
                futures.append(pool.submit(load, step + 1))
            yield batches


class BatchLoader:
    """Planned batches with their audio, loaded one ahead of the training.

    Args:
        targets: label of every clip, `[N]`.
        process_index, num_processes: whose share is loaded.
    """

    def __init__(
        self,
        args: StepArguments,
        clips: Sequence[Clip],
        targets: np.ndarray,
        store: AudioStore,
        config: PretrainedConfig,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.args, self.targets = args, targets
        self.process_index, self.num_processes = process_index, num_processes
        self.reader = CropReader(clips, store, config)
        num_samples = self.reader.num_samples
        self.planner = CropPlanner(args, num_samples, targets, receptive_field(config), self.reader.num_frames)
        self.hours = num_samples.sum() / SAMPLING_RATE_HZ / 3600

    def updates(self, first_step: int) -> Iterator[list[CropBatch]]:
        """For each update from `first_step` on, its `gradient_accumulation_steps` batches."""
        return loaded_ahead(self.update, range(first_step, self.args.max_steps))

    def update(self, step: int) -> list[CropBatch]:
        """The batches of update `step` (from 0)."""
        return [self._batch(self.planner.crops(step, part)) for part in range(self.args.gradient_accumulation_steps)]

    def _batch(self, crops: Sequence[Crop]) -> CropBatch:
        if len(crops) < self.num_processes:
            raise ValueError(f"a batch has {len(crops)} crops for {self.num_processes} processes; raise batch_seconds.")
        mine = crops[self.process_index :: self.num_processes]
        labels = torch.from_numpy(self.targets[[crop.clip for crop in crops]])
        seconds = sum(crop.num_samples for crop in crops) / SAMPLING_RATE_HZ
        return CropBatch(self.reader.groups(mine), labels, sum(int(crop.mask.sum()) for crop in crops), seconds)
