"""What the searches share: their `main`, the recipes and files that they write. Their options: search/arguments.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
import yaml

from wavcse.data.composite import CompositeSet
from wavcse.data.files import json_text, locked, remove_partials, write_atomically
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.search.arguments import SearchArguments
from wavcse.search.table import table_for
from wavcse.settings.command import DONE, Program
from wavcse.training.arguments import RunArguments


def search_program(program: Program, search: Callable[..., dict]) -> Callable[[Sequence[str] | None], int]:
    """The `main` of a search: it fits on the recipe's table, writes into --out, and prints its report (`layers.md`).

    Args:
        search: called with the table, the recipe and the search's own options.
    """

    @program.main
    def main(args: SearchArguments) -> int:
        folder = args.output_dir
        with locked(folder):
            remove_partials(folder / "fits")
            with table_for(args.recipe, folder / "fits", args.workers) as table:
                print(table.composite.class_counts())
                search(table, args.recipe, **args.own())
        print((folder / f"{program.name.split()[-1]}.md").read_text(encoding="utf-8"))
        return DONE

    return main


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
    """Task -> number of classes and of labelled clips per split, and the test share of the class most frequent in training.

    A regression task has `kind` in place of classes, and 0, the CCC of a constant, in place of a share.
    """
    facts = {}
    for task, classes in composite.classes.items():
        labels = {split: of_split[task][of_split[task] != IGNORED_LABEL] for split, of_split in composite.targets.items()}
        counts = {f"num_{split}": len(own) for split, own in labels.items()}
        if task in composite.scales:
            facts[task] = {"kind": "regression", **counts, "majority": 0.0}
            continue
        most_frequent = np.bincount(labels["train"]).argmax()
        majority = float(np.mean(labels["test"] == most_frequent))
        facts[task] = {"num_classes": len(classes), **counts, "majority": majority}
    return facts
