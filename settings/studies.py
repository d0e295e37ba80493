"""What the files of studies have in common, and their command lines: variants of one recipe."""

from __future__ import annotations

from dataclasses import dataclass

from wavcse.settings.fields import CheckedFields, operand, option


@dataclass
class StudyFile(CheckedFields):
    """A study's file; its program adds fields, and checks what they hold.

    Attributes:
        needed: fields without which there is no study.
    """

    needed = ("recipe", "variants")

    recipe: str = option("", "Recipe that the variants change.")
    overrides: dict = option(dict, "Fields that all variants share.")
    variants: dict = option(dict, "Name -> fields on top.")
    output_dir: str = option("runs/study", "Folder of everything that is left.", flag="out")

    def __post_init__(self):
        super().__post_init__()
        if missing := [name for name in self.needed if not getattr(self, name)]:
            raise ValueError(f"{', '.join(missing)} missing.")


@dataclass
class StudyPart(CheckedFields):
    """Which study, and which part of it."""

    config: str = operand("The study's file.", value="STUDY.yaml")
    output_dir: str | None = option(None, "Where everything is left.", "the study's own", flag="out", value="DIR")
    only: list[str] = option(list, "Variants to do.", "all", value="NAME")


@dataclass
class StudyArguments(StudyPart):
    """As `StudyPart`, with variants that are trained beside each other."""

    workers: int = option(1, "Trainings at a time.", at_least=1)
