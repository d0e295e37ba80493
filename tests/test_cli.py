"""The console script."""

import subprocess
import sys

import pytest

import wavcse_cli


def test_help_lists_every_command_without_loading_pytorch():
    code = "import sys, wavcse_cli; wavcse_cli.main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in wavcse_cli.COMMANDS)


@pytest.mark.parametrize("command", wavcse_cli.COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        wavcse_cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_an_unknown_command_is_an_error(capsys):
    assert wavcse_cli.main(["embd"]) == 2
    assert "there is no command 'embd'" in capsys.readouterr().err
