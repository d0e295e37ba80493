"""Python processes that start in a fraction of a second: forked from one that has loaded PyTorch and transformers.

Loading both takes a fresh process six seconds and more of a slow core, and many tests need a process: to kill it, to run a
command as users do, to have two that share work. Here a server loads the libraries once per test worker and forks a child for
each. Environment variables that the libraries read when they are loaded (HF_HOME, HF_HUB_OFFLINE, limits on instructions) come
too late there, and `wavcse` is loaded: tests of such things take `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

LIBRARIES = ["torch", "transformers.modeling_utils", "transformers.pipelines", "torch.nn.attention.flex_attention"]
LIBRARIES += ["accelerate", "pandas", "pyarrow.parquet", "scipy.optimize", "scipy.stats", "soundfile", "soxr", "wavcse"]
TIMEOUT_S = 300.0
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(LIBRARIES)


class Child:
    """`python ARGUMENTS...` in a forked process: `-c code`, `-m module` or a script, each followed by its own arguments.

    Args:
        arguments: As for the interpreter.
        cwd: Folder to run in.
        environment: Variables to set, in addition to this process's own.
        output: File for its standard output, and beside it, with `.err` appended, for its errors. Without it both are dropped.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: str | Path = ".",
        environment: Mapping[str, str] | None = None,
        output: Path | None = None,
    ):
        variables = {**os.environ, **(environment or {})}
        streams = (str(output), f"{output}.err") if output else (os.devnull, os.devnull)
        command = [str(argument) for argument in arguments]
        self.process = FORKSERVER.Process(target=_run, args=(command, str(Path(cwd).absolute()), variables, streams))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; `None` while it runs."""
        return self.process.exitcode

    def wait(self) -> int:
        """Exit code; a process that takes too long is killed and fails the test."""
        self.process.join(TIMEOUT_S)
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"the process ran for more than {TIMEOUT_S} s")
        return self.poll()

    def kill(self) -> None:
        """By SIGKILL; returns when it is gone."""
        self.process.kill()
        self.process.join()

    def kill_when(self, is_time: Callable[[], bool], interval_s: float = 0.005) -> None:
        """Kill it as soon as `is_time()`; a process that ends before fails the test."""
        until = time.monotonic() + TIMEOUT_S
        while self.poll() is None and not is_time() and time.monotonic() < until:
            time.sleep(interval_s)
        ended_before = self.poll() is not None
        self.kill()
        assert not ended_before, "the process ended before it could be killed"
        assert is_time(), f"nothing to kill it for within {TIMEOUT_S} s"


def run_python(*arguments: str | Path, cwd: str | Path = ".") -> CompletedProcess:
    """`subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`."""
    return _run_beside(arguments, cwd, [None])[0]


def run_in_two_processes(*arguments: str | Path, cwd: str | Path = ".") -> list[CompletedProcess]:
    """As `torch.distributed.run --nproc_per_node 2` runs them: a rank each and one address to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return _run_beside(arguments, cwd, [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")])


def _run_beside(
    arguments: Sequence[str | Path], cwd: str | Path, environments: Sequence[Mapping[str, str] | None]
) -> list[CompletedProcess]:
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{number}.out" for number in range(len(environments))]
        children = [
            Child(*arguments, cwd=cwd, environment=environment, output=output)
            for environment, output in zip(environments, outputs)
        ]
        try:
            codes = [child.wait() for child in children]
        finally:
            for child in children:
                child.kill()
        texts = [[path.read_text(encoding="utf-8") for path in (output, Path(f"{output}.err"))] for output in outputs]
    return [CompletedProcess(arguments, code, *text) for code, text in zip(codes, texts)]


def _run(command: list[str], cwd: str, variables: Mapping[str, str], streams: Sequence[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(streams, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, number)
        os.close(file)
    first, *rest = command
    sys.argv = {"-m": rest, "-c": ["-c", *rest[1:]]}.get(first, command)
    sys.path.insert(0, cwd if first in ("-m", "-c") else str(Path(first).parent))
    if first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(first, run_name="__main__")
