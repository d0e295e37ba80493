"""Which clips may be used, and with which labels: filters, held-out speakers, missing and noisy labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wavcse.data.manifest import Clip, Manifest
from wavcse.pretraining.label_losses import MISSING_LABEL


@dataclass(frozen=True)
class ClipSource:
    """A manifest, and the rows of it that may be used.

    Args:
        manifest: path of a CSV or Parquet file.
        where: column -> allowed values; a row must have one of them in every named column (licence, split, ...).
    """

    manifest: str
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class PretrainingClips:
    """Clips for pre-training; all have one entry per clip, N in all.

    Attributes:
        names: source and clip id, the same on every machine.
        clips: where the audio is.
        targets: int64 `[N]`, index in `labels` or `MISSING_LABEL`.
        labels: the classes, sorted.
        left_out: how many clips of the manifests were left out, by reason.
    """

    names: list[str]
    clips: list[Clip]
    targets: np.ndarray
    labels: list[str]
    left_out: dict[str, int]


def load_clips(
    sources: Mapping[str, ClipSource],
    label_column: str,
    exclude_speakers_of: Sequence[str] = (),
    exclude_split_columns: Sequence[str] = ("split",),
) -> PretrainingClips:
    """Read the sources and keep what may be used.

    Args:
        sources: name -> source.
        label_column: a manifest without it, and rows with an empty one, give clips without a label.
        exclude_speakers_of: manifests whose validation and test clips, and all clips of the speakers (`speaker_id`) of these,
            are left out of every source.
        exclude_split_columns: split columns of those manifests; each of them that a manifest has counts.

    Raises:
        ValueError: a `where` column is missing, a source has no clip left, one of its rows names no clip, or a manifest to
            exclude has no such column.
    """
    held_out = [HeldOut(Manifest(path), exclude_split_columns) for path in exclude_speakers_of]
    names, clips, labels = [], [], []
    left_out = {"where": 0, "held_out": 0}
    for name, source in sources.items():
        manifest = Manifest(source.manifest)
        is_allowed, is_held_out = _allowed(name, manifest, source.where), _held_out(manifest, held_out)
        left_out["where"] += int((~is_allowed).sum())
        left_out["held_out"] += int((is_allowed & is_held_out).sum())
        rows = np.flatnonzero(is_allowed & ~is_held_out)
        if not len(rows):
            raise ValueError(f"data.{name}: no clip of {manifest.path} is left after `where` and the held-out speakers.")
        faulty = [manifest.clips[row] for row in rows if manifest.clips[row].fault]
        if faulty:
            raise ValueError(
                f"data.{name}: {len(faulty)} rows of {manifest.path} cannot be used; the first: {faulty[0].clip_id}: "
                f"{faulty[0].fault}. Mend or remove these rows."
            )
        names += [f"{name}/{manifest.clips[row].clip_id}" for row in rows]
        clips += [manifest.clips[row] for row in rows]
        has_labels = label_column in manifest.table.columns
        labels += [manifest.table[label_column].iloc[row] if has_labels else "" for row in rows]
    classes = sorted(set(labels) - {""})
    index = {label: i for i, label in enumerate(classes)} | {"": MISSING_LABEL}
    return PretrainingClips(names, clips, np.array([index[label] for label in labels], dtype=np.int64), classes, left_out)


class HeldOut:
    """Validation and test clips of a manifest, and their speakers: what pre-training must not hear."""

    def __init__(self, manifest: Manifest, split_columns: Sequence[str]):
        columns = [column for column in split_columns if column in manifest.table.columns]
        if not columns:
            raise ValueError(f"{manifest.path}: has none of the columns {list(split_columns)} that tell what is held out.")
        rows = np.flatnonzero(np.any([np.isin(manifest.split(column), ("validation", "test")) for column in columns], axis=0))
        self.clips = {_place(manifest.clips[row]) for row in rows}
        self.speakers: set[str] = set()
        if "speaker_id" in manifest.table.columns:
            self.speakers = set(manifest.column("speaker_id")[rows]) - {""}


def _allowed(name: str, manifest: Manifest, where: Mapping[str, Sequence[str]]) -> np.ndarray:
    is_allowed = np.ones(len(manifest), dtype=bool)
    for column, values in where.items():
        if column not in manifest.table.columns:
            raise ValueError(f"data.{name}: {manifest.path} has no column {column!r} to select by.")
        is_allowed &= manifest.table[column].isin(list(values)).to_numpy()
    return is_allowed


def _held_out(manifest: Manifest, held_out: Sequence[HeldOut]) -> np.ndarray:
    speakers = set().union(*(one.speakers for one in held_out))
    places = set().union(*(one.clips for one in held_out))
    ids = manifest.table.get("speaker_id", [""] * len(manifest))
    return np.array([speaker in speakers or _place(clip) in places for speaker, clip in zip(ids, manifest.clips)])


def _place(clip: Clip) -> tuple[str, float, float | None]:
    return str(clip.path.resolve()), clip.start_s, clip.end_s


def with_label_faults(clips: PretrainingClips, missing_rate: float, noisy_rate: float, seed: int) -> np.ndarray:
    """Targets `[N]` where some labels are hidden or wrong, as in Figure 3 of the LASR paper.

    Each clip's fate hangs on its name and the seed only: the clips that miss their label at 25 % also do at 50 %.

    Args:
        missing_rate: share of clips whose label is hidden.
        noisy_rate: share of labels that become another one of the set, all equally likely.
    """
    targets = clips.targets.copy()
    num_labels = len(clips.labels)
    for i in np.flatnonzero(targets != MISSING_LABEL):
        if num_labels > 1 and _fraction(seed, "noisy", clips.names[i]) < noisy_rate:
            shift = 1 + int(_fraction(seed, "other", clips.names[i]) * (num_labels - 1))
            targets[i] = (targets[i] + shift) % num_labels
        if _fraction(seed, "missing", clips.names[i]) < missing_rate:
            targets[i] = MISSING_LABEL
    return targets


def _fraction(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that looks random and is always the same."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
