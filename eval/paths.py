"""Folders for results, and how paths are shown in them: never absolute, so that a file can be published as it is."""

from __future__ import annotations

from pathlib import Path


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
