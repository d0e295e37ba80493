"""Threads and processes that work beside each other, and none that outlives or holds up the one that started it."""

from __future__ import annotations

import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import active_children, connection, get_all_start_methods, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# A forked process shares the memory of the one that starts it. On macOS it may not call the system's libraries.
CAN_FORK = "fork" in get_all_start_methods() and sys.platform != "darwin"


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity (`taskset`, batch systems), and no more than its quota pays for.

    A quota of one and a half cores counts as two: workers that wait for nobody lose nothing when the system holds them back.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_in_cores()
    return cores if math.isinf(quota) else max(1, min(cores, math.ceil(quota)))


def quota_in_cores(root: Path = Path("/")) -> float:
    """Processor time per time that the control groups of this process allow, version 1 or 2; infinite without a limit.

    A group's limit holds for all groups below it. In a container the file system shows the container's own group as the
    topmost one, whatever path /proc names.
    https://docs.kernel.org/admin-guide/cgroup-v2.html and https://docs.kernel.org/scheduler/sched-bwc.html
    """
    quotas = [math.inf]
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            group = top / path.strip("/")
            quotas += [_quota_of(folder) for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return min(quotas)


def _quota_of(group: Path) -> float:
    def numbers(*names: str) -> list[str]:
        return " ".join((group / name).read_text(encoding="utf-8") for name in names).split()

    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = numbers(*names)
            return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    return math.inf


@contextmanager
def one_thread() -> Iterator[None]:
    """This process computes with one thread, as a worker does, so that both give the same figures."""
    import torch  # seconds to load, and workers that only make audio need none of it

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for the block; where it is left early (an error, Ctrl-C), what still waits for a thread is dropped."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class WorkerPool(ProcessPoolExecutor):
    """Worker processes that Ctrl-C does not reach: it is for the process that started them, which ends them (`end_workers`).

    Their `initializer` calls `end_with_parent`.

    Attributes:
        workers: the processes that were started.
    """

    is_ending = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.workers: set[BaseProcess] = set()

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """As of the base class; processes that are started here inherit the mask of signals."""
        if WorkerPool.is_ending:
            raise BrokenProcessPool("The program is being stopped.")
        others = set(active_children())
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self.workers |= set(active_children()) - others

    def death(self) -> str:
        """Which worker died and how, for a message about a `BrokenProcessPool`; the executor has ended the others."""
        for worker in self.workers:
            worker.join(timeout=1.0)
            for _ in range(100):  # the executor's thread may have collected the exit code and not noted it yet
                if worker.exitcode is not None:
                    break
                time.sleep(0.01)
            if worker.exitcode not in (None, 0, -signal.SIGTERM):
                how = signal.Signals(-worker.exitcode).name if worker.exitcode < 0 else f"exit code {worker.exitcode}"
                return f"Worker process {worker.pid} died ({how}), perhaps for lack of memory"
        return "A worker process died, perhaps for lack of memory"


@contextmanager
def forked_workers(workers: int, initializer: Callable, *initargs: Any) -> Iterator[WorkerPool]:
    """Processes that share the memory of this one; where the block is left early, what they compute is not waited for.

    What they are given by `initargs` need not be picklable. They must compute with one thread: threads of OpenMP do not
    survive a fork, and a team of one starts none.
    """
    pool = WorkerPool(workers, get_context("fork"), initializer, initargs)
    try:
        yield pool
    except BaseException:
        for worker in pool.workers:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def end_workers() -> None:
    """End all worker processes and start no others: an executor would wait for what they compute."""
    WorkerPool.is_ending = True
    for worker in active_children():
        worker.terminate()


def end_with_parent() -> None:
    """Called in a worker process: it ends when the process that started it does, even if that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked worker has the handlers of a command line
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)


def processor_name() -> str:
    """As the system names it; where it has no name (Arm), the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
