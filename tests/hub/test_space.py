"""What a Space consists of; and one that is pushed to the loopback Hub, started from there, and asked."""

import ast
import os
import re
import site
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from wavcse.hub import space
from wavcse.tests.helpers.hub_server import TOKEN, HubServer
from wavcse.tests.helpers.published_run import make_run

COMMIT = "0" * 40


@pytest.fixture(scope="module")
def files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "gradio_version", lambda: "6.31.0")
        return space.space_files("org/wavcse", COMMIT)


def test_front_matter_and_requirements_are_pinned(files):
    header = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert header["sdk"] == "gradio"
    assert header["sdk_version"] == "6.31.0"
    assert header["app_file"] in files
    assert header["models"] == ["org/wavcse"]
    lines = files["requirements.txt"].decode().splitlines()
    assert {"torch", "transformers", "soundfile"} <= {line.partition("==")[0] for line in lines}
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+(post\d+)?", line) for line in lines)
    assert f'MODEL = "org/wavcse@{COMMIT}"' in files["app.py"].decode()


def test_all_that_the_page_imports_is_in_the_space(files):
    """Followed from app.py over the imports that run when a module is loaded."""

    def imported(name: str) -> set[str]:
        found = set()
        for node in ast.parse(files[name]).body:
            if isinstance(node, ast.ImportFrom):
                base = "wavcse" if node.level else node.module
                base = f"{base}.{node.module}" if node.level else base
                found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        return {one.replace(".", "/") for one in found if one.split(".")[0] == "wavcse"}

    seen, left = set(), {"app.py"}
    while left:
        name = left.pop()
        seen.add(name)
        for one in imported(name):
            own = [f"{one}.py", f"{one}/__init__.py"]
            if not any(path in files for path in own):  # else it is a name in a module, or a module that is missing
                assert not any((space.PACKAGE / path.removeprefix("wavcse/")).is_file() for path in own), one
            left |= {path for path in own if path in files} - seen
    assert {"wavcse/app/answers.py", "wavcse/retrieval/similar.py", "wavcse/embed.py"} <= seen


def test_without_gradio_the_extra_is_named(monkeypatch):
    def missing(name: str) -> str:
        raise space.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(space.importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r'pip install "wavcse\[app\]"'):
        space.gradio_version()


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


@pytest.mark.doors
def test_a_pushed_space_answers(tiny_multi_task_model, waves, tmp_path):
    """By its own files alone: the model comes from the Hub, the code from the Space."""
    client_of = pytest.importorskip("gradio_client")
    model = tiny_multi_task_model()
    run = make_run(tmp_path / "run", model)
    gradio = str(Path(client_of.__file__).parents[1])
    # Where the interpreter finds it, it stays behind the standard library, after whose modules backports beside it are named.
    paths = [] if gradio in site.getsitepackages() else [gradio]
    with HubServer() as hub:
        dropped = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "PYTHONPATH", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        kept = {name: value for name, value in os.environ.items() if name.upper() not in dropped}
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        environment = {**kept, **own, "PYTHONPATH": ":".join(paths), "GRADIO_SERVER_PORT": str(free_port())}
        words = ["push", str(run), "--repo_id", "org/m", "--space", "org/s"]
        push = f"import wavcse_cli; raise SystemExit(wavcse_cli.main({words!r}))"
        done = subprocess.run([sys.executable, "-c", push], env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"shown by the Space {hub.url}/spaces/org/s" in done.stdout
        repository = hub.repositories["spaces/org/s"]
        for name, content in repository.commits[repository.branches["main"]].items():
            path = tmp_path / "space" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        environment["PYTHONPATH"] = ":".join([str(tmp_path / "space"), *paths])
        where = [sys.executable, "-c", "import wavcse; print(wavcse.__file__)"]
        code = subprocess.run(where, env=environment, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
        assert code == str(tmp_path / "space/wavcse/__init__.py")
        server = subprocess.Popen(
            [sys.executable, "app.py"], env=environment, cwd=tmp_path / "space", stdout=subprocess.PIPE, text=True
        )
        try:
            assert "org/m@" in server.stdout.readline()
            client = client_of.Client(f"http://127.0.0.1:{environment['GRADIO_SERVER_PORT']}", verbose=False)
            soundfile.write(tmp_path / "clip.wav", waves(9_000)[0], 16_000, subtype="FLOAT")
            shown = client.predict(client_of.handle_file(tmp_path / "clip.wav"), api_name="/labels")
        finally:
            server.terminate()
            server.wait(timeout=30)
    for task, found in model.predict(str(tmp_path / "clip.wav")).items():
        (part,) = [own for own in shown.split("<table>") if f"<caption>{task}</caption>" in own]
        scores = [float(score) / 100 for score in re.findall(r"<td>([\d.]+)%</td>", part)]
        np.testing.assert_allclose(scores, [entry["score"] for entry in found], atol=5.1e-4)
