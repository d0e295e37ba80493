"""Recipes laid over each other: the stages of a training one after another, and the variants of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from wavcse.data.files import digest_of
from wavcse.finetuning.arguments import STAGE, MultiTaskArguments
from wavcse.settings.fields import settings_from
from wavcse.settings.recipes import checked_fields
from wavcse.studies.variants import merged

OF_THE_WHOLE = ("output_dir", "overwrite_output_dir", "seed", "stages", "audio_dir", "note")  # no stage has one of its own
STAGE_FIELDS = tuple(field.name for field in fields(MultiTaskArguments) if field.name not in OF_THE_WHOLE)


def laid_over(shared: Mapping[str, Any], own: Any) -> Any:
    """`own` fields of a recipe, its tasks and test sets laid over `shared` ones; with a task that is null go its test sets."""
    if not isinstance(own, Mapping) or not all(isinstance(own.get(section, {}), dict) for section in ("tasks", "tests")):
        return own  # and is refused, with the name of what is wrong
    tasks, tests = _by_name(shared, own, "tasks"), _by_name(shared, own, "tests")
    gone = [name for name, fields_of in own.get("tasks", {}).items() if fields_of is None]
    return {**own, "tasks": tasks, "tests": {name: one for name, one in tests.items() if one.get("of") not in gone}}


def _by_name(shared: Mapping[str, Any], own: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A section of `own` over the shared one, name by name; those that are null are left out."""
    found = dict(shared.get(section) or {})
    for name, fields_of in own.get(section, {}).items():
        if fields_of is None:
            found.pop(name, None)
        else:
            found[name] = {**found.get(name, {}), **fields_of}
    return found


def stages_of(args: MultiTaskArguments) -> list[MultiTaskArguments]:
    """The trainings that a recipe is made of, each with its folder: itself, where it has no stages.

    Raises:
        ValueError: a field of a stage is unknown or wrong, it starts from one that does not come before it, or takes over
            weights of blocks that mean something else there.
    """
    if not args.stages:
        args.check_sections()
        return [args]
    stages: list[MultiTaskArguments] = []
    for own in args.stages:
        stages.append(_stage(args, stages, own))
    return stages


def _stage(args: MultiTaskArguments, earlier: Sequence[MultiTaskArguments], own: Mapping[str, Any]) -> MultiTaskArguments:
    number = len(earlier) + 1
    where = f"stages: stage {number}"
    shared = {**asdict(args), "stages": [], "output_dir": str(Path(args.output_dir) / STAGE.format(number))}
    own = laid_over(shared, checked_fields(where, own, STAGE_FIELDS))
    try:
        stage = settings_from(MultiTaskArguments, merged([shared, own]))
        stage.check_sections()
        before = stage.init_from["stage"] if isinstance(stage.init_from, dict) else 0
        if before >= number:
            raise ValueError(f"init_from is stage {before}, which does not come before it.")
        if before and earlier[before - 1].mix_settings() != stage.mix_settings():
            theirs = earlier[before - 1].ari
            raise ValueError(
                f"ari is {stage.ari}, and in stage {before}, which it starts from, {theirs}; one of them for both."
            )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    return stage


def stage_keys(args: MultiTaskArguments) -> list[str]:
    """A key per stage, the same in two trainings whose settings are the same up to and with that stage."""
    identities = [stage.identity() for stage in stages_of(args)]
    return [digest_of(identities[:number]) for number in range(1, len(identities) + 1)]
