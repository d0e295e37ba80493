"""Files that are whole or not there, that say when they are damaged, and folders that one run at a time works in.

Everything that a run writes grows in `<name>.<random>.partial` beside its place and gets its name when it is whole. A writer
that fails (a full disk) leaves no partial file behind; a killed one does, and `remove_partials` clears them away.

Pieces of which many are made (cache shards, finished embeddings) carry the CRC-32 of their bytes in their names, JSON files
that cannot be checked otherwise in a field. Files of earlier versions have none and are opened as they are.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two runs apart there
    fcntl = None

CHUNK = 1 << 22  # bytes that are read at a time
CHECKSUM = "crc32"  # field of a JSON file
NO_UTF_8 = re.compile("[\ud800-\udfff]")  # Python's surrogates for bytes of a file name that are not UTF-8
CHECKSUM_IN_NAME = re.compile(r"-([0-9a-f]{8})$")
LOCK_FILE = ".lock"
LOCK_PATIENCE_S = 1.0  # a process that was just killed takes a moment to release its lock
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without them answer
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors quotes the system


class DamagedFile(ValueError):
    """A file does not hold what was written: it was cut short, or bits have changed. The message begins with its path."""


def write_atomically(path: Path, text: str, durable: bool = False) -> None:
    """Write a text file so that a reader sees the old or the new content, never a part; `durable` as in `replacing`."""
    with replacing(path, durable) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A path to write to: it takes the place of `path` at the end, or is removed after an error.

    Args:
        durable: the content reaches the disk before the file gets its name. For what replaces something that is removed
            afterwards: a machine that loses its power can otherwise keep the name and not the content.

    Raises:
        OSError: the disk is full or refuses; it carries `path`, whichever library wrote.
    """
    with _partial(path) as partial:
        yield partial
        if durable:
            flush_to_disk(partial)
        os.replace(partial, path)
        if durable:
            flush_to_disk(path.parent)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with named_errors(path):
            yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Errors of the disk carry `path`, also those of safetensors, which has errors of its own."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    except SafetensorError as error:
        found = OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; where the file system cannot tell, go on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, *WITHOUT_LOCKS):
            raise
    finally:
        os.close(handle)


def remove_partials(folder: Path, name: str | None = None) -> None:
    """Remove what killed runs left half written in a folder that nobody else writes to, or of the file `name` there."""
    patterns = ("*.partial", ".tmp??????") if name is None else (f"{glob.escape(name)}.*.partial",)  # safetensors': .tmp
    for pattern in patterns:
        for partial in folder.glob(pattern):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def allocate(path: Path, num_bytes: int) -> None:
    """Make a file of this size at once: written through a memory map, a full disk would kill the process.

    Raises:
        OSError: the disk is full; it carries `path`, and no file is left.
    """
    try:
        with named_errors(path), open(path, "wb") as file:
            if hasattr(os, "posix_fallocate") and num_bytes:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            else:
                file.truncate(num_bytes)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def checksum(path: Path) -> str:
    """CRC-32 of a file's bytes as eight hex digits, read in chunks: 1 to 3 GB/s, so the disk sets the pace."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def write_piece(folder: Path, suffix: str, write: Callable[[Path], Any], prefix: str = "") -> Path:
    """Add a piece to a folder: `write` fills the path it gets. The name is random and ends with the checksum."""
    name = f"{prefix}{uuid.uuid4().hex}"
    with _partial(folder / f"{name}{suffix}") as partial:
        write(partial)
        path = folder / f"{name}-{checksum(partial)}{suffix}"
        os.replace(partial, path)
    return path


def check_piece(path: Path) -> None:
    """DamagedFile unless a piece holds what was written; one of an earlier version has no checksum and passes."""
    expected = CHECKSUM_IN_NAME.search(path.stem)
    if expected and checksum(path) != expected[1]:
        raise DamagedFile(f"{path}: is damaged; its content does not match the checksum in its name.")


def json_text(value: Any, **layout: Any) -> str:
    """Standard JSON: `json.dumps` with null for NaN and the infinities, which other readers reject."""
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_with_null(value), allow_nan=False, **layout)


def _with_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_null(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, record: Mapping[str, Any], indent: int | None = None, durable: bool = False) -> None:
    """Write a mapping as JSON with a checksum of its content in the field `crc32`; `durable` as in `replacing`."""
    text = json_text({**record, CHECKSUM: _checksum_of(record)}, indent=indent, ensure_ascii=False)
    text = NO_UTF_8.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    write_atomically(path, text + "\n", durable)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote, without the checksum; a file of an earlier version has none and passes.

    Raises:
        DamagedFile: it is not a JSON object, or its content has changed.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        expected = record.pop(CHECKSUM, None)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, AttributeError, TypeError) as error:
        raise DamagedFile(f"{path}: is damaged; it does not hold JSON of this package.") from error
    if expected is not None and expected != _checksum_of(record):
        raise DamagedFile(f"{path}: is damaged; its content does not match its checksum.")
    return record


def read_result(path: Path, fields: Sequence[str], kind: str, remedy: str) -> dict[str, Any]:
    """The result file of a run: a JSON object that has these fields.

    Args:
        kind: what messages call the file, such as "the result of a training run".
        remedy: a sentence that says what to do about a file that is missing or broken.

    Raises:
        ValueError: the file cannot be read, is not JSON, or lacks a field.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in fields if name not in result]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    except (ValueError, TypeError) as error:  # of decoding, and of a JSON value that has no fields
        raise ValueError(f"{path}: is not {kind} ({error}). {remedy}") from error
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}. {remedy}")
    return result


def kept_json(path: Path) -> dict[str, Any] | None:
    """What `write_json` wrote, where it can be made again: `None` if it is not there, or is damaged and now set aside."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        set_aside(path, error)
        return None


def _checksum_of(record: Mapping[str, Any]) -> str:
    as_read = json.loads(json_text(record))  # keys become strings, tuples lists
    return f"{zlib.crc32(json.dumps(as_read, sort_keys=True).encode()):08x}"


def set_aside(path: Path, reason: Exception | str) -> None:
    """Rename a damaged file or folder to `<name>.damaged`, and say so on stderr."""
    kept = path.with_name(f"{path.name}.damaged")
    if kept.is_dir():
        shutil.rmtree(kept)
    os.replace(path, kept)
    print(f"{' '.join(str(reason).split())} It is set aside as {kept.name}.", file=sys.stderr)


def clear_folder(folder: Path) -> None:
    """Remove everything in a folder but its lock, which this process may hold."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


@dataclass
class _Lock:
    handle: int
    times: int = 1


_held: dict[Path, _Lock] = {}  # lock files of this process, and how often it took each


def _let_go_in_child() -> None:
    """Without this, a forked child would keep the lock of a parent that was killed."""
    for lock in _held.values():
        os.close(lock.handle)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(place: Path, holds: bool = True, is_file: bool = False, patience_s: float = LOCK_PATIENCE_S) -> Iterator[None]:
    """Keep other runs away from a folder, or from a file that is being made, while the context lasts.

    The system releases the lock when the process ends, however it ends. A process may take a lock again that it holds. On
    Windows, and on file systems without locks, nothing is locked.

    Args:
        place: the folder, which is made if it is missing, or the file.
        holds: whether this process takes the lock; of several processes of one run the main one does.
        patience_s: how long to wait for a process that has it.

    Raises:
        ValueError: another process has it; the message says which, and what to do.
    """
    if not holds or fcntl is None:
        yield
        return
    path = (place.with_name(f"{place.name}{LOCK_FILE}") if is_file else place / LOCK_FILE).absolute()
    was_there = path.parent.exists()  # else it is removed at the end, if the run wrote nothing
    if path in _held:
        _held[path].times += 1
    elif (handle := _take(path, place, patience_s)) is not None:
        _held[path] = _Lock(handle)
    try:
        yield
    finally:
        if path in _held:
            _held[path].times -= 1
            if not _held[path].times:
                path.unlink(missing_ok=True)  # before the release, so that a waiting process sees that it must retry
                os.close(_held.pop(path).handle)
                if not was_there:
                    with suppress(OSError):
                        path.parent.rmdir()  # only succeeds if it is empty, as after a recipe that is refused


def _take(path: Path, place: Path, patience_s: float) -> int | None:
    """A handle that has the lock; `None` where the file system has no locks."""
    deadline = time.monotonic() + patience_s
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 500).decode(errors="replace").strip()
            os.close(handle)
            if error.errno in WITHOUT_LOCKS:
                return None
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            if time.monotonic() > deadline:
                raise ValueError(
                    f"{place}: another run is at work there ({holder or 'it does not say which'}). "
                    "Wait until it ends, or stop it, and give the same command again."
                ) from error
            time.sleep(0.05)
            continue
        if _is_at(handle, path):
            _sign(handle)
            return handle
        os.close(handle)  # its holder has removed the file in the meantime


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode())


def make_folder(path: str | Path) -> Path:
    """Make a folder for output, with its parents; ValueError if that is impossible."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be made as a folder for results ({error.strerror}).") from error
    return path


def shown_path(path: str | Path) -> str:
    """A path as given if it is relative (or a Hub id), else relative to the working directory, else its last two parts."""
    path = Path(path)
    if not path.is_absolute():
        return path.as_posix()
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return "/".join(path.parts[-2:]).lstrip("/")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes as hex digits, as the Hub shows it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(settings: object) -> str:
    """Short hash of JSON values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
