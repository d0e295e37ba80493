"""Frames of the clips of a task, one layer of one encoder: computed once, kept on disk within a stated budget.

    frames/<encoder>.<layer>.<key>.npy     frames of all clips one after another, float32 [sum of T, D]
    frames/<encoder>.<layer>.<key>.json    T of every clip

and, while a worker computes them, .reserved, whose size counts as theirs.

They are the contract *frames* (`AnalyzedEncoder.frames`): without padding, the mean over T is the vector of the layer.

Shapes: `N` clips, `T` frames of a clip, `D` width of a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from wavcse.analysis.encoders import AnalyzedEncoder, View
from wavcse.data.files import digest_of, kept_json, locked, remove_partials, replacing, write_json
from wavcse.data.manifest import Clip

GIGABYTE = 1e9
TABLE, LENGTHS, RESERVED = ".npy", ".json", ".reserved"
LOCK_PATIENCE_S = 60.0  # workers hold the lock for less than a millisecond, but on a busy machine one may be kept waiting


class Frames:
    """Frames of N clips.

    Args:
        table: of all clips one after another, `[sum of T, D]`.
        lengths: T of every clip, `[N]`.
    """

    def __init__(self, table: np.ndarray, lengths: Sequence[int]):
        self.table, self.lengths = table, np.asarray(lengths, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """Of one clip, `[T, D]`."""
        return self.table[self.starts[row] : self.starts[row + 1]]


def stem_of(encoder: AnalyzedEncoder, view: View, key: object) -> str:
    """What the files of a layer are called, without their endings; `key` is that of `frames_of`."""
    return f"{encoder.name}.{view.name.replace(' ', '_')}.{digest_of(key)}"


def remove_others(folder: Path, stems: Collection[str]) -> None:
    """Remove frames that rest on what has changed since, and what killed workers have reserved; while no worker runs.

    Args:
        stems: of the frames that are wanted (`stem_of`).
    """
    remove_partials(folder)
    for path in folder.glob("*"):
        if path.suffix == RESERVED or (path.suffix in (TABLE, LENGTHS) and path.stem not in stems):
            path.unlink()


def frames_of(
    encoder: AnalyzedEncoder,
    view: View,
    clips: Sequence[Clip],
    folder: Path,
    key: object,
    disk_gb: float,
    first_s: float | None = None,
    show_progress: bool = True,
) -> Frames:
    """The frames of clips, read where they are kept already.

    Args:
        key: all that they depend on beside the layer.
        disk_gb: what all files in `folder` may take together, those that other workers are about to write among them.

    Raises:
        ValueError: they take more, or the view has no frames.
    """
    stem = stem_of(encoder, view, key)
    table_path, lengths_path = folder / f"{stem}{TABLE}", folder / f"{stem}{LENGTHS}"
    if table_path.exists() and lengths_path.exists() and (kept := kept_json(lengths_path)) is not None:
        return Frames(np.load(table_path, mmap_mode="r"), kept["lengths"])
    folder.mkdir(parents=True, exist_ok=True)
    parts, own_bytes, rate = [], 0, encoder.sampling_rate
    try:
        for clip in tqdm(clips, f"frames of {encoder.name}", unit="clip", disable=not show_progress):
            waveform = clip.load(rate)
            (own,) = encoder.frames([waveform if first_s is None else waveform[: int(first_s * rate)]], view)
            parts.append(own)
            own_bytes += own.nbytes
            if not _reserved(folder, stem, own_bytes, disk_gb * GIGABYTE):
                raise ValueError(
                    f"frames of {view.name} of {encoder.name} take more than --disk_gb {disk_gb:g} after {len(parts):,} of "
                    f"{len(clips):,} clips: allow more, name fewer tasks, or take --first_s."
                )
        with replacing(table_path) as partial, open(partial, "wb") as file:
            np.save(file, np.concatenate(parts))
    finally:
        (folder / f"{stem}{RESERVED}").unlink(missing_ok=True)
    write_json(lengths_path, {"lengths": [len(own) for own in parts]})
    return Frames(np.load(table_path, mmap_mode="r"), [len(own) for own in parts])


def _reserved(folder: Path, stem: str, num_bytes: int, most: float) -> bool:
    """Reserve so many bytes for a table, all that was reserved for it before among them; False if that is more than `most`.

    What is reserved is the size of a file without content: two workers that only looked at what is written would both find
    room, and together exceed it.
    """
    with locked(folder, patience_s=LOCK_PATIENCE_S):
        sizes: dict[str, int] = {}
        for path in folder.glob("*"):
            if path.suffix in (TABLE, RESERVED) and path.stem != stem:
                sizes[path.stem] = max(sizes.get(path.stem, 0), path.stat().st_size)  # one just written is still reserved
        if sum(sizes.values()) + num_bytes > most:
            return False
        with open(folder / f"{stem}{RESERVED}", "ab") as file:
            file.truncate(num_bytes)
        return True
