"""The configuration of Phase 1 in one command: a training recipe with a section for each further program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wavcse.data.arguments import CacheArguments
from wavcse.data.corpora.arguments import CorporaArguments
from wavcse.data.synthetic.arguments import SynthesizeArguments
from wavcse.search.arguments import HparamsArguments, LayersArguments, PoolingsArguments, SearchArguments
from wavcse.settings.fields import NEEDED, CheckedFields, option, section_from, settings_from
from wavcse.settings.recipes import checked_fields, read_recipe
from wavcse.training.arguments import RunArguments

SEARCHES: dict[str, type[SearchArguments]] = {
    "layers": LayersArguments,
    "poolings": PoolingsArguments,
    "hparams": HparamsArguments,
}
SECTIONS = ("random_upstream", "synthesize", "corpora", "cache", "search", "training")
# A training that starts from scratch each time it is continued would never end.
RECIPE_FIELDS = tuple(field.name for field in fields(RunArguments) if field.name != "overwrite_output_dir")
# What all steps share, or a process cannot change.
OF_ALL_STEPS = ("tasks", "cache_dir", "upstream", "revision", "output_dir", "mixed_precision")
TRAINING_FIELDS = tuple(name for name in RECIPE_FIELDS if name not in OF_ALL_STEPS)


@dataclass
class RandomUpstreamArguments(CheckedFields):
    """Of examples/random_upstream.py, which is no part of the package."""

    out: str = option(NEEDED, "Folder to write.")
    width: int = option(192, "Hidden size.", at_least=1)
    num_blocks: int = option(6, "Transformer blocks.", at_least=1)
    stem_width: int = option(256, "Channels of the convolutions.", at_least=1)
    seed: int = option(0, "Of the weights.")
    recipe: str | None = option(None, "Of pre-training, to start as it does.")


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
    raw = read_recipe(path, [*RECIPE_FIELDS, *SECTIONS])
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
        random_upstream=_section("random_upstream", raw.get("random_upstream"), RandomUpstreamArguments),
        synthesize=_section("synthesize", raw.get("synthesize"), SynthesizeArguments, twins=None),
        corpora=[_section(f"corpora[{number}]", corpus or {}, CorporaArguments) for number, corpus in enumerate(corpora)],
        cache=raw.get("cache") or {},
        search={name: _search_section(name, searches.get(name), recipe) for name in SEARCHES},
        training=checked_fields("training", raw.get("training") or {}, TRAINING_FIELDS),
    )
    if not config.manifests:
        raise ValueError("tasks is empty; name at least one task with its manifest, label_column and split_column.")
    own = {
        "manifest": config.manifests,
        "upstream": recipe.upstream,
        "out": recipe.cache_dir,
        "revision": recipe.revision,
    }
    _section("cache", config.cache, CacheArguments, **own, temporal_pooling="mean")
    _training("training", config.training, recipe)
    return config


def _section(where: str, options: Any, settings: type, **known: Any) -> dict[str, Any]:
    """The options as the recipe gives them, once it is sure that their program takes them, with those that are `known`."""
    if options is None:
        return {}
    section_from(settings, where, options, **known)
    return options


def _search_section(name: str, options: Any, recipe: RunArguments) -> dict[str, Any]:
    """Of a search; the number of epochs, which is a field of the recipe, may be its own."""
    where = f"search.{name}"
    own = dict(options) if isinstance(options, dict) else options
    epochs = own.pop("num_epochs", recipe.num_epochs) if isinstance(own, dict) else recipe.num_epochs
    recipe = _training(where, {"num_epochs": epochs}, recipe)
    _section(where, own, SEARCHES[name], recipe=recipe, output_dir=recipe.output_dir)
    return options or {}


def _training(where: str, changes: Mapping[str, Any], recipe: RunArguments) -> RunArguments:
    """The recipe with changes; ValueError says where one is not what its field is."""
    try:
        return settings_from(RunArguments, {**asdict(recipe), **changes})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def corpus_step(corpus: Mapping[str, Any]) -> str:
    """Name of the step that writes a corpus's manifest."""
    return f"corpora_{corpus['corpus']}"
