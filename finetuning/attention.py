"""What a network attends to: shares of the blocks, and the weight of every frame of a clip of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from wavcse.coattention_wavcse import LayerMix
from wavcse.finetuned_wavcse import FinetunedWavCSE
from wavcse.finetuning.audio import whole_clips
from wavcse.finetuning.labelled_clips import LabelledClips, TaskLabels
from wavcse.steps.batches import CropReader


def block_shares(model: FinetunedWavCSE) -> dict[str, list[float]]:
    """What each block is multiplied with in a network's mixes, by the tap, or by the task that has weights of its own."""
    mixes = {tap: mix for tap, mix in model.mixes.items() if isinstance(mix, LayerMix)}
    mixes |= {name: readout.mix for name, readout in model.readouts.items() if readout.mix is not None}
    return {name: [round(share, 6) for share in mix.shares().tolist()] for name, mix in mixes.items()}


@torch.inference_mode()
def example_attention(model: FinetunedWavCSE, labelled: LabelledClips, reader: CropReader) -> dict[str, Any]:
    """Task with a fusion -> class -> `clip` and `weights`, one per frame, of the first test clip of that class."""
    model.eval()
    found = {}
    for name, task in labelled.tasks.items():
        if model.readouts[name].fusion is None or task.settings.kind != "classes":
            continue
        rows = _first_of_classes(task)
        places = list(rows.values())
        weights: dict[int, Any] = {}
        for ((some, group),) in whole_clips(reader, places, 0.0):
            group = group.to(model.device)
            read = model.read_group(group.waveforms, group.mask, [name])[name].attention
            weights |= {places[place]: one.tolist() for place, one in zip(some, read)}
        found[name] = {
            label: {"clip": labelled.clips[row].clip_id, "weights": [round(value, 6) for value in weights[row]]}
            for label, row in rows.items()
        }
    return found


def _first_of_classes(task: TaskLabels) -> dict[str, int]:
    rows = task.rows("test")
    of_class = {label: rows[task.targets[rows] == number] for number, label in enumerate(task.readout["labels"])}
    return {label: int(np.min(own)) for label, own in of_class.items() if len(own)}
