"""What every command line shares: one line and an exit code for whatever its user can do something about, and no traceback."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wavcse_cli
from wavcse.data.files import replacing
from wavcse.search.runner import FitError
from wavcse.settings import command
from wavcse.settings.command import CommandError, command_line

PROGRAMS = [
    *(command.module for name, command in wavcse_cli.COMMANDS.items() if name != "search"),
    *(f"wavcse.search.{name}" for name in ("layers", "poolings", "hparams", "phase1")),
    *("wavcse.hub.card", *(f"wavcse.tools.{name}" for name in ("choice", "install", "readme", "training_data"))),
    *("wavcse.eval.report", "wavcse.pretraining.study"),
]


def program(error, continues=True):
    @command_line("wavcse test", continues)
    def main(argv=None):
        raise error

    return main


@pytest.mark.parametrize("module", PROGRAMS)
def test_every_program_is_run_by_command_line(module):
    module = importlib.import_module(module)
    mains = [module.main_of_upstreams, module.main_of_tasks] if hasattr(module, "main_of_tasks") else [module.main]
    assert all(main.__wrapped__ for main in mains)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("num_epochs is 0;\n  at least 1"), "num_epochs is 0; at least 1"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.csv"),
            "[Errno 2] No such file or directory: 'a.csv'",
        ),
        (FloatingPointError("the loss is no number"), "the loss is no number"),
        (ModuleNotFoundError("No module named 'optuna'"), "No module named 'optuna'"),
        (
            ModuleNotFoundError("No module named 'scipy.stats'", name="scipy.stats"),
            'scipy is not installed: pip install "wavcse[eval]"',
        ),
        (ImportError('no gradio: pip install "wavcse[app]"', name="gradio"), 'no gradio: pip install "wavcse[app]"'),
        (FitError("seed 3: it diverged"), "seed 3: it diverged"),
        (CommandError("not today"), "not today"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x.safetensors"),
            "out/x.safetensors: No space left on device. Make room; the same command continues where it was.",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            "Disk quota exceeded. Make room; the same command continues where it was.",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(error, line, capsys):
    assert program(error)([]) == 2
    assert capsys.readouterr().err == f"wavcse test: {line}\n"


PROGRAM_WITHOUT = """
import sys
sys.modules[{library!r}] = None
from wavcse.retrieval.arguments import SIZES
SIZES.answer([{recipe!r}])
import {library}.linalg
"""


@pytest.mark.parametrize(
    ("library", "code", "words"),
    [("scipy", 2, 'scipy is not installed: pip install "wavcse[eval]"\n'), ("numpy", 1, "ModuleNotFoundError")],
)
def test_a_program_of_python_m_names_the_extra_too(library, code, words):
    """It answers before its imports, one of which fails."""
    program = PROGRAM_WITHOUT.format(library=library, recipe=str(Path(__file__).parents[2] / "conf/small_vectors.yaml"))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == code
    assert words in run.stderr
    assert ("Traceback" in run.stderr) == (library == "numpy")


def test_a_command_whose_module_needs_a_library_that_is_missing_names_the_extra(tmp_path, monkeypatch, capsys):
    (tmp_path / "needs_optuna.py").write_text("import optuna\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    commands = {"search": command.Command("needs_optuna", "", "")}
    assert command.run_command("wavcse", commands, ["search"], "") == 2
    assert capsys.readouterr().err == 'wavcse search: optuna is not installed: pip install "wavcse[search]"\n'


def test_a_command_that_starts_over_says_so(capsys):
    assert program(OSError(errno.ENOSPC, "No space left on device"), continues=False)([]) == 2
    assert capsys.readouterr().err == "wavcse test: No space left on device. Make room; give the same command again.\n"


@pytest.mark.parametrize("error", [KeyError("labels"), ImportError("cannot import name", name="wavcse.hub_repository_wavcse")])
def test_a_fault_of_the_package_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        program(error)([])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line_and_the_handlers_are_restored(number, code, capsys):
    @command_line("wavcse test", continues=True)
    def main(argv=None):
        try:
            signal.raise_signal(number)  # to this thread: `os.kill` may choose another one of the process
            time.sleep(60)
        finally:
            done.append("cleaned up")

    done, before = [], signal.signal(number, signal.default_int_handler)  # a job in the background ignores SIGINT
    try:
        assert main([]) == code
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert done == ["cleaned up"]
    assert capsys.readouterr().err == "wavcse test: stopped; the same command continues where it was.\n"


def test_a_program_within_another_leaves_signals_to_that_one_and_answers_mistakes_itself(capsys):
    @command_line("wavcse outer", continues=True)
    def outer(argv=None):
        codes.append(program(ValueError("inner mistake"))([]))
        program(KeyboardInterrupt())([])

    codes = []
    assert outer([]) == 130
    assert codes == [2]
    assert capsys.readouterr().err.splitlines() == [
        "wavcse test: inner mistake",
        "wavcse outer: stopped; the same command continues where it was.",
    ]


def test_of_several_processes_that_fail_alike_the_first_one_speaks(capsys, monkeypatch):
    """The launcher sends SIGTERM to the others when the first one has ended."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(command.time, "sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    assert program(ValueError("the recipe does not fit"))([]) == 143
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)  # nobody else has failed
    assert program(ValueError("this process's disk is full"))([]) == 2
    assert "this process's disk is full" in capsys.readouterr().err


def test_a_process_that_lost_another_one_says_so_and_a_process_alone_shows_its_fault(capsys, monkeypatch):
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:35012")
    with pytest.raises(RuntimeError):
        program(lost)([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert program(lost)([]) == 2
    assert "another process of this run has ended" in capsys.readouterr().err


def run_with_stdout(stdout, lines):
    """Exit code and what is on stderr of a program that prints many lines, in a copy of this process."""

    @command_line("wavcse test")
    def main(argv=None):
        for line in range(lines):
            print("a table", line)
        return 0

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(stdout, 1)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(write, "w", buffering=1, closefd=False)
            code = main([])
            sys.stdout.flush()  # as the interpreter does at its end
            os._exit(code)
        finally:
            os._exit(1)
    os.close(write)
    with open(read) as errors:
        text = errors.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_that_nobody_reads_ends_quietly(lines):
    read, write = os.pipe()
    os.close(read)
    assert run_with_stdout(write, lines) == (141, "")
    os.close(write)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full is needed")
@pytest.mark.parametrize("lines", [1, 100_000])
def test_output_to_a_full_disk_is_one_line(lines):
    full = os.open("/dev/full", os.O_WRONLY)
    line = "wavcse test: No space left on device. Make room; give the same command again.\n"
    assert run_with_stdout(full, lines) == (2, line)
    os.close(full)


def test_the_file_that_met_a_full_disk_is_named(tmp_path, capsys):
    @command_line("wavcse test", continues=True)
    def main(argv=None):
        with replacing(tmp_path / "part.parquet"):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert main([]) == 2
    assert capsys.readouterr().err == (
        f"wavcse test: {tmp_path}/part.parquet: No space left on device. Make room; the same command continues where it was.\n"
    )
