"""Tables of text from CSV and Parquet files: one value has one spelling, whatever the file's format.

- Blanks, byte-order marks and characters of no width at the edges of a cell are dropped; accented letters are composed (NFC).
- Whole numbers have no decimal point: a column of integers with a gap is one of floats in Parquet, and `1.0` in the CSV that
  pandas makes of it. Integers and decimals of any size keep all their digits.
- Only an empty cell, and what Parquet marks as missing, is empty: `nan`, `null`, `None` and `NA` are words like any other.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import singledispatch
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

# Whitespace as `str.strip` knows it, then what shows nothing at the edge of a word: soft hyphen, separators and joiners of no
# width, marks of writing direction, byte-order mark.
BLANKS = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
    "\u202f\u205f\u3000\xad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
)
WHOLE_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)\.0+")
EXACT_FLOATS = 2**53  # from here on not every whole number is a float
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
PARQUET_MAGIC, GZIP_MAGIC, UTF16_MARKS = b"PAR1", b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")
PANDAS_INDEX = re.compile(r"__index_level_\d+__")


@dataclass
class TextTable:
    """The cells of a file as text.

    Attributes:
        columns: name -> one text per row; empty = missing.
        faults: row (from 0) -> why it cannot be used: cells too many or too few, NUL characters, bytes that are not UTF-8.
        unread: columns that hold no text, number or date -> their type.
    """

    columns: dict[str, list[str]]
    faults: dict[int, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def check_is_file(path: Path) -> None:
    """ValueError where there is no file that could be a table."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ValueError(f"{path}: {what}. Give a CSV or Parquet file.")


def read_text_table(path: Path, as_written: Sequence[str] = ()) -> TextTable:
    """Read a CSV file (UTF-8, commas, a header; may be gzipped) or a Parquet file (by suffix or content).

    Args:
        as_written: columns of which only the edges are trimmed, for example names of files.

    Raises:
        ValueError: the file is missing or cannot be read, or two columns have one name; the message names the file.
    """
    check_is_file(path)
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "CSV"
    try:
        with open(path, "rb") as file:
            kind = "Parquet" if file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC else kind
        table = _read_parquet(path) if kind == "Parquet" else _read_csv(path)
    except _NotATable as error:
        raise ValueError(f"{path}: {error}") from error
    except (OSError, EOFError, ValueError, pa.ArrowException, OverflowError, MemoryError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: cannot be read as {kind}; is it whole? ({words})") from error
    for name, cells in table.columns.items():
        spell = trimmed if name in as_written else spelled
        table.columns[name] = [spell(_legible(cell, name, row, table.faults)) for row, cell in enumerate(cells)]
    return table


class _NotATable(Exception):
    """What is wrong with a file; the message lacks only the file's name, which `read_text_table` adds."""


def trimmed(text: str) -> str:
    """The text without blanks and invisible characters at its edges."""
    return text.strip(BLANKS)


def spelled(text: str) -> str:
    """The one spelling of a value: trimmed, its accents composed, a whole number without decimal point."""
    text = text.strip(BLANKS)
    if not text.isascii():
        return unicodedata.normalize("NFC", text)
    if text.endswith("0") and (number := WHOLE_NUMBER.fullmatch(text)):
        return number[2] if number[2] == "0" else number[1] + number[2]
    return text


def _legible(text: str, column: str, row: int, faults: dict[int, str]) -> str:
    """The text, with what no file or screen can hold written out; the row is noted in `faults` then."""
    if "\0" in text:
        faults.setdefault(row, f"its {column!r} holds a NUL character (row {row + 1})")
        text = text.replace("\0", "\\0")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            faults.setdefault(row, f"its {column!r} is not UTF-8 (row {row + 1}); save the table as UTF-8")
            text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return text


def _read_csv(path: Path) -> TextTable:
    data = path.read_bytes()
    if data.startswith(GZIP_MAGIC):
        data = gzip.decompress(data)
    if data.startswith(UTF16_MARKS):
        raise _NotATable("is UTF-16; save it as CSV in UTF-8.")
    # Bytes that are not UTF-8 pass here, and are a fault of their row.
    lines = csv.reader(
        io.StringIO(data.decode("utf-8-sig", errors="surrogateescape"), newline=""), skipinitialspace=True, strict=True
    )
    try:
        header, rows, faults = _header(lines), [], {}
        for cells in lines:
            if not any(map(trimmed, cells)):
                continue
            given, width = len(cells), len(header)
            if given < width or any(map(trimmed, cells[width:])):  # commas at the end of a line are harmless
                faults[len(rows)] = (
                    f"line {lines.line_num} has {given} cells where the header has {width}; a cell that holds a comma needs "
                    "quotes"
                )
            rows.append((cells + [""] * (width - given))[:width])
    except csv.Error as error:
        raise _NotATable(f"line {lines.line_num} is not a line of a CSV file ({error}); is a quote left open?") from error
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header) if name}
    return TextTable(columns, faults)


def _header(lines: Iterator[list[str]]) -> list[str]:
    """Trimmed names of the columns; an empty one, such as that of an index that pandas wrote, is not a column."""
    header = [trimmed(name) for name in next(lines, [])]
    text = ",".join(header)
    if not text.strip(","):
        raise _NotATable("is empty, or its first line is; the first line must name the columns.")
    if "\0" in text:
        raise _NotATable("holds NUL bytes in its first line: it is binary, or UTF-16. Save it as CSV in UTF-8.")
    if any("\udc80" <= character <= "\udcff" for character in text):  # bytes that could not be decoded
        raise _NotATable("its first line is not UTF-8; save it as CSV in UTF-8.")
    for separator, name in OTHER_SEPARATORS.items():
        if separator in text and len(header) == 1:
            raise _NotATable(f"its columns are separated by {name}; save it with commas.")
    _refuse_twice(header)
    return header


def _refuse_twice(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise _NotATable(f"has two columns {twice[0]!r}; every column needs a name of its own.")


def _read_parquet(path: Path) -> TextTable:
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        _refuse_twice([trimmed(name) for name in schema.names])
        named = {name: kind for name, kind in zip(schema.names, schema.types) if trimmed(name)}
        readable = [name for name, kind in named.items() if not (_holds_no_text(kind) or PANDAS_INDEX.fullmatch(name))]
        table = file.read(columns=readable)
    columns = {trimmed(name): _texts(table[name]) for name in readable}
    unread = {trimmed(name): str(kind) for name, kind in named.items() if name not in readable}
    return TextTable(columns, unread=unread)


def _holds_no_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return is_binary or pa.types.is_nested(kind)


def _texts(column: pa.ChunkedArray) -> list[str]:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())  # not every writer makes sure that texts are UTF-8
    values = column.to_pylist()
    if pa.types.is_floating(column.type):  # the shortest digits of a float32 are those that were written
        kind = column.type.to_pandas_dtype()
        values = [None if value is None else kind(value) for value in values]
    return ["" if value is None else text_of(value) for value in values]


@singledispatch
def text_of(value: object) -> str:
    """A typed value, from a Parquet column or a recipe, as it is written in a CSV file."""
    return str(value)


@text_of.register
def _(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


@text_of.register(float)
@text_of.register(np.floating)
def _(value: float | np.floating) -> str:
    if math.isnan(value):
        return ""
    is_whole = math.isfinite(value) and value == int(value) and abs(int(value)) < EXACT_FLOATS
    return f"{int(value)}.0" if is_whole else str(value)  # numpy alone says 1e+08


@text_of.register
def _(value: Decimal) -> str:
    if not value.is_finite():
        return ""
    return str(int(value)) if value == value.to_integral_value() else format(value.normalize(), "f")


@text_of.register
def _(value: datetime.datetime) -> str:
    if value.tzinfo is None and value.time() == datetime.time() and not getattr(value, "nanosecond", 0):
        return value.date().isoformat()  # as pandas writes days
    return value.isoformat(" ")
