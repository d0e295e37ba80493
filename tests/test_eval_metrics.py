"""Metrics against hand-worked cases and a second library; bootstrap intervals on cases with a known answer."""

from __future__ import annotations

import audmetric
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from wavcse.eval.metrics import METRICS, accuracy, bootstrap_interval, macro_f1, uar

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 0, 0])  # recalls 2/3, 1/2, 0; F1 2*2/(3+4), 2*1/(2+2), 0


@pytest.fixture
def random_case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 200)
    return labels, np.where(rng.random(200) < 0.5, labels, rng.integers(0, 5, 200))


def test_hand_worked_values():
    assert accuracy(LABELS, PREDICTIONS) == pytest.approx(3 / 6)
    assert uar(LABELS, PREDICTIONS) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert macro_f1(LABELS, PREDICTIONS) == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)


def test_second_library(random_case):
    labels, predictions = random_case
    assert accuracy(labels, predictions) == pytest.approx(audmetric.accuracy(labels, predictions))
    assert uar(labels, predictions) == pytest.approx(audmetric.unweighted_average_recall(labels, predictions))
    assert macro_f1(labels, predictions) == pytest.approx(audmetric.unweighted_average_fscore(labels, predictions))


def test_uar_counts_the_classes_of_the_test_split_only():
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])  # class 2 is predicted but never true
    assert uar(labels, predictions) == pytest.approx(0.75)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert uar(labels, predictions) == pytest.approx(balanced_accuracy_score(labels, predictions))


@pytest.mark.parametrize("name", METRICS)
def test_resampled_figures_equal_the_library_on_repeated_clips(name, random_case):
    labels, predictions = random_case
    weights = np.random.default_rng(0).integers(0, 3, (7, len(labels))).astype(np.float32)
    weights[0] = 1
    weights[1, labels == 2] = 0  # a class that a resample does not meet
    expected = [
        METRICS[name].compute(np.repeat(labels, repeats), np.repeat(predictions, repeats)) for repeats in weights.astype(int)
    ]
    np.testing.assert_allclose(METRICS[name].resampled(labels, predictions, weights), expected, rtol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_interval_of_all_correct_is_one(name):
    low, high = bootstrap_interval(METRICS[name], LABELS, [LABELS], np.array(list("aabbcc")))
    assert (low, high) == pytest.approx((1.0, 1.0))


def test_interval_over_clips_is_the_binomial_one():
    labels = np.zeros(400, dtype=int)
    predictions = (np.arange(400) % 4 == 0).astype(int)  # 75 % correct
    half_width = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    low, high = bootstrap_interval(METRICS["accuracy"], labels, [predictions])
    assert (low, high) == pytest.approx((0.75 - half_width, 0.75 + half_width), abs=0.006)


def test_correlated_speakers_widen_the_interval():
    labels, speakers = np.zeros(200, dtype=int), np.repeat(np.arange(20), 10)
    predictions = speakers % 2  # a speaker is always right or always wrong
    by_clip = bootstrap_interval(METRICS["accuracy"], labels, [predictions])
    by_speaker = bootstrap_interval(METRICS["accuracy"], labels, [predictions], speakers)
    ratio = (by_speaker[1] - by_speaker[0]) / (by_clip[1] - by_clip[0])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)  # 20 independent units instead of 200


def test_interval_is_seeded(random_case):
    labels, predictions = random_case
    first, again, other = (bootstrap_interval(METRICS["uar"], labels, [predictions], seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_interval_does_not_depend_on_the_chunks_it_is_computed_in(random_case, monkeypatch):
    labels, predictions = random_case
    whole = bootstrap_interval(METRICS["uar"], labels, [predictions])
    monkeypatch.setattr("wavcse.eval.metrics.MAX_WEIGHTS_PER_CHUNK", 7 * len(labels))
    assert bootstrap_interval(METRICS["uar"], labels, [predictions]) == pytest.approx(whole, rel=1e-6)


def test_several_seeds_share_one_interval():
    always, never = LABELS, (LABELS + 1) % 3
    assert bootstrap_interval(METRICS["accuracy"], LABELS, [always, never]) == pytest.approx((0.5, 0.5))


def test_one_speaker_allows_no_interval():
    assert bootstrap_interval(METRICS["accuracy"], LABELS, [PREDICTIONS], np.array(["a"] * 6)) is None
