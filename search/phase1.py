"""Phase 1 of the paper in one command; `search/arguments.py` says what its configuration holds and what is left.

Every step is the program's own `main`, and its choice is the next one's recipe.
"""

from __future__ import annotations

from wavcse.search.arguments import PHASE1, Phase1Arguments

if __name__ == "__main__":
    PHASE1.answer()  # before the imports below, which take seconds

import glob
import json
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wavcse.data.files import locked, write_atomically
from wavcse.search.phase1_config import Phase1, corpus_step, read_config
from wavcse.search.phase1_report import write_report
from wavcse.search.program import recipe_text
from wavcse.search.steps import Step, do_step
from wavcse.settings.command import DONE

FLAGS = ("allow_partial", "measure_speed")
PACKAGES = ("matplotlib", "optuna", "markdown")


def steps_of(config: Phase1) -> list[Step]:
    """The steps in their order."""
    return [*_data_steps(config), _cache_step(config), *_search_steps(config)]


def _data_steps(config: Phase1) -> list[Step]:
    steps = []
    if config.random_upstream:
        outputs = (_inside(config.random_upstream["out"], "*.safetensors"),)
        argv = _argv(config.random_upstream)
        steps.append(Step("random_upstream", "examples/random_upstream.py", argv, outputs=outputs))
    if config.synthesize:
        outputs = (_inside(config.synthesize["out"], "metadata.csv"),)
        steps.append(Step("synthesize", "wavcse.data.synthetic.__main__", _argv(config.synthesize), outputs=outputs))
    for corpus in config.corpora:
        argv = (corpus["corpus"], *_argv({name: value for name, value in corpus.items() if name != "corpus"}))
        outputs = (glob.escape(corpus["out"]),)
        steps.append(Step(corpus_step(corpus), "wavcse.data.corpora.__main__", argv, outputs=outputs))
    return steps


def _cache_step(config: Phase1) -> Step:
    recipe = config.recipe
    options = {"manifest": config.manifests, "upstream": recipe.upstream, "out": recipe.cache_dir, "revision": recipe.revision}
    inputs = (*map(glob.escape, config.manifests), _inside(recipe.upstream, "*"))
    outputs = (_inside(recipe.cache_dir, "*", "cache.json"),)
    return Step("cache", "wavcse.data.cache", _argv({**options, **config.cache}), inputs, outputs)


def _search_steps(config: Phase1) -> list[Step]:
    """The searches and the final training, each from the recipe that the one before leaves."""
    recipe, folder, steps = config.recipe, config.folder, []
    caches = [_inside(recipe.cache_dir, *names) for names in (("digests.json",), ("*", "cache.json"))]
    data = (*map(glob.escape, config.manifests), *caches)
    chosen = folder / "recipe.yaml"
    results = {name: (name, "recipe.yaml") for name in config.search} | {"training": ("phase1", "config.yaml")}
    for name, (result, left) in results.items():
        own = config.search.get(name, config.training)
        # An earlier search's own number of epochs is in its recipe, and ends with it.
        argv = _argv({"output_dir": folder / name, "num_epochs": recipe.num_epochs, **own})
        program = "wavcse.train_accelerate" if name == "training" else f"wavcse.search.{name}"
        outputs = (_inside(folder / name, "results", f"{result}.json"), _inside(folder / name, left))
        inputs = (glob.escape(str(chosen)), *data)
        # A search keeps fits by settings and data; a run folder holds one run and would refuse another.
        own_folder = folder / name if name == "training" else None
        steps.append(Step(name, program, (str(chosen), *argv), inputs, outputs, own_folder))
        chosen = folder / name / "recipe.yaml"
    return steps


def _inside(folder: str | Path, *names: str) -> str:
    return str(Path(glob.escape(str(folder)), *names))


def _argv(options: Mapping[str, Any]) -> tuple[str, ...]:
    """`--name value ...`; a flag stands alone or, like what is not given, is left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or (name in FLAGS and not value):
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words += map(str, value)
        elif name not in FLAGS:
            words.append(json.dumps(value) if isinstance(value, (dict, bool)) else str(value))
    return tuple(words)


def run_phase1(config: Phase1) -> Path:
    """Do every step that is not done, and write the report again; returns the path of report.md.

    Raises:
        ValueError: packages that the searches need are not installed, or another run is at work in the folder.
        StepError: a step refused or failed; what is done stays.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed. Add what the searches need: pip install 'wavcse[search]'.")
    with locked(config.folder):
        return _run_phase1(config)


def _run_phase1(config: Phase1) -> Path:
    head = [f"What {config.path.name} says to every step; each search writes its choice into a recipe of its own."]
    write_atomically(config.folder / "recipe.yaml", recipe_text(config.recipe, head))
    started, records, steps = time.monotonic(), {}, steps_of(config)
    for number, step in enumerate(steps, 1):
        where = f"[{number}/{len(steps)}] {step.name}"
        print(f"{where} ...", flush=True)
        records[step.name] = record = do_step(step, config.folder / "steps")
        ending = "was there" if record["was_there"] else f"done in {record['seconds']:.1f} s"
        print(
            f"{where} {ending}; {time.monotonic() - started:.0f} s since the start. {record['message']}".rstrip(), flush=True
        )
    return write_report(config, records)


@PHASE1.main
def main(args: Phase1Arguments) -> int:
    """The command line."""
    report = run_phase1(read_config(args.config, args.output_dir))
    print(f"{report} and {report.with_suffix('.html').name} are written.")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
