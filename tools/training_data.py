"""What speech a model was trained on, counted from its recipes; `tools/arguments.py` has the options."""

from __future__ import annotations

from wavcse.tools.arguments import TRAINING_DATA, TrainingDataArguments

if __name__ == "__main__":
    TRAINING_DATA.answer()  # before the imports below, which take seconds

import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wavcse.data.composite import load_composite
from wavcse.data.files import json_text, shown_path, write_atomically
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip, Manifest
from wavcse.pretraining.arguments import PRETRAIN, PretrainArguments
from wavcse.pretraining.clips import load_clips
from wavcse.settings.command import DONE
from wavcse.settings.recipes import checked_fields, read_recipe
from wavcse.training.arguments import TRAIN, RunArguments

SYNTHETIC = "synthetic"  # the licence of speech that no person has spoken
PERMISSIVE = ("CC0-1.0", "CC-BY-4.0", "MIT", "Apache-2.0", "public-domain", SYNTHETIC)
NEEDED = ("title", "licence", "attribution")
DESCRIPTION = (*NEEDED, "note")
UPSTREAM = ("base_model", "licence", "attribution", "notice")  # of an upstream that somebody else trained


def count_training_data(recipes: Sequence[str | Path], corpora: str | Path) -> dict[str, Any]:
    """What `recipes` train on.

    Args:
        recipes: of `pretrain_accelerate.py` and `train_accelerate.py`; paths in them are relative to the working directory.
        corpora: YAML whose `corpora` maps a name (or a pattern such as `synthetic-*`) to title, licence, attribution, note. A
            clip's corpus is what the column `corpus` says, else the folder of its manifest. Its `upstream`, for a model on
            somebody else's, has the fields `UPSTREAM`.

    Returns:
        `recipes`, and `rows`: one per corpus, language and licence, with clips and hours per recipe, and voices; `upstream` as
        it is described.

    Raises:
        ValueError: a recipe or manifest cannot be read, two recipes have one name, or a corpus is not described or not
            permissive.
    """
    names = [Path(recipe).stem for recipe in recipes]
    if len(set(names)) < len(names):
        raise ValueError(f"The recipes are {', '.join(names)}; hours are counted by these names, so each must have its own.")
    described, upstream = _read_descriptions(corpora)
    tables = [_described(table, described, str(corpora)) for recipe in recipes for table in _tables(Path(recipe))]
    clips = pd.concat(tables, ignore_index=True)
    rows = [
        {**dict(zip(("corpus", "language", "licence"), key)), **_description(described[key[0]]), **_counts(group)}
        for key, group in clips.groupby(["entry", "language", "licence"], sort=True)
    ]
    return {"recipes": [shown_path(recipe) for recipe in recipes], "rows": rows, **upstream}


def _read_descriptions(corpora: str | Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
    """The corpora's descriptions, and `{"upstream": ...}` or nothing."""
    read = read_recipe(corpora, allowed=["corpora", "upstream"])
    described = read.get("corpora")
    if not isinstance(described, dict):
        raise ValueError(f"{corpora}: `corpora` must map names of corpora to {', '.join(DESCRIPTION)}.")
    for name, entry in described.items():
        checked_fields(f"{corpora}: {name}", entry, DESCRIPTION)
        wrong = [field for field in DESCRIPTION if not isinstance(entry.get(field, ""), str)]
        wrong += [field for field in NEEDED if not entry.get(field)]
        if wrong:
            raise ValueError(f"{corpora}: {name}: {', '.join(wrong)} must be a text.")
    if "upstream" not in read:
        return described, {}
    upstream = checked_fields(f"{corpora}: upstream", read["upstream"], UPSTREAM)
    if wrong := [field for field in UPSTREAM if not (isinstance(upstream.get(field), str) and upstream[field])]:
        raise ValueError(f"{corpora}: upstream: {', '.join(wrong)} must be a text.")
    if upstream["licence"] not in PERMISSIVE:
        raise ValueError(f"{corpora}: upstream: is under {upstream['licence']!r}, which is not permissive.")
    return described, {"upstream": upstream}


def _tables(recipe: Path) -> Iterator[pd.DataFrame]:
    """The rows of each manifest of a recipe that it trains on, with `recipe`, `seconds` and `folder`."""
    known = [setting.name for kind in (PretrainArguments, RunArguments) for setting in fields(kind)]
    settings = read_recipe(recipe, allowed=known)
    used = _pretraining_clips if "data" in settings else _training_clips
    for manifest, is_used in used(str(recipe)):
        seconds = _seconds(manifest)
        columns = {name: manifest.table.get(name, "") for name in ("corpus", "language", "licence", "speaker_id")}
        table = pd.DataFrame(columns, index=manifest.table.index)
        yield table.assign(recipe=recipe.stem, seconds=seconds, folder=manifest.path.resolve().parent.name)[is_used]


def _pretraining_clips(recipe: str) -> Iterator[tuple[Manifest, np.ndarray]]:
    args = PRETRAIN.parse([recipe])
    held_out, inspector = (args.exclude_speakers_of, args.exclude_split_columns), Inspector(args.audio_dir)
    for name, source in args.clip_sources().items():
        found = load_clips({name: source}, args.label_column, *held_out, inspector)
        yield _used(Manifest(source.manifest), found.clips)


def _training_clips(recipe: str) -> Iterator[tuple[Manifest, np.ndarray]]:
    args = TRAIN.parse([recipe])
    sources = args.task_sources()
    composite = load_composite(sources, Inspector(args.cache_dir))
    trained = [composite.clips[row] for row in composite.rows("train")]
    for path in dict.fromkeys(path for source in sources.values() for path in source.manifests):
        yield _used(Manifest(path), trained)


def _used(manifest: Manifest, clips: Sequence[Clip]) -> tuple[Manifest, np.ndarray]:
    places = {clip.place for clip in clips}
    return manifest, np.array([clip.place in places for clip in manifest.clips])


def _seconds(manifest: Manifest) -> np.ndarray:
    if "duration" in manifest.table.columns:
        seconds = pd.to_numeric(manifest.table["duration"], errors="coerce").to_numpy(dtype=float)
        if not (seconds >= 0).all():
            first = manifest.clips[int(np.argmin(seconds >= 0))].clip_id
            raise ValueError(f"{manifest.path}: the duration of {first} is not a number of seconds to count hours by.")
        return seconds
    if any(clip.end_s is None for clip in manifest.clips):
        raise ValueError(f"{manifest.path}: has neither a column 'duration' nor an 'end' of every clip to count hours by.")
    return np.array([clip.end_s - clip.start_s for clip in manifest.clips])


def _described(table: pd.DataFrame, described: dict[str, dict[str, str]], where: str) -> pd.DataFrame:
    """With the entry of `described` that each clip belongs to, and its licence."""
    names = table["corpus"].where(table["corpus"] != "", table["folder"])
    entry = {name: _entry(name, described, where) for name in names.unique()}
    stated = names.map(lambda name: described[entry[name]]["licence"])
    table = table.assign(entry=names.map(entry), licence=table["licence"].where(table["licence"] != "", stated))
    for is_wrong, what in (
        (~table["licence"].isin(PERMISSIVE), "which is not permissive"),
        (table["licence"] != stated, f"but {where} says otherwise"),
    ):
        if is_wrong.any():
            first = table[is_wrong].iloc[0]
            raise ValueError(f"{first['recipe']}: clips of {first['entry']} are under {first['licence']!r}, {what}.")
    return table


def _entry(corpus: str, described: dict[str, dict[str, str]], where: str) -> str:
    found = [name for name in described if fnmatch(corpus, name)]
    if not found:
        raise ValueError(f"{where}: does not describe the corpus {corpus!r}; add its title, licence and attribution.")
    return found[0]


def _description(entry: dict[str, str]) -> dict[str, str]:
    return {name: entry.get(name, "") for name in DESCRIPTION if name != "licence"}


def _counts(group: pd.DataFrame) -> dict[str, Any]:
    """Clips and hours per recipe; how many voices are known by name, and whether some are not."""
    by_recipe = group.groupby("recipe", sort=False)["seconds"]
    named = group.loc[group["speaker_id"] != "", "speaker_id"]
    return {
        "clips": {name: int(count) for name, count in by_recipe.count().items()},
        "hours": {name: round(float(seconds) / 3600, 3) for name, seconds in by_recipe.sum().items()},
        "speakers": int(named.nunique()),
        "has_unnamed_speakers": bool(len(named) < len(group)),
    }


@TRAINING_DATA.main
def main(args: TrainingDataArguments) -> int:
    """The command line."""
    counted = count_training_data(args.recipes, args.corpora)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(args.out), json_text(counted, indent=1, ensure_ascii=False) + "\n")
    hours = {name: sum(row["hours"].get(name, 0) for row in counted["rows"]) for name in map(_stem, args.recipes)}
    print(f"{args.out}: " + ", ".join(f"{name} {total:.2f} h" for name, total in hours.items()))
    return DONE


def _stem(recipe: str) -> str:
    return Path(recipe).stem


if __name__ == "__main__":
    sys.exit(main())
