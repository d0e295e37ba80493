"""Reading audio: every kind of source gives the same waveform; what cannot be read is refused with the clip's name."""

import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from wavcse import audio_wavcse
from wavcse.audio_wavcse import as_waveform, decode, load_waveform, resample

RATE = 16_000


@pytest.fixture
def clip(waves):
    return waves(RATE)[0]


@pytest.fixture
def path(clip, tmp_path) -> Path:
    """`clip` as a lossless float file."""
    path = tmp_path / "clip.wav"
    soundfile.write(path, clip, RATE, subtype="FLOAT")
    return path


@pytest.fixture
def server(path):
    """Address of a web server on this machine that serves the folder of `path`."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Silent, directory=path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


SOURCES = {
    "path": lambda path, clip: path,
    "string": lambda path, clip: str(path),
    "bytes": lambda path, clip: path.read_bytes(),
    "array": lambda path, clip: clip,
    "float64": lambda path, clip: clip.astype(np.float64),
    "list": lambda path, clip: clip.tolist(),
    "array mapping": lambda path, clip: {"array": clip, "sampling_rate": RATE},
    "raw mapping": lambda path, clip: {"raw": clip, "sampling_rate": RATE},
    "path mapping": lambda path, clip: {"path": str(path), "bytes": None},
    "bytes mapping": lambda path, clip: {"path": "elsewhere.wav", "bytes": path.read_bytes()},
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_waveform(path, clip, source):
    waveform = load_waveform(SOURCES[source](path, clip), RATE)
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, clip)


def test_url(server, path, clip):
    np.testing.assert_array_equal(load_waveform(f"{server}/{path.name}", RATE), clip)
    with pytest.raises(ValueError, match=rf"{server}/missing\.wav: cannot be read.*404"):
        load_waveform(f"{server}/missing.wav", RATE)


@pytest.mark.parametrize(("extension", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS")])
def test_formats(clip, tmp_path, extension, subtype):
    path = tmp_path / f"clip.{extension}"
    soundfile.write(path, clip, RATE, subtype=subtype)
    waveform, rate = decode(path)
    assert (rate, waveform.dtype, waveform.shape) == (RATE, np.float32, clip.shape)
    if subtype == "PCM_16":
        np.testing.assert_allclose(waveform, clip, atol=2**-15)
    else:
        assert np.corrcoef(waveform, clip)[0, 1] > 0.9


def test_stereo_file_is_averaged(clip, tmp_path):
    left, right = clip, np.roll(clip, 100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(decode(tmp_path / "stereo.wav")[0], (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["file", "mapping"])
def test_other_rates_are_resampled_by_soxr_hq(clip, tmp_path, rate, kind):
    if kind == "file":
        source = tmp_path / "clip.wav"
        soundfile.write(source, clip, rate, subtype="FLOAT")
    else:
        source = {"array": clip, "sampling_rate": rate}
    expected = soxr.resample(clip, rate, RATE, quality="HQ")
    assert abs(len(expected) - len(clip) * RATE / rate) <= 1
    np.testing.assert_array_equal(load_waveform(source, RATE), expected)


def test_resampling_keeps_a_tone():
    seconds = np.arange(44_100) / 44_100
    tone = resample(np.sin(2 * np.pi * 440 * seconds).astype(np.float32), 44_100, RATE)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(tone)) / RATE)
    np.testing.assert_allclose(tone[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize(
    ("start_s", "end_s", "samples"),
    [
        (0.0, None, slice(None)),
        (0.25, 0.5, slice(4000, 8000)),
        (0.75, None, slice(12_000, None)),
        (0.5, 1.09, slice(8000, None)),  # times in tables are rounded
    ],
)
def test_part_of_a_file(path, clip, start_s, end_s, samples):
    np.testing.assert_array_equal(decode(path, start_s, end_s)[0], clip[samples])


NAN, INFINITY = float("nan"), float("inf")
PARTS_THAT_DO_NOT_EXIST = [
    *((0.5, 0.25), (2.0, None), (2.0, 3.0), (-1.0, None), (0.5, 0.5), (1.0, None), (0.5, 1.2), (0.5, 9.0)),
    *((NAN, None), (0.0, NAN), (INFINITY, None), (0.0, INFINITY), (-INFINITY, 1.0), (0.0, -1.0)),
]


@pytest.mark.parametrize(("start_s", "end_s"), PARTS_THAT_DO_NOT_EXIST)
def test_part_that_does_not_exist(path, start_s, end_s):
    reasons = r"its file lasts 1\.00 s; no part|is empty|.* must be finite, not negative"
    with pytest.raises(ValueError, match=rf"clip\.wav: ({reasons})"):
        decode(path, start_s, end_s)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_pcm_is_scaled(dtype):
    full_scale = np.iinfo(dtype).max + 1
    pcm = np.array([0, full_scale // 2, -full_scale, full_scale - 1], dtype=dtype)
    waveform = as_waveform(pcm, "clip")
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, [0, 0.5, -1, 1], atol=2**-15)


def broken(kind: str, path: Path) -> Path:
    target = path.with_name(f"{kind}.{'flac' if kind == 'truncated' else 'wav'}")
    if kind == "text":
        target.write_text("not audio at all, whatever its name says\n" * 20)
    elif kind == "blank":
        target.touch()
    elif kind == "cut":
        target.write_bytes(path.read_bytes()[:20])  # inside the header
    elif kind == "truncated":
        soundfile.write(target, soundfile.read(path)[0], RATE)
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    elif kind == "no-samples":
        soundfile.write(target, np.zeros(0), RATE)
    return target


@pytest.mark.parametrize("kind", ["text", "blank", "cut", "truncated", "missing"])
def test_unreadable_file(path, kind):
    target = broken(kind, path)
    with pytest.raises(ValueError, match=rf"{kind}\.\w+: cannot be read as audio.*Supported are wav"):
        load_waveform(target)
    if target.exists():
        with pytest.raises(ValueError, match="clip: cannot be read as audio"):
            load_waveform(target.read_bytes())


def test_wav_that_lost_its_end_is_read_as_far_as_it_goes(path, clip):
    header = path.stat().st_size - 4 * len(clip)
    path.write_bytes(path.read_bytes()[: header + 4 * 6_000])
    np.testing.assert_array_equal(load_waveform(path), clip[:6_000])


def test_file_without_samples(path):
    with pytest.raises(ValueError, match=r"no-samples\.wav: is empty"):
        load_waveform(broken("no-samples", path))


SPEECH = 0.1 * np.sin(np.arange(800))


@pytest.mark.parametrize("clip", [2**31 * SPEECH, 2**15 * SPEECH, 3.0 * SPEECH / SPEECH.max(), np.full(800, 2.0)])
def test_levels_beyond_full_scale_are_served(clip):
    np.testing.assert_array_equal(as_waveform(clip, "clip"), clip.astype(np.float32))


def test_a_click_within_full_scale_is_served():
    click = np.where(np.arange(800) == 400, 1.0, 0.0)
    np.testing.assert_array_equal(as_waveform(click, "clip"), click)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 800), np.float32), r"interview: has shape \(2, 800\).*Average the channels"),
        (np.float32(0.5), r"interview: has shape \(\)"),
        (np.zeros(0, np.float32), "interview: is empty"),
        (np.zeros(800, np.uint8), "interview: has dtype uint8.*int16"),
        (np.zeros(800, np.int64), "interview: has dtype int64.*int16"),
        (np.zeros(800, bool), "interview: has dtype bool"),
        (np.array(["a"] * 800), "interview: has dtype"),
        (np.where(np.arange(800) == 7, np.nan, 0.0), "interview: holds NaN or infinity.*sample 7"),
        (np.where(np.arange(800) == 9, np.inf, 0.0), "interview: holds NaN or infinity.*sample 9"),
        (np.full(800, 1e300), "interview: holds NaN or infinity.*sample 0"),  # overflows float32
        (np.where(np.arange(800) == 9, 1e29, SPEECH), r"interview: sample 9 is 1e\+29, beyond any audio format"),
        (np.where(np.arange(800) == 9, -3e9, SPEECH), r"interview: sample 9 is -3e\+09, beyond any audio format"),
        (1e20 * SPEECH, "interview: sample 1 is .*, beyond any audio format"),
        (np.where(np.arange(800) == 9, 1e3, SPEECH), r"interview: sample 9 is 1e\+03 .*16 such samples outweigh all others"),
        (np.where(np.arange(800) % 100 == 9, -1e8, SPEECH), r"interview: sample 9 is -1e\+08 .*outweigh all others"),
        (None, r"interview: is missing \(None\). Drop its row"),
        ("a.wav", "interview: is of type str, which holds no samples"),
        ({"array": SPEECH}, "interview: is of type dict, which holds no samples"),
    ],
)
def test_array_that_is_refused(array, message):
    with pytest.raises(ValueError, match=message):
        as_waveform(array, "interview")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"array": np.zeros(800)}, "'sampling_rate' is missing"),
        ({"array": np.zeros(800), "sampling_rate": 0}, "'sampling_rate' is 0; it must be a whole number of Hz, 1,000 to"),
        ({"sampling_rate": RATE}, "a mapping needs 'array'"),
        ({}, "a mapping needs 'array'"),
    ],
)
def test_mapping_that_is_refused(mapping, message):
    with pytest.raises(ValueError, match=message):
        load_waveform(mapping, RATE)


def test_without_audio_libraries_arrays_still_work(clip, path, monkeypatch):
    monkeypatch.setattr(audio_wavcse, "soundfile", None)
    np.testing.assert_array_equal(load_waveform(clip, RATE), clip)
    with pytest.raises(ImportError, match="pip install soundfile soxr"):
        load_waveform(path, RATE)
    with pytest.raises(ImportError, match="pip install soundfile soxr"):
        load_waveform({"array": clip, "sampling_rate": 8_000}, RATE)
