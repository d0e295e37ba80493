"""One picklable class from a batch of clips to a column of embeddings, for the libraries that map a function over batches.

    EmbedBatch("org/model")                      # datasets: dataset.map(..., batched=True)
                                                 # Ray Data: map_batches(EmbedBatch, fn_constructor_args=["org/model"], ...)
                                                 # Spark: frame.mapInPandas(EmbedBatch("org/model"), schema)

What is pickled are the names of the model and of its weights; the model is loaded once in every process that embeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from wavcse.audio_wavcse import ENCODED, is_decoder, is_open_file, load_waveform
from wavcse.data.arguments import EmbedSettings
from wavcse.data.corpus_pass import batches_by_length, decode_threads
from wavcse.data.embedding_table import as_lists
from wavcse.data.manifest import Clip
from wavcse.data.remote import is_remote, read_remote
from wavcse.embed import Embedder, LoadedClip
from wavcse.eval.encoder import SavedModel
from wavcse.settings.fields import usable_device
from wavcse.settings.processes import thread_pool

REASON = "error"  # column that says why a clip has no embedding
Batch = Mapping[str, Sequence] | pd.DataFrame | pa.Table


class EmbeddedCell(NamedTuple):
    """One clip of a batch: length and level as in `EmbeddedClip`, the windows' times `[n]`, embeddings `[n, E]`."""

    seconds: float
    rms: float
    start_s: np.ndarray
    end_s: np.ndarray
    embeddings: np.ndarray


class EmbedBatch:
    """Callable on a batch: a mapping of columns, a pandas frame, a pyarrow table, or an iterator of these.

    It returns a batch of the same kind, with all columns but the audio, and the embeddings `[E]` of every clip.

    Args:
        model: folder or Hub id (`id@revision`); its Python files are run, so name only models that you trust.
        column: the audio. A cell holds what `model.encode` takes (a path, bytes, an array, `{"bytes", "path"}` of an `Audio`
            column with `decode=False`, `{"array", "sampling_rate"}`, a decoder), or a URL that fsspec opens (`s3://`, `hf://`).
        into: name of the new column.
        sampling_rate: of cells that are bare arrays, in Hz; `None` = the model's.
        bad_clips: "raise", or "null": a clip that cannot be used gets a null and its reason in the column `error`.
        device: torch device; "auto" = a GPU if there is one.
        batch_seconds: audio that goes through the model at once, in seconds.
        settings: fields of `EmbedSettings`. With `window_s` a clip gives a row per window, with `start_s` and `end_s`.

    Raises:
        ValueError: the model cannot be read, a setting is out of range; when called, a clip cannot be used, or the weights in
            this place are not those of the place where the object was made.
    """

    def __init__(
        self,
        model: str,
        column: str = "audio",
        into: str = "embedding",
        sampling_rate: int | None = None,
        bad_clips: str = "raise",
        device: str = "auto",
        batch_seconds: float = 60.0,
        **settings: Any,
    ):
        if bad_clips not in ("raise", "null"):
            raise ValueError(f"bad_clips is {bad_clips!r}; allowed: raise, null.")
        self.model, self.column, self.into, self.sampling_rate = str(model), column, into, sampling_rate
        self.bad_clips, self.device, self.batch_seconds = bad_clips, device, batch_seconds
        self.settings = EmbedSettings(**settings)
        # Also the reason why `datasets`, which names its cache files by the pickled function, sees that weights have changed.
        self.identity = SavedModel.parse(self.model).identity(self.settings.precision)
        self._embedder: Embedder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_embedder": None}

    @property
    def embedder(self) -> Embedder:
        """The model and its settings, loaded at first use."""
        if self._embedder is None:
            embedder = Embedder(self.model, self.settings, torch.device(usable_device(self.device)), self.batch_seconds)
            for name in ("weights_sha256", "config_sha256"):
                if embedder.encoder.identity[name] != self.identity[name]:
                    raise ValueError(f"The model {self.model!r} is another one on this machine: its {name} differs.")
            self._embedder = embedder
        return self._embedder

    def __call__(self, batch: Batch | Iterator[Batch]) -> Batch | Iterator[Batch]:
        """Embed a batch; of an iterator, as Spark passes it, each one when it is asked for."""
        if isinstance(batch, Iterator):
            return map(self, batch)
        if self.column not in (columns := _columns(batch)):
            raise ValueError(
                f"The batch has no column {self.column!r}; its columns are {columns}. Name the audio by `column`."
            )
        found = self.embed(_cells(batch, self.column))
        for one in found:
            if isinstance(one, str) and self.bad_clips == "raise":
                raise ValueError(one)
        return _with_columns(batch, self.column, *self._new_columns(found))

    def embed(self, cells: Sequence[Any], names: Sequence[str] | None = None) -> list[EmbeddedCell | str]:
        """What is found of every clip, in order; of one that cannot be used the reason.

        Args:
            cells: as in a batch, or clips of a manifest.
            names: how reasons call the clips; else by their paths or rows.
        """
        names = [_name(cell, row) for row, cell in enumerate(cells)] if names is None else names
        rate = self.embedder.rate  # loads the model, before threads ask for it
        with thread_pool(decode_threads()) as pool:
            found: list[Any] = list(pool.map(self._load, cells, names))
        usable = [row for row, one in enumerate(found) if isinstance(one, LoadedClip)]
        seconds = [sum(map(len, found[row].windows)) / rate for row in usable]
        for rows in batches_by_length(usable, self.batch_seconds, seconds):
            self._compute(rows, found, names)
        return found

    def _load(self, cell: Any, name: str) -> LoadedClip | str:
        is_cut = self.settings.window_s is not None
        longest_s = None if is_cut else self.embedder.encoder.feature_extractor.max_duration_s
        try:
            if isinstance(cell, Clip):
                return self.embedder.cut(cell.load(self.embedder.rate, longest_s), name)
            return self.embedder.cut(load_waveform(self._source(cell), self.embedder.rate, name, longest_s), name)
        except ValueError as error:
            return str(error)

    def _source(self, cell: Any) -> Any:
        """What `load_waveform` takes."""
        if hasattr(cell, "asDict"):  # a `Row` of Spark
            cell = cell.asDict()
        if isinstance(cell, Mapping) and cell.get("bytes") is None and is_remote(cell.get("path")):
            return read_remote(cell["path"])
        if is_remote(cell):
            return read_remote(cell)
        is_array = not (isinstance(cell, (*ENCODED, Mapping)) or cell is None or is_decoder(cell) or is_open_file(cell))
        return {"array": cell, "sampling_rate": self.sampling_rate} if is_array and self.sampling_rate else cell

    def _compute(self, rows: Sequence[int], found: list[Any], names: Sequence[str]) -> None:
        """Put what is computed of some clips in the place of what was loaded; one by one where one of them is bad."""
        try:
            computed = self.embedder.compute([found[row] for row in rows])
        except (ValueError, FloatingPointError) as error:
            if len(rows) == 1:
                found[rows[0]] = str(error).replace("clip 0:", f"{names[rows[0]]}:")
                return
            for row in rows:
                self._compute([row], found, names)
        else:
            for row, one in zip(rows, computed):
                found[row] = EmbeddedCell(*one)

    def _new_columns(self, found: Sequence[EmbeddedCell | str]) -> tuple[list[int], dict[str, Any]]:
        """The row of the batch that each row of the result belongs to, and the columns that the result adds."""
        size = self.embedder.key["embedding_size"]
        unusable = EmbeddedCell(np.nan, np.nan, np.array([np.nan]), np.array([np.nan]), np.full((1, size), np.nan, np.float32))
        reasons = [one if isinstance(one, str) else None for one in found]
        cells = [unusable if isinstance(one, str) else one for one in found]
        rows = [row for row, one in enumerate(cells) for _ in one.start_s]
        columns: dict[str, Any] = {
            self.into: np.concatenate([np.empty((0, size), np.float32), *(one.embeddings for one in cells)])
        }
        if self.settings.window_s is not None:
            columns["start_s"] = np.concatenate([np.empty(0), *(one.start_s for one in cells)])
            columns["end_s"] = np.concatenate([np.empty(0), *(one.end_s for one in cells)])
        if self.bad_clips == "null":
            columns[self.into] = [None if reasons[row] else vector for row, vector in zip(rows, columns[self.into])]
            columns[REASON] = [reasons[row] for row in rows]
        return rows, columns


def _name(cell: Any, row: int) -> str:
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    return path if isinstance(path, str) and path else f"row {row}"


def _columns(batch: Batch) -> list[str]:
    return list(batch.column_names if isinstance(batch, pa.Table) else batch.keys())


def _cells(batch: Batch, column: str) -> list[Any]:
    if isinstance(batch, pa.Table):
        batch = batch.select([column]).to_pandas()
    return list(batch[column])


def _with_columns(batch: Batch, audio: str, rows: list[int], columns: Mapping[str, Any]) -> Batch:
    """These rows of the batch without its audio, and new columns."""
    if isinstance(batch, pa.Table):
        kept = {name: batch[name].take(pa.array(rows, pa.int64())) for name in batch.column_names if name != audio}
        return pa.table({**kept, **{name: _as_arrow(name, values) for name, values in columns.items()}})
    if isinstance(batch, pd.DataFrame):
        frame = batch.drop(columns=audio).iloc[rows].reset_index(drop=True)
        return frame.assign(**{name: pd.Series(list(values), frame.index) for name, values in columns.items()})
    kept = {name: values for name, values in batch.items() if name != audio}
    if rows != list(range(len(rows))):
        kept = {name: [values[row] for row in rows] for name, values in kept.items()}
    return {**kept, **columns}


def _as_arrow(name: str, values: np.ndarray | list) -> pa.Array:
    """`[N, E]`, `[N]`, or a list with nulls, whose type a batch of nothing but nulls would not tell."""
    if isinstance(values, np.ndarray):
        return as_lists(values) if values.ndim == 2 else pa.array(values)
    return pa.array(values, pa.string() if name == REASON else pa.list_(pa.float32()))
