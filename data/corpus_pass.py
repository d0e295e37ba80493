"""One pass over a corpus: clips in batches of similar length, computed on every core, bad ones set aside.

The feature cache, the evaluation and `wavcse embed` differ in what they load of a clip, what they compute of a batch and what
they keep; the rest of a pass over many clips is here.

On a CPU a batch is the work of one *worker*: a forked process of one thread, which shares the weights of the process that
started it, decodes the clips of a batch and computes them. Threads within a batch wait for each other at every product,
workers for nobody. What is found goes back to the first process, the only one that writes. A batch holds the same clips
whatever the number of workers, so a clip gets the same bits. On a GPU this process computes, and threads decode ahead of it.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from wavcse.audio_wavcse import QUIET_RMS, is_quiet, printable
from wavcse.data.files import write_atomically
from wavcse.data.inspection import ClipFacts
from wavcse.data.manifest import Clip
from wavcse.kernels_wavcse import measure_products
from wavcse.settings.command import CommandError
from wavcse.settings.fields import check_range
from wavcse.settings.processes import (
    CAN_FORK,
    WorkerPool,
    end_with_parent,
    forked_workers,
    one_thread,
    thread_pool,
    usable_cores,
)

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
        waiting_s: how much of that the computation stood still because the next batch was not decoded yet; of several workers
            the mean.
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

    def include(self, part: PassReport) -> None:
        """Add what was found in a part of the pass; `elapsed_s` is for the whole to say."""
        self.clips += part.clips
        self.audio_s += part.audio_s
        self.waiting_s += part.waiting_s
        self.skipped |= part.skipped
        self.quiet |= part.quiet

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


def beginning_of(item: CorpusClip, seconds: float) -> CorpusClip:
    """The clip up to so many seconds from its start, under the digest that a manifest's `end` would give it."""
    if item.duration_s <= seconds:
        return item
    end_s = item.clip.start_s + seconds
    digest = f"{item.digest.partition('#')[0]}#{item.clip.start_s}-{end_s}"
    return CorpusClip(item.row, replace(item.clip, end_s=end_s), digest, seconds)


def batches_by_length(
    clips: Sequence[CorpusClip], batch_seconds: float, seconds: Sequence[float] | None = None
) -> list[list[CorpusClip]]:
    """Longest clips first, so that equal lengths meet and a too small machine fails early.

    In a batch `longest * count <= batch_seconds`, which bounds its memory even if it is padded; a longer clip goes alone.

    Args:
        seconds: what each clip costs, where that is not its duration (overlapping windows).
    """
    check_range("batch_seconds", batch_seconds, above=0)
    seconds = np.array([item.duration_s for item in clips] if seconds is None else seconds, dtype=np.float64)
    order = np.argsort(-seconds, kind="stable")
    batches, start = [], 0
    while start < len(order):
        count = max(1, int(batch_seconds / max(seconds[order[start]], 1e-3)))
        batches.append([clips[i] for i in order[start : start + count]])
        start += count
    return batches


def unfinished(batches: Sequence[list[CorpusClip]], is_finished: Callable[[CorpusClip], bool]) -> list[list[CorpusClip]]:
    """The batches without finished clips; batches left empty are dropped.

    Batches are made of all clips and thinned afterwards, so that a clip has the same neighbours after a kill as before it,
    and gets the same vector to the bit.
    """
    thinned = [[item for item in batch if not is_finished(item)] for batch in batches]
    return [batch for batch in thinned if batch]


def share_of_process(batches: Sequence[list[CorpusClip]], process_index: int, num_processes: int) -> list[list[CorpusClip]]:
    """The batches of one of several processes, in order.

    Every batch goes to the process that has the fewest seconds so far, the biggest batches first, so that the processes'
    seconds differ by less than one batch. Batches are never split, so that a clip's vector is the same to the bit with any
    number of processes.
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


def num_workers(asked: int | Literal["auto"] | None, num_batches: int, device: torch.device, num_processes: int = 1) -> int:
    """How many workers go over a corpus; 0 = this process alone, with PyTorch's threads as they are.

    Args:
        asked: a number; "auto" = as many as there are usable cores; `None` = no workers.
        num_batches: batches of the whole corpus, finished or not: what a continued run computes, it computes with as many
            threads as the run before. A corpus that would keep half of the cores idle (a few long recordings, or next to
            nothing) is left to PyTorch's threads.
        num_processes: of this run; where `accelerate launch` started several, each of them is a worker already.

    Raises:
        ValueError: more than one worker is asked for where there can be none.
    """
    if device.type != "cpu":
        reason = f"workers are for CPUs, and this run computes on {device}"
    elif num_processes > 1:
        reason = "every process that a launcher started is a worker already"
    else:
        reason = "" if CAN_FORK else "this system cannot fork processes"
    if asked is None:
        return 0
    if asked == "auto":
        cores = usable_cores()
        return cores if not reason and 2 * num_batches > cores else 0
    if asked < 1 or (asked > 1 and reason):
        raise ValueError(f"workers is {asked}; {reason or 'it must be at least 1'}.")
    return 0 if reason else asked


class WorkerDied(CommandError):
    """A worker process was ended by the system; the message says which."""


class CorpusPass:
    """Iterate over `(clips, computed)` of batches, in the order in which they are done.

    A clip whose `load` or `compute` raises ValueError (or FloatingPointError) is set aside in `report.skipped`; its neighbours
    in the batch are then computed one by one, so that no other clip is lost.

    Args:
        batches: from `batches_by_length` and `share_of_process`.
        load: decodes and checks one clip; runs in threads (soundfile and soxr release the GIL).
        compute: takes what `load` gave for the clips of a batch, in order; what it returns is passed on, from a worker to this
            process. What else it changes stays in the worker.
        waveform_of: finds in what `load` gave the waveform whose level is looked at; `None` = at none.
        show_progress: show a progress bar with audio-s/s and the share of time spent waiting for audio.
        workers: from `num_workers`. With 1 this process is the worker.
        words: what the progress bar says is done.

    Attributes:
        report: `PassReport`, complete when the iteration has ended.

    Raises:
        WorkerDied: the system ended a worker (want of memory, `kill -9`). What was passed on before is the caller's to keep.
    """

    def __init__(
        self,
        batches: Sequence[list[CorpusClip]],
        load: Callable[[Clip], Any],
        compute: Callable[[list], Any],
        show_progress: bool = False,
        waveform_of: Callable[[Any], np.ndarray] | None = None,
        workers: int = 0,
        words: str = "embed",
    ):
        self.batches, self.load, self.compute, self.show_progress = batches, load, compute, show_progress
        self.waveform_of, self.workers, self.words, self.report = waveform_of, workers, words, PassReport()

    def __iter__(self) -> Iterator[tuple[list[CorpusClip], Any]]:
        started, report = time.perf_counter(), self.report
        is_shared = self.workers > 1 and len(self.batches) > 1
        with tqdm(total=sum(map(len, self.batches)), desc=self.words, unit="clip", disable=not self.show_progress) as bar:
            for batch, found, part in self._in_workers() if is_shared else self._here():
                report.include(part)
                yield from found
                report.elapsed_s = time.perf_counter() - started
                bar.update(len(batch))
                speed = report.audio_s / report.elapsed_s
                bar.set_postfix_str(f"{speed:.1f} audio-s/s, waiting {report.waiting_share:.1%}", refresh=False)

    def _here(self) -> Iterator[tuple[list[CorpusClip], list, PassReport]]:
        """Batch, what was computed of it, and its part of the report; the batches in order."""
        with one_thread() if self.workers else nullcontext():
            for batch, futures in decoded_ahead(self.batches, self._load):
                yield batch, *self._done(batch, futures)

    def _in_workers(self) -> Iterator[tuple[list[CorpusClip], list, PassReport]]:
        """The same from worker processes, each batch when it is done."""
        measure_products()  # here once, or each worker would, and might choose otherwise
        workers = min(self.workers, len(self.batches))

        def name(numbers: Sequence[int]) -> str:
            return f"one of the batches that begin with {', '.join(self.batches[one][0].clip.clip_id for one in numbers)}"

        with forked_workers(workers, _start_worker, self) as pool:
            for number, (places, part) in done_by_workers(pool, _work, len(self.batches), workers, name):
                batch = self.batches[number]
                part.waiting_s /= workers
                yield batch, [([batch[place] for place in own], computed) for own, computed in places], part

    def work(self, number: int) -> tuple[list[tuple[list[int], Any]], PassReport]:
        """Load and compute a batch, in a worker process; clips are named by their places in the batch."""
        batch = self.batches[number]
        with thread_pool(decode_threads(self.workers)) as pool:
            found, part = self._done(batch, [pool.submit(self._load, item.clip) for item in batch])
        place_of = {item.row: place for place, item in enumerate(batch)}
        return [([place_of[item.row] for item in clips], computed) for clips, computed in found], part

    def _done(self, batch: Sequence[CorpusClip], futures: Sequence[Future]) -> tuple[list, PassReport]:
        """Clips and what was computed of them: once for the whole batch, or clip by clip where one of them is bad."""
        asked, part = time.perf_counter(), PassReport()
        loaded = self._loaded(batch, futures, part)
        part.waiting_s = time.perf_counter() - asked
        return list(self._computed(loaded, part)), part

    def _load(self, clip: Clip) -> tuple[Any, bool]:
        loaded = self.load(clip)
        return loaded, self.waveform_of is not None and is_quiet(self.waveform_of(loaded))

    def _loaded(
        self, batch: Sequence[CorpusClip], futures: Sequence[Future], part: PassReport
    ) -> list[tuple[CorpusClip, Any]]:
        loaded = []
        for item, future in zip(batch, futures):
            try:
                content, is_quiet_one = future.result()
                loaded.append((item, content))
                if is_quiet_one:
                    part.quiet.add(item.row)
            except ValueError as error:
                part.skipped[item.row] = reason_for(item.clip, str(error))
        return loaded

    def _computed(self, loaded: Sequence[tuple[CorpusClip, Any]], part: PassReport) -> Iterator[tuple[list[CorpusClip], Any]]:
        if not loaded:
            return
        clips = [item for item, _ in loaded]
        try:
            computed = self.compute([content for _, content in loaded])
        except (ValueError, FloatingPointError) as error:
            if len(loaded) == 1:
                part.skipped[clips[0].row] = reason_for(clips[0].clip, str(error))
                part.quiet.discard(clips[0].row)
                return
            for one in loaded:
                yield from self._computed([one], part)
        else:
            part.clips += len(clips)
            part.audio_s += seconds_of(clips)
            yield clips, computed


def done_by_workers(
    pool: WorkerPool, work: Callable[[int], Any], count: int, workers: int, name: Callable[[Sequence[int]], str]
) -> Iterator[tuple[int, Any]]:
    """`(number, work(number))` of the numbers below `count`, in the order in which they are done.

    They are begun in order, one in work and one at hand for each worker. When a worker has died, those that were done before
    come first.

    Args:
        name: says in the message which are in work, for some of the numbers.

    Raises:
        WorkerDied: the system ended a worker.
    """
    running: dict[Future, int] = {}
    try:
        for number in range(count):
            running[pool.submit(work, number)] = number
            if len(running) == 2 * workers:
                yield from _collected(running)
        while running:
            yield from _collected(running)
    except BrokenProcessPool as error:
        raise WorkerDied(f"{pool.death()}, in {name(sorted(running.values())[:workers])}.") from error


def _collected(running: dict[Future, int]) -> Iterator[tuple[int, Any]]:
    """Wait for the next ones that are done."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=lambda future: isinstance(future.exception(), BrokenProcessPool)):
        result = future.result()
        yield running.pop(future), result


def _start_worker(corpus_pass: CorpusPass) -> None:
    global _pass
    end_with_parent()
    torch.set_num_threads(1)
    _pass = corpus_pass


def _work(number: int) -> tuple[list[tuple[list[int], Any]], PassReport]:
    return _pass.work(number)


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


def decode_threads(workers: int = 1) -> int:
    """Threads that decode: the cores are shared with the other processes on this machine."""
    processes = max(workers, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(MAX_DECODE_THREADS, max(2, usable_cores() // processes))


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
    write_atomically(path, skipped_text(skipped))


def skipped_text(skipped: Sequence[SkippedClip]) -> str:
    """The table of skipped clips as CSV."""
    return _as_csv(("clip", "reason"), skipped)


def read_skipped(path: Path) -> list[SkippedClip]:
    """Read what `write_skipped` wrote; none where the file is gone."""
    return [SkippedClip(*row) for row in _read_rows(path)]


def write_quiet(path: Path, levels: Mapping[str, float]) -> None:
    """Write the table of the very quiet clips among `clip -> root mean square`; no file if there are none."""
    quiet = [(name, f"{decibels(level):.1f}") for name, level in levels.items() if level < QUIET_RMS]
    if quiet:
        write_atomically(path, _as_csv(("clip", "level_db"), quiet))
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


def _as_csv(header: tuple[str, ...], rows: Sequence[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return printable(text.getvalue())


def _read_rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]
