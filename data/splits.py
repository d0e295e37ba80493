"""Splits where a corpus has none of its own: by the hash of a name, and folds that leave one group of speakers out in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from wavcse.data.manifest import Manifest

VALIDATION_SHARE = 0.1  # of the clips of a fold that are not tested


def hash_fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone: the first six bytes of its sha1 as a fraction."""
    return int.from_bytes(hashlib.sha1(name.encode()).digest()[:6], "big") / 2**48


def split_by_hash(name: str, validation: float, test: float = 0.0) -> str:
    """The split of a speaker (or clip) where a corpus has none of its own: these shares of all names, the rest trains."""
    fraction = hash_fraction(name)
    return "test" if fraction < test else "validation" if fraction < test + validation else "train"


@dataclass(frozen=True)
class Fold:
    """One of several divisions of the same clips: some groups are tested, the others train and validate.

    Which clips validate depends on the group and the name of their files alone, so all tasks and manifests agree on it.

    Args:
        column: of the groups, such as sessions or speakers.
        tested: its values that are tested.
        validation_share: of the other clips about so many validate.
        labelled: column without whose value a clip takes no part; `None` = all take part.
    """

    column: str
    tested: frozenset[str]
    validation_share: float = VALIDATION_SHARE
    labelled: str | None = None

    def splits(self, manifest: Manifest) -> np.ndarray:
        """The split of every clip, text `[N]`; empty where the clip has no group, or takes no part.

        Raises:
            ValueError: the manifest lacks a column.
        """
        values = _values(manifest, self.column, self.labelled)
        return np.array([self.split(value, clip.clip_id) for value, clip in zip(values, manifest.clips)], dtype=object)

    def split(self, value: str, file_name: str) -> str:
        """The split of a clip by its group and file; of a name that has folders the last part counts."""
        if value in self.tested or not value:
            return "test" if value else ""
        return split_by_hash(f"{value}/{PurePosixPath(file_name).name}", self.validation_share)


def folds(
    manifests: Iterable[Manifest],
    column: str,
    groups: int | None = None,
    validation_share: float = VALIDATION_SHARE,
    labelled: str | None = None,
) -> list[Fold]:
    """A fold for each value of a column, in alphabetical order; or for each of `groups`, to which values are dealt in turn.

    Raises:
        ValueError: a manifest lacks a column, or there are fewer values than groups, or fewer than two.
    """
    values = sorted(set().union(*(_values(manifest, column, labelled) for manifest in manifests)) - {""})
    count = len(values) if groups is None else groups
    if count < 2 or len(values) < count:
        raise ValueError(f"column {column!r} has {len(values)} values ({_some(values)}); {max(count, 2)} folds need as many.")
    return [Fold(column, frozenset(values[number::count]), validation_share, labelled) for number in range(count)]


def _values(manifest: Manifest, column: str, labelled: str | None) -> np.ndarray:
    values = manifest.column(column)
    return values if labelled is None else np.where(manifest.column(labelled) == "", "", values).astype(object)


def _some(values: Sequence[str]) -> str:
    return f"{', '.join(values[:5])}{', ...' if len(values) > 5 else ''}"
