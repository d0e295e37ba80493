"""What the command lines of the searches share: options, handling of mistakes, recipes and files."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
import yaml

from wavcse.data.composite import IGNORED_LABEL, CompositeSet
from wavcse.data.files import json_text, locked, remove_partials, write_atomically
from wavcse.search.table import SearchTable, table_for
from wavcse.settings.command import DONE
from wavcse.training.arguments import RunArguments, parse_arguments

Search = Callable[[SearchTable, RunArguments, argparse.Namespace], object]


def new_parser(name: str, description: str, seeds: str) -> argparse.ArgumentParser:
    """A parser with the options that every search has.

    Args:
        name: of the search; `DIR/name.md` is its report.
        seeds: help of `--seeds`.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m wavcse.search.{name}",
        description=f"{description} Fields of the recipe can be overridden.",
        epilog=f"Example: python -m wavcse.search.{name} conf/quickstart.yaml --output_dir runs/{name} --num_epochs 20",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="training recipe (YAML), as for train_accelerate.py")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for results, pictures, recipes and fits")
    parser.add_argument("--seeds", type=int, default=3, help=seeds)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    return parser


def run_program(parser: argparse.ArgumentParser, argv: Sequence[str] | None, search: Search) -> int:
    """Run a search on the recipe's table and print its report; returns 0."""
    own, overrides = parser.parse_known_args(argv)
    name = parser.prog.rpartition(".")[2]
    args = parse_arguments([own.config, *overrides])
    for option in ("seeds", "workers"):
        at_least_one(option, getattr(own, option))
    with locked(own.output_dir):
        remove_partials(own.output_dir / "fits")
        with table_for(args, own.output_dir / "fits", own.workers) as table:
            print(table.composite.class_counts())
            search(table, args, own)
    print((own.output_dir / f"{name}.md").read_text(encoding="utf-8"))
    return DONE


def at_least_one(option: str, value: int) -> None:
    """ValueError names the option whose value is below 1."""
    if value < 1:
        raise ValueError(f"{option} is {value}; at least 1 is needed.")


def recipe_text(args: RunArguments, head: Sequence[str], always: Collection[str] = ("selected_layers",)) -> str:
    """The recipe as YAML: lines of comment, then what differs from the defaults, and the fields named in `always`."""
    defaults = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(RunArguments)}
    changed = {name: value for name, value in asdict(args).items() if value != defaults[name] or name in always}
    comment = "".join(f"# {line}\n" for line in head)
    return comment + yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, default_flow_style=None, width=127)


def expectation(validation: Mapping, test: Mapping) -> str:
    """The line of a recipe that says what to expect of it, from the moments of its mean accuracies."""
    return f"What to expect: a mean accuracy of about {validation['mean']:.2%} on validation and {test['mean']:.2%} on test"


def as_read(report: Mapping) -> dict:
    """The report as a reader of its file sees it."""
    return json.loads(json_text(report))


def write_result(output_dir: Path, name: str, report: Mapping) -> None:
    """Write results/`name`.json."""
    (output_dir / "results").mkdir(parents=True, exist_ok=True)
    write_atomically(output_dir / "results" / f"{name}.json", json_text(report, indent=1) + "\n")


def task_facts(composite: CompositeSet) -> dict[str, dict]:
    """Task -> number of classes and of labelled clips per split, and the test share of the class most frequent in training."""
    facts = {}
    for task, classes in composite.classes.items():
        labels = {split: of_split[task][of_split[task] != IGNORED_LABEL] for split, of_split in composite.targets.items()}
        most_frequent = np.bincount(labels["train"]).argmax()
        facts[task] = {
            "num_classes": len(classes),
            **{f"num_{split}": len(own) for split, own in labels.items()},
            "majority": float(np.mean(labels["test"] == most_frequent)),
        }
    return facts
