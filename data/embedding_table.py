"""A Parquet table of embeddings while it grows: atomic parts that name their rows, merged in input order at the end.

    OUT.parquet.parts/key.json          what the vectors depend on; other settings are refused
    OUT.parquet.parts/digests.json      what is known of each file
    OUT.parquet.parts/part-*.parquet    finished clips: id, content digest, times and embedding; named by their checksums
    OUT.parquet                         all clips in input order; the parts are gone

A part gets its name when it is complete, and holds all rows of its clips. So whenever a run is killed, a clip is either done
or not.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from wavcse.data.files import (
    DamagedFile,
    allocate,
    check_piece,
    json_text,
    read_json,
    remove_partials,
    replacing,
    set_aside,
    write_json,
    write_piece,
)

METADATA_KEY = b"wavcse"
ROW_GROUP_ROWS = 4096  # 33 MB of embeddings at E = 2000
PART_COLUMNS = ("id", "digest", "seconds", "rms", "start_s", "end_s")


class EmbeddedClip(NamedTuple):
    """A finished clip: its name and content, its length and level, and one or several stretches of it with their embeddings.

    `start_s` and `end_s` have shape `[n]`, `embeddings` float32 `[n, E]`.
    """

    clip_id: str
    digest: str
    seconds: float
    rms: float
    start_s: np.ndarray
    end_s: np.ndarray
    embeddings: np.ndarray


class EmbeddingParts:
    """The folder of parts beside `out`.

    Args:
        out: the Parquet file that will be made.
        key: everything that changes a vector, as JSON values.
        repair: set damaged parts aside, so that their clips are embedded again, and remove what a killed run left half
            written. It reads all parts once, so only one of several processes does it.

    Raises:
        ValueError: the folder holds parts of another key; the message names what differs.
    """

    def __init__(self, out: Path, key: Mapping, repair: bool = True):
        self.out, self.key = out, dict(key)
        self.folder = parts_folder(out)
        if repair:
            self._repair()

    def _repair(self) -> None:
        key_path = self.folder / "key.json"
        try:
            if key_path.exists():
                refuse_other_settings(self.folder, read_json(key_path), self.key)
        except DamagedFile as error:  # without the key, nothing says which settings these parts were made with
            set_aside(self.folder, error)
        if not key_path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(key_path, self.key, indent=1)
        remove_partials(self.folder)
        remove_partials(self.out.parent, self.out.name)
        for path in self._paths():
            try:
                check_piece(path)
            except DamagedFile as error:
                set_aside(path, error)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def write(self, clips: Sequence[EmbeddedClip]) -> None:
        """Add a part with these clips."""
        counts = [len(clip.embeddings) for clip in clips]
        columns = {
            "id": np.repeat([clip.clip_id for clip in clips], counts),
            "digest": np.repeat([clip.digest for clip in clips], counts),
            "seconds": np.repeat([clip.seconds for clip in clips], counts),
            "rms": np.repeat([clip.rms for clip in clips], counts),
            "start_s": np.concatenate([clip.start_s for clip in clips]),
            "end_s": np.concatenate([clip.end_s for clip in clips]),
            "embedding": as_lists(np.concatenate([clip.embeddings for clip in clips])),
        }
        table = pa.table(columns)
        write = partial(pq.write_table, table, compression="none", use_dictionary=False)
        write_piece(self.folder, ".parquet", write, "part-")

    def index(self) -> pd.DataFrame:
        """Every finished row without its embedding, and where it lies: `part` and `row` there."""
        frames = []
        for path in self._paths():
            known = [name for name in PART_COLUMNS if name in pq.read_schema(path).names]  # earlier versions kept no level
            frame = pq.read_table(path, columns=known).to_pandas().reindex(columns=list(PART_COLUMNS))
            frames.append(frame.assign(part=path.name, row=np.arange(len(frame))))
        return pd.concat(frames) if frames else pd.DataFrame(columns=[*PART_COLUMNS, "part", "row"])

    def finished(self) -> set[tuple[str, str]]:
        """`(clip_id, digest)` of every finished clip."""
        index = self.index()
        return set(zip(index["id"], index["digest"]))

    def levels(self) -> dict[tuple[str, str], float]:
        """`(clip_id, digest)` -> root mean square of every finished clip, 1 = full scale."""
        index = self.index()
        return dict(zip(zip(index["id"], index["digest"]), index["rms"]))

    def merge(self, wanted: pd.DataFrame, metadata: Mapping, with_times: bool) -> None:
        """Write `out` with the rows of the wanted clips, atomically, and remove the parts.

        The embeddings go through a scratch file on disk, so memory does not grow with the corpus.

        Args:
            wanted: columns `id`, `path`, `digest`, one row per clip in the order of the result.
            metadata: kept in the file as JSON under the key `wavcse`.
            with_times: write the columns `start_s` and `end_s`.

        Raises:
            RuntimeError: a wanted clip is in no part.
        """
        rows = wanted.reset_index(drop=True).rename_axis("order").reset_index().merge(self.index(), on=["id", "digest"])
        rows = rows.drop_duplicates(["id", "start_s"]).sort_values(["order", "start_s"], ignore_index=True)
        missing = sorted(set(wanted["id"]) - set(rows["id"]))
        if missing:
            raise RuntimeError(f"{self.folder}: {len(missing)} clips are in no part, such as {missing[0]}. Run again.")
        names = ["id", "path", "seconds", *(["start_s", "end_s"] if with_times else [])]
        embeddings = self._gathered(rows)
        with replacing(self.out, durable=True) as whole:  # the parts are gone afterwards
            write_table(whole, rows[names], embeddings, metadata)
        remove_parts(self.out)

    def _gathered(self, rows: pd.DataFrame) -> np.ndarray:
        """Embeddings of `rows`, `[N, E]`, in a scratch file; each part is read once."""
        shape = (len(rows), self.key["embedding_size"])
        scratch = self.folder / "merged.float32"
        allocate(scratch, 4 * math.prod(shape))
        embeddings = np.memmap(scratch, np.float32, mode="r+", shape=shape)
        for part, of_part in rows.groupby("part"):
            column = pq.read_table(self.folder / str(part), columns=["embedding"])["embedding"].combine_chunks()
            embeddings[of_part.index] = column.flatten().to_numpy().reshape(-1, shape[1])[of_part["row"].to_numpy(dtype=int)]
        return embeddings


def parts_folder(out: Path) -> Path:
    """Where the parts of `out` lie."""
    return out.with_name(f"{out.name}.parts")


def remove_parts(out: Path) -> None:
    """Remove what a finished table leaves behind."""
    shutil.rmtree(parts_folder(out), ignore_errors=True)


def as_lists(embeddings: np.ndarray) -> pa.FixedSizeListArray:
    """`[N, E]` as an Arrow column of N lists of fixed size E."""
    return pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])


def write_table(place: Path | BinaryIO, rows: pd.DataFrame, embeddings: np.ndarray, metadata: Mapping) -> None:
    """Write a Parquet file in row groups: the columns of `rows`, `embedding` `[N, E]`, and metadata in its schema."""
    fields = [(name, pa.string() if name in ("id", "path") else pa.float64()) for name in rows.columns]
    fields.append(("embedding", pa.list_(pa.float32(), embeddings.shape[1])))
    schema = pa.schema(fields, metadata={METADATA_KEY: json_text(dict(metadata))})
    with pq.ParquetWriter(place, schema, compression="zstd", use_dictionary=["id", "path"]) as writer:
        for start in range(0, len(rows), ROW_GROUP_ROWS):
            part = pa.Table.from_pandas(rows[start : start + ROW_GROUP_ROWS], preserve_index=False)
            part = part.append_column("embedding", as_lists(embeddings[start : start + ROW_GROUP_ROWS]))
            writer.write_table(part.cast(schema), row_group_size=ROW_GROUP_ROWS)


def read_metadata(path: str | Path) -> dict:
    """What a table of embeddings says of its origin; ValueError if the file is not such a table."""
    try:
        return json.loads((pq.read_schema(path).metadata or {})[METADATA_KEY])
    except (OSError, KeyError, ValueError) as error:  # pyarrow's errors and JSON's are ValueErrors
        raise ValueError(f"{path}: is not a table of embeddings made by `wavcse embed`.") from error


def refuse_other_settings(place: Path, found: Mapping, wanted: Mapping) -> None:
    """ValueError that names what differs, unless the wanted settings are those that are found."""
    differing = [
        f"{name} {found.get(name)!r} there, {value!r} now" for name, value in wanted.items() if found.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{place}: holds embeddings made with other settings ({'; '.join(differing)}). Give another --out, or remove it."
        )
