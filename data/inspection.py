"""What has to be known of a clip before it is embedded: its content digest and its length, or why it cannot be read."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from wavcse.audio_wavcse import LONGEST_FILE_S, AudioFile, part_in_samples
from wavcse.data.files import DamagedFile, read_json, write_json
from wavcse.data.manifest import Clip, file_stamp, real_path
from wavcse.settings.processes import thread_pool

READ_THREADS = 8  # reading and hashing wait for the disk, not for the processor


@dataclass(frozen=True)
class ClipFacts:
    """What is known of a clip.

    Attributes:
        digest: names the audio content (and part of the file).
        duration_s: its length, as headers tell it; decoding may find less or more.
        stamp: the file's `file_stamp` when the digest was taken.
        error: why the file cannot be read; all else is empty then.
    """

    digest: str = ""
    duration_s: float = 0.0
    stamp: tuple[int, int] | None = None
    error: str | None = None


class Inspector:
    """Digests and lengths of clips.

    Args:
        root: they are remembered in `ROOT/digests.json` by path, size and modification time; `None` = while this object lives.
            Paths are stored as hashes: such folders are passed on, and a path may hold names of people and machines.
    """

    def __init__(self, root: str | Path | None = None):
        self.memo_path = None if root is None else Path(root) / "digests.json"
        self.memo: dict[str, dict] = {}
        self.is_unsaved = False
        if self.memo_path is not None and self.memo_path.exists():
            try:
                self.memo = {_key(path): fact for path, fact in read_json(self.memo_path).items()}
            except DamagedFile as error:
                print(f"{error} All files are read again.", file=sys.stderr)

    def inspect(self, clips: Sequence[Clip], save: bool = True, show_progress: bool = False) -> list[ClipFacts]:
        """Facts of every clip, in order; files that were seen before are not read again."""
        paths = sorted({clip.path for clip in clips if not clip.fault})
        with thread_pool(READ_THREADS) as pool:
            facts = pool.map(self._file_facts, paths)
            files = dict(zip(paths, tqdm(facts, "inspect", len(paths), unit="file", disable=not show_progress)))
        if save:
            self.save()
        return [ClipFacts(error=clip.fault) if clip.fault else _part_of(clip, files[clip.path]) for clip in clips]

    def _file_facts(self, path: Path) -> dict:
        try:
            key, stamp = _key(real_path(path)), file_stamp(path)
            known = self.memo.get(key)
            if known and tuple(known["stamp"]) == stamp and known["duration_s"] <= LONGEST_FILE_S:
                return known
            with AudioFile(path, "file") as file:
                duration_s = file.duration_s
            with open(path, "rb") as content:
                digest = hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            if file_stamp(path) != stamp:  # the digest may then be of neither the old nor the new content
                raise ValueError("changed while it was read; run again when nothing writes to it")
        except (OSError, ValueError) as error:
            return {"error": str(error).removeprefix("file: ")}
        self.memo[key], self.is_unsaved = {"stamp": list(stamp), "digest": digest, "duration_s": duration_s}, True
        return self.memo[key]

    def save(self) -> None:
        """Write down what is new, where there is a place for it."""
        if self.memo_path is not None and self.is_unsaved:
            self.memo_path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.memo_path, self.memo)
            self.is_unsaved = False


def _key(path: str) -> str:
    """What a real path is remembered by; a key stays what it is. Memos of older versions hold the paths themselves."""
    return hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest() if os.path.isabs(path) else path


def _part_of(clip: Clip, file: dict) -> ClipFacts:
    if "error" in file:
        return ClipFacts(error=file["error"])
    try:
        part_in_samples(clip.start_s, clip.end_s, 1, "part")
    except ValueError as error:
        return ClipFacts(error=str(error).removeprefix("part: "))
    end_s = file["duration_s"] if clip.end_s is None else clip.end_s
    is_whole = clip.start_s == 0 and clip.end_s is None
    digest = file["digest"] if is_whole else f"{file['digest']}#{clip.start_s}-{end_s}"
    return ClipFacts(digest, max(0.0, end_s - clip.start_s), tuple(file["stamp"]))
