"""What every command line shares: how it is read, exit codes, and one line instead of a traceback for a user's mistake.

EMBED = Program("wavcse embed", EmbedArguments, "What it does.", "wavcse embed recordings/ --out r.parquet", continues=True)

@EMBED.main
def main(args: EmbedArguments) -> int: ...
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Generic, NamedTuple, TextIO

from safetensors import SafetensorError

from wavcse.settings.fields import Settings, help_text, read_settings
from wavcse.settings.libraries import what_to_install
from wavcse.settings.processes import WorkerPool, end_workers
from wavcse.settings.recipes import nearest, recipe_fields

DONE = 0
REFUSED = 2  # one line on stderr says what is wrong and what to do
SOME_SKIPPED = 3  # done, but not with every clip
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
READER_GONE = 141  # whoever read the output has ended (`| head`), as of a process that SIGPIPE ends
HELP = {"-h", "--help"}

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


@dataclass(frozen=True)
class Program(Generic[Settings]):
    """A command line: its options are the fields of a dataclass, see settings/fields.py.

    Attributes:
        name: as it is called, which begins every message.
        settings: the dataclass.
        about: what it does, for its help.
        example: one line.
        has_recipe: the first word may be a YAML file with fields of the settings.
        continues: the same command, given again, goes on where it was stopped.
        usage: how it is called, where that is not its name.
        look: looks at the disk, and raises ValueError for paths that are not there.
    """

    name: str
    settings: type[Settings]
    about: str
    example: str
    has_recipe: bool = False
    continues: bool = False
    usage: str = ""
    look: Callable[[Settings], None] | None = None

    def parse(self, argv: Sequence[str] | None = None) -> Settings:
        """The settings; where help is asked for, it is printed and the process ends.

        Raises:
            ValueError: as `read_settings`.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if HELP.intersection(argv):
            print(help_text(self.settings, self.usage or self.name, self.about, self.example, self.has_recipe))
            sys.exit(DONE)
        return read_settings(self.settings, argv, self.has_recipe)

    def main(self, run: Callable[[Settings], int]) -> Main:
        """Decorate `run(settings) -> exit code`: a `main(argv)` as by `command_line`."""

        @command_line(self.name, self.continues)
        @functools.wraps(run)
        def main(argv: Sequence[str] | None = None) -> int:
            return run(self._read(argv))

        return main

    def answer(self, argv: Sequence[str] | None = None) -> None:
        """Where help is asked for or the command line is wrong or names what is not there, say so and end the process.

        Programs call it before they import PyTorch and the like, so that nobody waits for these answers. A library of an extra
        that these imports then miss ends the process with a line and `REFUSED`.
        """
        if code := self.refusal(argv):
            sys.exit(code)
        sys.excepthook = functools.partial(_report_import, self.usage or self.name)

    def refusal(self, argv: Sequence[str] | None = None) -> int:
        """`DONE`, or the exit code of a command line that is wrong, after its message."""

        @command_line(self.name, self.continues)
        def checked(argv: Sequence[str] | None = None) -> int:
            self._read(argv)
            return DONE

        return checked(argv)

    def _read(self, argv: Sequence[str] | None) -> Settings:
        settings = self.parse(argv)
        if self.look:
            self.look(settings)
        return settings


@dataclass(frozen=True)
class RecipePrograms:
    """Several programs under one name: which of them is meant, the recipe and the options say.

    Attributes:
        usual: where none of the others is meant.
        others: program -> whether it is meant by (fields of the recipe, options by name); the first one is taken.
    """

    usual: Program
    others: Mapping[Program, Callable[[Collection[str], Collection[str]], bool]]

    def of(self, argv: Sequence[str] | None = None) -> Program:
        """The one that a command line is for; a recipe that cannot be read is the usual one's, which says why."""
        argv = list(sys.argv[1:] if argv is None else argv)
        options = {word.lstrip("-").partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
        recipe = recipe_fields(argv[0]) if argv and not argv[0].startswith("-") else ()
        return next((program for program, is_meant in self.others.items() if is_meant(recipe, options)), self.usual)

    def refusal(self, argv: Sequence[str] | None = None) -> int:
        """As of the program that is meant."""
        return self.of(argv).refusal(argv)

    def answer(self, argv: Sequence[str] | None = None) -> None:
        """As of the program that is meant."""
        self.of(argv).answer(argv)


class Command(NamedTuple):
    """One of several programs that have a name in common.

    Attributes:
        module: has `main(argv) -> exit code`.
        program: `module:NAME` of its `Program`, where that can be had without PyTorch; empty where `main` asks for it itself.
        text: what it does.
    """

    module: str
    program: str
    text: str


def commands_help(name: str, about: str, commands: Mapping[str, Command], example: str, more: str = "") -> str:
    """The help of several programs whose name begins with `name`."""
    lines = [f"  {command:<12} {commands[command].text}" for command in commands]
    return "\n".join(
        [
            *(f"usage: {name} COMMAND [options]", "", about, "", "commands:", *lines, ""),
            *(f"`{name} COMMAND --help` explains a command. {more}".rstrip(), "", "example:", f"  {example}"),
        ]
    )


def run_command(name: str, commands: Mapping[str, Command], argv: Sequence[str], help_text: str) -> int:
    """Run the program that the first word names; returns its exit code. Without a word the help is printed."""
    if not argv or argv[0] in HELP:
        print(help_text)
        return DONE
    if argv[0] not in commands:
        print(
            f"{name}: there is no command {argv[0]!r}{nearest(argv[0], commands)}; there are {', '.join(commands)}.",
            file=sys.stderr,
        )
        return REFUSED
    command, options = commands[argv[0]], list(argv[1:])
    try:
        if command.program:
            module, _, program = command.program.partition(":")
            if code := getattr(importlib.import_module(module), program).refusal(options):
                return code
        return importlib.import_module(command.module).main(options)
    except KeyboardInterrupt:  # while libraries load; a program's own `main` deals with it afterwards
        return INTERRUPTED
    except ImportError as error:
        if not (advice := what_to_install(error)):
            raise
        print(f"{name} {argv[0]}: {advice}", file=sys.stderr)
        return REFUSED


def _report_import(program: str, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python's own excepthook, but a missing library of an extra ends the process with its line and `REFUSED`."""
    advice = what_to_install(error) if isinstance(error, ImportError) else None
    if advice:
        print(f"{program}: {advice}", file=sys.stderr, flush=True)
        os._exit(REFUSED)  # what a hook raises or returns changes no exit code; the program has done nothing yet
    else:
        sys.__excepthook__(kind, error, trace)


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
        advice = what_to_install(error) if isinstance(error, ImportError) else None
        message = advice or _in_one_line(error)
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
