"""Manifests: what is read, and what is refused."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet

from wavcse.data.corpus_pass import readable_clips
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_and_parquet_give_the_same_rows(tmp_path):
    csv = write(tmp_path / "m.csv", "file_name,keyword,age,split\na.wav,yes,23,train\nb.wav,,,val\n")
    pd.DataFrame(
        {"file_name": ["a.wav", "b.wav"], "keyword": ["yes", None], "age": ["23", None], "split": ["train", "val"]}
    ).to_parquet(tmp_path / "m.parquet")
    for path in (csv, tmp_path / "m.parquet"):
        manifest = Manifest(path)
        assert [clip.path for clip in manifest.clips] == [tmp_path / "a.wav", tmp_path / "b.wav"]
        assert manifest.column("keyword").tolist() == ["yes", ""]
        assert manifest.column("age").tolist() == ["23", ""]
        assert manifest.split("split").tolist() == ["train", "validation"]


def test_labels_that_look_like_numbers_or_missing_values_stay_text(tmp_path):
    manifest = Manifest(write(tmp_path / "m.csv", "file_name,keyword\na.wav,NA\nb.wav,007\nc.wav,null\n"))
    assert manifest.column("keyword").tolist() == ["NA", "007", "null"]


def test_a_part_of_a_file_is_its_own_clip(tmp_path):
    samples = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    soundfile.write(tmp_path / "long.wav", samples, 16_000, subtype="FLOAT")
    manifest = Manifest(write(tmp_path / "m.csv", "file_name,start,end\nlong.wav,0.25,0.5\nlong.wav,0.5,\nlong.wav,,\n"))
    assert [clip.clip_id for clip in manifest.clips] == ["long.wav#0.25-0.5", "long.wav#0.5-", "long.wav"]
    first, second, whole = (clip.load(16_000) for clip in manifest.clips)
    np.testing.assert_array_equal(first, samples[4000:8000])
    np.testing.assert_array_equal(second, samples[8000:])
    np.testing.assert_array_equal(whole, samples)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,keyword\na.wav,yes\n", "no column 'file_name'"),
        ("file_name,keyword\n", "has no rows"),
        ("file_name\na.wav\na.wav\n", "a.wav is listed twice"),
        ("", "is empty"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_reason(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        Manifest(write(tmp_path / "m.csv", text))


BAD_ROWS = {
    "a.wav,nan,2": ("a.wav#nan-2", "its start is 'nan'; seconds from 0 on are needed"),
    "a.wav,0,inf": ("a.wav#0-inf", "its end is 'inf'; seconds"),
    "a.wav,-1,": ("a.wav#-1-", "its start is '-1'; seconds"),
    "a.wav,1e999,": ("a.wav#1e999-", "its start is '1e999'; seconds"),
    "a.wav,x,1": ("a.wav#x-1", "its start is 'x'; seconds"),
    'a.wav,"1,5",2': ("a.wav#1,5-2", "its start is '1,5'; seconds"),
    "a.wav,2,1": ("a.wav#2-1", "its end=1 is not after its start=2"),
    "a.wav,1,1": ("a.wav#1-1", "its end=1 is not after its start=1"),
    ",0,1": ("row 2#0-1", "has no 'file_name'"),
    "a\0.wav,0,1": ("a\\0.wav#0-1", "its 'file_name' holds a NUL character (row 2)"),
    "a.wav,0": ("a.wav#0-", "line 3 has 2 cells where the header has 3"),
    "a.wav,0,1,2": ("a.wav#0-1", "line 3 has 4 cells where the header has 3"),
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_row_that_names_no_clip_is_one_clip_with_a_fault(tmp_path, row):
    soundfile.write(tmp_path / "good.wav", np.ones(8000, dtype=np.float32) / 2, 16_000)
    manifest = Manifest(write(tmp_path / "m.csv", f"file_name,start,end\ngood.wav,,\n{row}\ngood.wav,0,0.25\n"))
    clip_id, fault = BAD_ROWS[row]
    assert [clip.clip_id for clip in manifest.clips] == ["good.wav", clip_id, "good.wav#0-0.25"]
    good, bad, part = manifest.clips
    assert (good.fault, part.fault) == ("", "")
    assert fault in bad.fault
    with pytest.raises(ValueError, match=re.escape(f"{clip_id}: {fault}")):
        bad.load(16_000)
    readable, unreadable = readable_clips(manifest.clips, Inspector().inspect(manifest.clips))
    assert [item.clip.clip_id for item in readable] == ["good.wav", "good.wav#0-0.25"]
    assert unreadable[1].startswith(f"{clip_id}: {fault}")


def test_rows_with_one_fault_stay_apart(tmp_path):
    manifest = Manifest(write(tmp_path / "m.csv", "file_name,start,end\na.wav,2,1\na.wav,2,1\n,,\n,0,\n,0,\n"))
    assert [clip.clip_id for clip in manifest.clips] == ["a.wav#2-1", "a.wav (row 2)#2-1", "row 3#0-", "row 4#0-"]
    assert len({clip.path for clip in manifest.clips}) == 4


def test_a_file_name_that_is_not_utf8_costs_its_row_only(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"file_name,keyword\na\xe9.wav,yes\nb.wav,no\n")
    table = pa.table({"file_name": pa.array([b"a\xe9.wav", b"b.wav"]).view(pa.string()), "keyword": ["yes", "no"]})
    parquet.write_table(table, tmp_path / "m.parquet")
    for name in ("m.csv", "m.parquet"):
        bad, good = Manifest(tmp_path / name).clips
        assert (bad.clip_id, good.clip_id, good.fault) == ("a\\xe9.wav", "b.wav", "")
        assert "its 'file_name' is not UTF-8 (row 1)" in bad.fault


def test_a_missing_manifest_column_or_split_value_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        Manifest(tmp_path / "none.csv")
    manifest = Manifest(write(tmp_path / "m.csv", "file_name,split\na.wav,training\n"))
    with pytest.raises(ValueError, match=r"no column 'emotion'; its columns are \['file_name', 'split'\]"):
        manifest.column("emotion")
    with pytest.raises(ValueError, match=r"\['training'\]; allowed are train, validation, test"):
        manifest.split("split")
