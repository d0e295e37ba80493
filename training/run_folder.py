"""The run folder: resolved configuration, JSON-lines log, checkpoints, results and the Hub folder."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
import yaml
from accelerate import Accelerator

from wavcse.data.files import clear_folder, json_text, named_errors, read_json, remove_partials, write_atomically, write_json
from wavcse.settings.recipes import read_recipe
from wavcse.training.checkpoint import finished_state

OTHER_SETTINGS = " Other settings need another --output_dir, or --overwrite_output_dir true."


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
            different = sorted(name for name in mine if mine[name] != theirs[name])
            if different:
                raise ValueError(
                    f"{self.path}: holds a run with other settings ({', '.join(different)}). "
                    "Choose another --output_dir, or pass --overwrite_output_dir true."
                )
            if self._fingerprint(fingerprint) != fingerprint:
                raise ValueError(
                    f"{self.path}: the {data} have changed "
                    "since this run. Choose another --output_dir, or pass --overwrite_output_dir true."
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
                "--output_dir, or pass --overwrite_output_dir true."
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


def new_accelerator(args: Any) -> Accelerator:
    """The processes of a run of these settings, on CPUs where there is nothing else."""
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )


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
