"""What a study trains: variants of one recipe, each with its seeds and folders; and their training, several at a time.

A program gives the dataclass of its settings and the function that trains one of them; everything it does has to be resumable.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from wavcse.settings.fields import FILE_NAME, settings_from
from wavcse.settings.processes import WorkerPool, end_with_parent
from wavcse.settings.recipes import checked_fields


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Attributes:
        name: of its folder, and in tables.
        args: its whole recipe; `output_dir` is its folder.
        own: the fields in which it differs from the other variants, as the study gives them.
        marks: what the study says of it beside its recipe.
    """

    name: str
    args: Any
    own: dict[str, Any]
    marks: dict[str, bool] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The run folder of a variant with one seed."""
        return Path(self.args.output_dir)

    def runs(self, seeds: int) -> list[Any]:
        """The settings of its trainings, one per seed from the recipe's on, in folders `NAME.SEED`."""
        first = self.args.seed
        return [
            replace(self.args, seed=seed, output_dir=f"{self.args.output_dir}.{seed}") for seed in range(first, first + seeds)
        ]


def read_variants(
    variants: Mapping[str, Any],
    shared: Sequence[Mapping[str, Any]],
    settings: type,
    folder: Path,
    allowed: Collection[str],
    taken: Collection[str] = (),
    marks: Collection[str] = (),
) -> list[Variant]:
    """The variants of a study's file, checked.

    Args:
        variants: name -> fields on top of `shared`, and marks.
        shared: recipes that all variants lie on, the last one on top.
        settings: the dataclass of a recipe.
        folder: every variant's is below it.
        allowed: fields that a variant may set.
        taken: names that no variant may have.
        marks: fields beside those of the recipe, each true or false.

    Raises:
        ValueError: a name cannot name a folder, or a field is unknown or out of range; the message says which.
    """
    found = []
    for name, own in variants.items():
        name, where = str(name), f"variants.{name}"
        check_name(where, name, taken)
        own = dict(checked_fields(where, own or {}, (*allowed, *marks)))
        marked = {mark: own.pop(mark, False) for mark in marks}
        for mark, value in marked.items():
            if not isinstance(value, bool):
                raise ValueError(f"{where}: {mark} is {value!r}; it must be true or false.")
        try:
            args = settings_from(settings, {**merged([*shared, own]), "output_dir": str(folder / name)})
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
        found.append(Variant(name, args, own, marked))
    return found


def check_name(where: str, name: str, taken: Collection[str]) -> None:
    """ValueError unless the name can name a folder and a row of a table."""
    if not FILE_NAME.fullmatch(name) or name.startswith(".") or name in taken:
        raise ValueError(
            f"{where}: the name names files: letters, digits and . _ - only, no dot in front, and none of {', '.join(taken)}."
        )


def merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of recipes laid over each other, the last one on top; `encoder` key by key, all others whole."""
    found: dict[str, Any] = {}
    for layer in layers:
        encoder = layer.get("encoder") or {}
        if not isinstance(encoder, dict):
            raise ValueError(f"encoder is {encoder!r}; it must hold fields of the encoder's configuration.")
        found = {**found, **layer, "encoder": {**found.get("encoder", {}), **encoder}}
    return found


def chosen(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """Those that `only` names, all of them if it is empty; ValueError if it names another."""
    unknown = sorted(set(only) - {variant.name for variant in variants})
    if unknown:
        raise ValueError(f"--only: {unknown} are not variants; there are {', '.join(v.name for v in variants)}.")
    return [variant for variant in variants if not only or variant.name in only]


def train_all(here: Mapping[str, Callable], apart: Mapping[str, Callable], workers: int) -> dict[str, str]:
    """Train variants; returns those that failed, by name, and why. Whatever happens to one, the others go on.

    Args:
        here: name -> what is quickly done in this process, one after another.
        apart: name -> a training for a process of its own, as it would run without a study; it is pickled.
        workers: how many processes at a time; they share the cores.
    """
    failures: dict[str, str] = {}

    def finish(name: str, result: Callable[[], object]) -> None:
        failure = _failure(result)
        failures.update({name: failure} if failure else {})
        print(f"{name}: {failure or 'done'}", flush=True)

    for name, job in here.items():
        finish(name, job)
    with ThreadPoolExecutor(workers) as pool:
        futures = {name: pool.submit(_in_process, job, workers) for name, job in apart.items()}
        try:
            for name, future in futures.items():
                finish(name, future.result)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failures


def _in_process(job: Callable, workers: int) -> None:
    threads = max(1, torch.get_num_threads() // workers) if workers > 1 else 0
    with WorkerPool(1, get_context("spawn"), _start_process, (threads,)) as pool:
        pool.submit(job).result()


def _start_process(threads: int) -> None:
    end_with_parent()
    if threads:
        torch.set_num_threads(threads)


def _failure(result: Callable[[], object]) -> str:
    """What went wrong, in a line; empty if nothing did."""
    try:
        result()
    except BrokenProcessPool:
        return "its process died, perhaps for lack of memory."
    except (ValueError, OSError, FloatingPointError) as error:
        return " ".join(str(error).split())
    except Exception as error:
        traceback.print_exception(error)  # an unexpected error: its traceback says more than one line
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ""
