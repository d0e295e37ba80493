"""Runs that are killed at random moments: what `kill -9` leaves, and whether the same command goes on from there.

    run_killed(lambda folder: started(main, [..., str(folder)]), tmp_path, check)

`check(folder)` compares what a run left at its end with what an undisturbed one leaves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

KILLS = 10
Start = Callable[[Path], int]  # starts the command on a folder, as the leader of a process group of its own; its pid


def started(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a program's `main` in a copy of this process, which spares the import of its libraries."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            tqdm.set_lock(threading.RLock())  # tqdm's own is shared with all forks: one that is killed would keep it for ever
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            sys.stdout = sys.stderr = open(os.devnull, "w")
            os._exit(main(argv))
        finally:
            os._exit(70)
    return pid


def launched(command: Sequence[str], **options: object) -> int:
    """Start a command."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **options
    )
    process.returncode = 0  # it is waited for by its pid
    return process.pid


def exit_code(pid: int) -> int:
    """Wait for the end of a run."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_killed(
    start: Start, place: Path, check: Callable[[Path], None], codes: Sequence[int] = (0,), seed: int = 0
) -> list[float]:
    """Kill a command with all its processes ten times; returns the moments, as shares of an undisturbed run's time.

    Each moment is drawn from the time that an undisturbed run takes. A run that ends before its moment is checked and followed
    by one in a new folder; the last one is continued to its end and checked.

    Args:
        codes: exit codes that a run to the end may have.
    """
    begun = time.monotonic()
    assert exit_code(start(place / "undisturbed")) in codes
    seconds = time.monotonic() - begun
    check(place / "undisturbed")
    generator, moments, number = np.random.default_rng(seed), [], 0
    while len(moments) < KILLS:
        moment = generator.uniform(0.02, 1.0)
        folder = place / f"killed_{number}"
        pid = start(folder)
        time.sleep(moment * seconds)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) in codes
            check(folder)
            number += 1
        else:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            moments.append(round(moment, 2))
    assert exit_code(start(folder)) in codes
    check(folder)
    return moments
