"""A corpus in pieces, each read by one worker: listed clips, files behind a URL, rows of Parquet files, tar shards.

Pieces follow from the corpus alone, so that a run that goes on meets the same ones. A piece is small (it is pickled and sent)
and says where its clips are; `clips_of_piece` opens them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from wavcse.audio_wavcse import AUDIO_SUFFIXES
from wavcse.data.files import digest_of
from wavcse.data.remote import filesystem_of

if TYPE_CHECKING:
    from wavcse.data.manifest import Clip

CLIPS_PER_PIECE = 2048  # 16 MB of embeddings at E = 2000; what a lost worker computes again at most
READ_ROWS = 64  # of a Parquet file at a time


class NamedClip(NamedTuple):
    """One clip: its id in the table, the path that the table shows, and what `EmbedBatch.embed` takes."""

    clip_id: str
    path: str
    source: Any


@dataclass(frozen=True)
class Piece:
    """Clips that are embedded together, into one part of the result.

    Args:
        kind: "clips", "files", "parquet" or "tar".
        url: of the shard; of "files", of the folder.
        name: of the shard below the corpus, which begins the ids of its clips.
        stamp: what changes with the content: size, and when it was written or its hash, as far as the file system knows.
        items: the clips, or names of files below the folder.
        row_groups: of a Parquet file, first and last + 1.
        first_row: of these in the file.
        column: of a Parquet file, the audio.
    """

    kind: str
    url: str = ""
    name: str = ""
    stamp: str = ""
    items: tuple[Any, ...] = ()
    row_groups: tuple[int, int] = (0, 0)
    first_row: int = 0
    column: str = ""


def pieces_of_clips(clips: Sequence[Clip], paths: Sequence[str], size: int = CLIPS_PER_PIECE) -> list[Piece]:
    """Pieces of a manifest or a local folder of audio files."""
    named = [NamedClip(clip.clip_id, path, clip) for clip, path in zip(clips, paths)]
    return [Piece("clips", items=tuple(named[start : start + size])) for start in range(0, len(named), size)]


def pieces_of_url(url: str, size: int = CLIPS_PER_PIECE) -> list[Piece]:
    """Pieces of a folder (audio files, or tar or Parquet shards below it) or of one shard, local or behind a URL.

    Of a folder that holds several kinds, audio files come before tar shards and these before Parquet files.

    Raises:
        ValueError: there is nothing of these kinds, a Parquet file has no column of audio, or nothing can be read there.
    """
    files, root = filesystem_of(url)
    try:
        found = files.find(root, detail=True)
    except Exception as error:  # each file system raises what its library does
        raise ValueError(f"{url}: cannot be listed ({' '.join(str(error).split()) or type(error).__name__}).") from error
    names = {path: path.removeprefix(root).strip("/") or PurePosixPath(path).name for path in found}
    shown = {path: name for path, name in sorted(names.items()) if not any(part.startswith(".") for part in name.split("/"))}
    by_suffix = {
        kind: [path for path in shown if PurePosixPath(path).suffix.lower() in suffixes]
        for kind, suffixes in (("files", AUDIO_SUFFIXES), ("tar", (".tar",)), ("parquet", (".parquet",)))
    }
    stamps = {path: _stamp(found[path]) for path in shown}
    if paths := by_suffix["files"]:
        return [_of_files(files, root, paths[start : start + size], shown, stamps) for start in range(0, len(paths), size)]
    if paths := by_suffix["tar"]:
        return [Piece("tar", files.unstrip_protocol(path), shown[path], stamps[path]) for path in paths]
    pieces = [piece for path in by_suffix["parquet"] for piece in _of_parquet(files, path, shown[path], stamps[path], size)]
    if not pieces:
        raise ValueError(f"{url}: holds no audio files ({', '.join(AUDIO_SUFFIXES)}), no .tar and no .parquet shards.")
    return pieces


def corpus_digest(pieces: Sequence[Piece]) -> str:
    """Hash of what is in a corpus, as far as its listing tells."""
    return digest_of([asdict(piece) for piece in pieces])


def clips_of_piece(piece: Piece) -> Iterator[NamedClip]:
    """The clips, in order. What cannot be read is a ValueError for a shard, and left to whoever loads it for a file."""
    if piece.kind == "clips":
        yield from piece.items
    elif piece.kind == "files":
        for name in piece.items:
            yield NamedClip(name, name, f"{piece.url}/{name}")
    else:
        files, path = filesystem_of(piece.url)
        with files.open(path, "rb") as shard:
            yield from (_of_tar if piece.kind == "tar" else _of_rows)(piece, shard)


def _stamp(facts: dict) -> str:
    written = next((facts[name] for name in ("ETag", "etag", "mtime", "LastModified", "last_modified") if facts.get(name)), "")
    return f"{facts.get('size')} {written}"


def _of_files(files: Any, root: str, paths: Sequence[str], names: dict[str, str], stamps: dict[str, str]) -> Piece:
    stamp = digest_of([stamps[path] for path in paths])
    return Piece("files", files.unstrip_protocol(root), stamp=stamp, items=tuple(names[path] for path in paths))


def _of_parquet(files: Any, path: str, name: str, stamp: str, size: int) -> Iterator[Piece]:
    """Row groups of a file, as many together as hold `size` rows at least."""
    with files.open(path, "rb") as file, parquet.ParquetFile(file) as shard:
        column = _audio_column(shard.schema_arrow, path)
        rows = [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)]
    url, start, first_row = files.unstrip_protocol(path), 0, 0
    for end in range(1, len(rows) + 1):
        count = sum(rows[start:end])
        if count >= size or end == len(rows):
            yield Piece("parquet", url, name, stamp, row_groups=(start, end), first_row=first_row, column=column)
            start, first_row = end, first_row + count


def holds_audio(schema: pa.Schema) -> bool:
    """Whether a Parquet file has a column of audio, and is not a manifest, which names files."""
    return "file_name" not in schema.names and any(_holds_bytes(field.type) for field in schema)


def _audio_column(schema: pa.Schema, path: str) -> str:
    """The column `audio`, or the only one of bytes or of structs with `bytes`."""
    if "audio" in schema.names:
        return "audio"
    found = [field.name for field in schema if _holds_bytes(field.type)]
    if len(found) != 1:
        raise ValueError(f"{path}: has no column 'audio' and not one other that holds bytes; its columns are {schema.names}.")
    return found[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _of_rows(piece: Piece, file: Any) -> Iterator[NamedClip]:
    row = piece.first_row
    with parquet.ParquetFile(file) as shard:
        for batch in shard.iter_batches(READ_ROWS, row_groups=list(range(*piece.row_groups)), columns=[piece.column]):
            for cell in batch.column(0).to_pylist():
                path = cell.get("path") if isinstance(cell, dict) else cell
                clip_id = f"{piece.name}#{row}"
                yield NamedClip(clip_id, path if isinstance(path, str) else clip_id, cell)
                row += 1


def _of_tar(piece: Piece, file: Any) -> Iterator[NamedClip]:
    with tarfile.open(fileobj=file, mode="r|*") as shard:
        for member in shard:
            name = PurePosixPath(member.name)
            if member.isfile() and name.suffix.lower() in AUDIO_SUFFIXES and not name.name.startswith("."):
                yield NamedClip(f"{piece.name}/{name}", str(name), shard.extractfile(member).read())
