"""Baselines of other packages: what is done around the library with a stand-in, the vectors with the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from wavcse.eval.baselines import BASELINES, build_encoders
from wavcse.eval.baselines.egemaps import EGeMAPSEncoder
from wavcse.eval.baselines.resemblyzer import ResemblyzerEncoder
from wavcse.eval.encoder import check_encoder, encoder_record
from wavcse.eval.table import origins

SHARED = Path(__file__).parents[3] / "shared" / "data" / "librispeech_mini"


def tones(*frequencies_hz: float, seconds: float = 1.0) -> list[np.ndarray]:
    times = np.arange(round(16_000 * seconds)) / 16_000
    return [(0.3 * np.sin(2 * np.pi * hz * times)).astype(np.float32) for hz in frequencies_hz]


@pytest.mark.parametrize("name", ["resemblyzer", "egemaps"])
def test_a_missing_library_is_one_line(name, monkeypatch):
    for library in ("resemblyzer", "opensmile"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'is not installed: pip install "wavcse\[{name}\]"'):
        build_encoders(None, None, [name])


@pytest.fixture
def stand_in(monkeypatch, tmp_path) -> SimpleNamespace:
    """Resemblyzer as far as its interface goes; "voice" is what is louder than 0.1."""
    (tmp_path / "pretrained.pt").write_bytes(b"weights")
    heard = []

    class VoiceEncoder:
        def __init__(self, device, verbose):
            assert (device, verbose) == ("cpu", False)

        def embed_utterance(self, waveform):
            heard.append(waveform)
            return np.full(256, len(waveform), dtype=np.float32)

    library = SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        VoiceEncoder=VoiceEncoder,
        preprocess_wav=lambda waveform: waveform[np.abs(waveform) > 0.1],
        heard=heard,
    )
    monkeypatch.setitem(sys.modules, "resemblyzer", library)
    monkeypatch.setattr("wavcse.eval.baselines.resemblyzer.version", lambda name: "9.9")
    return library


def test_voice_alone_is_embedded_and_a_clip_without_any_stays_whole(stand_in):
    encoder = BASELINES["resemblyzer"](None)
    half, quiet, silent = np.float32([0.5, 0, 0.5, 0]), np.float32([0.05, 0.0, 0.05]), np.zeros(5, np.float32)
    np.testing.assert_array_equal(encoder.embed([half, quiet, silent])[:, 0], [2, 3, 5])
    np.testing.assert_array_equal(stand_in.heard[0], [0.5, 0.5])


def test_package_and_licence_are_kept_and_shown(stand_in):
    encoder = ResemblyzerEncoder()
    record = encoder_record(encoder)
    assert record["package"] == "resemblyzer 9.9"
    row = SimpleNamespace(records={"resemblyzer": SimpleNamespace(encoder=record)})
    assert origins([row])["resemblyzer"].startswith("resemblyzer 9.9, licence: Apache-2.0, weights sha256 ")


@pytest.mark.doors
def test_egemaps_are_those_of_the_package():
    pytest.importorskip("opensmile", exc_type=ImportError)
    encoder = EGeMAPSEncoder()
    check_encoder(encoder)
    low, high = tones(120, 240)
    rows = encoder.embed([low, high, low[:800], 2 * low / 0.3, np.zeros(16_000, np.float32)])
    assert rows.shape == (5, 88)
    assert np.isfinite(rows).all()
    pitch = encoder.smile.feature_names.index("F0semitoneFrom27.5Hz_sma3nz_amean")
    np.testing.assert_allclose(rows[:2, pitch], 12 * np.log2(np.array([120, 240]) / 27.5), atol=0.3)  # in semitones
    expected = encoder.smile.process_signal(low, 16_000).to_numpy()[0]
    np.testing.assert_allclose(rows[0], expected, rtol=1e-5)
    assert "research only" in encoder.identity["licence"]


@pytest.mark.doors
def test_a_clip_at_full_scale_does_not_wrap_around():
    pytest.importorskip("opensmile", exc_type=ImportError)
    encoder, (tone,) = EGeMAPSEncoder(), tones(200)
    loudness = encoder.smile.feature_names.index("loudness_sma3_amean")
    full, below = encoder.embed([tone / tone.max(), 0.99 * tone / tone.max()])[:, loudness]
    assert full == pytest.approx(below, rel=0.02)
    assert encoder.smile.process_signal(tone / tone.max(), 16_000).to_numpy()[0, loudness] > 1.1 * full  # what it does alone


@pytest.mark.doors
def test_voices_of_one_speaker_are_near():
    resemblyzer = pytest.importorskip("resemblyzer", exc_type=ImportError)
    encoder = ResemblyzerEncoder()
    check_encoder(encoder)
    assert np.isfinite(encoder.embed([np.zeros(16_000, np.float32), *tones(300, seconds=0.05)])).all()
    if not SHARED.is_dir():
        pytest.skip("librispeech_mini is not here")
    speakers = sorted({path.name.split("-")[0] for path in (SHARED / "audio").glob("*.flac")})
    clips = [sorted((SHARED / "audio").glob(f"{speaker}-*.flac"))[:2] for speaker in speakers]
    clips = [pair for pair in clips if len(pair) == 2][:4]
    waveforms = [soundfile.read(path, dtype="float32")[0] for pair in clips for path in pair]
    vectors = encoder.embed(waveforms)
    expected = encoder.model.embed_utterance(resemblyzer.preprocess_wav(waveforms[0]))
    np.testing.assert_allclose(vectors[0], expected, atol=1e-6)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    own = [similarity[2 * i, 2 * i + 1] for i in range(len(clips))]
    others = [similarity[i, j] for i in range(len(unit)) for j in range(i) if i // 2 != j // 2]
    assert min(own) > np.mean(others)
    assert np.mean(own) > max(others) - 0.05


@pytest.mark.doors
def test_both_in_one_table(tmp_path):
    pytest.importorskip("resemblyzer", exc_type=ImportError)
    pytest.importorskip("opensmile", exc_type=ImportError)
    rows = ["file_name,gender,split_sgr,speaker_id"]
    for number in range(24):
        (wave,) = tones(110 if number % 2 else 220, seconds=0.5)
        soundfile.write(tmp_path / f"{number}.wav", wave + 0.01 * np.random.default_rng(number).standard_normal(8_000), 16_000)
        split = ("train", "validation", "test")[number // 8]
        rows.append(f"{number}.wav,{'male' if number % 2 else 'female'},{split},s{number}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    command = [sys.executable, "-m", "wavcse.eval", "--baselines", "resemblyzer,egemaps,majority", "--tasks", "gender"]
    command += ["--manifest", tmp_path / "m.csv", "--out", tmp_path / "out", "--workers", "1"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| egemaps | resemblyzer | majority |" in table
    assert "for research only, 88 dimensions" in table
    assert "licence: Apache-2.0, weights sha256 " in table
