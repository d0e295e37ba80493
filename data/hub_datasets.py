"""Data sets in the Hub's formats wherever a manifest goes: each becomes a manifest once, with its audio in files.

    hf://datasets/ORG/NAME[@REVISION][?config=NAME&split=train,dev:validation&audio=COLUMN&NEW=OLD&streaming=true]
    FOLDER[?...]        of `save_to_disk`, of Parquet files that hold audio, or an `audiofolder`
    FILE.parquet[?...]  that holds audio

The manifest and the audio lie below `datasets_root()`, in a folder whose name follows from the data set, its revision (or the
files of a local one) and what is asked of it; links stand for audio that is in files of this machine already. Audio is never
decoded here, and nothing of it by `datasets`, which would need torchcodec and FFmpeg.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import soundfile
from pyarrow import parquet
from tqdm.auto import tqdm

from wavcse.audio_wavcse import AUDIO_SUFFIXES, ENCODED
from wavcse.data import SPLIT_ALIASES, SPLITS
from wavcse.data.audio_folder import read_audio_folder
from wavcse.data.files import digest_of, locked, remove_partials, write_atomically
from wavcse.data.remote import is_remote, read_remote
from wavcse.data.shards import holds_audio
from wavcse.data.tables import read_text_table, text_of

HUB = "hf://datasets/"
ROOT_VARIABLE = "WAVCSE_DATASETS"
MANIFEST = "metadata.csv"
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of an audiofolder
SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`
OPTIONS = ("config", "split", "audio", "streaming")
LEFT_OUT = ("file_name", "start", "end")  # columns that mean the clip's own file in a manifest, and other things elsewhere
FILES_PER_FOLDER = 10_000
PATIENCE_S = 86_400.0  # of a process while another one copies
COMMIT = re.compile("[0-9a-f]{40}")
SPLIT = re.compile(r"(?P<split>[^:\[\]]+(\[[^\]]*\])?)(:(?P<role>train|validation|test))?")


@dataclass(frozen=True)
class DataSet:
    """What a user writes, read.

    Args:
        place: id on the Hub, or a path.
        is_remote: which of the two.
        revision: branch, tag or commit.
        config: of the data set; `None` = its only one.
        splits: name, perhaps with a slice (`train[:500]`) -> train, validation or test; empty = all, by their names.
        audio: the column of audio; `None` = the one of type `Audio`, or `audio`.
        columns: new name -> the data set's.
        streaming: read over the network row by row, without keeping the data set's own files.
    """

    place: str
    is_remote: bool
    revision: str | None = None
    config: str | None = None
    splits: tuple[tuple[str, str], ...] = ()
    audio: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    streaming: bool = False

    @classmethod
    def parse(cls, source: str) -> DataSet:
        """ValueError where an option is not one, or a split cannot be read."""
        source, query = _cut(source)
        options = parse_qsl(query, keep_blank_values=True)
        given = dict(options)
        if len(given) < len(options):
            twice = next(name for name in given if [one for one, _ in options].count(name) > 1)
            raise ValueError(f"{source}: {twice} is given twice; of several splits write split=ONE,OTHER.")
        is_remote = source.startswith(HUB)
        place, _, revision = source.removeprefix(HUB).partition("@") if is_remote else (source, "", "")
        if is_remote and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place):
            raise ValueError(f"{source}: names no data set; write {HUB}ORG/NAME, perhaps with @REVISION and ?split=train.")
        streaming = given.get("streaming", "false").lower()
        if streaming not in ("true", "false"):
            raise ValueError(f"{source}: streaming is {streaming!r}; allowed: true, false.")
        return cls(
            place,
            is_remote,
            revision or None,
            given.get("config"),
            tuple(_split(source, part) for part in given["split"].split(",")) if "split" in given else (),
            given.get("audio"),
            tuple((new, old) for new, old in given.items() if new not in OPTIONS),
            streaming == "true",
        )

    @property
    def name(self) -> str:
        """The last part of its name, which the column `corpus` holds."""
        return PurePosixPath(self.place).name


def names_data_set(source: str | Path) -> bool:
    """Whether this, given as a manifest, is a data set: on the Hub, or here in one of the Hub's formats."""
    place, _ = _cut(str(source))
    if place.startswith(HUB):
        return True
    path = Path(place)
    if path.is_dir():
        return _format(path) != ""
    try:
        return path.suffix.lower() == ".parquet" and path.is_file() and holds_audio(parquet.read_schema(path))
    except (OSError, ValueError):  # of pyarrow; whoever reads it as a manifest says what is wrong
        return False


def datasets_root() -> Path:
    """Where data sets are copied to: `WAVCSE_DATASETS`, else below the cache of Hugging Face."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get(ROOT_VARIABLE) or Path(HF_HOME) / "wavcse" / "datasets")


def manifest_of(source: str | Path) -> Path:
    """The manifest of a data set; made at first use, and when the data set has changed.

    Its columns: `file_name`, `split` (where the data set has no such column), `corpus`, and all columns of the data set that
    hold text, numbers or classes (by their names).

    Raises:
        ValueError: the data set cannot be read, or has no such configuration, split or column; or `datasets` is not installed.
    """
    wanted = DataSet.parse(str(source))
    content = _revision(wanted) if wanted.is_remote else _stamps(Path(wanted.place))
    folder = _folder_of(wanted, content)
    if not (folder / MANIFEST).exists():
        with locked(folder, is_file=True, patience_s=PATIENCE_S):
            if not (folder / MANIFEST).exists():
                _copy(wanted, content if wanted.is_remote else None, folder)
    return folder / MANIFEST


def copied_manifest(source: str | Path) -> Path | None:
    """The manifest of a data set that has been copied; `None` where it has not. The network is not asked."""
    wanted = DataSet.parse(str(source))
    content = _known_revision(wanted) if wanted.is_remote else _stamps(Path(wanted.place))
    manifest = _folder_of(wanted, content) / MANIFEST if content else None
    return manifest if manifest and manifest.exists() else None


def _folder_of(wanted: DataSet, content: str) -> Path:
    """Where a data set is copied to; `content` is its commit, or `_stamps` of its files."""
    key = digest_of([wanted.place, content, wanted.config, wanted.splits, wanted.audio, wanted.columns])
    return datasets_root() / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', wanted.name)}-{key}"


def _cut(source: str) -> tuple[str, str]:
    """What is before and after the `?`; of a path that exists as it is written, all of it."""
    if not source.startswith(HUB) and Path(source).exists():
        return source, ""
    place, _, query = source.partition("?")
    return place, query


def _split(source: str, text: str) -> tuple[str, str]:
    found = SPLIT.fullmatch(text.strip())
    name = found["split"] if found else ""
    role = found["role"] or _role(name.partition("[")[0]) if found else ""
    if not role:
        raise ValueError(
            f"{source}: split {text!r} is not {', '.join(SPLITS)}; say what it is for, as in {name or 'NAME'}:train."
        )
    return name, role


def _role(split: str) -> str:
    """What a split of this name is for; "" where the name does not say."""
    name = SPLIT_ALIASES.get(split, split)
    return name if name in SPLITS else ""


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in SAVED)


def _format(folder: Path) -> str:
    """ "saved", "audiofolder", "parquet", or "" for a folder of something else."""
    if is_saved(folder):
        return "saved"
    if read_audio_folder(folder).files:
        return "audiofolder"
    return "parquet" if next(folder.rglob("*.parquet"), None) else ""


def _stamps(place: Path) -> str:
    """Hash of names, sizes and times of a local data set's files."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    facts = [(path.relative_to(place).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return digest_of([str(place.resolve()), facts])


def _revision(wanted: DataSet) -> str:
    """The commit that is meant: what the Hub says, or, where it cannot be asked, what it said last."""
    if wanted.revision and COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    named = f"{HUB}{wanted.place}" + (f"@{wanted.revision}" if wanted.revision else "")
    try:
        commit = HfApi().dataset_info(wanted.place, revision=wanted.revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(f"{named}: there is no such data set or revision, or it is private: run `hf auth login`.") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        known = _known_revision(wanted)
        if known:
            return known
        raise ValueError(f"{named}: the Hub cannot be asked ({' '.join(str(error).split())[:200]}).") from error
    record = _record_of(wanted)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(record, f"{commit}\n")
    return commit


def _record_of(wanted: DataSet) -> Path:
    """Where the commit that the Hub named last is written down."""
    return datasets_root() / f"{digest_of([wanted.place, wanted.revision])}.commit"


def _known_revision(wanted: DataSet) -> str | None:
    """The commit that is meant, as far as it is known without the Hub."""
    if wanted.revision and COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    record = _record_of(wanted)
    return record.read_text(encoding="utf-8").strip() if record.exists() else None


def _copy(wanted: DataSet, commit: str | None, folder: Path) -> None:
    """Make the folder: the audio, then the manifest, whole or not there."""
    remove_partials(folder.parent, folder.name)
    partial = folder.with_name(f"{folder.name}.copy.partial")
    partial.mkdir(parents=True)
    try:
        place, kind = _opened(wanted, commit)
        if kind == "audiofolder":
            (partial / "audio").symlink_to(place.resolve())
            rows = list(_rows_of_folder(place, wanted))
        else:
            rows = [row for split, role in _splits(wanted, place) for row in _rows_of_split(wanted, split, role, partial)]
        if not rows:
            raise ValueError(f"{wanted.place}: has no rows.")
        _check_columns(wanted, rows)
        write_atomically(partial / MANIFEST, _as_csv(wanted, rows))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _opened(wanted: DataSet, commit: str | None) -> tuple[Any, str]:
    """The splits (name -> data set of the library), or the folder of an audiofolder; and which of the two."""
    path = Path(wanted.place)
    kind = "hub" if wanted.is_remote else _format(path) if path.is_dir() else "parquet"
    if kind == "audiofolder":
        return path, kind
    try:
        import datasets
        from datasets.exceptions import DatasetsError
        from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
    except ImportError as error:
        raise ValueError('data sets of the Hub need the library datasets: pip install "wavcse[hub]"') from error
    try:
        if kind == "saved":
            loaded = datasets.load_from_disk(str(path))
            return loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}, kind
        if kind == "parquet":
            where = {"path": str(path)} if path.is_dir() else {"path": "parquet", "data_files": {"train": str(path)}}
        else:
            where = {"path": wanted.place, "revision": commit}
            builder = datasets.load_dataset_builder(**where, name=wanted.config)
            if isinstance(builder, AudioFolder):  # which asks for torchcodec
                return _snapshot(wanted, commit), "audiofolder"
        return datasets.load_dataset(**where, name=wanted.config, streaming=wanted.streaming), kind
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{wanted.place}: cannot be loaded as a data set ({' '.join(str(error).split())}).") from error


def _snapshot(wanted: DataSet, commit: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(wanted.place, repo_type="dataset", revision=commit))


# ---- data sets that the library reads ----


def _splits(wanted: DataSet, loaded: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """The rows of every split that is asked for, and what it is for."""
    if not wanted.splits:
        unclear = [name for name in loaded if not _role(str(name))]
        if unclear:
            raise ValueError(
                f"{wanted.place}: its splits are {list(map(str, loaded))}; say what {unclear[0]!r} is for, as in "
                f"?split={unclear[0]}:train, and which others are used."
            )
    for asked, role in wanted.splits or [(str(name), _role(str(name))) for name in loaded]:
        name, _, part = asked.partition("[")
        if name not in loaded:
            raise ValueError(f"{wanted.place}: has no split {name!r}; its splits are {list(map(str, loaded))}.")
        yield _sliced(loaded[name], part.rstrip("]"), asked), role


def _sliced(rows: Any, part: str, asked: str) -> Any:
    """Rows `[start:stop]` of a split."""
    if not part:
        return rows
    numbers = re.fullmatch(r"(\d*):(\d*)", part)
    if not numbers:
        raise ValueError(f"split {asked!r} cannot be read; a slice counts rows, as in train[:500] or train[500:1000].")
    start, stop = int(numbers[1] or 0), int(numbers[2]) if numbers[2] else None
    if hasattr(rows, "select"):
        return rows.select(range(min(start, len(rows)), len(rows) if stop is None else min(stop, len(rows))))
    rows = rows.skip(start)
    return rows if stop is None else rows.take(stop - start)


def _rows_of_split(wanted: DataSet, rows: Any, role: str, folder: Path) -> Iterator[dict[str, str]]:
    """Rows of a manifest; the audio is written on the way."""
    from datasets import Audio, ClassLabel

    features = rows.features or {}
    column = wanted.audio or _audio_column(wanted, features)
    if features and column not in features:
        raise ValueError(f"{wanted.place}: has no column {column!r}; its columns are {list(features)}.")
    for name, feature in features.items():
        if isinstance(feature, Audio):
            rows = rows.cast_column(name, Audio(decode=False)) if name == column else rows.remove_columns(name)
    classes = {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}
    place = folder / "audio" / role
    before = sum(len(files) for _, _, files in os.walk(place))  # two splits may have one role
    for number, row in enumerate(tqdm(rows, f"copy {role}", unit="clip"), start=before):
        texts = {name: _text(value, classes.get(name)) for name, value in row.items() if name != column}
        name = _write_audio(row.get(column), place / f"{number // FILES_PER_FOLDER:04d}", f"{number:08d}")
        own = {name: text for name, text in texts.items() if text is not None}
        yield {"split": role, "corpus": wanted.name, **own, "file_name": name and f"audio/{role}/{name}"}


def _audio_column(wanted: DataSet, features: Mapping[str, Any]) -> str:
    from datasets import Audio

    found = [name for name, feature in features.items() if isinstance(feature, Audio)]
    if "audio" in features or not features:
        return "audio"
    if len(found) != 1:
        raise ValueError(f"{wanted.place}: say which column is audio, as in ?audio=NAME; its columns are {list(features)}.")
    return found[0]


def _text(value: Any, classes: Any = None) -> str | None:
    """A value as a cell; `None` for what is no text, number or class."""
    if classes is not None and value is not None:
        return classes.int2str(value) if value >= 0 else ""
    if value is None:
        return ""
    return None if isinstance(value, bytes | list | dict | np.ndarray) else text_of(value)


def _write_audio(cell: Any, place: Path, stem: str) -> str:
    """Write or link the audio of a row; its name from the folder above on, "" where there is none."""
    cell = {"path": cell} if isinstance(cell, str) else {"bytes": cell} if isinstance(cell, ENCODED) else cell or {}
    suffix = PurePosixPath(str(cell.get("path") or "")).suffix.lower()
    path = place / f"{stem}{suffix if suffix in AUDIO_SUFFIXES else '.audio'}"  # what it is follows from its content
    place.mkdir(parents=True, exist_ok=True)
    if cell.get("bytes"):
        path.write_bytes(cell["bytes"])
    elif cell.get("array") is not None:
        path = path.with_suffix(".wav")
        soundfile.write(path, np.asarray(cell["array"], dtype=np.float32), int(cell["sampling_rate"]), subtype="FLOAT")
    elif is_remote(cell.get("path")):
        path.write_bytes(read_remote(cell["path"]))
    elif cell.get("path"):
        path.symlink_to(Path(cell["path"]).absolute())
    else:
        return ""
    return f"{place.name}/{path.name}"


# ---- audiofolder ----


def _rows_of_folder(folder: Path, wanted: DataSet) -> Iterator[dict[str, str]]:
    """Rows of a manifest for an `audiofolder`: its metadata, else its folders, say the labels; its folders the splits."""
    files = read_audio_folder(folder).files
    tables = [path for name in METADATA_FILES for path in sorted(folder.rglob(name))]
    if tables:
        rows = [row for table in tables for row in _rows_of_table(folder, table, files)]
    else:
        rows = [{"file_name": name} for name in files]
        labels = [PurePosixPath(name).parent.name for name in files]
        is_label = [label and not _role(label) for label in labels]
        if len({label for label, said in zip(labels, is_label) if said}) > 1:
            for row, label, said in zip(rows, labels, is_label):
                row["label"] = label if said else ""
    asked = dict(wanted.splits)
    named = [_split_of(row["file_name"], asked) for row in rows]
    if missing := [name for name in asked if name not in named]:
        raise ValueError(f"{wanted.place}: has no split {missing[0]!r}; its folders are those of {sorted(set(named))}.")
    for row, split in zip(rows, named):
        if not asked or split in asked:
            role = asked.get(split) or _role(split)
            yield {"split": role, "corpus": wanted.name, **row, "file_name": f"audio/{row['file_name']}"}


def _split_of(name: str, asked: Mapping[str, str]) -> str:
    """The folder of a file that is a split; "train" where none is, as in `datasets`."""
    return next((part for part in PurePosixPath(name).parts[:-1] if part in asked or _role(part)), "train")


def _rows_of_table(folder: Path, table: Path, files: Mapping[str, Path]) -> Iterator[dict[str, str]]:
    """Rows of a metadata file, whose `file_name` is relative to it; ValueError for a file that is not there."""
    if table.suffix == ".jsonl":
        rows: Iterable[dict] = _json_lines(table)
    else:
        columns = read_text_table(table, ("file_name",)).columns
        rows = [dict(zip(columns, cells)) for cells in zip(*columns.values())]
    for row in rows:
        if not row.get("file_name"):
            raise ValueError(f"{table}: a row has no 'file_name'.")
        name = Path(os.path.relpath(table.parent / str(row["file_name"]), folder)).as_posix()
        if name not in files:
            raise ValueError(f"{table}: names {row['file_name']!r}, which is not there or not audio.")
        texts = {column: _text(value) for column, value in row.items()}
        yield {**{column: text for column, text in texts.items() if text is not None}, "file_name": name}


def _json_lines(table: Path) -> Iterator[dict]:
    """The objects of a file, one a line; ValueError names the first line that holds none."""
    # Not `splitlines`: texts may hold characters, such as U+2028, at which that cuts too.
    for number, line in enumerate(table.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{table}: line {number} is not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise ValueError(f"{table}: line {number} is no object with a 'file_name'.")
            yield row


# ---- the manifest ----


def _check_columns(wanted: DataSet, rows: list[dict[str, str]]) -> None:
    """ValueError where a column is renamed that is not there."""
    known = dict.fromkeys(name for row in rows for name in row)
    for new, old in wanted.columns:
        if old not in known:
            raise ValueError(
                f"{wanted.place}: has no column {old!r}, which is asked for as {new!r}; its columns are {list(known)}, "
                f"and the options {', '.join(OPTIONS)}."
            )


def _as_csv(wanted: DataSet, rows: list[dict[str, str]]) -> str:
    """The manifest: `file_name` first; columns that would mean something else there are left out."""
    renamed = {old: new for new, old in wanted.columns}
    known = dict.fromkeys(name for row in rows for name in row if name not in LEFT_OUT or name in renamed)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", *(renamed.get(name, name) for name in known)])
    writer.writerows([row["file_name"], *(row.get(name, "") for name in known)] for row in rows)
    return text.getvalue()
