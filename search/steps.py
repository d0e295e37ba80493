"""Steps of a long job: each is a program of this package, done once for its settings and inputs.

FOLDER/<step>.json    settings and inputs as a hash, how it ended, its seconds
FOLDER/<step>.txt     what it printed
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import io
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from wavcse.data.files import kept_json, write_json
from wavcse.settings.command import DONE, REFUSED, SOME_SKIPPED, CommandError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Step:
    """One run of a program.

    Attributes:
        name: of the step and its files.
        program: a module with `main(argv) -> exit code`, or a script of this repository (`folder/name.py`).
        argv: its command line.
        inputs: glob patterns of the files whose content its result depends on, as they are when its turn comes.
        outputs: glob patterns; each matches a file when the step is done.
        own_folder: belongs to this step; removed when its settings or inputs have changed since it began.
    """

    name: str
    program: str
    argv: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    own_folder: Path | None = None

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the command line and the content of any input."""
        digest = hashlib.sha256(json.dumps([self.program, self.argv]).encode())
        for path in sorted({path for pattern in self.inputs for path in glob.glob(pattern) if Path(path).is_file()}):
            with open(path, "rb") as file:
                digest.update(path.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


class StepError(CommandError):
    """A step failed; the message is one line that names it."""


def do_step(step: Step, folder: Path) -> dict:
    """Run a step, unless its result for these settings and inputs is there.

    Returns:
        `fingerprint`, `command`, `is_done`, `exit_code` (0, or 3 = done, but not with everything), `message` (its last words
        in the second case), `seconds` of the attempt that ended it, `attempts`, and `was_there`.

    Raises:
        StepError: the step refused or failed.
    """
    path, fingerprint = folder / f"{step.name}.json", step.fingerprint()
    earlier = kept_json(path) or {"fingerprint": None}
    is_same = earlier["fingerprint"] == fingerprint
    if is_same and earlier["is_done"] and all(map(glob.glob, step.outputs)):
        return {**earlier, "was_there": True}
    attempts = 1 + (earlier["attempts"] if is_same and not earlier["is_done"] else 0)
    if step.own_folder is not None and earlier["fingerprint"] is not None and not is_same:
        shutil.rmtree(step.own_folder, ignore_errors=True)  # before the record: after a kill in between, again
    record = {"fingerprint": fingerprint, "command": _command(step), "is_done": False, "attempts": attempts}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, record, indent=1)
    started = time.monotonic()
    code, message = _run(step, folder / f"{step.name}.txt")
    if code not in (DONE, SOME_SKIPPED):
        raise StepError(f"step {step.name}: {message or f'ended with exit code {code}'}")
    lost = [pattern for pattern in step.outputs if not glob.glob(pattern)]
    if lost:
        raise StepError(f"step {step.name}: ended without leaving {', '.join(lost)}.")
    seconds = round(time.monotonic() - started, 1)
    record |= {"is_done": True, "exit_code": code, "message": message if code else "", "seconds": seconds}
    write_json(path, record, indent=1)
    return {**record, "was_there": False}


def _command(step: Step) -> str:
    return f"python {'' if step.program.endswith('.py') else '-m '}{step.program} {shlex.join(step.argv)}"


def _run(step: Step, log: Path) -> tuple[int, str]:
    """Exit code and the last line that was printed."""
    with open(log, "w", encoding="utf-8") as file:
        with redirect_stdout(file), redirect_stderr(_BarsOnly(sys.stderr, file)):
            code = _exit_code(step)
    lines = log.read_text(encoding="utf-8").split("\n")
    return code, next((line.strip() for line in reversed(lines) if line.strip()), "")


def _exit_code(step: Step) -> int:
    if step.program.endswith(".py"):
        return _run_script(step.program, step.argv)
    return importlib.import_module(step.program).main(list(step.argv))


def _run_script(script: str, argv: Sequence[str]) -> int:
    if not (ROOT / script).exists():
        print(f"{script} belongs to the repository and not to the installed package. Run this in a checkout.")
        return REFUSED
    done = subprocess.run([sys.executable, ROOT / script, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="")
    return done.returncode


class _BarsOnly(io.TextIOBase):
    """A stderr that shows progress bars and sends everything else to the log."""

    def __init__(self, stream: TextIO, log: TextIO):
        self.stream, self.log, self.is_in_bar = stream, log, False

    @property
    def encoding(self) -> str:
        return self.stream.encoding

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def write(self, text: str) -> int:
        self.is_in_bar = "\r" in text or (self.is_in_bar and not text.strip())  # a bar ends with a line feed
        return (self.stream if self.is_in_bar else self.log).write(text)

    def flush(self) -> None:
        self.stream.flush()
