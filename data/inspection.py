"""What has to be known of a clip before it is embedded: its content digest and its length, or why it cannot be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile
from tqdm.auto import tqdm

from wavcse.data.files import write_atomically
from wavcse.data.manifest import Clip

READ_THREADS = 8  # reading and hashing wait for the disk, not for the processor


@dataclass(frozen=True)
class ClipFacts:
    """`digest` names the audio content (and part of the file); `error` is set instead where the file is unreadable."""

    digest: str = ""
    duration_s: float = 0.0
    error: str | None = None


class Inspector:
    """Digests and lengths of clips.

    Args:
        root: they are remembered in `ROOT/digests.json` by path, size and modification time; `None` = not remembered.
    """

    def __init__(self, root: str | Path | None = None):
        self.memo_path = None if root is None else Path(root) / "digests.json"
        self.memo: dict[str, dict] = {}
        if self.memo_path is not None and self.memo_path.exists():
            self.memo = json.loads(self.memo_path.read_text(encoding="utf-8"))

    def inspect(self, clips: Sequence[Clip], save: bool = True, show_progress: bool = False) -> list[ClipFacts]:
        """Facts of every clip, in order; files that were seen before are not read again."""
        paths = sorted({clip.path for clip in clips if not clip.fault})
        with ThreadPoolExecutor(READ_THREADS) as pool:
            facts = pool.map(self._file_facts, paths)
            files = dict(zip(paths, tqdm(facts, "inspect", len(paths), unit="file", disable=not show_progress)))
        if save and self.memo_path is not None:
            self._save(paths, files.values())
        return [ClipFacts(error=clip.fault) if clip.fault else _part_of(clip, files[clip.path]) for clip in clips]

    def _file_facts(self, path: Path) -> dict:
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns]
            known = self.memo.get(str(path.resolve()))
            if known and known["stamp"] == stamp:
                return known
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            return {"stamp": stamp, "digest": digest, "duration_s": soundfile.info(path).duration}
        except (OSError, soundfile.LibsndfileError) as error:
            return {"error": f"cannot be read as audio ({error})"}

    def _save(self, paths: Sequence[Path], facts: Iterable[dict]) -> None:
        new = {str(path.resolve()): fact for path, fact in zip(paths, facts) if "error" not in fact}
        if any(self.memo.get(path) != fact for path, fact in new.items()):
            self.memo.update(new)
            self.memo_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.memo_path, json.dumps(self.memo))


def _part_of(clip: Clip, file: dict) -> ClipFacts:
    if "error" in file:
        return ClipFacts(error=file["error"])
    end_s = file["duration_s"] if clip.end_s is None else clip.end_s
    is_whole = clip.start_s == 0 and clip.end_s is None
    digest = file["digest"] if is_whole else f"{file['digest']}#{clip.start_s}-{end_s}"
    return ClipFacts(digest, end_s - clip.start_s)
