"""A Space that shows a published model: the page of `wavcse app`, and beside it the part of this package that it needs."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

PACKAGE = Path(__file__).parents[1]
PARTS = ("settings", "data", "reports", "eval", "retrieval", "app")  # packages that the page imports; a test runs it
ROOT_FILES = ("*_wavcse.py", "__init__.py", "embed.py", "LICENSE")
HEADER = {
    "emoji": "🎙️",
    "colorFrom": "blue",
    "colorTo": "gray",
    "sdk": "gradio",
    "app_file": "app.py",
    "license": "apache-2.0",
}
README = """\
---
{header}---

Labels, similarity and embeddings of recordings by
[{repo_id}](https://huggingface.co/{repo_id}). Made by
`wavcse push --space`.

To search a table, put `table.parquet` (of `wavcse embed`) and its recordings, in a folder `audio`, beside `app.py`; a
`calibration.json` (of `wavcse calibrate`) there is used too. A later push leaves these files as they are.
"""
APP = '''\
"""Shows a model; `table.parquet`, `audio` and `calibration.json` beside this file are used where they are there."""

import os
import sys
from pathlib import Path

from wavcse.app.page import main

MODEL = "{model}"
HERE = Path(__file__).resolve().parent
BESIDE = {{"--table": "table.parquet", "--audio": "audio", "--calibration": "calibration.json"}}

if __name__ == "__main__":
    given = [word for option, name in BESIDE.items() if (HERE / name).exists() for word in (option, str(HERE / name))]
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    sys.exit(main(["--model", MODEL, "--host", "0.0.0.0", "--port", port, *given]))
'''


def pinned_requirements() -> str:
    """`requirements.txt`: what this package requires, at the versions that are installed here."""
    required = [
        re.match(r"[\w.-]+", line)[0] for line in importlib.metadata.requires("wavcse") or [] if "extra ==" not in line
    ]
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in required}  # +cpu is of one index only
    return "".join(f"{name}=={version}\n" for name, version in versions.items())


def gradio_version() -> str:
    """The version that the Space runs: the one that is installed here; ImportError where there is none."""
    try:
        return importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError('gradio is not installed: pip install "wavcse[app]"', name="gradio") from None


def space_files(repo_id: str, revision: str) -> dict[str, bytes]:
    """Path in the Space -> content: `app.py`, `README.md` with its front matter, `requirements.txt`, and `wavcse/`.

    Args:
        repo_id, revision: of the model on the Hub, and the commit that is shown.

    Raises:
        ImportError: gradio is not installed.
    """
    versions = {"sdk_version": gradio_version(), "python_version": f"{sys.version_info.major}.{sys.version_info.minor}"}
    header = {"title": repo_id.rpartition("/")[2], **HEADER, **versions, "models": [repo_id]}
    readme = README.format(header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True), repo_id=repo_id)
    texts = {
        "README.md": readme,
        "app.py": APP.format(model=f"{repo_id}@{revision}"),
        "requirements.txt": pinned_requirements(),
    }
    files = [path for pattern in ROOT_FILES for path in PACKAGE.glob(pattern)]
    files += [path for part in PARTS for path in (PACKAGE / part).rglob("*.py")]
    code = {f"wavcse/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in sorted(files)}
    return {**{name: text.encode() for name, text in texts.items()}, **code}


def upload_space(space: str, files: dict[str, bytes], private: bool | None) -> CommitInfo:
    """Put the files into the Space, which is made if it does not exist, in one commit; its other files stay.

    Raises:
        OSError: the Hub refuses.
    """
    api = HfApi()
    space = api.create_repo(space, repo_type="space", space_sdk="gradio", private=private, exist_ok=True).repo_id
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit(space, operations, commit_message="Show the model", repo_type="space")
