"""Audio of a pre-training set, decoded once: 16-bit samples in one file, read through a memory map.

    ROOT/<digest>/audio.int16    the files' samples, mono, 16 kHz, one file after another
    ROOT/<digest>/index.json     path -> first sample and number of samples; written last, so it is there when all is whole

The digest is of the files' paths, sizes and times of change. Crops at random are then slices, at the speed of memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from wavcse.audio_wavcse import SAMPLING_RATE_HZ, decode, resample
from wavcse.data.corpus_pass import decode_threads
from wavcse.data.files import replacing, write_atomically

FULL_SCALE = 2**15


class AudioStore:
    """The decoded samples of some files; made by `build_store`."""

    def __init__(self, folder: Path):
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.location: dict[str, tuple[int, int]] = {path: tuple(place) for path, place in index.items()}
        self.samples = np.memmap(folder / "audio.int16", np.int16, mode="r")

    def num_samples(self, path: Path) -> int:
        """Length of a file at 16 kHz."""
        return self.location[str(path.resolve())][1]

    def read(self, path: Path, start: int, num_samples: int) -> np.ndarray:
        """A part of a file, float32 `[num_samples]` in [-1, 1]; it must lie within the file."""
        first = self.location[str(path.resolve())][0] + start
        return self.samples[first : first + num_samples].astype(np.float32) / FULL_SCALE


def build_store(root: str | Path, paths: Iterable[Path], show_progress: bool = False) -> AudioStore:
    """Open the store of these files below `root`, decoding them first if there is none.

    Raises:
        ValueError: a file is missing or is not audio.
    """
    paths = sorted({path.resolve() for path in paths})
    folder = Path(root) / _digest(paths)
    if not (folder / "index.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "audio.int16") as partial:
            index = _decode_into(partial, paths, show_progress)
        write_atomically(folder / "index.json", json.dumps(index))
    return AudioStore(folder)


def _decode_into(target: Path, paths: list[Path], show_progress: bool) -> dict[str, tuple[int, int]]:
    index, first = {}, 0
    threads = decode_threads()
    with open(target, "wb") as file, ThreadPoolExecutor(threads) as pool:
        with tqdm(total=len(paths), desc="decode", unit="file", disable=not show_progress) as bar:
            for start in range(0, len(paths), 4 * threads):  # what waits in memory is bounded
                some = paths[start : start + 4 * threads]
                for path, samples in zip(some, pool.map(_pcm, some)):
                    file.write(samples.tobytes())
                    index[str(path)] = (first, len(samples))
                    first += len(samples)
                    bar.update()
    return index


def _pcm(path: Path) -> np.ndarray:
    waveform, rate = decode(path)
    scaled = np.rint(resample(waveform, rate, SAMPLING_RATE_HZ) * FULL_SCALE)
    return scaled.clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _digest(paths: list[Path]) -> str:
    facts = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
        facts.append([str(path), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
