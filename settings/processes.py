"""Threads and processes that work beside each other, and none that outlives or holds up the one that started it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, parent_process
from typing import Any


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
    """

    is_ending = False

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """As of the base class; processes that are started here inherit the mask of signals."""
        if WorkerPool.is_ending:
            raise BrokenProcessPool("The program is being stopped.")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
