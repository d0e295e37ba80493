"""Manifests: what is read, and what is refused at the door."""

import numpy as np
import pandas as pd
import pytest
import soundfile

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
        ("file_name,keyword\n,yes\n", "empty 'file_name'"),
        ("file_name,start,end\na.wav,2,1\n", "end=1 not after start=2"),
        ("file_name,start,end\na.wav,x,1\n", "must be seconds"),
        ("", "cannot be read"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_reason(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        Manifest(write(tmp_path / "m.csv", text))


def test_a_missing_manifest_column_or_split_value_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such manifest"):
        Manifest(tmp_path / "none.csv")
    manifest = Manifest(write(tmp_path / "m.csv", "file_name,split\na.wav,training\n"))
    with pytest.raises(ValueError, match=r"no column 'emotion'; its columns are \['file_name', 'split'\]"):
        manifest.column("emotion")
    with pytest.raises(ValueError, match=r"\['training'\]; allowed are train, validation, test"):
        manifest.split("split")
