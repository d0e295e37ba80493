"""Files that are whole or not there, checksums that notice a flipped bit, and folders that belong to one run at a time."""

import errno
import os
import re
import resource
import signal
import time

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file, save_file

from wavcse.data import files
from wavcse.data.files import (
    DamagedFile,
    check_piece,
    checksum,
    clear_folder,
    locked,
    read_json,
    remove_partials,
    replacing,
    set_aside,
    write_atomically,
    write_json,
    write_piece,
)


def flip_a_bit(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path, durable):
    path = tmp_path / "text.json"
    write_atomically(path, "old")
    write_atomically(path, "grüße\n", durable)
    assert path.read_bytes() == "grüße\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with pytest.raises(IsADirectoryError), replacing(path) as partial:
        (partial.write_bytes(b"half"), tmp_path.write_bytes(b""))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_the_disk_name_the_file_whichever_library_wrote(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(OSError) as full, replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")  # as of pyarrow, which names no file
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(path))
    with pytest.raises(FileNotFoundError) as missing, replacing(path):
        save_file({"x": np.zeros(3)}, tmp_path / "no folder" / "x.safetensors")  # safetensors has errors of its own
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, str(path))
    with pytest.raises(OSError, match="it went wrong") as other, replacing(path):
        raise OSError("it went wrong")
    assert other.value.filename == str(path)


def write_tensors(path):
    save_file({"x": np.zeros(3000)}, path)


def write_parquet(path):
    parquet.write_table(pa.table({"x": np.random.default_rng(0).standard_normal(3000)}), path)


def write_text(path):
    path.write_text("x" * 24_000)


@pytest.mark.parametrize("write", [write_tensors, write_parquet, write_text])
def test_a_disk_that_takes_no_more_is_an_error_with_the_name_and_no_partial_file(tmp_path, write):
    """The system's limit on the size of files stands for a full disk."""
    path, limits = tmp_path / "x", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError) as full, replacing(path) as partial:
            write(partial)
        with pytest.raises(OSError) as piece:
            write_piece(tmp_path, ".piece", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (full.value.errno, full.value.filename) == (errno.EFBIG, str(path))
    assert (piece.value.errno, piece.value.filename[-6:]) == (errno.EFBIG, ".piece")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [3, 40, -1])
def test_one_flipped_bit_of_a_piece_is_noticed_wherever_it_is(tmp_path, place):
    path = write_piece(tmp_path, ".safetensors", lambda partial: save_file({"x": np.arange(5)}, partial), "part-")
    assert re.fullmatch(r"part-[0-9a-f]{32}-[0-9a-f]{8}\.safetensors", path.name)
    assert list(tmp_path.iterdir()) == [path]
    check_piece(path)
    assert load_file(path)["x"].tolist() == [0, 1, 2, 3, 4]
    flip_a_bit(path, place)
    with pytest.raises(DamagedFile, match=f"^{re.escape(str(path))}: is damaged"):
        check_piece(path)


def test_a_piece_that_was_cut_short_is_noticed_and_one_of_an_earlier_version_passes(tmp_path):
    path = write_piece(tmp_path, ".bin", lambda partial: partial.write_bytes(bytes(100)))
    path.write_bytes(bytes(99))
    with pytest.raises(DamagedFile):
        check_piece(path)
    earlier = tmp_path / "0a4f2c0a4f2c0a4f2c0a4f2c0a4f2c0a.bin"
    path.rename(earlier)
    check_piece(earlier)


def test_the_checksum_of_a_large_file_is_that_of_all_its_chunks(tmp_path):
    path = tmp_path / "123456789"
    path.write_bytes(b"123456789")
    assert checksum(path) == "cbf43926"  # the check value of CRC-32
    path.write_bytes(bytes(files.CHUNK) + b"end")
    whole = checksum(path)
    path.write_bytes(bytes(files.CHUNK) + b"enc")
    assert checksum(path) != whole


def test_json_is_read_as_it_was_written_and_a_changed_digit_is_noticed(tmp_path):
    path = tmp_path / "record.json"
    record = {"b": {"2": 0.1 + 0.2, "10": None}, "a": [1, "ä"], "n": float("inf")}
    write_json(path, {**record, "b": {2: 0.1 + 0.2, 10: None}, "a": (1, "ä")}, indent=1)
    assert read_json(path) == {**record, "n": None}  # JSON has no infinity
    path.write_text(path.read_text(encoding="utf-8").replace("0.30000000000000004", "0.30000000000000104"), encoding="utf-8")
    with pytest.raises(DamagedFile, match="does not match its checksum"):
        read_json(path)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1, 2]", b"\xff\xfe", b"1", b"[" * 100_000])
def test_what_is_no_json_of_ours_is_damaged_and_named(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match="record.json: is damaged"):
        read_json(path)


def test_json_of_an_earlier_version_has_no_checksum_and_passes(tmp_path):
    (tmp_path / "old.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "old.json") == {"a": 1}


def test_a_damaged_file_or_folder_is_set_aside_and_named(tmp_path, capsys):
    for content in ("first", "second"):
        (tmp_path / "x.json").write_text(content)
        set_aside(tmp_path / "x.json", DamagedFile("x.json: is damaged."))
        (tmp_path / "last").mkdir()
        (tmp_path / "last" / "state").write_text(content)
        set_aside(tmp_path / "last", "last: is damaged.")
    assert (tmp_path / "x.json.damaged").read_text() == "second"
    assert (tmp_path / "last.damaged" / "state").read_text() == "second"
    assert capsys.readouterr().err.splitlines()[0] == "x.json: is damaged. It is set aside as x.json.damaged."


def test_partial_files_of_killed_runs_are_removed_and_nothing_else(tmp_path):
    for name in ("a.partial", ".tmpIDh3aT", "a.json"):
        (tmp_path / name).touch()
    (tmp_path / "last.partial").mkdir()
    (tmp_path / "last.partial" / "tensors").touch()
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def forked(work):
    """Run `work` in a copy of this process; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def hold(place, is_file, tell):
    with locked(place, is_file=is_file):
        os.write(tell, b"held")
        time.sleep(300)


@pytest.mark.parametrize(("name", "is_file"), [("run", False), ("table.parquet", True)])
def test_a_second_run_is_refused_with_the_first_ones_name_until_that_is_killed(tmp_path, name, is_file):
    place, (told, tell) = tmp_path / name, os.pipe()
    pid = forked(lambda: hold(place, is_file, tell))
    assert os.read(told, 4) == b"held"
    try:
        with pytest.raises(ValueError) as refused, locked(place, is_file=is_file):
            pass
        assert str(refused.value).startswith(f"{place}: another run is at work there (process {pid} on ")
        assert str(refused.value).endswith("Wait until it ends, or stop it, and give the same command again.")
        with locked(place, holds=False, is_file=is_file):
            pass  # another process of the same run
    finally:
        end(pid)
    with locked(place, is_file=is_file):
        assert len(list(tmp_path.rglob("*.lock"))) == 1
    assert [path.name for path in tmp_path.rglob("*")] == ([] if is_file else ["run"])


def test_a_process_may_take_what_it_holds_and_lets_go_at_the_end(tmp_path):
    folder = tmp_path / "new" / "run"
    with locked(folder):
        with pytest.raises(KeyError), locked(folder):
            raise KeyError
        assert (folder / files.LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
        (folder / "below").mkdir()
        (folder / "below/file").touch()
        (folder / "file").touch()
        (folder / "link").symlink_to(folder.parent, target_is_directory=True)
        clear_folder(folder)
        assert [path.name for path in folder.iterdir()] == [files.LOCK_FILE]
    assert not folder.exists()  # nothing was written into it
    folder.mkdir()
    with locked(folder):
        pass
    assert folder.exists()  # it was there before


def test_a_forked_worker_does_not_keep_the_lock_of_a_run_that_was_killed(tmp_path):
    def run():
        with locked(tmp_path):
            os.write(tell, str(forked(lambda: time.sleep(300))).encode())
            time.sleep(300)

    told, tell = os.pipe()
    pid = forked(run)
    worker = int(os.read(told, 20))
    try:
        end(pid)
        with locked(tmp_path):
            os.kill(worker, 0)  # it is there
    finally:
        os.kill(worker, signal.SIGKILL)


def test_where_the_file_system_has_no_locks_runs_go_on_without(tmp_path, monkeypatch):
    def without(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", without)
    started = time.monotonic()
    with locked(tmp_path):
        pass
    assert time.monotonic() - started < files.LOCK_PATIENCE_S


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory). Do it again."),
        ("{", "is not the result of a run (Expecting property name"),
        ("7", "is not the result of a run (argument of type 'int'"),
        ("[]", "lacks steps, hours. Do it again."),
        ('{"steps": 1}', "lacks hours. Do it again."),
    ],
)
def test_a_result_file_that_is_missing_or_broken_is_named_with_a_remedy(tmp_path, content, message):
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        files.read_result(path, ("steps", "hours"), "the result of a run", "Do it again.")
    path.write_text('{"steps": 1, "hours": 2, "more": 3}')
    assert files.read_result(path, ("steps", "hours"), "the result of a run", "Do it again.")["hours"] == 2
