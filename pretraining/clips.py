"""Which clips may be used, and with which labels: filters, held-out speakers, missing and noisy labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wavcse.data.inspection import ClipFacts, Inspector
from wavcse.data.leaks import ClipUses, Stretches, file_keys, refuse_two_labels
from wavcse.data.manifest import Clip, Manifest
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.pretraining.arguments import ClipSource


@dataclass(frozen=True)
class PretrainingClips:
    """Clips for pre-training; all have one entry per clip, N in all.

    Attributes:
        names: source and clip id, the same on every machine.
        clips: where the audio is.
        targets: int64 `[N]`, index in `labels` or `IGNORED_LABEL`.
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
    inspector: Inspector | None = None,
) -> PretrainingClips:
    """Read the sources and keep what may be used.

    Args:
        sources: name -> source.
        label_column: a manifest without it, and rows with an empty one, give clips without a label.
        exclude_speakers_of: manifests whose validation and test clips, and all clips of the speakers (`speaker_id`) of these,
            are left out of every source: these speakers by name, and this audio under whatever name, see `wavcse.data.leaks`.
        exclude_split_columns: split columns of those manifests; each of them that a manifest has counts.
        inspector: reads the files, which are compared by content; files that it has seen already are not read again.

    Raises:
        ValueError: a `where` column is missing, a source has no clip left, one of its rows names no clip, a manifest to
            exclude has no such column, or a clip has two labels.
    """
    inspector = inspector or Inspector()
    held_out = HeldOut([Manifest(path) for path in exclude_speakers_of], exclude_split_columns, inspector)
    manifests, parts = [], []
    left_out = {"where": 0, "held_out": 0}
    for name, source in sources.items():
        manifest = Manifest(source.manifest)
        allowed = np.flatnonzero(_allowed(name, manifest, source.where))
        facts = inspector.inspect([manifest.clips[row] for row in allowed], save=False)
        is_kept = ~held_out.has(manifest, allowed, facts)
        left_out["where"] += len(manifest) - len(allowed)
        left_out["held_out"] += int((~is_kept).sum())
        if not is_kept.any():
            raise ValueError(f"data.{name}: no clip of {manifest.path} is left after `where` and the held-out speakers.")
        faulty = [manifest.clips[row] for row in allowed[is_kept] if manifest.clips[row].fault]
        if faulty:
            raise ValueError(
                f"data.{name}: {len(faulty)} rows of {manifest.path} cannot be used; the first: {faulty[0].clip_id}: "
                f"{faulty[0].fault}. Correct or remove these rows."
            )
        manifests.append(manifest)
        parts.append((allowed[is_kept], [fact for fact, kept in zip(facts, is_kept) if kept]))
    uses = _uses(manifests, [rows for rows, _ in parts], label_column)
    facts = [fact for _, known in parts for fact in known]
    refuse_two_labels(uses, file_keys(uses.clips, facts), facts)
    labels, keys = uses.labels[label_column], list(sources)
    names = [f"{keys[source]}/{clip.clip_id}" for source, clip in zip(uses.sources, uses.clips)]
    classes = sorted(set(labels) - {""})
    index = {label: i for i, label in enumerate(classes)} | {"": IGNORED_LABEL}
    targets = np.array([index[label] for label in labels], dtype=np.int64)
    return PretrainingClips(names, list(uses.clips), targets, classes, left_out)


def _uses(manifests: Sequence[Manifest], rows: Sequence[np.ndarray], label_column: str) -> ClipUses:
    """All sources as one: every clip trains."""
    clips = [manifest.clips[row] for manifest, own in zip(manifests, rows) for row in own]
    sources = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    labels: dict[str, np.ndarray] = {}
    train = np.full(len(clips), "train", dtype=object)
    uses = ClipUses("data", clips, train, labels, manifests, sources, np.concatenate(rows), [""] * len(rows))
    labels[label_column] = uses.column(label_column)
    return uses


class HeldOut:
    """Validation and test clips of manifests, and their speakers with all their clips: what pre-training must not hear."""

    def __init__(self, manifests: Sequence[Manifest], split_columns: Sequence[str], inspector: Inspector):
        tested = [_tested(manifest, split_columns) for manifest in manifests]
        self.speakers = {name for own, rows in zip(manifests, tested) for name in _speakers(own)[rows]} - {""}
        clips = []
        for manifest, is_tested in zip(manifests, tested):
            is_held_out = is_tested | np.isin(_speakers(manifest), list(self.speakers))
            clips += [manifest.clips[row] for row in np.flatnonzero(is_held_out)]
        self.audio = Stretches(clips, file_keys(clips, inspector.inspect(clips, save=False)), range(len(clips)))

    def has(self, manifest: Manifest, rows: np.ndarray, facts: Sequence[ClipFacts]) -> np.ndarray:
        """Which of these rows of a manifest must not be heard, bool `[len(rows)]`."""
        clips = [manifest.clips[row] for row in rows]
        is_heard = [self.audio.overlapping(file, clip) is not None for file, clip in zip(file_keys(clips, facts), clips)]
        return np.array(is_heard, dtype=bool) | np.isin(_speakers(manifest)[rows], list(self.speakers))


def _tested(manifest: Manifest, split_columns: Sequence[str]) -> np.ndarray:
    columns = [column for column in split_columns if column in manifest.table.columns]
    if not columns:
        raise ValueError(f"{manifest.path}: has none of the columns {list(split_columns)} that tell what is held out.")
    return np.any([np.isin(manifest.split(column), ("validation", "test")) for column in columns], axis=0)


def _speakers(manifest: Manifest) -> np.ndarray:
    known = "speaker_id" in manifest.table.columns
    return manifest.column("speaker_id") if known else np.full(len(manifest), "", dtype=object)


def _allowed(name: str, manifest: Manifest, where: Mapping[str, Sequence[str]]) -> np.ndarray:
    is_allowed = np.ones(len(manifest), dtype=bool)
    for column, values in where.items():
        if column not in manifest.table.columns:
            raise ValueError(f"data.{name}: {manifest.path} has no column {column!r} to select by.")
        is_allowed &= manifest.table[column].isin(list(values)).to_numpy()
    return is_allowed


def with_label_faults(clips: PretrainingClips, missing_rate: float, noisy_rate: float, seed: int) -> np.ndarray:
    """Targets `[N]` where some labels are hidden or wrong, as in Figure 3 of the LASR paper.

    What happens to a clip depends on its name and the seed only: clips that lose their label at 25 % also do at 50 %.

    Args:
        missing_rate: share of clips whose label is hidden.
        noisy_rate: share of labels that become another one of the set, all equally likely.
    """
    targets = clips.targets.copy()
    num_labels = len(clips.labels)
    for i in np.flatnonzero(targets != IGNORED_LABEL):
        if num_labels > 1 and _fraction(seed, "noisy", clips.names[i]) < noisy_rate:
            shift = 1 + int(_fraction(seed, "other", clips.names[i]) * (num_labels - 1))
            targets[i] = (targets[i] + shift) % num_labels
        if _fraction(seed, "missing", clips.names[i]) < missing_rate:
            targets[i] = IGNORED_LABEL
    return targets


def _fraction(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that looks random and is always the same."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
