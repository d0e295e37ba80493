"""What `robustness` does to clips, what it says costs most, what `cost` times, maps without UMAP, and LEE."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wavcse.analysis.analyses import cost, maps, robustness
from wavcse.analysis.analyses.robustness import CHANGES, narrow, quieter, with_noise
from wavcse.analysis.figures import figure
from wavcse.analysis.report import _facts
from wavcse.analysis.study import run_analysis
from wavcse.tests.helpers.planted_study import planted_study, planted_task

RATE_HZ = 16_000


def tone(hertz: float) -> np.ndarray:
    """A second at a tenth of full scale."""
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)


def power(waveform: np.ndarray) -> float:
    return float(np.mean(waveform.astype(np.float64) ** 2))


@pytest.mark.parametrize("decibels", [0, 10, 20])
def test_noise_is_as_far_below_the_clip_as_it_says(decibels):
    clean, rng = tone(440), np.random.default_rng(0)
    noisy = CHANGES[f"noise {decibels} dB"](clean, RATE_HZ, rng)
    assert 10 * np.log10(power(clean) / power(noisy - clean)) == pytest.approx(decibels, abs=0.2)
    assert (noisy.dtype, noisy.shape) == (np.float32, clean.shape)
    assert (
        with_noise(np.zeros(100, np.float32), RATE_HZ, rng, decibels).tolist() == [0.0] * 100
    )  # silence has no noise below it


def test_a_narrow_band_takes_what_is_above_4_khz_and_leaves_what_is_below():
    rng = np.random.default_rng(0)
    low, high = (narrow(tone(hertz), RATE_HZ, rng) for hertz in (1000, 6000))
    assert len(low) == RATE_HZ
    assert power(low) == pytest.approx(power(tone(1000)), rel=0.02)
    assert power(high) < 1e-3 * power(tone(6000))
    spectrum = np.abs(np.fft.rfft(narrow(rng.standard_normal(RATE_HZ).astype(np.float32), RATE_HZ, rng))) ** 2
    assert spectrum[4100:].sum() < 1e-2 * spectrum.sum()  # a bin is a hertz


def test_a_lower_level_is_a_tenth_for_20_decibels():
    own = quieter(tone(440), RATE_HZ, np.random.default_rng(0), 20)
    np.testing.assert_allclose(own, 0.1 * tone(440), rtol=1e-6)
    np.testing.assert_array_equal(CHANGES["-20 dB"](tone(440), RATE_HZ, np.random.default_rng(0)), own)


def test_what_costs_most_is_no_gain():
    def record(metric, **losses):
        changes = [
            {"change": name, "loss": {"value": loss, "interval": [loss - 0.1, loss + 0.1]}} for name, loss in losses.items()
        ]
        return {"about": {"encoder": metric, "task": "t"}, "found": {"metric": metric, "changes": changes}}

    def said(own):
        return robustness._worst([own])[0].partition("most: ")[2]

    assert said(record("accuracy", noise=-0.3, band=0.2)) == "`accuracy` on t 20.0 [10.0, 30.0] by band."
    assert said(record("accuracy", noise=-0.3, band=0.0)) == "`accuracy` on t nothing."
    assert said(record("mae", noise=-3.0, band=2.0)).endswith("by noise.")  # the error has risen by 3


# ---- cost ----


class StubEncoder:
    """Takes as many seconds as it has been told, by a clock of its own."""

    def __init__(self, seconds):
        self.seconds, self.now, self.clips = list(seconds), 0.0, []

    def embed(self, waveforms):
        (waveform,) = waveforms
        self.clips.append(waveform)
        self.now += self.seconds.pop(0)


def test_the_warm_up_does_not_count_and_of_repeats_the_fastest_does(monkeypatch):
    # three clips of warm-up, twice each, then four clips, twice each
    stub = StubEncoder([9.0] * 6 + [0.004, 0.002, 0.005, 0.006, 0.001, 0.003, 0.007, 0.007])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: stub.now)
    assert cost.milliseconds(stub, ["a", "b", "c", "d"], repeats=2) == pytest.approx([2, 5, 1, 7])
    assert stub.clips == [*"aabbcc", *"aabbccdd"]
    stub = StubEncoder([9.0] * 2 + [0.004, 0.002])  # two clips only: both warm up, both count
    assert cost.milliseconds(stub, ["a", "b"], repeats=1) == pytest.approx([4, 2])


def test_clips_of_every_length_are_timed_apart():
    waveforms = [np.zeros(int(seconds * RATE_HZ), np.float32) for seconds in (1, 2.99, 3, 15, 15.01, 20)]
    found = cost.lengths_of(waveforms, RATE_HZ, 2)
    seconds = {name: [len(own) / RATE_HZ for own in clips] for name, clips in found.items()}
    assert seconds == {"all": [1, 2.99], "short": [1, 2.99], "long": [15.01, 20]}
    assert [len(own) for own in cost.lengths_of(waveforms, RATE_HZ, 9).values()] == [6, 2, 2]


def test_the_cost_of_a_study_is_a_median_with_its_n():
    own = cost._median(np.array([1.0, 2.0, 9.0]), np.random.default_rng(0))
    assert own == {**figure(2.0, own["interval"], 3, 3, "clip")}
    assert own["interval"] == [1.0, 9.0]


# ---- maps ----


@pytest.fixture
def studied(tmp_path):
    """A study whose layer has been chosen."""
    labels = np.arange(36) % 3
    splits = np.array(["train", "validation", "test"])[np.arange(36) // 12]
    data = planted_task([f"word{own}" for own in labels], [f"speaker{own}" for own in np.arange(36) // 3], splits)
    vectors = np.eye(3)[labels] + 0.1 * np.random.default_rng(0).standard_normal((36, 3))
    study = planted_study(tmp_path, {"keyword": data}, {"layer 0": vectors})
    study.records["layers"] = {"keyword__planted": {"found": {"chosen": "layer 0"}}}
    return study


def mapped(study, methods, is_installed, monkeypatch):
    """The records of maps where UMAP is (a stub) or is not installed."""

    def found(name, package=None):
        return object() if is_installed or name != "umap" else None

    with monkeypatch.context() as patch:
        patch.setattr(maps.importlib.util, "find_spec", found)
        patch.setattr(maps, "points_of", lambda vectors, method, seed: vectors[:, :2])
        return run_analysis(study, maps.ANALYSIS, maps.MapsSettings(methods=methods), False, show_progress=False)


def test_maps_without_umap_say_so_and_draw_nothing_for_it(studied, monkeypatch):
    records = mapped(studied, ["pca", "umap"], False, monkeypatch)
    assert (list(records[0]["found"]["points"]), records[0]["found"]["left_out"]) == (["pca"], ["umap"])
    (line,) = maps.answers(records)  # on the terminal and on top of the report
    assert line == '`maps` are without `umap`: umap-learn is not installed (pip install "wavcse[map]").'
    assert maps.section(records)[0] == line
    only = mapped(studied, ["umap"], False, monkeypatch)
    assert maps.drawings(only) == {}  # no empty picture
    assert not any(block.startswith("![") for block in maps.section(only))


def test_umap_is_drawn_once_it_is_installed(studied, monkeypatch):
    before = mapped(studied, ["pca", "umap"], False, monkeypatch)
    after = mapped(studied, ["pca", "umap"], True, monkeypatch)
    assert before[0]["key"] != after[0]["key"]
    assert list(after[0]["found"]["points"]) == ["pca", "umap"]
    assert maps.answers(after) == []
    assert mapped(studied, ["pca"], True, monkeypatch)[0]["key"] == mapped(studied, ["pca"], False, monkeypatch)[0]["key"]


# ---- what LEE has learnt to name ----


def test_records_and_the_report_say_what_an_encoder_has_learnt_to_name(studied, monkeypatch):
    assert "targets" not in mapped(studied, ["pca"], True, monkeypatch)[0]
    readers = studied.encoders[0].readers
    readers[0] = replace(readers[0], identity={"targets": "spelling"})
    form = "hashed character n-grams: the form of a word, how it is written, not what it means"
    assert mapped(studied, ["pca"], True, monkeypatch)[0]["targets"] == {"planted": f"spelling ({form})"}
    assert f"learnt to name `spelling`: {form}" in _facts(studied)[0]
