"""The audio files below a folder."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from wavcse.audio_wavcse import AUDIO_SUFFIXES, printable

UNREADABLE = "folders that cannot be opened"
SHOWN_KINDS = 5


class AudioFolder(NamedTuple):
    """What is below a folder.

    Args:
        files: path relative to the folder, bytes that are not UTF-8 spelled out -> the file; in the order of these names.
        left_out: suffix (in lower case, "" = none) -> how many such files are not audio; and `UNREADABLE` -> how many.
    """

    files: dict[str, Path]
    left_out: dict[str, int]


def read_audio_folder(folder: str | Path) -> AudioFolder:
    """List a folder and all below it. Hidden files and folders (with a name that starts with a dot) are ignored.

    Links to folders are followed, and every folder is visited once, under its own name where it has one here: a loop of links
    ends, and a link to a folder that is below this one adds nothing.

    Raises:
        OSError: the folder itself cannot be opened.
    """
    folder = Path(folder)
    files, left_out, visited = {}, Counter(), set()
    folders, links = deque([folder]), deque()
    while folders or links:
        place = folders.popleft() if folders else links.popleft()
        try:
            found = place.stat()
            if (found.st_dev, found.st_ino) in visited:
                continue
            visited.add((found.st_dev, found.st_ino))
            with os.scandir(place) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            if place == folder:
                raise
            left_out[UNREADABLE] += 1
            continue
        for entry in entries:
            path, suffix = place / entry.name, os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(path)
            elif suffix in AUDIO_SUFFIXES:
                files[_name(path.relative_to(folder))] = path
            else:
                left_out[_name(suffix)] += 1
    return AudioFolder({name: files[name] for name in sorted(files)}, dict(left_out))


def left_out_in_words(left_out: Mapping[str, int]) -> list[str]:
    """Lines for a report: how many files of which other suffixes, and how many folders could not be opened."""
    kinds = Counter({suffix: count for suffix, count in left_out.items() if suffix != UNREADABLE})
    lines = []
    if kinds:
        shown = [f"{suffix or 'no suffix'} {count}" for suffix, count in kinds.most_common(SHOWN_KINDS)]
        more = [f"{len(kinds) - SHOWN_KINDS} more kinds"] if len(kinds) > SHOWN_KINDS else []
        lines.append(f"{kinds.total()} files with other suffixes were left out ({', '.join(shown + more)})")
    if left_out.get(UNREADABLE):
        lines.append(f"{left_out[UNREADABLE]} {UNREADABLE} were left out")
    return lines


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; if it is named like audio, it is listed and then skipped as unreadable
        return False


def _name(path: str | Path) -> str:
    return printable(str(path))
