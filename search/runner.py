"""Runs fits: each once, resumed from the store, in worker processes on a CPU or together on a GPU.

A search is a set of plans. A plan is a generator that yields the fits it wants next, receives their results, and returns what
it found. Plans advance side by side: fits of different plans fill the workers, and a fit that two plans want is done once.

    def plan(args):
        first, second = yield [Fit(args, "first"), Fit(replace(args, seed=1), "second")]
        (third,) = yield [Fit(replace(args, seed=first["best_epoch"]), "third")]
        return third

    found = run_plans({"a": plan(args)}, table, FitStore(folder), workers=2)["a"]
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from tqdm.auto import tqdm

from wavcse.search.fit import fit_together, has_diverged, shape_of
from wavcse.search.store import FitStore
from wavcse.search.table import SearchTable, shared
from wavcse.settings.command import CommandError
from wavcse.settings.processes import WorkerPool, end_with_parent, one_thread
from wavcse.training.arguments import RunArguments

MOST_TOGETHER = 32  # models; beyond it a GPU is full


@dataclass(frozen=True)
class Fit:
    """A fit that a plan wants; `label` names it to people."""

    args: RunArguments
    label: str


Plan = Generator[list[Fit], list[dict], Any]
DoSome = Callable[[Mapping[str, Fit]], dict[str, dict]]


class FitError(CommandError):
    """A fit failed; the message names it."""


def first_divergence(results: Sequence[Mapping]) -> str:
    """Why the first of some fits that diverged did so; empty if none did."""
    return next((result["diverged"] for result in results if has_diverged(result)), "")


def fit_all(
    fits: Sequence[Fit], table: SearchTable, store: FitStore, workers: int = 1, show_progress: bool = True
) -> list[dict]:
    """The results of independent fits, in their order; `run_plans` of one plan."""

    def plan() -> Plan:
        return (yield list(fits))

    return run_plans({"fits": plan()}, table, store, workers, len(fits), show_progress)["fits"]


def run_plans(
    plans: Mapping[Hashable, Plan],
    table: SearchTable,
    store: FitStore,
    workers: int = 1,
    num_fits: int | None = None,
    show_progress: bool = True,
) -> dict[Hashable, Any]:
    """What every plan returned, in the order of the plans: figures of several seeds are paired by their place.

    Args:
        plans: name -> plan; where there is a choice, fits of an earlier one come first.
        workers: processes, each with one thread; on a GPU models train together in this process instead.
        num_fits: how many fits the plans will want in all, for the progress bar; shared ones count each time.

    Raises:
        FitError: a fit failed; the results of the others are in the store. A fit that diverged has not failed: its plan gets
            its result, which says so (`has_diverged`).
    """
    with tqdm(total=num_fits, desc="fits", unit="fit", disable=not show_progress) as bar:
        progress = _Progress(plans, store, table.fingerprint, bar)
        progress.advance()
        with _chosen_way(table, store, workers) as do_some:
            while queue := progress.queue():
                progress.receive(do_some(queue))
                progress.advance()
    return {name: progress.found[name] for name in plans}  # plans end in any order, where some of their fits are stored


class _Progress:
    """Keeps track of which plans wait for which fits."""

    def __init__(self, plans: Mapping[Hashable, Plan], store: FitStore, fingerprint: str, bar: tqdm):
        self.plans, self.store, self.fingerprint, self.bar = plans, store, fingerprint, bar
        self.waiting: dict[Hashable, list[tuple[str, Fit]]] = {}  # plan -> key and fit of all that it waits for
        self.results: dict[str, dict] = {}  # of fits that a plan waits for
        self.found: dict[Hashable, Any] = {}

    def queue(self) -> dict[str, Fit]:
        """Key -> fit of all that is still to do, fits of earlier plans first."""
        wanted = [pair for name in self.plans for pair in self.waiting.get(name, ())]
        return {key: fit for key, fit in wanted if key not in self.results}

    def receive(self, results: Mapping[str, dict]) -> None:
        """Take in fits that are done."""
        self.results |= results
        self.bar.update(sum(key in results for pairs in self.waiting.values() for key, _ in pairs))

    def advance(self) -> None:
        """Drive every plan as far as results allow."""
        for name in self.plans:
            # Several steps at once where the store has what a plan asks for next, as in a search that goes on.
            while name not in self.found and all(key in self.results for key, _ in self.waiting.get(name, ())):
                self._step(name)
        # Results are kept only while a plan waits for them: each has a digit per clip, and a search has thousands.
        needed = {key for pairs in self.waiting.values() for key, _ in pairs}
        self.results = {key: result for key, result in self.results.items() if key in needed}

    def _step(self, name: Hashable) -> None:
        results = [self.results[key] for key, _ in self.waiting[name]] if name in self.waiting else None
        try:
            fits = self.plans[name].send(results)
        except StopIteration as stop:
            self.found[name] = stop.value
            self.waiting[name] = []
            return
        self.waiting[name] = [(self.store.key(fit.args, self.fingerprint), fit) for fit in fits]
        stored = {key: self.results.get(key) or self.store.get(key) for key, _ in self.waiting[name]}
        self.results |= {key: result for key, result in stored.items() if result is not None}
        self._show(name)

    def _show(self, name: Hashable) -> None:
        num_there = sum(key in self.results for key, _ in self.waiting[name])
        if not self.bar.disable:
            self.bar.initial += num_there  # stored fits take no time and would spoil the estimate for the rest
        self.bar.update(num_there)
        self.bar.set_postfix_str(next((fit.label for key, fit in self.waiting[name] if key not in self.results), ""))


@contextmanager
def _chosen_way(table: SearchTable, store: FitStore, workers: int) -> Iterator[DoSome]:
    """On a GPU together, on a CPU one by one, here or in workers: a function that does some of a queue."""
    if table.features.device.type == "cuda":
        yield partial(_do_together, table, store)
    elif workers == 1:
        with one_thread():
            yield partial(_do_first, table, store)
    else:
        with worker_pool(table, store, workers) as pool:
            yield _in_workers(pool, workers)


def _do_first(table: SearchTable, store: FitStore, queue: Mapping[str, Fit]) -> dict[str, dict]:
    return _do(table, store, dict([next(iter(queue.items()))]))


def _do_together(table: SearchTable, store: FitStore, queue: Mapping[str, Fit]) -> dict[str, dict]:
    shape = shape_of(next(iter(queue.values())).args)
    alike = [(key, fit) for key, fit in queue.items() if shape_of(fit.args) == shape]
    return _do(table, store, dict(alike[:MOST_TOGETHER]))


def _do(table: SearchTable, store: FitStore, fits: Mapping[str, Fit]) -> dict[str, dict]:
    try:
        results = dict(zip(fits, fit_together(table, [fit.args for fit in fits.values()])))
    except Exception as error:
        labels = ", ".join(fit.label for fit in fits.values())
        raise FitError(f"{labels}: {type(error).__name__}: {error}") from error
    for key, result in results.items():
        store.put(key, result)
    return results


def _in_workers(pool: WorkerPool, workers: int) -> DoSome:
    running: dict[str, tuple[Future, str]] = {}

    def do_some(queue: Mapping[str, Fit]) -> dict[str, dict]:
        for key, fit in queue.items():
            if len(running) < workers and key not in running:
                running[key] = pool.submit(_work, key, fit), fit.label
        done, _ = wait([future for future, _ in running.values()], return_when=FIRST_COMPLETED)
        try:
            results = {key: future.result() for key, (future, _) in running.items() if future in done}
        except BrokenProcessPool as error:
            labels = ", ".join(label for _, label in running.values())
            raise FitError(f"{pool.death()}, at one of: {labels}.") from error
        for key in results:
            del running[key]
        return results

    return do_some


@contextmanager
def worker_pool(table: SearchTable, store: FitStore, workers: int) -> Iterator[WorkerPool]:
    """Processes of one thread each that have table and store (`at_hand`) and end when this process does."""
    with shared(table, store.folder) as reopen:
        pool = WorkerPool(workers, get_context("spawn"), _start_worker, (reopen, store))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def at_hand() -> tuple[SearchTable, FitStore]:
    """The table and store of the worker process that this is called in."""
    return _table, _store


def _start_worker(reopen: Callable[[], SearchTable], store: FitStore) -> None:
    global _table, _store
    end_with_parent()
    torch.set_num_threads(1)
    _table, _store = reopen(), store


def _work(key: str, fit: Fit) -> dict:
    return _do(*at_hand(), {key: fit})[key]
