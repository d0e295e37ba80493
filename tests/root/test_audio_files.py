"""Files that are not as their headers say: all of the audio is read, or the file is refused in words, quickly."""

import hashlib
import io
import json
import os
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from wavcse import audio_wavcse
from wavcse.audio_streams_wavcse import flac_streams, mpeg_streams
from wavcse.audio_wavcse import AudioFile, decode, printable, resample
from wavcse.data import cache as cache_module
from wavcse.data.cache import build_cache
from wavcse.data.corpus_pass import SkippedClip, read_skipped, write_skipped
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip

RATE = 16_000
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III"}
FLAC = {"format": "FLAC", "subtype": "PCM_16"}
VORBIS = {"format": "OGG", "subtype": "VORBIS"}
OPUS = {"format": "OGG", "subtype": "OPUS"}
WAV = {"format": "WAV", "subtype": "PCM_16"}
ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x04\x00\x00\x00\x00\x10\x00" + bytes(2048)
APE = b"APETAGEX" + struct.pack("<4I", 2000, 64, 1, 1 << 31) + bytes(8 + 64)


def noise(num_samples: int, level: float = 0.3, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).uniform(-1, 1, num_samples)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, **kind) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **kind)
    return buffer.getvalue()


def without_count(mp3: bytes) -> bytes:
    """Without the frame that counts the others, as in a dump of a stream."""
    (stream,) = mpeg_streams(io.BytesIO(mp3))
    assert stream.audio_start > stream.start
    return mp3[stream.audio_start :]


def flac_of_length(flac: bytes, num_samples: int) -> bytes:
    """The file with another number of samples in its STREAMINFO; 0 = unknown, as of a pipe."""
    fields = int.from_bytes(flac[18:26], "big") >> 36 << 36 | num_samples
    return flac[:18] + fields.to_bytes(8, "big") + flac[26:]


def wav_of_size(wav: bytes, num_bytes: int) -> bytes:
    at = wav.index(b"data") + 4
    return wav[:at] + struct.pack("<I", num_bytes) + wav[at + 4 :]


QUIET_AND_LOUD = np.concatenate([noise(5 * RATE, 1e-4), noise(5 * RATE)])


@pytest.mark.parametrize("samples", [QUIET_AND_LOUD, QUIET_AND_LOUD[::-1]], ids=["quiet first", "loud first"])
def test_an_mp3_of_variable_bit_rate_without_a_count_is_read_to_its_end(samples):
    whole = encoded(samples, **MP3, bitrate_mode="VARIABLE", compression_level=0.0)
    dump = without_count(whole)
    with soundfile.SoundFile(io.BytesIO(dump)) as file:
        assert file.frames < 0.8 * len(samples)  # what libsndfile takes it for
    waveform, rate = decode(dump)
    assert (len(waveform), rate) == (280 * 576, RATE)  # ten seconds and the encoder's padding
    # An encoder's delay is taken off only where a header tells it: 1105 samples here.
    np.testing.assert_allclose(waveform[1105 + 2000 :][: len(samples) - 4000], decode(whole)[0][2000:-2000], atol=1e-6)
    with AudioFile(dump, "dump") as file:
        assert file.duration_s == 280 * 576 / RATE
    np.testing.assert_array_equal(decode(dump, 6.0, 8.5)[0], waveform[6 * RATE : 8 * RATE + RATE // 2])


FIRST, SECOND = noise(3 * RATE), noise(2 * RATE, seed=1)
CHAINS = {
    "mp3": [encoded(FIRST, **MP3), encoded(SECOND, **MP3)],
    "mp3 of variable bit rate": [encoded(x, **MP3, bitrate_mode="VARIABLE") for x in (FIRST, SECOND)],
    "mp3, stereo, mono": [encoded(np.stack([FIRST, FIRST[::-1]], axis=1), **MP3), encoded(SECOND, **MP3)],
    "mp3 of other rates": [encoded(FIRST, **MP3), encoded(SECOND, 44_100, **MP3), encoded(SECOND, 8_000, **MP3)],
    "three mp3": [encoded(FIRST, **MP3)] * 3,
    "mp3, tagged": [ID3V2 + encoded(FIRST, **MP3) + ID3V1, ID3V2 + encoded(SECOND, **MP3) + APE + ID3V1],
    "mp3, the second without a count": [encoded(FIRST, **MP3), without_count(encoded(SECOND, **MP3))],
    "flac": [encoded(FIRST, **FLAC), encoded(SECOND, **FLAC)],
    "flac, one from a pipe": [flac_of_length(encoded(FIRST, **FLAC), 0), encoded(SECOND, **FLAC)],
    "flac of other rates": [encoded(FIRST, **FLAC), encoded(SECOND, 22_050, **FLAC)],
    "vorbis": [encoded(FIRST, **VORBIS), encoded(SECOND, **VORBIS)],
    "opus": [encoded(FIRST, **OPUS), encoded(SECOND, **OPUS)],
    "vorbis and opus of other rates": [encoded(FIRST, 44_100, **VORBIS), encoded(SECOND, 8_000, **OPUS)],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_concatenated_files_are_read_one_after_the_other(chain, tmp_path):
    links = [decode(link) for link in CHAINS[chain]]
    (_, rate), data = links[0], b"".join(CHAINS[chain])
    path = tmp_path / "chain"
    path.write_bytes(data)
    waveform, rate_of_all = decode(path)
    assert rate_of_all == rate
    if chain == "mp3, the second without a count":  # the first one's count is wrong then: its padding stays
        assert abs(len(waveform) - sum(len(link) for link, _ in links)) < 3 * 576 + 1105
    else:
        expected = np.concatenate([resample(link, own_rate, rate) for link, own_rate in links])
        assert waveform.shape == expected.shape
        np.testing.assert_allclose(waveform, expected, atol=1e-6)
    np.testing.assert_array_equal(waveform, decode(data)[0])
    with AudioFile(path, "chain") as file:
        assert file.duration_s == pytest.approx(len(waveform) / rate, rel=0.6 if "pipe" in chain else 0.05)
    np.testing.assert_array_equal(decode(path, 1.0, 3.5)[0], waveform[rate : rate * 7 // 2])
    with pytest.raises(ValueError, match=r"chain: its file lasts \d+\.\d+ s; no part of it is at 1 s to 99 s"):
        decode(path, 1.0, 99.0)


@pytest.mark.parametrize("tail", [bytes(5000), b"what is no audio " * 300, APE + ID3V1], ids=["zeros", "text", "tags"])
def test_what_follows_the_audio_does_no_harm(tail):
    mp3 = without_count(encoded(FIRST, **MP3))
    np.testing.assert_allclose(decode(mp3 + tail)[0], decode(mp3)[0], atol=1e-6)
    flac = encoded(FIRST, **FLAC)
    np.testing.assert_array_equal(decode(flac + tail)[0], decode(flac)[0])


@pytest.mark.parametrize("kind", [MP3, FLAC, VORBIS, OPUS, WAV])
def test_a_good_file_is_read_as_libsndfile_reads_it(kind):
    samples = np.stack([noise(3 * RATE + 7), noise(3 * RATE + 7, seed=1)], axis=1)
    data = encoded(samples, **kind)
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        file.seek(0)  # mpg123 rounds otherwise after a seek
        expected = file.read(dtype="float32").mean(axis=1, dtype=np.float32)
    for block_values in (audio_wavcse.BLOCK_VALUES, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(audio_wavcse, "BLOCK_VALUES", block_values)
            np.testing.assert_array_equal(decode(data)[0], expected)


def test_flac_of_unknown_length_is_read():
    flac = encoded(FIRST, **FLAC)
    piped = flac_of_length(flac, 0)
    np.testing.assert_array_equal(decode(piped)[0], decode(flac)[0])
    np.testing.assert_array_equal(decode(piped, 1.0, 2.0)[0], decode(flac, 1.0, 2.0)[0])
    with AudioFile(piped, "piped") as file:
        assert file.num_samples is None
        assert 1.0 < file.duration_s < 9.0  # a guess, for batches
    with pytest.raises(ValueError, match=r"clip: lasts 3\.0 s, more than max_duration_s=2\."):
        decode(piped, max_duration_s=2.0)
    with pytest.raises(ValueError, match=r"no part of it is at 1 s to 9 s"):
        decode(piped, 1.0, 9.0)


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "ULAW"])
def test_wav_of_telephones_is_read_whole_and_in_parts(subtype):
    data = encoded(FIRST, **{**WAV, "subtype": subtype})
    waveform, _ = decode(data)
    assert len(FIRST) <= len(waveform) < len(FIRST) + 2048  # whole blocks
    assert np.corrcoef(waveform[: len(FIRST)], FIRST)[0, 1] > 0.3
    np.testing.assert_array_equal(decode(data, 1.0, 2.0)[0], waveform[RATE : 2 * RATE])


@pytest.mark.parametrize("num_bytes", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_from_a_pipe_is_read_without_a_word(num_bytes, log):
    np.testing.assert_array_equal(decode(wav_of_size(encoded(FIRST, **WAV), num_bytes))[0], decode(encoded(FIRST, **WAV))[0])
    assert not log.messages


def test_a_header_that_was_never_finished_is_named():
    for data in (
        wav_of_size(encoded(FIRST, **WAV), 0),
        encoded(FIRST, format="AU", subtype="PCM_16").replace(b"\x00\x01\x77\x00", bytes(4), 1),
    ):
        with pytest.raises(ValueError, match=rf"clip: is empty \(0 samples\) by its header, but has {len(data)} bytes"):
            decode(data)


@pytest.mark.parametrize("kind", [WAV, {"format": "AIFF", "subtype": "PCM_16"}, MP3])
def test_a_file_that_was_cut_off_is_read_with_a_warning(kind, log):
    data = encoded(FIRST, **kind)
    waveform, _ = decode(data[: len(data) // 2])
    np.testing.assert_allclose(waveform[:10_000], decode(data)[0][:10_000], atol=1e-6)
    assert 0.45 * len(FIRST) < len(waveform) < 0.5 * len(FIRST)
    assert "clip: was cut off; its header announces" in log.text


def damaged(kind: str) -> bytes:
    mp3, flac = encoded(FIRST, **MP3), encoded(FIRST, **FLAC)
    middle = len(mp3) // 2
    return {
        "mp3 with junk in it": mp3[:middle] + b"\x55" * 3000 + mp3[middle:],
        "mp3 that lost its middle": mp3[:middle] + bytes(20_000) + mp3[middle:],
        "flac that promises more": flac_of_length(flac, 2 * len(FIRST)),
        "flac cut off": flac[: len(flac) // 2],
        "flac from a pipe, cut off": flac_of_length(flac, 0)[: len(flac) // 2],
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "mp3 with junk in it",
        "mp3 that lost its middle",
        "flac that promises more",
        "flac cut off",
        "flac from a pipe, cut off",
    ],
)
def test_a_damaged_file_is_refused(kind):
    with pytest.raises(ValueError, match=r"clip: (is damaged: of at least|cannot be read as audio)"):
        decode(damaged(kind))


def test_impossible_lengths_and_bombs_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(AudioFile, "_mono_blocks", None)  # it is not reached
    flac = encoded(FIRST, **FLAC)
    with pytest.raises(ValueError, match=r"clip: claims to last 4\.29e\+06 s; its header is damaged"):
        decode(flac_of_length(flac, 2**36 - 1))
    with pytest.raises(
        ValueError, match=r"clip: takes 17\.2 GB decoded \(4294967296 samples, 1 channels\), more than 8\.59 GB"
    ):
        decode(flac_of_length(flac, 2**32))
    with pytest.raises(ValueError, match=r"clip: lasts 268435\.5 s, more than max_duration_s=7200\."):
        decode(flac_of_length(flac, 2**32), max_duration_s=7200.0)
    stereo = encoded(np.stack([FIRST, FIRST], axis=1), **FLAC)
    with pytest.raises(ValueError, match=r"\(2147483648 samples, 2 channels\)"):
        decode(flac_of_length(stereo, 2**31))


def test_decoding_takes_memory_for_the_audio_only():
    silence = encoded(np.zeros((600 * RATE, 2), dtype=np.int16), **FLAC)
    assert len(silence) < 100_000
    tracemalloc.start()
    try:
        waveform, _ = decode(flac_of_length(silence, 0))
        assert tracemalloc.get_traced_memory()[1] < 3 * waveform.nbytes
        tracemalloc.reset_peak()
        with pytest.raises(ValueError, match="more than max_duration_s=60"):
            decode(flac_of_length(silence, 0), max_duration_s=60.0)
        assert tracemalloc.get_traced_memory()[1] < waveform.nbytes + 60 * RATE * 4 * 4
    finally:
        tracemalloc.stop()


@pytest.fixture
def strange_files(tmp_path) -> Path:
    """A folder of what has the name of an audio file and is none."""
    folder = tmp_path / "strange"
    folder.mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "folder.wav").mkdir()
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "broken.wav").symlink_to("nowhere")
    (folder / "device.wav").symlink_to("/dev/zero")
    return folder


STRANGE = {
    "pipe.wav": "it is a pipe, socket or device, not a file",
    "folder.wav": "it is a folder, not a file",
    "loop.wav": "Too many levels of symbolic links",
    "broken.wav": "No such file or directory",
    "device.wav": "it is a pipe, socket or device, not a file",
    "nul\0.wav": "no file name has a NUL in it",
    "gone/clip.wav": "No such file or directory",
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_file_is_refused_at_once(strange_files, name):
    with pytest.raises(ValueError) as error:
        decode(strange_files / name)
    shown = printable(str(strange_files / name))
    assert str(error.value).startswith(f"{shown}: cannot be read as audio ({STRANGE[name]}")


def test_a_name_that_is_not_utf_8_is_served_and_can_be_written(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    soundfile.write(os.fsencode(path), FIRST, RATE, format="WAV")
    (facts,) = Inspector(tmp_path / "memo").inspect([Clip(path.name, path)])
    assert (facts.duration_s, facts.error) == (3.0, None)
    assert Inspector(tmp_path / "memo").inspect([Clip(path.name, path)]) == [facts]
    assert len(Clip(path.name, path).load(RATE)) == len(FIRST)
    with pytest.raises(ValueError, match=r"caf\\xe9\.wav: its file lasts 3\.00 s"):
        Clip(path.name, path, 5.0).load(RATE)
    write_skipped(tmp_path / "skipped.csv", [SkippedClip(path.name, f"{path.name}: is bad")])
    assert read_skipped(tmp_path / "skipped.csv") == [SkippedClip("caf\\xe9.wav", "caf\\xe9.wav: is bad")]


def test_strange_files_cost_a_corpus_nothing_but_themselves(strange_files, upstream_folder, tmp_path):
    soundfile.write(strange_files / "good.wav", FIRST, RATE)
    (strange_files / "piped.flac").write_bytes(flac_of_length(encoded(FIRST, **FLAC), 0))
    (strange_files / "claims.flac").write_bytes(flac_of_length(encoded(FIRST, **FLAC), 2**36 - 1))
    (strange_files / "gsm.wav").write_bytes(encoded(FIRST, **{**WAV, "subtype": "GSM610"}))
    strange = [name for name in STRANGE if "\0" not in name]  # manifests refuse such a row themselves
    names = [*strange, "good.wav", "piped.flac", "claims.flac", "gsm.wav"]
    pd.DataFrame({"file_name": names}).to_parquet(strange_files / "metadata.parquet")
    cache, report = build_cache([strange_files / "metadata.parquet"], str(upstream_folder), tmp_path / "c")
    assert report.added == len(cache) == 3
    reasons = dict(report.skipped)
    assert set(reasons) == {*strange, "claims.flac"}
    assert all(STRANGE[name] in reasons[name] for name in strange)
    assert "its header is damaged" in reasons["claims.flac"]
    assert report.skipped == read_skipped(cache.folder / "skipped.csv")


@pytest.mark.parametrize("part", [(0.0, float("nan")), (float("inf"), None), (-1.0, 2.0), (2.0, 1.0)])
def test_times_that_are_none_are_a_reason_not_an_end(tmp_path, part):
    soundfile.write(tmp_path / "a.wav", FIRST, RATE)
    facts = Inspector().inspect([Clip("part", tmp_path / "a.wav", *part), Clip("whole", tmp_path / "a.wav")])
    assert "must be finite, not negative, and in order" in facts[0].error
    assert facts[1].error is None


@pytest.mark.parametrize("change", ["vanish", "shrink", "become another"])
def test_files_that_change_during_a_run_are_skipped(change, upstream_folder, tmp_path, monkeypatch):
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, FIRST, RATE)
    soundfile.write(tmp_path / "other.wav", SECOND, RATE)
    (tmp_path / "metadata.csv").write_text("file_name\na.wav\nother.wav\n")

    class Changing(Inspector):
        def inspect(self, *args, **kwargs):
            facts = super().inspect(*args, **kwargs)
            if change == "vanish":
                (tmp_path / "a.wav").unlink()
            elif change == "shrink":
                os.truncate(tmp_path / "a.wav", 20_044)
            else:
                shutil.copyfile(tmp_path / "other.wav", tmp_path / "a.wav")
            return facts

    monkeypatch.setattr(cache_module, "Inspector", Changing)
    cache, report = build_cache([tmp_path / "metadata.csv"], str(upstream_folder), tmp_path / "c")
    assert len(cache) == 1
    ((clip, reason),) = report.skipped
    assert clip == "a.wav"
    assert ("No such file" if change == "vanish" else "a.wav: has changed since it was inspected") in reason


def test_inspection_hashes_in_pieces(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(600 * RATE, dtype=np.int16), RATE)
    content = path.read_bytes()
    tracemalloc.start()
    try:
        (facts,) = Inspector(tmp_path).inspect([Clip("long", path)])
        assert tracemalloc.get_traced_memory()[1] < 3e6 < len(content)
    finally:
        tracemalloc.stop()
    assert facts.digest == hashlib.blake2b(content, digest_size=16).hexdigest()
    assert facts.duration_s == 600.0
    memo = json.loads((tmp_path / "digests.json").read_text())
    assert [path.stat().st_size, path.stat().st_mtime_ns] in [
        known["stamp"] for known in memo.values() if isinstance(known, dict)
    ]


def test_the_marker_of_flac_within_audio_is_no_stream():
    assert flac_streams(io.BytesIO(encoded(FIRST, **FLAC) + b"fLaC is written here")) == []


@pytest.mark.parametrize("rate", [1, 999, 2**31 - 1])
def test_a_sampling_rate_that_is_none_is_refused(rate):
    wav = encoded(FIRST, **WAV)
    at = wav.index(b"fmt ") + 12
    with pytest.raises(ValueError, match=rf"clip: has {rate:,} Hz by its header; 1,000 to 10,000,000 Hz can be read"):
        decode(wav[:at] + struct.pack("<I", rate) + wav[at + 4 :])
