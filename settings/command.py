"""What every command line shares: exit codes, and one line instead of a traceback where its user can do something about it.

@command_line("wavcse embed", continues=True)
def main(argv=None) -> int: ...
"""

from __future__ import annotations

import errno
import functools
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from safetensors import SafetensorError

from wavcse.settings.processes import WorkerPool, end_workers

DONE = 0
REFUSED = 2  # one line on stderr says what is wrong and what to do
SOME_SKIPPED = 3  # done, but not with every clip
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
READER_GONE = 141  # whoever read the output has ended (`| head`), as of a process that SIGPIPE ends

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
PEERS_S = 2.0  # longer than a launcher takes to end the other processes of a run when one has ended
LOST_PEER = re.compile(r"gloo|nccl|tcpstore|connection (closed|reset)|broken pipe", re.IGNORECASE)

Main = Callable[[Sequence[str] | None], int]


class CommandError(RuntimeError):
    """An error whose message is written for the user of a command line."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: batch systems and launchers send it, `kill` too. Code that is interrupted need not tell it from Ctrl-C."""


def command_line(program: str, continues: bool = False) -> Callable[[Main], Main]:
    """Decorate a `main(argv) -> exit code`: what it raises becomes a line on stderr and an exit code.

    Args:
        program: begins the line.
        continues: the same command, given again, goes on where it was stopped.

    Mistakes of recipes and data, errors of the disk and missing packages end with `REFUSED`; Ctrl-C with 130 and SIGTERM with
    143; nothing is said where nobody reads the output any more. Other errors are faults of this package and keep their
    tracebacks. A program that runs within another one leaves signals to that one.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            if _is_inner():
                return _answered(main, argv, program, continues)
            try:
                with _signals():
                    return _answered(main, argv, program, continues)
            except KeyboardInterrupt as stop:
                if _rank() == 0:
                    print(f"{program}: stopped{_how_to_go_on(continues)}.", file=sys.stderr)
                return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
            except BrokenPipeError:
                return READER_GONE
            finally:
                _drop_unwritten(sys.stdout)

        return run

    return decorate


def answer_help(parse: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None = None) -> None:
    """Where help is asked for, `parse` prints it and the process ends; else nothing happens.

    Programs call it before they import PyTorch and the like, so that help is not waited for.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"}.intersection(argv):

        @command_line("wavcse")
        def main(argv: Sequence[str] | None = None) -> int:
            parse(argv)
            return DONE

        sys.exit(main(argv))


def _answered(main: Main, argv: Sequence[str] | None, program: str, continues: bool) -> int:
    """The exit code of `main`; errors that its user can do something about are answered."""
    try:
        try:
            code = main(argv)
            sys.stdout.flush()
            return code
        except Exception:
            if _rank() > 0:
                time.sleep(PEERS_S)  # where all processes fail alike, the first one speaks, and the launcher ends this one
            raise
    except BrokenPipeError as error:
        if _is_unread(sys.stdout):
            raise  # else it was another pipe
        message = _in_one_line(error)
    except (ValueError, OSError, FloatingPointError, SafetensorError, ImportError, CommandError) as error:
        if isinstance(error, ImportError) and (error.name or "").startswith("wavcse"):
            raise
        message = _in_one_line(error)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or 'No space left on device'}. Make room{_how_to_go_on(continues)}."
    except RuntimeError as error:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not LOST_PEER.search(str(error)):
            raise
        message = f"another process of this run has ended, and says why{_how_to_go_on(continues)}."
    print(f"{program}: {message}", file=sys.stderr)
    return REFUSED


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _how_to_go_on(continues: bool) -> str:
    return "; the same command continues where it was" if continues else "; give the same command again"


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _drop_unwritten(stream: TextIO) -> None:
    """What cannot be written is not tried again at the end of the process, where it would be a traceback."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_unread(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))  # nothing but errors is asked for
    except (OSError, ValueError, AttributeError):  # a stream without a file, a system without `poll`
        return False


_depth = 0


def _is_inner() -> bool:
    return _depth > 0 or threading.current_thread() is not threading.main_thread()


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the worker processes of this one, and then raise here."""
    global _depth
    both = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in both if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:  # what a shell has made a job in the background ignore stays ignored
        signal.signal(number, _stop)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        WorkerPool.is_ending = False
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    end_workers()
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
