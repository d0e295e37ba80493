"""Audio on two sides of a split, whatever manifests list it; a copy under another file name is not noticed.

That no speaker crosses the splits is checked where labels are read (`wavcse.data.labels`); this is about the clips themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wavcse.data.labels import TaskClips
from wavcse.data.manifest import Clip


def clip_identity(clip: Clip) -> tuple[str, float, float]:
    """What makes two clips the same audio: the real path and the part of the file, whatever manifest names it."""
    return str(clip.path.resolve()), clip.start_s, float("inf") if clip.end_s is None else clip.end_s


def refuse_overlap_across_splits(table: TaskClips) -> None:
    """ValueError if overlapping parts of one file are in two splits."""
    parts: dict[str, list[tuple[float, float, str, str]]] = {}
    for clip, split in zip(table.clips, table.splits):
        path, start_s, end_s = clip_identity(clip)
        parts.setdefault(path, []).append((start_s, end_s, split, clip.clip_id))
    for of_file in parts.values():
        latest: dict[str, tuple[float, str]] = {}  # split -> end of what was seen of the file, and its clip
        for start_s, end_s, split, clip_id in sorted(of_file):
            for other, (other_end_s, other_id) in latest.items():
                if other != split and other_end_s > start_s:
                    raise ValueError(
                        f"task {table.name!r}: {clip_id} ({split}) and {other_id} ({other}) overlap in the same file; "
                        "audio may be in one split only."
                    )
            latest[split] = max(latest.get(split, (0.0, "")), (end_s, clip_id))


def distinct_rows(table: TaskClips) -> np.ndarray:
    """Rows `[M]` without repetitions of a clip; ValueError if a clip has two labels."""
    first: dict[tuple[str, float, float], int] = {}
    for row, clip in enumerate(table.clips):
        kept = first.setdefault(clip_identity(clip), row)
        if table.labels[kept] != table.labels[row]:
            raise ValueError(
                f"task {table.name!r}: {clip.clip_id} is labelled {table.labels[kept]!r} in one manifest and "
                f"{table.labels[row]!r} in another."
            )
    return np.array(list(first.values()))


def refuse_trials_outside_test(table: TaskClips, rows: Sequence[int]) -> None:
    """ValueError if a clip of a trial is in the training or validation split."""
    for row in rows:
        if table.splits[row] != "test":
            raise ValueError(
                f"task {table.name!r}: {table.clips[row].clip_id} of speaker {table.groups[row]!r} is in a trial and in the "
                f"{table.splits[row]} split; trials are made of test clips only."
            )
