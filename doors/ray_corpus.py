"""`wavcse embed --engine ray`: a corpus in pieces, embedded by the workers of a Ray cluster into a folder of Parquet parts.

    OUT/_wavcse.json            what the vectors depend on, and which corpus it is; other settings are refused
    OUT/part-000012.parquet     piece 12: id, path, seconds, (start_s, end_s,) embedding; who was skipped is in its metadata
    OUT/_skipped.csv            written at the end

A piece is one part, under its own name, whole or not there. So whoever computes a piece again, because a worker was lost or
the run was killed, writes the same part: nothing is lost, and nothing is there twice.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from tqdm.auto import tqdm

from wavcse.audio_wavcse import QUIET_RMS
from wavcse.data.arguments import EmbedArguments, EmbedSettings
from wavcse.data.audio_folder import read_audio_folder
from wavcse.data.corpus_pass import SkippedClip, quiet_in_words, skipped_text
from wavcse.data.embedding_table import METADATA_KEY, refuse_other_settings, write_table
from wavcse.data.files import json_text, replacing
from wavcse.data.hub_datasets import is_saved
from wavcse.data.remote import filesystem_of, is_remote
from wavcse.data.shards import NamedClip, Piece, clips_of_piece, corpus_digest, pieces_of_clips, pieces_of_url
from wavcse.doors.batches import EmbedBatch, EmbeddedCell
from wavcse.embed import clips_of
from wavcse.settings.command import DONE, SOME_SKIPPED, CommandError

KEY_FILE, SKIPPED_FILE = "_wavcse.json", "_skipped.csv"  # readers of Parquet folders pass over names with an underscore
CLIPS_AT_ONCE, BYTES_AT_ONCE = 64, 2**26  # of encoded audio that a worker holds
DAMAGE = (tarfile.TarError, pa.ArrowInvalid, EOFError, zlib.error)  # of a shard that was cut short
READ_THREADS = 16


class Parts:
    """The folder of parts: `out` is a path, or a URL that fsspec opens."""

    def __init__(self, out: str):
        self.out, (self.files, self.root) = out, filesystem_of(out)

    @property
    def is_local(self) -> bool:
        return not is_remote(self.out) or self.out.startswith("file://")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def name(self, number: int) -> str:
        return f"part-{number:06d}.parquet"

    def present(self) -> set[str]:
        """Names of the files in it."""
        self.files.invalidate_cache()
        return {Path(path).name for path in self.files.ls(self.root, detail=False)} if self.files.isdir(self.root) else set()

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is whole or not there: an object store gives a name to what is complete only."""
        if self.is_local:
            with replacing(Path(self.path(name)), durable=True) as partial:
                partial.write_bytes(content)
        else:
            self.files.pipe_file(self.path(name), content)

    def read(self, name: str) -> bytes:
        return self.files.cat_file(self.path(name))

    def metadata(self, names: Sequence[str]) -> list[tuple[int, dict]]:
        """Rows of each part, and what it says of its piece."""
        self.files.invalidate_cache()  # else S3's goes by a listing from before the workers wrote
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return list(pool.map(self._metadata, names))

    def _metadata(self, name: str) -> tuple[int, dict]:
        with self.files.open(self.path(name), "rb") as file, parquet.ParquetFile(file) as part:
            return part.metadata.num_rows, json.loads(part.schema_arrow.metadata[METADATA_KEY])

    def prepare(self, key: dict) -> None:
        """Make the folder for this key; ValueError where it holds parts of another one."""
        self.files.makedirs(self.root, exist_ok=True)
        if KEY_FILE in self.present():
            refuse_other_settings(Path(self.out), json.loads(self.read(KEY_FILE)), key)
        elif any(name.startswith("part-") for name in self.present()):
            raise ValueError(
                f"{self.out}: holds parts, but no {KEY_FILE} that says of what. Give another --out, or remove them."
            )
        else:
            self.write(KEY_FILE, json_text(key, indent=1).encode())


class EmbedPieces:
    """What a worker runs: `{"number": [...], "piece": [...]}` -> the same numbers, after their parts are written.

    Args:
        embed: how; of a clip that cannot be used the reason is kept.
        out: folder of the parts.
    """

    def __init__(self, embed: EmbedBatch, out: str):
        self.embed, self.parts = embed, Parts(out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number, piece in zip(batch["number"], batch["piece"]):
            name = self.parts.name(int(number))
            if name not in self.parts.present():  # where a block is computed again, some of its parts may be there
                self.parts.write(name, self._part(piece))
        return {"number": batch["number"]}

    def _part(self, piece: Piece) -> bytes:
        """The Parquet file of a piece."""
        embedder, with_times = self.embed.embedder, self.embed.settings.window_s is not None
        rows, vectors = [], [np.empty((0, embedder.key["embedding_size"]), np.float32)]
        facts = {"clips": 0, "skipped": [], "quiet": []}
        for clip, one in self._found(piece):
            if isinstance(one, str):
                facts["skipped"].append((clip.clip_id, one))
                continue
            facts["clips"] += 1
            facts["quiet"] += [clip.clip_id] * (one.rms < QUIET_RMS)
            rows += _rows(clip, one, with_times)
            vectors.append(one.embeddings)
        columns = ["id", "path", "seconds", *(["start_s", "end_s"] if with_times else [])]
        buffer = io.BytesIO()
        write_table(buffer, pd.DataFrame(rows, columns=columns), np.concatenate(vectors), {**embedder.metadata, **facts})
        return buffer.getvalue()

    def _found(self, piece: Piece) -> Iterator[tuple[NamedClip, EmbeddedCell | str]]:
        """Every clip with what is found of it. A damaged shard gives what is before the damage, and one line more."""
        try:
            for clips in _at_once(clips_of_piece(piece)):
                found = self.embed.embed([clip.source for clip in clips], [clip.clip_id for clip in clips])
                yield from zip(clips, found)
        except DAMAGE as error:
            reason = f"{piece.name}: is damaged ({' '.join(str(error).split())}); clips before the damage are used."
            yield NamedClip(piece.name, piece.name, None), reason


def _rows(clip: NamedClip, found: EmbeddedCell, with_times: bool) -> list[tuple]:
    times = zip(found.start_s, found.end_s)
    return [(clip.clip_id, clip.path, found.seconds, *(pair if with_times else ())) for pair in times]


def _at_once(clips: Iterable[NamedClip]) -> Iterator[list[NamedClip]]:
    """Clips in groups that fit into memory."""
    group, size = [], 0
    try:
        for clip in clips:
            group.append(clip)
            source = clip.source.get("bytes") if isinstance(clip.source, dict) else clip.source
            size += len(source) if isinstance(source, bytes) else 0
            if len(group) == CLIPS_AT_ONCE or size >= BYTES_AT_ONCE:
                yield group
                group, size = [], 0
    except DAMAGE:
        if group:
            yield group  # what was read before
        raise
    if group:
        yield group


@dataclass(frozen=True)
class RayReport:
    """What a run did: rows and clips of the result, parts that this run wrote and that were there, skipped and quiet clips."""

    rows: int
    clips: int
    added: int
    present: int
    skipped: list[SkippedClip]
    quiet: list[str]


def embed_on_ray(
    corpus: str,
    model: str,
    out: str,
    settings: EmbedSettings | None = None,
    batch_seconds: float = 60.0,
    device: str = "auto",
    workers: int | str = "auto",
    address: str | None = None,
    show_progress: bool = False,
) -> RayReport:
    """Embed a corpus on a Ray cluster; killed at any moment, the next run continues.

    Args:
        corpus: as for `embed_corpus`, or a folder or URL with audio files, tar or Parquet shards below it; local paths must
            be seen by all machines.
        out: folder or URL of the parts.
        workers: actors, each with a GPU where the cluster has GPUs and the device is not "cpu", else with one CPU; "auto" =
            from one to as many as the cluster has room for.
        address: of the cluster; `None` = that of RAY_ADDRESS, or one on this machine.

    Raises:
        ValueError: the corpus or the model cannot be read, a setting is out of range, or `out` holds embeddings of other
            settings or clips.
        CommandError: `ray` is not installed, or a worker failed for a reason that trying again does not mend.
    """
    settings = settings or EmbedSettings()
    pieces, parts = _pieces(corpus), Parts(out)
    embed = EmbedBatch(model, device="cpu", batch_seconds=batch_seconds, **asdict(settings))
    parts.prepare({**embed.embedder.key, "corpus": corpus_digest(pieces)})
    embed.device = device
    present = parts.present()
    names = [parts.name(number) for number in range(len(pieces))]
    todo = [number for number, name in enumerate(names) if name not in present]
    if todo:
        _run(todo, pieces, embed, out, workers, address, show_progress)
    counts, facts = zip(*parts.metadata(names))
    skipped = [SkippedClip(*one) for fact in facts for one in fact["skipped"]]
    quiet = [name for fact in facts for name in fact["quiet"]]
    parts.write(SKIPPED_FILE, skipped_text(skipped).encode())
    clips = sum(fact["clips"] for fact in facts)
    if not clips:
        reason = f"None of the {len(skipped)} clips can be used; the first: {skipped[0].reason}" if skipped else ""
        raise ValueError(reason or f"{corpus}: its shards hold no audio files.")
    return RayReport(sum(counts), clips, len(todo), len(names) - len(todo), skipped, quiet)


def _pieces(corpus: str) -> list[Piece]:
    """Manifests, folders of audio and of `save_to_disk` are read as without Ray; all else is shards."""
    path = Path(corpus)
    is_listed = path.suffix.lower() in (".csv", ".gz") or (path.is_dir() and (read_audio_folder(path).files or is_saved(path)))
    if path.suffix.lower() == ".parquet" and path.is_file():
        is_listed = "file_name" in parquet.read_schema(path).names
    if is_remote(corpus) or not is_listed:
        return pieces_of_url(corpus)
    listed = clips_of(corpus)
    return pieces_of_clips(listed.clips, listed.paths)


def _run(
    todo: Sequence[int],
    pieces: Sequence[Piece],
    embed: EmbedBatch,
    out: str,
    workers: int | str,
    address: str | None,
    show: bool,
) -> None:
    ray = _ray()
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    has_gpus = embed.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    room = int(ray.cluster_resources().get("GPU" if has_gpus else "CPU", 1))
    concurrency = (1, max(1, min(room, len(todo)))) if workers == "auto" else min(int(workers), len(todo))
    items = [{"number": number, "piece": pieces[number]} for number in todo]
    work = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        EmbedPieces,
        fn_constructor_args=[embed, out],
        batch_size=1,
        concurrency=concurrency,
        **({"num_gpus": 1} if has_gpus else {"num_cpus": 1}),
    )
    try:
        for _ in tqdm(work.iter_rows(), "embed", len(items), unit="part", disable=not show):
            pass
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CommandError(f"a worker failed: {lines[-1]}") from error


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise CommandError('--engine ray needs Ray: pip install "wavcse[ray]"') from error
    return ray


def run(args: EmbedArguments) -> int:
    """`wavcse embed --engine ray`; the exit code."""
    settings = EmbedSettings(**{one.name: getattr(args, one.name) for one in fields(EmbedSettings)})
    how = {"batch_seconds": args.batch_seconds, "device": args.device, "workers": args.workers, "address": args.address}
    report = embed_on_ray(args.corpus, args.model, args.out, settings, **how, show_progress=True)
    print(
        f"{args.out}: {report.rows} rows of {report.clips} clips; {report.added} parts embedded, {report.present} were there"
    )
    if report.quiet:
        print(quiet_in_words(len(report.quiet), report.quiet[0]))
    if report.skipped:
        print(
            f"{len(report.skipped)} clips were skipped, see {args.out}/{SKIPPED_FILE}; the first: {report.skipped[0].reason}"
        )
    return SOME_SKIPPED if report.skipped else DONE
