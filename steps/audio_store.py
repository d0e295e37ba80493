"""Audio of a pre-training set, decoded once: 16-bit samples in one file, read through a memory map.

    ROOT/<digest>/audio.int16        the files' samples, mono, 16 kHz, one file after another
    ROOT/<digest>/unreadable.json    path -> why a file could not be decoded; only where there is such a file
    ROOT/<digest>/index.json         path -> first sample and number of samples, and the checksum of the samples; written last,
                                     so it is there when all is whole

The digest is of the files' paths, sizes and times of change. Crops at random are then slices, at the speed of memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from wavcse.audio_wavcse import SAMPLING_RATE_HZ, check_part, part_in_samples
from wavcse.data.corpus_pass import decode_threads
from wavcse.data.files import DamagedFile, checksum, read_json, replacing, set_aside, write_json
from wavcse.data.manifest import Clip, file_stamp, real_path
from wavcse.settings.processes import thread_pool

FULL_SCALE = 2**15
SAMPLES, INDEX, UNREADABLE = "audio.int16", "index.json", "unreadable.json"


class AudioStore:
    """The decoded samples of some files; made by `build_store`."""

    def __init__(self, folder: Path):
        index = read_json(folder / INDEX)
        self.checksum = index.pop(SAMPLES, None)  # none: of an earlier version
        self.location: dict[str, tuple[int, int]] = {path: tuple(place) for path, place in index.items()}
        reasons = folder / UNREADABLE
        self.unreadable: dict[str, str] = read_json(reasons) if reasons.exists() else {}
        self.samples = np.memmap(folder / SAMPLES, np.int16, mode="r")

    def samples_of(self, clip: Clip) -> tuple[int, int]:
        """The first sample of a clip in its file, and its number of samples, both at 16 kHz.

        Raises:
            ValueError: the file could not be decoded, or the clip is not all in it; the message names the clip.
        """
        path = clip.real_path
        if path in self.unreadable:
            raise ValueError(f"{clip.clip_id}: {self.unreadable[path]}")
        first, end = part_in_samples(clip.start_s, clip.end_s, SAMPLING_RATE_HZ, clip.clip_id)
        size = self.location[path][1]
        check_part(first, end, size, SAMPLING_RATE_HZ, clip.clip_id)
        return first, (size if end is None else min(end, size)) - first

    def read(self, path: Path, start: int, num_samples: int) -> np.ndarray:
        """A part of a file, float32 `[num_samples]` in [-1, 1]; it must lie within the file."""
        first = self.location[real_path(path)][0] + start
        return self.samples[first : first + num_samples].astype(np.float32) / FULL_SCALE


def build_store(root: str | Path, paths: Iterable[Path], show_progress: bool = False, repair: bool = True) -> AudioStore:
    """Open the store of these files below `root`, decoding them first if there is none.

    A file that is missing, is not audio or changes while it is read is left out, with the reason in `AudioStore.unreadable`.

    Args:
        repair: read all samples once and compare their checksum; a damaged store is set aside and made again. Only one of
            several processes does this.

    Raises:
        ValueError: no file can be read.
    """
    paths = sorted({Path(real_path(path)) for path in paths})
    folder = Path(root) / _digest(paths)
    if repair and (folder / INDEX).exists():
        _set_damaged_aside(folder)
    if not (folder / INDEX).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / SAMPLES) as partial:
            index, unreadable = _decode_into(partial, paths, show_progress)
            if unreadable and not index:
                first = min(unreadable)
                raise ValueError(f"none of {len(paths)} files can be read. The first, {first}: {unreadable[first]}")
        if unreadable:
            write_json(folder / UNREADABLE, unreadable, indent=1)
        write_json(folder / INDEX, {**index, SAMPLES: checksum(folder / SAMPLES)})
    return AudioStore(folder)


def _set_damaged_aside(folder: Path) -> None:
    try:
        expected = AudioStore(folder).checksum
        if expected is not None and checksum(folder / SAMPLES) != expected:
            raise DamagedFile(f"{folder / SAMPLES}: is damaged; its content does not match its checksum.")
    except (ValueError, FileNotFoundError) as error:  # the former also of a file that no memory map can be made of
        set_aside(folder, error)


def _decode_into(target: Path, paths: list[Path], show_progress: bool) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    index, unreadable, first = {}, {}, 0
    threads = decode_threads()
    with open(target, "wb") as file, thread_pool(threads) as pool:
        with tqdm(total=len(paths), desc="decode", unit="file", disable=not show_progress) as bar:
            for start in range(0, len(paths), 4 * threads):  # what waits in memory is bounded
                some = paths[start : start + 4 * threads]
                for path, samples in zip(some, pool.map(_pcm, some)):
                    bar.update()
                    if isinstance(samples, str):
                        unreadable[str(path)] = samples
                        continue
                    file.write(samples.tobytes())
                    index[str(path)] = (first, len(samples))
                    first += len(samples)
    return index, unreadable


def _pcm(path: Path) -> np.ndarray | str:
    """The samples of a file, or why it has none."""
    try:
        waveform = Clip("file", path, stamp=file_stamp(path)).load(SAMPLING_RATE_HZ)
    except ValueError as error:
        return str(error).removeprefix("file: ")
    scaled = np.rint(waveform * FULL_SCALE)
    return scaled.clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _digest(paths: list[Path]) -> str:
    facts = [[str(path), *file_stamp(path)] for path in paths]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
