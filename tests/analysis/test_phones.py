"""Phones by the frames that lie in them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from wavcse.analysis.analyses import load_analysis
from wavcse.analysis.analyses.layers import is_above_floors
from wavcse.analysis.analyses.phones import PhonesSettings, means_of_spans, vectors_of_phones
from wavcse.analysis.arguments import EncoderSettings
from wavcse.analysis.encoders import build_encoder
from wavcse.analysis.study import run_analysis
from wavcse.data.corpus_pass import read_skipped
from wavcse.data.manifest import Manifest
from wavcse.tests.helpers.planted_study import planted_study, planted_task

PROBES = {"learning_rates": (1e-2,), "max_epochs": 12}
RATE = 16_000
SOUNDS = {"a": 300, "e": 900, "i": 2500}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Twelve speakers with an utterance of nine tones each."""
    folder, rng = tmp_path_factory.mktemp("phones"), np.random.default_rng(0)
    lines = ["file_name,start,end,phone,speaker_id,split"]
    for speaker in range(12):
        waves, start = [], 0
        for phone in rng.permutation([*SOUNDS] * 3):
            samples = int(rng.integers(1200, 2400))
            tone = 0.3 * np.sin(2 * np.pi * SOUNDS[phone] * rng.uniform(0.9, 1.1) * np.arange(samples) / RATE)
            waves.append(tone + rng.normal(0, 0.01, samples))
            times = f"{start / RATE:.5f},{(start + samples) / RATE:.5f}"
            lines.append(f"{speaker}.wav,{times},{phone},s{speaker},{('train', 'train', 'validation', 'test')[speaker % 4]}")
            start += samples
        soundfile.write(folder / f"{speaker}.wav", np.concatenate(waves), RATE)
    (folder / "phones.csv").write_text("\n".join(lines) + "\n")
    return folder / "phones.csv"


def test_means_of_spans_by_hand():
    frames = np.arange(8.0).reshape(4, 1, 2)  # middles at 0.05, 0.15, 0.25, 0.35 s
    found = means_of_spans(frames, 0.4, [(0.1, 0.3), (0.11, 0.12), (0.0, 0.4), (0.35, 0.36)])
    np.testing.assert_array_equal(found[:, 0], [[3, 4], [2, 3], [3, 4], [6, 7]])


@pytest.mark.usefixtures("quick_probes")
def test_phones_are_told_by_their_frames(manifest, tmp_path):
    encoder = build_encoder("mfcc", EncoderSettings(model="mfcc"), 1, 0, "cpu")
    clips = Manifest(manifest).clips[9:12]
    vectors = vectors_of_phones(encoder, clips)["statistics"]
    wave, _ = soundfile.read(manifest.parent / "1.wav", dtype="float32")
    frames = encoder.frames([wave], encoder.view("statistics"))[0]
    middles = (np.arange(len(frames)) + 0.5) * len(wave) / RATE / len(frames)
    inside = (middles >= clips[1].start_s) & (middles < clips[1].end_s)
    np.testing.assert_allclose(vectors[1], frames[inside].mean(axis=0), rtol=1e-5)
    any_task = {"keyword": planted_task(["w", "v"] * 3, ["x"] * 6, ["train"] * 6)}
    study = replace(planted_study(tmp_path, any_task, {"layer 0": np.zeros((6, 2))}), encoders=[encoder])
    (record,) = run_analysis(study, load_analysis("phones"), PhonesSettings(manifest=[str(manifest)]), False, False)
    test = record["found"]["test"]
    assert (test["n"], test["units"], test["unit"]) == (27, 3, "speaker")
    assert test["value"] > 0.9
    assert is_above_floors(record["found"])
    (record,) = run_analysis(study, load_analysis("phones"), PhonesSettings(manifest=[str(manifest)], most=10), False, False)
    assert record["found"]["test"]["n"] == 9  # of one utterance
    assert run_analysis(study, load_analysis("phones"), PhonesSettings(), False, False) == []


def study_of(folder, encoder, **fields):
    any_task = {"keyword": planted_task(["w", "v"] * 3, ["x"] * 6, ["train"] * 6)}
    return replace(planted_study(folder, any_task, {"layer 0": np.zeros((6, 2))}), encoders=[encoder], **fields)


@pytest.fixture
def mfcc():
    return build_encoder("mfcc", EncoderSettings(model="mfcc"), 1, 0, "cpu")


@pytest.mark.usefixtures("quick_probes")
def test_an_utterance_that_cannot_be_read_is_skipped(manifest, mfcc, tmp_path):
    folder = shutil.copytree(manifest.parent, tmp_path / "corpus")
    (folder / "3.wav").write_bytes(b"no audio")
    study, settings = study_of(tmp_path / "out", mfcc), PhonesSettings(manifest=[str(folder / "phones.csv")])
    study.folder.mkdir()
    (record,) = run_analysis(study, load_analysis("phones"), settings, False, False)
    assert (record["found"]["test"]["n"], record["found"]["test"]["units"]) == (18, 2)
    ((name, reason),) = read_skipped(study.folder / "skipped.csv")
    assert name == "3.wav"
    assert reason.startswith("3.wav: ")
    assert [own.clip_id for own in study.embedded.skipped] == ["3.wav"]  # which makes the exit code 3
    assert run_analysis(study, load_analysis("phones"), settings, False, False) == [record]
    assert len(study.embedded.skipped) == 1
    for number in (7, 11):
        (folder / f"{number}.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match="3 of 12 utterances could not be embedded, which leaves the test split empty"):
        run_analysis(study, load_analysis("phones"), settings, False, False)


@pytest.mark.usefixtures("quick_probes")
def test_phones_end_where_the_clips_do(manifest, mfcc, tmp_path):
    (tmp_path / "out").mkdir()
    study, settings = study_of(tmp_path / "out", mfcc, first_s=0.5), PhonesSettings(manifest=[str(manifest)])
    (record,) = run_analysis(study, load_analysis("phones"), settings, False, False)
    ends = [clip.end_s for clip in Manifest(manifest).clips if clip.path.stem in ("3", "7", "11")]
    assert record["found"]["test"]["n"] == sum(end <= 0.5 for end in ends)
    clips = [clip for clip in Manifest(manifest).clips if clip.path.stem == "1" and clip.end_s <= 0.5]
    wave, _ = soundfile.read(manifest.parent / "1.wav", dtype="float32")
    frames = mfcc.frames([wave[: RATE // 2]], mfcc.view("statistics"))[0]
    expected = means_of_spans(frames, 0.5, [(clip.start_s, clip.end_s) for clip in clips])
    np.testing.assert_allclose(vectors_of_phones(mfcc, clips, 0.5)["statistics"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"no phone ends within first_s, 0\.01 s, which leaves the train split empty"):
        run_analysis(replace(study, first_s=0.01), load_analysis("phones"), settings, False, False)
