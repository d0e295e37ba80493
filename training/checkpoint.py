"""Checkpoints of a run at the end of an epoch: tensors as safetensors, the rest as JSON; nothing is pickled.

The random state is not stored: every epoch derives its own from the seed, so a continued run repeats it to the bit.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

STATE_FILE, TENSOR_FILE = "state.json", "tensors.safetensors"


class Checkpoint:
    """The last checkpoint of a run, in `folder`, of these objects."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler):
        self.folder, self.model, self.optimizer, self.scheduler = Path(folder), model, optimizer, scheduler
        self.replaced = self.folder.with_name(f"{self.folder.name}.old")

    def save(self, state: dict, best: dict[str, Tensor]) -> None:
        """Write beside the old one, then swap: a kill leaves the one or the other.

        Args:
            state: plain values (epoch, best figures), kept as JSON.
            best: weights of the best epoch so far.
        """
        partial = self.folder.with_name(f"{self.folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        optimizer = self.optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for index, entries in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in entries.items()}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial / TENSOR_FILE)
        plain = {"state": state, "scheduler": self.scheduler.state_dict(), "groups": optimizer["param_groups"]}
        (partial / STATE_FILE).write_text(json.dumps(plain), encoding="utf-8")
        self._swap_in(partial)

    def load(self, device: torch.device) -> tuple[dict, dict[str, Tensor]] | None:
        """Restore model, optimizer and scheduler; returns the plain values and the best weights, `None` if there is none."""
        if not self.folder.exists() and self.replaced.exists():
            os.replace(self.replaced, self.folder)  # killed between the two renames of `save`
        if not self.folder.exists():
            return None
        tensors = load_file(self.folder / TENSOR_FILE, device=str(device))
        plain = json.loads((self.folder / STATE_FILE).read_text(encoding="utf-8"))
        self.model.load_state_dict(_below(tensors, "model."))
        self.optimizer.load_state_dict({"state": _optimizer_state(tensors), "param_groups": plain["groups"]})
        self.scheduler.load_state_dict(plain["scheduler"])
        return plain["state"], _below(tensors, "best.")

    def _swap_in(self, partial: Path) -> None:
        shutil.rmtree(self.replaced, ignore_errors=True)
        if self.folder.exists():
            os.replace(self.folder, self.replaced)
        os.replace(partial, self.folder)
        shutil.rmtree(self.replaced, ignore_errors=True)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer.").items():
        index, entry = name.split(".")
        # AdamW counts its steps on the CPU
        state.setdefault(int(index), {})[entry] = tensor.cpu() if entry == "step" else tensor
    return state
