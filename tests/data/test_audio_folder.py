"""Which files of a folder are taken for audio: every suffix that is listed is read, links are followed once."""

import os
import sys

import numpy as np
import pytest
import soundfile

from wavcse.audio_wavcse import AUDIO_SUFFIXES, load_waveform
from wavcse.data.audio_folder import UNREADABLE, left_out_in_words, read_audio_folder

FORMATS = {  # suffix -> container and subtype, where the suffix is not the container's name
    **dict.fromkeys((".wav", ".wave", ".bwf"), ("WAV", None)),
    **dict.fromkeys((".ogg", ".oga"), ("OGG", "VORBIS")),
    **dict.fromkeys((".aiff", ".aif", ".aifc"), ("AIFF", None)),
    **dict.fromkeys((".au", ".snd"), ("AU", None)),
    **dict.fromkeys((".sph", ".nist"), ("NIST", None)),
    **dict.fromkeys((".sf", ".ircam"), ("IRCAM", None)),
    **dict.fromkeys((".iff", ".svx", ".8svx"), ("SVX", None)),
    **dict.fromkeys((".paf", ".fap"), ("PAF", None)),
    ".opus": ("OGG", "OPUS"),
}
LAYERS = {".mp2": bytes([0xFF, 0xFD, 0x80, 0xC0]) + bytes(413), ".mp1": bytes([0xFF, 0xFF, 0x40, 0xC0]) + bytes(132)}


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_every_suffix_is_read(suffix, tmp_path):
    path, tone = tmp_path / f"clip{suffix}", 0.3 * np.sin(0.05 * np.arange(16_000)).astype(np.float32)
    if suffix in LAYERS:  # no library here writes them: frames of silence
        path.write_bytes(40 * LAYERS[suffix])
    else:
        kind, subtype = FORMATS.get(suffix, (suffix[1:].upper(), None))
        rate = 8_000 if kind == "WVE" else 16_000
        soundfile.write(path, tone, rate, format=kind, subtype=subtype)
    waveform = load_waveform(path)
    assert waveform.size > 3_000
    if suffix not in LAYERS:
        assert waveform.std() == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    (found,) = read_audio_folder(tmp_path).files
    assert found == path.name


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_names_in_order_and_what_is_left_out(tmp_path):
    touch(tmp_path, "b/1.wav", "a.FLAC", "b.mp3", "b/.x.wav", ".cache/y.wav", "README", "z.tar.gz", "q.GZ", "folder.wav/c.ogg")
    folder = read_audio_folder(tmp_path)
    assert list(folder.files) == ["a.FLAC", "b.mp3", "b/1.wav", "folder.wav/c.ogg"]
    assert folder.left_out == {"": 1, ".gz": 2}
    assert left_out_in_words(folder.left_out) == ["3 files with other suffixes were left out (.gz 2, no suffix 1)"]
    assert left_out_in_words({}) == []


def test_links_are_followed_once_and_loops_end(tmp_path):
    corpus, other = tmp_path / "corpus", tmp_path / "other"
    touch(corpus, "real/1.wav")
    touch(other, "sub/2.wav", "3.wav")
    (corpus / "a_link").symlink_to(corpus / "real")  # sorts before it, but the folder keeps its own name
    (corpus / "sub").symlink_to(other / "sub")
    (corpus / "then_all").symlink_to(other)
    (other / "up").symlink_to(corpus)
    (corpus / "real/self").symlink_to(corpus / "real")
    (corpus / "file.wav").symlink_to(other / "3.wav")
    (corpus / "gone.wav").symlink_to(tmp_path / "nowhere")
    (corpus / "itself.wav").symlink_to(corpus / "itself.wav")
    names = ["file.wav", "gone.wav", "itself.wav", "real/1.wav", "sub/2.wav", "then_all/3.wav"]
    assert list(read_audio_folder(corpus).files) == names


def test_the_folder_itself_may_be_a_link(tmp_path):
    touch(tmp_path, "real/1.wav")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_audio_folder(tmp_path / "link").files == {"1.wav": tmp_path / "link/1.wav"}


def test_a_folder_that_cannot_be_opened_is_told(tmp_path, monkeypatch):
    touch(tmp_path, "locked/1.wav", "2.wav")
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scandir(path if path.name != "locked" else path / "nothing"))
    folder = read_audio_folder(tmp_path)
    assert (list(folder.files), folder.left_out) == (["2.wav"], {UNREADABLE: 1})
    assert left_out_in_words(folder.left_out) == ["1 folders that cannot be opened were left out"]
    with pytest.raises(OSError):
        read_audio_folder(tmp_path / "missing")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_names_that_are_not_utf8_are_spelled_out(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    touch(tmp_path, name)
    assert read_audio_folder(tmp_path).files == {r"caf\xe9.wav": tmp_path / name}
