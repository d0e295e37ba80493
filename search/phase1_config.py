"""The configuration of Phase 1 in one command: a training recipe with a section for each further program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wavcse.settings.fields import settings_from
from wavcse.settings.recipes import checked_fields, read_recipe
from wavcse.training.arguments import RunArguments

# Options of the programs: those that must be given, and the others.
NEEDED = {"random_upstream": ("out",), "synthesize": ("out",), "corpora": ("corpus", "root", "out")}
OPTIONS = {
    "random_upstream": ("width", "num_blocks", "stem_width", "seed", "recipe"),
    "synthesize": ("clips", "seed", "workers"),
    "corpora": ("protocol", "allow_partial", "hub_id", "hub_config", "hub_revision"),
    "cache": ("batch_seconds", "dtype", "shard_mb"),
}
OF_EVERY_SEARCH = ("seeds", "workers", "num_epochs")
SEARCHES = {
    "layers": ("rivals", "sizes", "measure_speed"),
    "poolings": ("poolings", "constants"),
    "hparams": ("trials", "batch_sizes", "learning_rates"),
}
# A training that starts from scratch each time it is continued would never end.
RECIPE_FIELDS = tuple(field.name for field in fields(RunArguments) if field.name != "overwrite_output_dir")
# What all steps share, or a process cannot change.
OF_ALL_STEPS = ("tasks", "cache_dir", "upstream", "revision", "output_dir", "mixed_precision")
TRAINING_FIELDS = tuple(name for name in RECIPE_FIELDS if name not in OF_ALL_STEPS)


@dataclass(frozen=True)
class Phase1:
    """A checked configuration.

    Attributes:
        path: the file.
        recipe: what holds in all steps; its `output_dir` is the folder of all.
        random_upstream, synthesize, corpora, cache, search, training: the sections, empty where not given; options of the
            programs, `search` by name of the search, `training` fields of the recipe for the final training only.
    """

    path: Path
    recipe: RunArguments
    random_upstream: dict[str, Any]
    synthesize: dict[str, Any]
    corpora: list[dict[str, Any]]
    cache: dict[str, Any]
    search: dict[str, dict[str, Any]]
    training: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where everything is left but what the configuration puts elsewhere."""
        return Path(self.recipe.output_dir)

    @property
    def manifests(self) -> list[str]:
        """Of all tasks, each once."""
        return list(dict.fromkeys(path for source in self.recipe.task_sources().values() for path in source.manifests))


def read_config(path: str | Path, output_dir: str | None = None) -> Phase1:
    """Read and check a configuration.

    Args:
        output_dir: instead of the configuration's own.

    Raises:
        ValueError: a section or a field is unknown, missing or out of range.
    """
    raw = read_recipe(path, [*RECIPE_FIELDS, *OPTIONS, "search", "training"])
    try:
        return _checked(Path(path), raw, {"output_dir": output_dir} if output_dir else {})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(path: Path, raw: Mapping[str, Any], overrides: Mapping[str, str]) -> Phase1:
    recipe = settings_from(RunArguments, {**{name: raw[name] for name in RECIPE_FIELDS if name in raw}, **overrides})
    if not recipe.upstream:
        raise ValueError("upstream is missing; name its Hub id or folder.")
    corpora = raw.get("corpora") or []
    if not isinstance(corpora, list):
        raise ValueError("corpora must be a list with one mapping for each corpus.")
    searches = checked_fields("search", raw.get("search") or {}, SEARCHES)
    config = Phase1(
        path,
        recipe,
        **{name: _section(name, raw.get(name), OPTIONS[name], NEEDED.get(name, ())) for name in OPTIONS if name != "corpora"},
        corpora=[_section("corpora", corpus or {}, OPTIONS["corpora"], NEEDED["corpora"]) for corpus in corpora],
        search={
            name: _section(f"search.{name}", searches.get(name), (*OF_EVERY_SEARCH, *SEARCHES[name])) for name in SEARCHES
        },
        training=_section("training", raw.get("training"), TRAINING_FIELDS),
    )
    settings_from(RunArguments, {**asdict(recipe), **config.training})  # every mistake shows before the first step
    if not config.manifests:
        raise ValueError("tasks is empty; name at least one task with its manifest, label_column and split_column.")
    return config


def _section(name: str, options: Any, known: tuple[str, ...], needed: tuple[str, ...] = ()) -> dict[str, Any]:
    if options is None:
        return {}
    checked_fields(name, options, (*needed, *known))
    missing = [option for option in needed if option not in options]
    if missing:
        raise ValueError(f"{name}: {', '.join(missing)} missing.")
    return options


def corpus_step(corpus: Mapping[str, Any]) -> str:
    """Name of the step that writes a corpus's manifest."""
    return f"corpora_{corpus['corpus']}"
