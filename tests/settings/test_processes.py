"""Which cores a process may use, and workers that end with the process that started them."""

import math
import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool

import pytest

from wavcse.settings import processes
from wavcse.settings.processes import end_with_parent, forked_workers, quota_in_cores, usable_cores


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # version 2, in a container
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),  # a group above limits too
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "200000 100000\n"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, math.inf),
        ("0::/elsewhere\n", {}, math.inf),
        ("4:memory:/m\n3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3.0),
        ("1:cpu:/docker/x\n0::/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),  # its own root
        ("1:cpu:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, math.inf),
        ("2:cpuset:/a\n", {"cpuset/a/cpu.max": "100000 100000"}, math.inf),  # of another controller
        ("0::/\n", {"cpu.max": "no number"}, math.inf),
    ],
)
def test_quotas_of_control_groups(tmp_path, groups, files, cores):
    write(tmp_path / "proc/self/cgroup", groups)
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert quota_in_cores(tmp_path) == cores


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert quota_in_cores(tmp_path) == math.inf


@pytest.mark.parametrize(
    ("cores", "quota", "usable"), [(8, math.inf, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.2, 1), (1, 4.0, 1), (4, 64.0, 4)]
)
def test_usable_cores_are_those_of_the_affinity_that_the_quota_pays_for(monkeypatch, cores, quota, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(processes, "quota_in_cores", lambda: quota)
    assert usable_cores() == usable


def test_a_process_that_is_bound_to_one_core_has_one():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def _pid(seconds=0.0):
    time.sleep(seconds)
    return os.getpid()


def _die(number):
    os.kill(os.getpid(), number)


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pids, within_s=5.0):
    until = time.monotonic() + within_s
    while any(map(is_there, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    return not any(map(is_there, pids))


def test_a_worker_that_dies_is_named_with_the_signal():
    with forked_workers(2, end_with_parent) as pool:
        victim = pool.submit(_die, signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            victim.result()
        numbers = {worker.pid for worker in pool.workers}
        words = pool.death().split()
        assert words[:2] == ["Worker", "process"]
        assert int(words[2]) in numbers
        assert " ".join(words[3:]) == "died (SIGKILL), perhaps for lack of memory"
    assert gone(numbers)


def test_leaving_early_does_not_wait_for_what_workers_compute():
    def leave():
        with forked_workers(2, end_with_parent) as pool:
            numbers.update({pool.submit(_pid).result(), *(worker.pid for worker in pool.workers)})
            pool.submit(_pid, 300.0)
            raise KeyError

    numbers, started = set(), time.monotonic()
    with pytest.raises(KeyError):
        leave()
    assert time.monotonic() - started < 60
    assert len(numbers) == 2
    assert gone(numbers)


def test_workers_end_with_a_process_that_is_killed():
    told, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            with forked_workers(2, end_with_parent) as pool:
                pool.submit(_pid).result()
                os.write(tell, ",".join(str(worker.pid) for worker in pool.workers).encode())
                pool.submit(_pid, 300.0).result()
        finally:
            os._exit(1)
    workers = [int(pid) for pid in os.read(told, 100).split(b",")]
    assert len(workers) == 2
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(workers)
