"""One pass over a corpus: clips in batches of similar length, decoded ahead of the computation, bad ones set aside.

The feature cache, the evaluation and `wavcse embed` differ in what they load of a clip, what they compute of a batch and what
they keep; the rest of a pass over many clips is here.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from wavcse.audio_wavcse import QUIET_RMS, is_quiet, printable
from wavcse.data.files import write_atomically
from wavcse.data.inspection import ClipFacts
from wavcse.data.manifest import Clip
from wavcse.settings.processes import thread_pool

LOOK_AHEAD_S = 600.0  # decoded audio that waits for the computation: 38 MB at 16 kHz
MAX_DECODE_THREADS = 8
PATIENCE = timedelta(days=7)  # processes finish far apart, and one of them inspects or merges while the others wait


class CorpusClip(NamedTuple):
    """A readable clip of a corpus: its row there, its content digest and its length as its header tells it."""

    row: int
    clip: Clip
    digest: str
    duration_s: float


class SkippedClip(NamedTuple):
    """A clip that could not be used, and why; the reason begins with its name."""

    clip_id: str
    reason: str


class QuietClip(NamedTuple):
    """A clip so quiet that its embedding drifts to that of silence, and its level in decibels of full scale."""

    clip_id: str
    level_db: float


@dataclass
class PassReport:
    """What a pass did.

    Args:
        clips: clips that were computed.
        audio_s: their length together in seconds.
        elapsed_s: how long the pass took; of several processes the longest.
        waiting_s: how much of that the computation stood still because the next batch was not decoded yet.
        skipped: row -> reason, for clips that could not be decoded or computed.
        quiet: rows of clips that were computed, but are very quiet.
    """

    clips: int = 0
    audio_s: float = 0.0
    elapsed_s: float = 0.0
    waiting_s: float = 0.0
    skipped: dict[int, str] = field(default_factory=dict)
    quiet: set[int] = field(default_factory=set)

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the computation waited for audio, 0 to 1."""
        return self.waiting_s / max(self.elapsed_s, 1e-9)

    def speed(self) -> str:
        """Seconds of audio and clips per second, and the share of time spent waiting for audio, in words."""
        elapsed_s = max(self.elapsed_s, 1e-9)
        return (
            f"{self.audio_s / elapsed_s:.1f} audio-s/s, {self.clips / elapsed_s:.1f} clips/s, "
            f"{self.waiting_share:.1%} of the time waiting for audio"
        )


def process_state(cpu: bool = False) -> PartialState:
    """The processes that `accelerate launch` or `torchrun` started, or this one alone; on CPUs where there is nothing else."""
    return PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=PATIENCE)


def readable_clips(clips: Sequence[Clip], facts: Sequence[ClipFacts]) -> tuple[list[CorpusClip], dict[int, str]]:
    """Sort out the files that are not audio: the other clips, and row -> reason for these."""
    readable, unreadable = [], {}
    for row, (clip, fact) in enumerate(zip(clips, facts)):
        if fact.error:
            unreadable[row] = reason_for(clip, f"{clip.clip_id}: {fact.error}")
        else:
            readable.append(CorpusClip(row, replace(clip, stamp=fact.stamp), fact.digest, fact.duration_s))
    return readable, unreadable


def check_batch_seconds(batch_seconds: float) -> None:
    """ValueError unless it is a positive number of seconds."""
    if not batch_seconds > 0:
        raise ValueError(f"batch_seconds is {batch_seconds}; it must be a positive number of seconds.")


def batches_by_length(
    clips: Sequence[CorpusClip], batch_seconds: float, seconds: Sequence[float] | None = None
) -> list[list[CorpusClip]]:
    """Longest clips first, so that equal lengths meet and a too small machine fails early.

    In a batch `longest * count <= batch_seconds`, which bounds its memory even if it is padded; a longer clip goes alone.

    Args:
        seconds: what each clip costs, where that is not its duration (overlapping windows).
    """
    check_batch_seconds(batch_seconds)
    seconds = np.array([item.duration_s for item in clips] if seconds is None else seconds, dtype=np.float64)
    order = np.argsort(-seconds, kind="stable")
    batches, start = [], 0
    while start < len(order):
        count = max(1, int(batch_seconds / max(seconds[order[start]], 1e-3)))
        batches.append([clips[i] for i in order[start : start + count]])
        start += count
    return batches


def unfinished(batches: Sequence[list[CorpusClip]], is_finished: Callable[[CorpusClip], bool]) -> list[list[CorpusClip]]:
    """The batches without what is finished, and none that is empty.

    Batches are made of all clips and thinned afterwards: a batch that a kill interrupted is made again of the same clips, and
    every clip gets the same bits.
    """
    thinned = [[item for item in batch if not is_finished(item)] for batch in batches]
    return [batch for batch in thinned if batch]


def share_of_process(batches: Sequence[list[CorpusClip]], process_index: int, num_processes: int) -> list[list[CorpusClip]]:
    """The batches of one of several processes, in order.

    Every batch goes to the process that has the fewest seconds so far, the biggest batches first, so that the processes'
    seconds differ by less than one batch. Whole batches are dealt, so that a clip's vector is the same to the bit with
    any number of processes.
    """
    seconds = [seconds_of(batch) for batch in batches]
    totals, mine = [0.0] * num_processes, []
    for number in sorted(range(len(batches)), key=lambda number: -seconds[number]):
        process = totals.index(min(totals))
        totals[process] += seconds[number]
        if process == process_index:
            mine.append(number)
    return [batches[number] for number in sorted(mine)]


def seconds_of(batch: Sequence[CorpusClip]) -> float:
    """Audio in a batch, in seconds."""
    return sum(clip.duration_s for clip in batch)


class CorpusPass:
    """Iterate over `(clips, computed)`: each batch is loaded in threads ahead of time and computed here.

    A clip whose `load` or `compute` raises ValueError (or FloatingPointError) is set aside in `report.skipped`; its neighbours
    in the batch are then computed one by one, so it costs nobody else.

    Args:
        batches: from `batches_by_length` and `share_of_process`.
        load: decodes and checks one clip; runs in threads (soundfile and soxr release the GIL).
        compute: takes what `load` gave for the clips of a batch, in order; what it returns is passed on.
        waveform_of: finds in what `load` gave the waveform whose level is looked at; `None` = at none.
        show_progress: show a progress bar with audio-s/s and the share of time spent waiting for audio.

    Attributes:
        report: `PassReport`, complete when the iteration has ended.
    """

    def __init__(
        self,
        batches: Sequence[list[CorpusClip]],
        load: Callable[[Clip], Any],
        compute: Callable[[list], Any],
        show_progress: bool = False,
        waveform_of: Callable[[Any], np.ndarray] | None = None,
    ):
        self.batches, self.load, self.compute, self.show_progress = batches, load, compute, show_progress
        self.waveform_of, self.report = waveform_of, PassReport()

    def __iter__(self) -> Iterator[tuple[list[CorpusClip], Any]]:
        started, report = time.perf_counter(), self.report
        with tqdm(total=sum(map(len, self.batches)), desc="embed", unit="clip", disable=not self.show_progress) as bar:
            for batch, futures in decoded_ahead(self.batches, self._load):
                asked = time.perf_counter()
                loaded = self._loaded(batch, futures)
                report.waiting_s += time.perf_counter() - asked
                yield from self._computed(loaded)
                report.elapsed_s = time.perf_counter() - started
                bar.update(len(batch))
                speed = report.audio_s / report.elapsed_s
                bar.set_postfix_str(f"{speed:.1f} audio-s/s, waiting {report.waiting_share:.1%}", refresh=False)

    def _load(self, clip: Clip) -> tuple[Any, bool]:
        loaded = self.load(clip)
        return loaded, self.waveform_of is not None and is_quiet(self.waveform_of(loaded))

    def _loaded(self, batch: Sequence[CorpusClip], futures: Sequence[Future]) -> list[tuple[CorpusClip, Any]]:
        loaded = []
        for item, future in zip(batch, futures):
            try:
                content, is_quiet_one = future.result()
                loaded.append((item, content))
                if is_quiet_one:
                    self.report.quiet.add(item.row)
            except ValueError as error:
                self.report.skipped[item.row] = reason_for(item.clip, str(error))
        return loaded

    def _computed(self, loaded: Sequence[tuple[CorpusClip, Any]]) -> Iterator[tuple[list[CorpusClip], Any]]:
        if not loaded:
            return
        clips = [item for item, _ in loaded]
        try:
            computed = self.compute([content for _, content in loaded])
        except (ValueError, FloatingPointError) as error:
            if len(loaded) == 1:
                self.report.skipped[clips[0].row] = reason_for(clips[0].clip, str(error))
                self.report.quiet.discard(clips[0].row)
                return
            for one in loaded:
                yield from self._computed([one])
        else:
            self.report.clips += len(clips)
            self.report.audio_s += seconds_of(clips)
            yield clips, computed


def decoded_ahead(
    batches: Sequence[list[CorpusClip]], load: Callable[[Clip], Any]
) -> Iterator[tuple[list[CorpusClip], list[Future]]]:
    """Batches in order with a future per clip, while threads load the batches after them.

    At least one batch is loaded ahead, and as many as hold `LOOK_AHEAD_S`: memory is bounded by seconds, not by counts.
    """
    ahead: deque[tuple[list[CorpusClip], list[Future]]] = deque()
    ahead_s = 0.0
    with thread_pool(decode_threads()) as pool:
        for batch in batches:
            ahead.append((batch, [pool.submit(load, item.clip) for item in batch]))
            ahead_s += seconds_of(batch)
            while len(ahead) > 1 and ahead_s > LOOK_AHEAD_S:
                ahead_s -= seconds_of(ahead[0][0])
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()


def decode_threads() -> int:
    """Threads that decode: the cores are shared with the other processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_DECODE_THREADS, max(2, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def reason_for(clip: Clip, reason: str) -> str:
    """An error's words in one line, calling the clip by its name.

    Libraries quote the whole path; the name says enough, and the list can be shared. Models know positions in a batch only.
    """
    for path in (clip.real_path, str(clip.path)):
        reason = reason.replace(path, clip.clip_id)
    return printable(" ".join(reason.split())).replace("clip 0:", f"{clip.clip_id}:")


def skipped_clips(clips: Sequence[Clip], reasons: dict[int, str]) -> list[SkippedClip]:
    """Name the clips of `row -> reason`, in order."""
    return [SkippedClip(clips[row].clip_id, reasons[row]) for row in sorted(reasons)]


def gathered(report: PassReport) -> PassReport:
    """The reports of all processes in one; every process gets it."""
    reports = gather_object([report])
    return PassReport(
        clips=sum(one.clips for one in reports),
        audio_s=sum(one.audio_s for one in reports),
        elapsed_s=max(one.elapsed_s for one in reports),
        waiting_s=max(one.waiting_s for one in reports),
        skipped={row: reason for one in reports for row, reason in one.skipped.items()},
        quiet=set().union(*(one.quiet for one in reports)),
    )


def write_skipped(path: Path, skipped: Sequence[SkippedClip]) -> None:
    """Write the table of skipped clips (only its header if there are none)."""
    _write_rows(path, ("clip", "reason"), skipped)


def read_skipped(path: Path) -> list[SkippedClip]:
    """Read what `write_skipped` wrote; none where the file is gone."""
    return [SkippedClip(*row) for row in _read_rows(path)]


def write_quiet(path: Path, levels: Mapping[str, float]) -> None:
    """Write the table of the very quiet clips among `clip -> root mean square`; no file if there are none."""
    quiet = [(name, f"{decibels(level):.1f}") for name, level in levels.items() if level < QUIET_RMS]
    if quiet:
        _write_rows(path, ("clip", "level_db"), quiet)
    else:
        path.unlink(missing_ok=True)


def read_quiet(path: Path) -> list[QuietClip]:
    """Read what `write_quiet` wrote; none where there is no file."""
    return [QuietClip(name, float(level)) for name, level in _read_rows(path)]


def quiet_in_words(count: int, first: str) -> str:
    """A line for a report: how many clips are very quiet, and what that means."""
    limit = f"{decibels(QUIET_RMS):.0f} dB of full scale"
    return f"{count} clips are quieter than {limit}, so that their embeddings drift to that of silence; the first: {first}"


def decibels(rms: float) -> float:
    """Decibels of full scale; minus infinity for digital silence."""
    return 20 * math.log10(rms) if rms > 0 else -math.inf


def _write_rows(path: Path, header: tuple[str, ...], rows: Sequence[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, printable(text.getvalue()))


def _read_rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]
