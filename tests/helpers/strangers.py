"""Scripts in a fresh process in which the package `wavcse` does not exist, as for somebody who has a model folder alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Stands before every script that runs in a fresh process: no `wavcse`, however it is installed.
WITHOUT_WAVCSE = """
import sys

class Blocked:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "wavcse":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked)
try:
    import wavcse
except ImportError:
    pass
else:
    sys.exit("wavcse is importable, so this test would prove nothing")
"""


def run_without_wavcse(script: str, *arguments, modules: Path) -> str:
    """Run a script in a fresh process, offline, in another folder and with an own cache of remote code; its stdout."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(modules), "HF_MODULES_CACHE": str(modules / "modules")}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_WAVCSE + script, *map(str, arguments)],
        cwd=modules,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
