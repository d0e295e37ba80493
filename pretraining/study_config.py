"""What a study consists of: a recipe, its variants, how they are judged and drawn; read from YAML and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wavcse.eval.arguments import EVAL, EvalArguments
from wavcse.eval.baselines import BASELINES, DEFAULT_NAME
from wavcse.pretraining.arguments import PretrainArguments
from wavcse.settings.fields import FILE_NAME, settings_from
from wavcse.settings.recipes import checked_fields, read_recipe

EVALUATION = "evaluation"  # folder of the evaluation beside those of the variants
PICTURES = "pictures"
FILES = ("study.json", "study.md", "study.html", "speed.json")
TAKEN = (EVALUATION, PICTURES, *FILES, DEFAULT_NAME, *BASELINES)  # the last ones are names in tables
SET_BY_STUDY = ("output_dir", "overwrite_output_dir", "stop_after_s")
RECIPE_FIELDS = tuple(field.name for field in fields(PretrainArguments))
VARIANT_FIELDS = tuple(name for name in RECIPE_FIELDS if name not in SET_BY_STUDY)
DEFAULTS = PretrainArguments()
PLOTTED_FIELDS = tuple(name for name in VARIANT_FIELDS if not isinstance(getattr(DEFAULTS, name), dict | list | tuple))
MEASURED = {
    "speed": "times real time, one thread",
    "parameters": "parameters in millions",
    "megabytes": "megabytes of safetensors",
}
MEAN = "mean"  # as the task of a plot: mean validation accuracy over the tasks


@dataclass(frozen=True)
class Variant:
    """One encoder of a study.

    Attributes:
        name: of its folder, and in tables.
        args: its whole recipe; `output_dir` is its run folder.
        own: the fields in which it differs from the other variants, as the study gives them.
        untrained: the encoder is saved as training finds it.
    """

    name: str
    args: PretrainArguments
    own: dict[str, Any]
    untrained: bool

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.args.output_dir)

    @property
    def upstream(self) -> Path:
        """The transformers folder of the encoder."""
        return self.folder / "upstream"


@dataclass(frozen=True)
class Plot:
    """A picture: one point per variant.

    Attributes:
        x: a field of the recipe, or one of `MEASURED`.
        task: a row of the evaluation, or `MEAN`.
        variants: which are drawn; unless given, all but the reference.
        reference: variants that are drawn as lines, for example the one without a label loss.
    """

    x: str
    task: str
    variants: tuple[str, ...]
    reference: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        path: its file; recipe: path of the recipe that its variants change; overrides: what they share.
        evaluation: how upstreams are judged; `model` and `name` in it mean nothing.
        rows: names of its rows; results of others in its folder, of an earlier evaluation, do not count.
        folder: where everything is left.
    """

    path: Path
    recipe: str
    overrides: dict[str, Any]
    variants: list[Variant]
    evaluation: EvalArguments
    rows: tuple[str, ...]
    measure_speed: bool
    plots: list[Plot]
    folder: Path


def read_study(path: str | Path, output_dir: str | None = None) -> Study:
    """Read and check a study.

    Args:
        output_dir: instead of the study's own.

    Raises:
        ValueError: a field or name is unknown, missing or out of range; the message says which.
    """
    allowed = ("recipe", "overrides", "variants", "evaluation", "measure_speed", "plots", "output_dir")
    raw = read_recipe(path, allowed)
    missing = [name for name in ("recipe", "variants", "evaluation") if not raw.get(name)]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing.")
    try:
        return _checked(Path(path), raw, Path(output_dir or raw.get("output_dir") or "runs/study"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(path: Path, raw: Mapping[str, Any], folder: Path) -> Study:
    recipe = read_recipe(raw["recipe"], RECIPE_FIELDS)
    recipe = {name: value for name, value in recipe.items() if name not in SET_BY_STUDY}
    overrides = checked_fields("overrides", raw.get("overrides") or {}, VARIANT_FIELDS)
    variants = [_variant(str(name), own or {}, [recipe, overrides], folder) for name, own in _mapping("variants", raw).items()]
    evaluation = EVAL.parse([raw["evaluation"], "--output_dir", str(folder / EVALUATION)])
    measure_speed = raw.get("measure_speed", False)
    if not isinstance(measure_speed, bool):
        raise ValueError(f"measure_speed is {measure_speed!r}; it must be true or false.")
    rows = tuple(request.task.row_name(target) for request in evaluation.requests() for target in request.task.targets)
    names = [variant.name for variant in variants]
    plots = [_plot(number, plot, names, rows, measure_speed) for number, plot in enumerate(raw.get("plots") or [])]
    return Study(path, str(raw["recipe"]), overrides, variants, evaluation, rows, measure_speed, plots, folder)


def _mapping(name: str, raw: Mapping[str, Any]) -> dict:
    if not isinstance(raw[name], dict):
        raise ValueError(f"{name}: must map names to fields of the recipe.")
    return raw[name]


def _variant(name: str, own: Any, shared: Sequence[Mapping[str, Any]], folder: Path) -> Variant:
    if not FILE_NAME.fullmatch(name) or name.startswith(".") or name in TAKEN:
        taken = ", ".join(TAKEN)
        raise ValueError(
            f"variants.{name}: the name names files: letters, digits and . _ - only, no dot in front, and none of {taken}."
        )
    own = dict(checked_fields(f"variants.{name}", own, (*VARIANT_FIELDS, "untrained")))
    untrained = own.pop("untrained", False)
    if not isinstance(untrained, bool):
        raise ValueError(f"variants.{name}: untrained is {untrained!r}; it must be true or false.")
    try:
        args = settings_from(PretrainArguments, {**merged([*shared, own]), "output_dir": str(folder / name)})
    except (ValueError, TypeError) as error:
        raise ValueError(f"variants.{name}: {error}") from error
    return Variant(name, args, own, untrained)


def merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of recipes laid over each other, the last one on top; `encoder` key by key, all others whole."""
    found: dict[str, Any] = {}
    for layer in layers:
        encoder = layer.get("encoder") or {}
        if not isinstance(encoder, dict):
            raise ValueError(f"encoder is {encoder!r}; it must hold fields of WavLMConfig.")
        found = {**found, **layer, "encoder": {**found.get("encoder", {}), **encoder}}
    return found


def _plot(number: int, plot: Any, variants: Sequence[str], rows: Sequence[str], has_speed: bool) -> Plot:
    where = f"plots[{number}]"
    plot = checked_fields(where, plot, ("x", "task", "variants", "reference"))
    reference = tuple(plot.get("reference") or ())
    drawn = tuple(plot.get("variants") or (name for name in variants if name not in reference))
    found = Plot(plot.get("x"), plot.get("task", MEAN), drawn, reference)
    allowed = [*(name for name in MEASURED if has_speed or name != "speed"), *PLOTTED_FIELDS]
    for name, value, known in (("x", found.x, allowed), ("task", found.task, [*rows, MEAN])):
        if value not in known:
            raise ValueError(f"{where}: {name} is {value!r}; allowed: {', '.join(known)}.")
    unknown = [name for name in (*drawn, *reference) if name not in variants]
    if unknown:
        raise ValueError(f"{where}: {unknown} are no variants; there are {', '.join(variants)}.")
    return found
