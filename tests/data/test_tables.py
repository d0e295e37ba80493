"""Tables of text: one spelling for one value, whatever the format; files that are no table."""

import datetime
import gzip
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from wavcse.data.composite import load_task_clips
from wavcse.data.manifest import Manifest
from wavcse.data.tables import read_text_table, spelled
from wavcse.training.arguments import RunArguments

FILES = ["a.wav", "b.wav", "c.wav"]
NEW_YEAR = datetime.datetime(2024, 1, 1)


def column(path: Path) -> list[str]:
    return Manifest(path).column("label").tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series([1, 2, None]), ["1", "2", ""]),  # integers with a gap are floats
        (pd.Series([1, 2, None], dtype="Int64"), ["1", "2", ""]),
        (pd.Series([1.0, 2.5, -0.0]), ["1", "2.5", "0"]),
        (pd.Series([0.1, 3.0, None], dtype="float32"), ["0.1", "3", ""]),
        (pd.Series([2**60 + 1, None, -(2**53) - 1], dtype="Int64"), ["1152921504606846977", "", "-9007199254740993"]),
        (pd.Series([True, False, None]), ["True", "False", ""]),
        (pd.Series(pd.Categorical([7, 8, None])), ["7", "8", ""]),
        (pd.Series([Decimal("1.50"), Decimal("2.00"), None]), ["1.5", "2", ""]),
        (pd.Series([datetime.date(2024, 1, 1), None, None]), ["2024-01-01", "", ""]),
        (pd.Series(["nan", "None", "NA"]), ["nan", "None", "NA"]),
        (pd.Series(["null", None, "NULL"]), ["null", "", "NULL"]),
        (pd.Series(["go ", " ", "gsc_x\u00a0"]), ["go", "", "gsc_x"]),
        (pd.Series(["\ufeffgo\u200b", "\u3000", "g o"]), ["go", "", "g o"]),
        (pd.Series(["caf\u00e9", "cafe\u0301", "cafe"]), ["caf\u00e9", "caf\u00e9", "cafe"]),
        (pd.Series(["007", "1.10", "0x10"]), ["007", "1.10", "0x10"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value.dtype),
)
def test_a_value_has_one_spelling_in_csv_and_parquet(tmp_path, values, expected):
    table = pd.DataFrame({"file_name": FILES, "label": values})
    table.to_parquet(tmp_path / "m.parquet")
    assert column(tmp_path / "m.parquet") == expected
    if values.dtype != "object" or not isinstance(values[0], Decimal):  # of which pandas writes every digit
        table.to_csv(tmp_path / "m.csv", index=False)
        assert column(tmp_path / "m.csv") == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([2**64 - 1, None], pa.uint64()), ["18446744073709551615", ""]),
        (pa.array([Decimal(2**70), Decimal("0.1")], pa.decimal128(30, 2)), [str(2**70), "0.1"]),
        (pa.array(["x", None]).dictionary_encode(), ["x", ""]),
        (pa.array(["x", None], pa.large_string()), ["x", ""]),
        (pa.array([NEW_YEAR, NEW_YEAR + datetime.timedelta(hours=3)]), ["2024-01-01", "2024-01-01 03:00:00"]),
        (pa.array([1e8, 1.5], pa.float32()), ["100000000", "1.5"]),
        (pa.array(np.array([2.0, np.nan], np.float16)), ["2", ""]),
        (pa.nulls(2), ["", ""]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value.type),
)
def test_types_that_only_parquet_has_are_spelled_alike(tmp_path, values, expected):
    parquet.write_table(pa.table({"file_name": FILES[:2], "label": values}), tmp_path / "m.parquet")
    assert column(tmp_path / "m.parquet") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("1.0", "1"), ("-3.00", "-3"), ("-0.0", "0"), ("01.0", "01.0"), ("1.0.0", "1.0.0")]
)
def test_a_whole_number_has_no_decimal_point(text, expected):
    assert spelled(text) == expected


def test_what_names_a_clip_stays_as_written_but_for_its_edges(tmp_path):
    (tmp_path / "m.csv").write_text("file_name,start,end\n 1.0 ,0.0,2.0 \n", encoding="utf-8")
    assert [clip.clip_id for clip in Manifest(tmp_path / "m.csv").clips] == ["1.0#0.0-2.0"]


def test_a_task_of_a_csv_and_a_parquet_with_a_gap_has_three_classes_and_notices_the_speaker(tmp_path):
    rows = [(split, label, f"{split}{label}") for split in ("train", "validation", "test") for label in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["split", "label", "speaker_id"])
    for name in ("csv", "parquet"):
        own = table.assign(file_name=[f"{name}{row}.wav" for row in range(9)])
        if name == "csv":
            own.to_csv(tmp_path / "m.csv", index=False)
        else:
            gap = pd.DataFrame({"file_name": ["gap.wav"], "label": [None], "split": ["train"], "speaker_id": ["x"]})
            pd.concat([own, gap]).astype({"label": float}).to_parquet(tmp_path / "m.parquet")
    fields = {"manifest": [str(tmp_path / "m.csv"), str(tmp_path / "m.parquet")], "label_column": "label"}
    (source,) = RunArguments(tasks={"digit": fields | {"classes": [1, 2, 3.0]}}, save_hub=False).task_sources().values()
    task = load_task_clips("digit", source)
    assert task.classes == ["1", "2", "3"]
    assert np.bincount(task.targets).tolist() == [6, 6, 6]
    with open(tmp_path / "m.csv", "a", encoding="utf-8") as file:
        file.write("test,1,train1 ,leak.wav\n")  # the speaker with a blank after the name
    (source,) = RunArguments(tasks={"digit": fields | {"disjoint_by": "speaker_id"}}, save_hub=False).task_sources().values()
    with pytest.raises(ValueError, match=r"speaker_id \['train1'\] occur in both train and test"):
        load_task_clips("digit", source)


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\na.wav,go,\nb.wav,no,,\n",  # commas at the end of rows
        "file_name,label,\na.wav,go,\nb.wav,no,\n",  # and of the header
        ",file_name,label\n0,a.wav,go\n1,b.wav,no\n",  # an index that pandas wrote
        '\ufefffile_name , label\r\na.wav, "go"\r\n\r\n,\r\nb.wav,no',
        'file_name,label,note\na.wav,go,"two\nlines, quoted"\nb.wav,no,\n',
    ],
)
def test_csv_in_the_ways_that_programs_write_it(tmp_path, text):
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("m.csv", "m.csv.gz"):
        manifest = Manifest(tmp_path / name)
        assert [clip.clip_id for clip in manifest.clips] == ["a.wav", "b.wav"]
        assert manifest.column("label").tolist() == ["go", "no"]
        assert not any(clip.fault for clip in manifest.clips)


PARQUET = pa.table({"file_name": FILES, "label": ["1", "2", "3"]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"", "is empty"),
        ("m.csv", b"\n", "is empty, or its first line is"),
        ("m.csv", "file_name,label\na.wav,go\n".encode("utf-16"), "is UTF-16; save it as CSV in UTF-8"),
        ("m.csv", "file_name,label\na.wav,go\n".encode("utf-16-le"), "holds NUL bytes in its first line"),
        ("m.csv", "file_name,beschreibung \xfc\na.wav,go\n".encode("latin-1"), "its first line is not UTF-8"),
        ("m.csv", b"file_name;label\na.wav;go\n", "its columns are separated by semicolons"),
        ("m.tsv", b"file_name\tlabel\na.wav\tgo\n", "its columns are separated by tabs"),
        ("m.csv", b"file_name,label,label \na.wav,go,no\n", "has two columns 'label'"),
        ("m.csv", b'file_name,label\na.wav,"go\nb.wav,no\n', "line 3 is not a line of a CSV file"),
        ("m.csv.gz", gzip.compress(b"file_name\na.wav\n", mtime=0)[:-9], "cannot be read as CSV; is it whole"),
        ("m.parquet", b"", "cannot be read as Parquet; is it whole"),
        ("m.parquet", b"file_name\na.wav\n", "cannot be read as Parquet"),
        ("m.parquet", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        Manifest(tmp_path / name)
    assert str(refusal.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(refusal.value)


def test_a_cut_or_damaged_parquet_file_is_refused(tmp_path):
    parquet.write_table(PARQUET, tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-4] + b"XXXX", whole[:8] + bytes(len(whole) - 16) + whole[-8:]):
        (tmp_path / "m.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.parquet: cannot be read as Parquet"):
            Manifest(tmp_path / "m.parquet")


def test_nested_and_binary_columns_of_parquet_are_no_labels(tmp_path):
    nested = {
        "audio": pa.array([{"bytes": b"RIFF", "path": "a"}] * 3),
        "tags": pa.array([["x"]] * 3),
        "raw": pa.array([b"x"] * 3),
    }
    parquet.write_table(pa.table({"file_name": FILES, **nested}), tmp_path / "m.parquet")
    manifest = Manifest(tmp_path / "m.parquet")
    assert list(manifest.table.columns) == ["file_name"]
    for name, kind in (("audio", "struct<"), ("tags", "list<"), ("raw", "binary")):
        with pytest.raises(ValueError, match=f"column '{name}' holds {kind}.*; texts or numbers are needed"):
            manifest.column(name)
    unnamed = pa.table([pa.array(FILES), pa.array([1, 2, 3]), pa.array([["x"]] * 3)], names=["file_name", "", ""])
    parquet.write_table(unnamed, tmp_path / "m.parquet")
    assert list(Manifest(tmp_path / "m.parquet").table.columns) == ["file_name"]
    parquet.write_table(pa.table([pa.array(FILES), pa.array(FILES)], names=["file_name", "file_name"]), tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="has two columns 'file_name'"):
        Manifest(tmp_path / "m.parquet")


def test_an_index_of_pandas_is_a_column_if_it_has_a_name(tmp_path):
    table = pd.DataFrame({"label": ["x", "y"]}, index=pd.Index(["a.wav", "b.wav"], name="file_name"))
    table.to_parquet(tmp_path / "named.parquet")
    assert sorted(read_text_table(tmp_path / "named.parquet").columns) == ["file_name", "label"]
    table.reset_index().set_axis([5, 7]).to_parquet(tmp_path / "unnamed.parquet")
    assert sorted(read_text_table(tmp_path / "unnamed.parquet").columns) == ["file_name", "label"]


def test_a_folder_is_no_manifest(tmp_path):
    with pytest.raises(ValueError, match="is a folder. Give a CSV or Parquet file"):
        Manifest(tmp_path)
