"""Checkpoints of a run at the end of an epoch: tensors as safetensors, the rest as JSON; nothing is pickled.

    last/tensors.safetensors    network, best weights, state of the optimiser
    last/state.json             plain values, and the checksums of both files
    last.old/                   the checkpoint before it, which is gone back to where `last` is damaged

The random state is not stored: every epoch derives its own from the seed, so a continued run repeats it to the bit.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wavcse.data.files import DamagedFile, checksum, flush_to_disk, named_errors, read_json, set_aside, write_json

STATE_FILE, TENSOR_FILE = "state.json", "tensors.safetensors"


class Checkpoint:
    """The last checkpoint of a run, in `folder`, of these objects."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler):
        self.folder, self.model, self.optimizer, self.scheduler = Path(folder), model, optimizer, scheduler
        self.previous = previous_of(self.folder)
        self.damage: DamagedFile | None = None  # of `folder`, found by `load`

    def save(self, state: dict, best: dict[str, Tensor]) -> None:
        """Write beside the old one, then swap: a kill, a full disk or a loss of power leaves the one or the other.

        Args:
            state: plain values (epoch, best figures), kept as JSON.
            best: weights of the best epoch so far.
        """
        partial = self.folder.with_name(f"{self.folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        if self.folder.exists() and self.damage is None:
            shutil.rmtree(self.previous, ignore_errors=True)  # first: there are never more than two on the disk
        optimizer = self.optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for index, entries in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in entries.items()}
        plain = {
            "state": _finite(state),
            "scheduler": _finite(self.scheduler.state_dict()),
            "groups": optimizer["param_groups"],
        }
        try:
            with named_errors(self.folder / TENSOR_FILE):
                partial.mkdir(parents=True)
                file = partial / TENSOR_FILE
                save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
                flush_to_disk(file)
                write_json(partial / STATE_FILE, {**plain, TENSOR_FILE: checksum(file)}, durable=True)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._swap_in(partial)

    def load(self, device: torch.device) -> tuple[dict, dict[str, Tensor]] | None:
        """Restore model, optimizer and scheduler; returns the plain values and the best weights, `None` if there is none.

        A damaged checkpoint is passed over for the one before it; the next `save` sets it aside.

        Raises:
            DamagedFile: there is no sound one.
        """
        damages = []
        for folder in filter(Path.exists, (self.folder, self.previous)):
            try:
                plain, tensors = read_state(folder), read_tensors(folder, device)
            except DamagedFile as error:
                damages.append(error)
                continue
            if damages:
                self.damage = damages[0]
                if PartialState().is_main_process:
                    print(f"{self.damage} The run goes on from the checkpoint before it.", file=sys.stderr)
            self.model.load_state_dict(_below(tensors, "model."))
            self.optimizer.load_state_dict({"state": _optimizer_state(tensors), "param_groups": plain["groups"]})
            self.scheduler.load_state_dict(plain["scheduler"])
            return plain["state"], _below(tensors, "best.")
        if damages:
            raise DamagedFile(f"{damages[0]} There is no other checkpoint: start again with --overwrite.")
        return None

    def _swap_in(self, partial: Path) -> None:
        if self.damage is not None and self.folder.exists():
            set_aside(self.folder, self.damage)
        self.damage = None
        if self.folder.exists():
            os.replace(self.folder, self.previous)
        os.replace(partial, self.folder)
        flush_to_disk(self.folder.parent)


def previous_of(folder: Path) -> Path:
    """Where the checkpoint lies that was made before the one in `folder`."""
    return folder.with_name(f"{folder.name}.old")


def read_state(folder: Path) -> dict:
    """`state.json` of a checkpoint; DamagedFile if it is missing or damaged."""
    path = folder / STATE_FILE
    try:
        plain = read_json(path)
    except FileNotFoundError as error:
        raise DamagedFile(f"{path}: is missing.") from error
    missing = {"state", "scheduler", "groups"} - set(plain)
    if missing:
        raise DamagedFile(f"{path}: is damaged; it lacks {', '.join(sorted(missing))}.")
    return plain


def read_tensors(folder: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a checkpoint; DamagedFile if they are not those that were saved."""
    path, expected = folder / TENSOR_FILE, read_state(folder).get(TENSOR_FILE)  # none: of an earlier version
    try:
        if expected is not None and checksum(path) != expected:
            raise DamagedFile(f"{path}: is damaged; its content does not match its checksum.")
        return load_file(path, device=str(device))
    except FileNotFoundError as error:
        raise DamagedFile(f"{path}: is missing.") from error
    except SafetensorError as error:
        raise DamagedFile(f"{path}: is damaged ({error}).") from error


def finished_state(folder: Path) -> dict | None:
    """The plain values of the checkpoint that a run would go on from; `None` if there is none."""
    for path in filter(Path.exists, (folder, previous_of(folder))):
        try:
            return read_state(path)["state"]
        except DamagedFile:
            continue  # `Checkpoint.load` says so
    return None


def _finite(values: dict) -> dict:
    """Without infinities, for which JSON has no word: what is still infinite is so in a new run, too."""
    return {name: value for name, value in values.items() if not (isinstance(value, float) and math.isinf(value))}


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer.").items():
        index, entry = name.split(".")
        # AdamW counts its steps on the CPU
        state.setdefault(int(index), {})[entry] = tensor.cpu() if entry == "step" else tensor
    return state
