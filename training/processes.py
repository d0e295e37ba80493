"""Processes that compute beside each other: a thread each, and none that outlives the one that started it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """This process computes with one thread, as a worker does, so that both give the same figures."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def end_with_parent() -> None:
    """Called in a worker process: it ends when the process that started it does, even if that one is killed."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)
