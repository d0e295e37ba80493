"""The pass over a corpus in worker processes: what one process finds, with every core."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from wavcse.data import corpus_pass
from wavcse.data.corpus_pass import CorpusClip, CorpusPass, WorkerDied, batches_by_length, num_workers
from wavcse.data.manifest import Clip

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "num_batches", "device", "num_processes", "workers"),
    [
        ("auto", 100, "cpu", 1, 8),
        ("auto", 5, "cpu", 1, 8),
        ("auto", 4, "cpu", 1, 0),  # half of the cores would be idle: PyTorch's threads have more of them
        ("auto", 100, "cuda", 1, 0),
        ("auto", 100, "cpu", 2, 0),  # each process is a worker
        (None, 100, "cpu", 1, 0),
        (1, 100, "cpu", 1, 1),
        (3, 1, "cpu", 1, 3),
        (1, 100, "cuda", 1, 0),
    ],
)
def test_how_many_workers(monkeypatch, asked, num_batches, device, num_processes, workers):
    monkeypatch.setattr(corpus_pass, "usable_cores", lambda: 8)
    assert num_workers(asked, num_batches, torch.device(device), num_processes) == workers


@pytest.mark.parametrize(
    ("asked", "device", "num_processes", "message"),
    [
        (0, "cpu", 1, "workers is 0; it must be at least 1"),
        (2, "cuda", 1, "workers is 2; workers are for CPUs, and this run computes on cuda"),
        (2, "cpu", 2, "workers is 2; every process that a launcher started is a worker already"),
    ],
)
def test_workers_that_there_cannot_be_are_refused(asked, device, num_processes, message):
    with pytest.raises(ValueError, match=message):
        num_workers(asked, 100, torch.device(device), num_processes)


def test_a_system_that_cannot_fork_has_no_workers(monkeypatch):
    monkeypatch.setattr(corpus_pass, "CAN_FORK", False)
    assert num_workers("auto", 100, CPU) == 0
    with pytest.raises(ValueError, match="this system cannot fork"):
        num_workers(2, 100, CPU)


def test_bound_to_one_core_there_is_one_worker():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert num_workers("auto", 100, CPU) == 1
    finally:
        os.sched_setaffinity(0, before)


def clips_of(count):
    return [CorpusClip(i, Clip(f"{i}.wav", Path(f"{i}.wav")), str(i), 1.0 + 0.1 * (i % 7)) for i in range(count)]


def load(clip):
    number = int(clip.clip_id.removesuffix(".wav"))
    if number == 5:
        raise ValueError(f"{clip.path}: is damaged")
    return (0 if number == 6 else number) * np.array([1, -1, 1, -1], np.float32)


def compute(loaded):
    sums = [float(np.abs(clip).sum()) for clip in loaded]
    if 4 * 11.0 in sums:
        raise ValueError("clip 0: cannot be embedded")
    return sums


def passed(workers, load=load, compute=compute):
    one = CorpusPass(batches_by_length(clips_of(40), 6.0), load, compute, waveform_of=lambda clip: clip, workers=workers)
    found = {item.row: value for clips, values in one for item, value in zip(clips, values, strict=True)}
    return found, one.report


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_find_what_one_process_finds(workers):
    found, report = passed(workers)
    assert found == {i: 4.0 * (0 if i == 6 else i) for i in range(40) if i not in (5, 11)}
    alone = passed(0)[1]
    assert report.skipped == alone.skipped == {5: "5.wav: is damaged", 11: "11.wav: cannot be embedded"}
    assert report.quiet == alone.quiet == {0, 6}
    assert (report.clips, round(report.audio_s, 6)) == (38, round(alone.audio_s, 6))
    assert 0 < report.waiting_s < report.elapsed_s


def test_a_worker_has_one_thread_and_is_another_process():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        where = set(passed(2, compute=lambda loaded: [(os.getpid(), torch.get_num_threads())] * len(loaded))[0].values())
        here = set(passed(1, compute=lambda loaded: [(os.getpid(), torch.get_num_threads())] * len(loaded))[0].values())
        assert torch.get_num_threads() == 2
        assert passed(0, compute=lambda loaded: [torch.get_num_threads()] * len(loaded))[0][0] == 2
    finally:
        torch.set_num_threads(before)
    assert {threads for _, threads in where | here} == {1}
    assert os.getpid() not in {pid for pid, _ in where}
    assert {pid for pid, _ in here} == {os.getpid()}


def test_one_batch_is_computed_here():
    one = CorpusPass([clips_of(2)], load, lambda loaded: [os.getpid()] * len(loaded), workers=4)
    assert [values for _, values in one] == [[os.getpid()] * 2]


def test_a_fault_in_a_worker_is_the_error_that_it_is_here():
    def fail(loaded):
        raise ZeroDivisionError("a fault")

    with pytest.raises(ZeroDivisionError, match="a fault"):
        passed(2, compute=fail)
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_named_and_what_was_found_before_is_passed_on():
    def last_one_dies(loaded):
        if any(clip[0] == 35 for clip in loaded):  # of the batch that comes last
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(loaded)

    one = CorpusPass(batches_by_length(clips_of(40), 6.0), load, last_one_dies, workers=2)
    found = []
    with pytest.raises(WorkerDied, match=r"^Worker process \d+ died \(SIGKILL\), perhaps for lack of memory, in one of the "):
        found.extend(item.row for clips, _ in one for item in clips)
    assert len(found) > 25
    assert not multiprocessing.active_children()


def test_who_stops_early_leaves_no_worker():
    one = iter(CorpusPass(batches_by_length(clips_of(40), 6.0), load, compute, workers=2))
    next(one)
    assert len(multiprocessing.active_children()) == 2
    one.close()
    assert not multiprocessing.active_children()
