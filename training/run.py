"""What every training program shares: a network in training, its folder, and the life of a run in it.

A run is prepared, resumed, logged and saved while it lasts, and ended with a result; what a step or an epoch is, its program
shows.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from wavcse.data.files import clear_folder, json_text, named_errors, read_json, remove_partials, write_atomically, write_json
from wavcse.settings.recipes import read_recipe
from wavcse.training.checkpoint import Checkpoint, finished_state

OTHER_SETTINGS = " Other settings need another --out, or --overwrite."


class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: the folder itself; `last` holds the checkpoint, `results` result files, `hub` what would be published.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.last = self.path / "checkpoints" / "last"
        self.data = self.path / "data.json"
        self.log = self.path / "log.jsonl"
        self.results = self.path / "results"
        self.hub = self.path / "hub"

    def prepare(self, args: Any, fingerprint: str, data: str = "clips or labels") -> None:
        """Make the folder, or check that the run in it is the one that `args` describes, on the same data.

        Args:
            args: a dataclass of settings (`RunArguments` or `PretrainArguments`) with `output_dir`, `overwrite_output_dir` and
                `identity()`.
            fingerprint: of the data.
            data: what a message calls it.

        Raises:
            ValueError: another run is there; the message names the fields or the data that differ.
        """
        config = self.path / "config.yaml"
        if args.overwrite_output_dir:
            clear_folder(self.path)
        elif config.exists():
            previous = type(args)(**read_recipe(config, [field.name for field in fields(args)]))
            mine, theirs = args.identity(), previous.identity()
            different = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
            if different:
                raise ValueError(
                    f"{self.path}: holds a run with other settings ({', '.join(different)}). "
                    "Choose another --out, or pass --overwrite."
                )
            if self._fingerprint(fingerprint) != fingerprint:
                raise ValueError(
                    f"{self.path}: the {data} have changed since this run. Choose another --out, or pass --overwrite."
                )
            self._refuse_fewer_epochs(args)
        for folder in (self.path, self.last.parent, self.results):
            folder.mkdir(parents=True, exist_ok=True)
            remove_partials(folder)
        write_json(self.data, {"fingerprint": fingerprint})
        write_atomically(config, yaml.safe_dump(asdict(args), sort_keys=False, allow_unicode=True))

    def _fingerprint(self, otherwise: str) -> str | None:
        """Of the run that is there; `otherwise` if it says nothing and has done nothing, `None` if it has a checkpoint."""
        if self.data.exists():
            return read_json(self.data).get("fingerprint")
        return None if any(self.last.parent.glob("last*")) else otherwise

    def _refuse_fewer_epochs(self, args: Any) -> None:
        """What later epochs have changed cannot be taken back; steps are part of a run's identity, for their schedule."""
        state = finished_state(self.last) or {}
        done, asked = state.get("epoch", 0), getattr(args, "num_epochs", None)
        if asked is not None and done > asked:
            raise ValueError(
                f"{self.path}: holds {done} epochs of this run, and num_epochs is {asked}. Give at least {done}, or another "
                "--out, or pass --overwrite."
            )

    def keep_log_until(self, last: int, by: str = "epoch") -> list[dict]:
        """Drop log lines after epoch (or what `by` counts) `last`, of an interrupted stretch, and return the others."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        entries = [entry for entry in map(_parsed, lines) if isinstance(entry, dict) and entry.get(by, last + 1) <= last]
        write_atomically(self.log, "".join(json_text(entry) + "\n" for entry in entries))
        return entries

    def append_log(self, entry: dict) -> None:
        """Add one line to the log."""
        with named_errors(self.log), open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")

    def write_result(self, name: str, result: dict) -> Path:
        """Write `results/<name>.json`."""
        path = self.results / f"{name}.json"
        write_atomically(path, json_text(result, indent=1, ensure_ascii=False))
        return path


@dataclass
class Learner:
    """A network in training.

    Attributes:
        network: the bare one, for penalties and weights; `model` is it, or what Accelerate made of it (data-parallel with
            several processes).
        progress: how far it is, a dataclass of plain values; saved with every checkpoint.
        best_weights: those of the best epoch or step so far by validation; empty where the last ones are what is trained for.
        divergence: why its training came to nothing; empty as long as every figure and weight is finite.
    """

    args: Any
    network: nn.Module
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    progress: Any
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    divergence: str = ""

    def keep_weights(self) -> None:
        """The present weights are the best so far."""
        self.best_weights = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}


class Run:
    """One run of a training program: `prepare`, `resume`, then `log` and `save_when_due` in its loop, `write_result`, `end`.

    Args:
        args: settings with `output_dir`, `overwrite_output_dir`, `checkpoint_every_s`, `note` and `identity()`.
        unit: what `learner.progress` counts, "epoch" or "step".
    """

    def __init__(self, args: Any, accelerator: Accelerator, learner: Learner, unit: str):
        self.args, self.accelerator, self.learner, self.unit = args, accelerator, learner, unit
        self.is_main = accelerator.is_main_process
        self.is_tracked = bool(accelerator.log_with)
        self.folder = RunFolder(args.output_dir)

    @property
    def num_done(self) -> int:
        """Epochs or steps."""
        return getattr(self.learner.progress, self.unit)

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return finished_state(self.folder.last) is not None

    def prepare(self, fingerprint: str, data: str = "clips or labels", project: str = "wavcse") -> None:
        """Make the folder or check the one that is there, as `RunFolder.prepare`, then start the trackers under `project`."""
        if self.is_main:
            self.folder.prepare(self.args, fingerprint, data)
        self.accelerator.wait_for_everyone()
        if self.is_tracked:
            self.accelerator.init_trackers(project, {name: str(value) for name, value in self.args.identity().items()})

    def resume(self) -> None:
        """Continue from the last checkpoint if there is one, cut the log back to it, and start the clock.

        Raises:
            FloatingPointError: an older version went on after the weights had diverged, and left them there.
        """
        learner = self.learner
        self.checkpoint = Checkpoint(self.folder.last, learner.network, learner.optimizer, learner.scheduler)
        restored = self.checkpoint.load(self.accelerator.device)
        if restored is not None:
            learner.progress, learner.best_weights = type(learner.progress)(**restored[0]), restored[1]
            if not all_finite([*learner.network.parameters(), *learner.best_weights.values()]):
                raise FloatingPointError(
                    f"{self.checkpoint.folder}: holds weights that are not finite, of a run that diverged.{OTHER_SETTINGS}"
                )
        if self.is_main:
            self.folder.keep_log_until(self.num_done, by=self.unit)
        self.started = self.clock = self.saved_at = time.monotonic()

    def bar(self, total: int, words: str | None = None, is_shown: bool = True) -> tqdm:
        """A progress bar that starts where the run does."""
        is_off = not (self.is_main and is_shown)
        return tqdm(initial=self.num_done, total=total, desc=words, unit=self.unit, disable=is_off)

    def lap(self) -> float:
        """Seconds since the call before, which are added to the progress's `train_seconds`."""
        before, self.clock = self.clock, time.monotonic()
        self.learner.progress.train_seconds += self.clock - before
        return self.clock - before

    def log(self, entry: Mapping[str, Any], scalars: Mapping[str, float] | None = None) -> None:
        """Add a line to the log, and to the tracker what it can draw."""
        if self.is_main:
            self.folder.append_log(entry)
        if self.is_tracked:
            self.accelerator.log(dict(scalars or {}), step=self.num_done)

    def save_when_due(self, must: bool) -> None:
        """Checkpoint if it `must` be, or `checkpoint_every_s` after the last one.

        From the main process, without a barrier: the processes' clocks differ, so only one of them may get here.
        """
        now = time.monotonic()
        if must or now - self.saved_at >= self.args.checkpoint_every_s:
            if self.is_main:
                self.checkpoint.save(vars(self.learner.progress), self.learner.best_weights)
            self.saved_at = now

    def is_time_over(self, seconds: float | None) -> bool:
        """Whether that much time is over since `resume` on any process; all answer alike. `None` is without end."""
        if seconds is None:
            return False
        is_over = torch.tensor(float(time.monotonic() - self.started >= seconds), device=self.accelerator.device)
        return bool(self.accelerator.reduce(is_over, "sum") > 0)

    def write_result(self, name: str, result: Mapping[str, Any]) -> dict:
        """Write `results/<name>.json`: the program's figures and what every result says of its run. Returns all of it."""
        result = {
            **result,
            "train_seconds": round(self.learner.progress.train_seconds, 2),
            "num_processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "note": self.args.note,
            "config": self.args.identity(),
            "versions": versions(),
        }
        if self.is_main:
            self.folder.write_result(name, result)
        return result

    def end(self) -> None:
        """Wait for the other processes and close the trackers."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def new_accelerator(args: Any) -> Accelerator:
    """The processes of a run of these settings, on CPUs where there is nothing else."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        log_with=getattr(args, "report_to", None),
        project_dir=args.output_dir,
    )


def first_reason(accelerator: Accelerator, reason: str) -> str:
    """The reason to stop of the first process that has one, the same on every process; empty if none has.

    Every process must get here. One that stopped by itself would leave the others waiting for its gradients for ever.
    """
    if accelerator.num_processes == 1:
        return reason
    return next(filter(None, gather_object([reason])), "")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor has a NaN or an infinity in it; one look at the device for all of them."""
    return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def _parsed(line: str) -> dict | None:
    try:
        # Older versions wrote NaN and Infinity, which are no JSON; null stands for them now.
        return json.loads(line, parse_constant=lambda name: None)
    except json.JSONDecodeError:
        return None  # a kill cut the last line
