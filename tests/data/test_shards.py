"""A corpus in pieces: every clip is in one of them, whatever the kind of its shards and where they are."""

import io
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wavcse.data.manifest import Clip
from wavcse.data.shards import clips_of_piece, corpus_digest, pieces_of_clips, pieces_of_url


def write_tar(place, members):
    with tarfile.open(fileobj=place, mode="w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))


def all_clips(pieces):
    return [tuple(clip) for piece in pieces for clip in clips_of_piece(piece)]


def test_rows_of_parquet_files_by_row_groups(tmp_path):
    for name, audio in (("b", [b"4", b"5"]), ("a", [b"0", b"1", b"2", b"3"])):
        pq.write_table(pa.table({"audio": audio, "word": ["x"] * len(audio)}), tmp_path / f"{name}.parquet", row_group_size=2)
    pieces = pieces_of_url(str(tmp_path), size=3)
    assert [(piece.name, piece.row_groups, piece.first_row) for piece in pieces] == [
        ("a.parquet", (0, 2), 0),
        ("b.parquet", (0, 1), 0),
    ]
    names = ["a.parquet#0", "a.parquet#1", "a.parquet#2", "a.parquet#3", "b.parquet#0", "b.parquet#1"]
    expected = [(name, name, str(number).encode()) for number, name in enumerate(names)]
    assert all_clips(pieces) == expected
    assert all_clips(pieces_of_url(str(tmp_path), size=1)) == expected
    assert [piece.first_row for piece in pieces_of_url(str(tmp_path), size=1)] == [0, 2, 0]


def test_the_audio_column_is_found_or_asked_for(tmp_path):
    struct = [{"bytes": b"x", "path": "x.wav"}]
    pq.write_table(pa.table({"word": ["yes"], "speech": struct}), tmp_path / "one.parquet")
    assert all_clips(pieces_of_url(str(tmp_path / "one.parquet"))) == [("one.parquet#0", "x.wav", struct[0])]
    pq.write_table(pa.table({"left": [b"x"], "right": [b"x"]}), tmp_path / "one.parquet")
    with pytest.raises(ValueError, match=r"not one other that holds bytes; its columns are \['left', 'right'\]"):
        pieces_of_url(str(tmp_path / "one.parquet"))


def test_tar_shards_hold_audio_among_other_members(tmp_path):
    for number in range(2):
        with open(tmp_path / f"shard-{number}.tar", "wb") as file:
            write_tar(file, {f"{number}a.flac": b"one", f"{number}a.json": b"{}", "deep/b.WAV": b"two", "._c.wav": b"no"})
    assert all_clips(pieces_of_url(str(tmp_path))) == [
        (f"shard-{number}.tar/{name}", name, content)
        for number in range(2)
        for name, content in ((f"{number}a.flac", b"one"), ("deep/b.WAV", b"two"))
    ]


def test_files_behind_a_url():
    memory = fsspec.filesystem("memory")
    for name in ("b.wav", "sub/a.wav", "c.txt", ".hidden/d.wav"):
        memory.pipe_file(f"/shards_test/{name}", b"x")
    pieces = pieces_of_url("memory://shards_test", size=1)
    assert all_clips(pieces) == [(name, name, f"memory:///shards_test/{name}") for name in ("b.wav", "sub/a.wav")]
    before = corpus_digest(pieces)
    memory.pipe_file("/shards_test/b.wav", b"longer")
    assert corpus_digest(pieces_of_url("memory://shards_test", size=1)) != before


def test_clips_of_a_manifest(tmp_path):
    clips = [Clip(f"{number}.wav", tmp_path / f"{number}.wav") for number in range(5)]
    pieces = pieces_of_clips(clips, [clip.clip_id for clip in clips], size=2)
    assert [len(piece.items) for piece in pieces] == [2, 2, 1]
    assert [source for _, _, source in all_clips(pieces)] == clips


@pytest.mark.parametrize(
    ("url", "message"), [("{}", "holds no audio files"), ("none://x", "Protocol not known"), ("{}/no", "holds no")]
)
def test_nothing_to_read_is_said(tmp_path, url, message):
    with pytest.raises(ValueError, match=message):
        pieces_of_url(url.format(tmp_path))
