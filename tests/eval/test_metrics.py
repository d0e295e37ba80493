"""Metrics against hand-worked cases and second implementations; bootstrap intervals on cases with a known answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import audmetric
import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import balanced_accuracy_score, roc_curve
from sklearn.preprocessing import label_binarize

from wavcse.eval import metrics as metrics_package
from wavcse.eval.metrics import METRICS, bootstrap_interval, paired_interval
from wavcse.eval.metrics.classification import accuracy, macro_f1, uar
from wavcse.eval.metrics.regression import ccc, mae, pearson, rmse
from wavcse.eval.metrics.verification import eer, min_dcf, thin_trials

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 0, 0])  # recalls 2/3, 1/2, 0; F1 2*2/(3+4), 2*1/(2+2), 0
CLASSIFICATION = ("accuracy", "uar", "macro_f1", "macro_f1_true")
REGRESSION = ("ccc", "pearson", "mae", "rmse")
TEXTS = ("wer", "cer")


@pytest.fixture
def random_case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 200)
    return labels, np.where(rng.random(200) < 0.5, labels, rng.integers(0, 5, 200))


def trials(seed: int = 0, num_trials: int = 300, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels and overlapping scores; few decimals make ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(num_trials) < 0.3).astype(int)
    return labels, np.round(rng.standard_normal(num_trials) + 1.2 * labels, decimals)


def class_scores(seed: int = 0, num_clips: int = 90, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels `[N]` and scores of four classes `[N, 4]`; few decimals make ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, num_clips)
    return labels, np.round(rng.standard_normal((num_clips, 4)) + 1.5 * np.eye(4)[labels], decimals)


def texts(seed: int = 0, num_clips: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """References of one to eight words, and what a recogniser makes of them: words lost, added and replaced."""
    pytest.importorskip("jiwer")
    rng, words = np.random.default_rng(seed), ["one", "two", "three", "four", "fife"]
    references = [list(rng.choice(words, rng.integers(1, 9))) for _ in range(num_clips)]
    heard = [[word for word in own if rng.random() < 0.8] + list(rng.choice(words, rng.integers(3))) for own in references]
    return tuple(np.array([" ".join(own) for own in rows], dtype=object) for rows in (references, heard))


def edit_distance(reference, heard) -> int:
    """Levenshtein's distance of two sequences, by the textbook's recursion."""
    previous = list(range(len(heard) + 1))
    for row, unit in enumerate(reference, 1):
        current = [row]
        for place, other in enumerate(heard, 1):
            current.append(min(previous[place] + 1, current[-1] + 1, previous[place - 1] + (unit != other)))
        previous = current
    return previous[-1]


def case_for(name: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    if name in CLASSIFICATION:
        labels = rng.integers(0, 5, 200)
        return labels, np.where(rng.random(200) < 0.5, labels, rng.integers(0, 5, 200))
    if name == "ovr_eer":
        return class_scores()
    if name in TEXTS:
        return texts()
    if name in REGRESSION:
        labels = rng.uniform(20, 60, 200)
        return labels, 0.5 * labels + 10 * rng.standard_normal(200)
    return trials()


def test_hand_worked_values():
    assert accuracy(LABELS, PREDICTIONS) == pytest.approx(3 / 6)
    assert uar(LABELS, PREDICTIONS) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert macro_f1(LABELS, PREDICTIONS) == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)
    ages, guesses = np.array([1.0, 2, 3]), np.array([2.0, 3, 4])  # perfectly correlated, one too high
    assert ccc(ages, guesses) == pytest.approx(4 / 7)
    assert pearson(ages, guesses) == pytest.approx(1)
    assert (mae(ages, guesses), rmse(ages, np.array([2.0, 2, 1]))) == pytest.approx((1, np.sqrt(5 / 3)))
    labels, scores = np.array([1, 1, 1, 0, 0, 0]), np.array([3, 2, 0, 2.5, 1, -1])
    assert eer(labels, scores) == pytest.approx(1 / 3)  # threshold 2
    assert min_dcf(labels, scores, 0.01) == pytest.approx(2 / 3)  # threshold 3: no false acceptance, two of three rejected
    assert min_dcf(labels, scores, 0.9) == pytest.approx((0.1 * 2 / 3) / 0.1)  # threshold 0: nothing rejected


def test_second_library(random_case):
    labels, predictions = random_case
    assert accuracy(labels, predictions) == pytest.approx(audmetric.accuracy(labels, predictions))
    assert uar(labels, predictions) == pytest.approx(audmetric.unweighted_average_recall(labels, predictions))
    assert macro_f1(labels, predictions) == pytest.approx(audmetric.unweighted_average_fscore(labels, predictions))
    ages, guesses = case_for("ccc")
    assert ccc(ages, guesses) == pytest.approx(audmetric.concordance_cc(ages, guesses))
    assert pearson(ages, guesses) == pytest.approx(audmetric.pearson_cc(ages, guesses))
    assert mae(ages, guesses) == pytest.approx(audmetric.mean_absolute_error(ages, guesses))
    assert rmse(ages, guesses) == pytest.approx(np.sqrt(audmetric.mean_squared_error(ages, guesses)))


@pytest.mark.parametrize("seed", range(8))
def test_eer_is_the_root_on_the_interpolated_roc(seed):
    labels, scores = trials(seed, num_trials=60, decimals=seed % 3)
    x, y, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert eer(labels, scores) == pytest.approx(brentq(lambda rate: 1 - rate - np.interp(rate, x, y), 0, 1), abs=1e-9)


@pytest.mark.parametrize("p_target", [0.01, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_min_dcf_is_the_lowest_cost_of_any_threshold(seed, p_target):
    labels, scores = trials(seed, num_trials=80)
    costs = []
    for threshold in [*scores, np.inf]:
        accepted = scores >= threshold
        missed = np.sum(~accepted & (labels == 1)) / np.sum(labels == 1)
        false_alarms = np.sum(accepted & (labels == 0)) / np.sum(labels == 0)
        costs.append(p_target * missed + (1 - p_target) * false_alarms)
    assert min_dcf(labels, scores, p_target) == pytest.approx(min(costs) / min(p_target, 1 - p_target))


def test_one_vs_rest_eer_by_hand():
    """Three clips, three classes: nine trials, three of them target trials."""
    labels = np.array([0, 1, 2])
    scores = np.array([[0.9, 0.3, 0.1], [0.2, 0.8, 0.1], [0.7, 0.6, 0.4]])  # the last clip is taken for the others
    # A threshold between 0.4 and 0.6 rejects one of three target trials (0.4) and accepts two of six others (0.7, 0.6).
    assert METRICS["ovr_eer"].compute(labels, scores) == pytest.approx(1 / 3)
    assert METRICS["ovr_eer"].compute(labels, 10 * np.eye(3)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_one_vs_rest_eer_is_that_of_all_trials_in_one_roc(seed):
    labels, scores = class_scores(seed, decimals=1 + seed % 3)
    x, y, _ = roc_curve(label_binarize(labels, classes=range(4)).ravel(), scores.ravel(), drop_intermediate=False)
    expected = brentq(lambda rate: 1 - rate - np.interp(rate, x, y), 0, 1)
    assert METRICS["ovr_eer"].compute(labels, scores) == pytest.approx(expected, abs=1e-9)


def test_macro_f1_of_a_part_counts_the_classes_of_the_part():
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])  # 2 is none of the part's classes
    assert METRICS["macro_f1_true"].compute(labels, predictions) == pytest.approx((2 / 3 + 1) / 2)
    assert METRICS["macro_f1"].compute(labels, predictions) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert METRICS["macro_f1_true"].compute(LABELS, PREDICTIONS) == METRICS["macro_f1"].compute(LABELS, PREDICTIONS)


def test_error_rates_of_texts_are_those_of_the_whole_split():
    """Two errors in four words, not the mean of 1/3 and 1."""
    pytest.importorskip("jiwer")
    references, heard = np.array(["the cat sat", "yes"], dtype=object), np.array(["the cat", "no"], dtype=object)
    assert METRICS["wer"].compute(references, heard) == pytest.approx(2 / 4)
    assert METRICS["cer"].compute(references, heard) == pytest.approx((4 + 3) / 14)  # " sat"; "yes" against "no"
    assert METRICS["wer"].compute(references, np.array(["a b c d e f", "yes"])) == pytest.approx(6 / 4)  # above 1
    with pytest.raises(ValueError, match="hold no words"):
        METRICS["wer"].compute(np.array([""]), np.array(["x"]))


@pytest.mark.parametrize("seed", range(3))
def test_error_rates_of_texts_against_the_textbook(seed):
    references, heard = texts(seed)
    jiwer = pytest.importorskip("jiwer")
    for name, cut, library in (("wer", str.split, jiwer.wer), ("cer", list, jiwer.cer)):
        errors = sum(edit_distance(cut(a), cut(b)) for a, b in zip(references, heard))
        found = METRICS[name].compute(references, heard)
        assert found == pytest.approx(errors / sum(len(cut(a)) for a in references))
        assert found == pytest.approx(library(list(references), list(heard)))


def test_intervals_of_error_rates_pool_errors_and_words_of_the_speakers_drawn():
    """One speaker has every word wrong and most words: a resample's rate is its errors over its words."""
    pytest.importorskip("jiwer")
    references = np.array(["a b c d e f g h", "a", "a", "a"], dtype=object)
    heard = np.array(["x x x x x x x x", "a", "a", "a"], dtype=object)
    speakers = np.array(["long", "s1", "s2", "s3"])
    draws = np.random.default_rng(0).multinomial(4, np.full(4, 1 / 4), size=2000)
    rates = 8 * draws[:, 0] / (8 * draws[:, 0] + draws[:, 1:].sum(axis=1))
    expected = np.quantile(rates, [0.025, 0.975])
    assert bootstrap_interval(METRICS["wer"], references, [heard], speakers) == pytest.approx(tuple(expected), abs=1e-6)


def test_errors_of_perfect_useless_and_inverted_scores():
    labels = np.array([0, 0, 1, 1, 1])
    for scores, rate, cost in ((labels, 0, 0), (np.zeros(5), 0.5, 1), (-labels, 1, 1)):
        assert eer(labels, scores) == pytest.approx(rate)
        assert min_dcf(labels, scores, 0.01) == pytest.approx(cost)


def test_only_the_order_of_scores_counts():
    labels, scores = trials()
    assert eer(labels, np.exp(scores)) == pytest.approx(eer(labels, scores))
    assert min_dcf(labels, scores**3, 0.05) == pytest.approx(min_dcf(labels, scores, 0.05))


@pytest.mark.parametrize(("labels", "scores"), [([1, 1], [0.1, 0.2]), ([0, 1], [np.nan, 0.2]), ([1, 2], [0.1, 0.2])])
def test_trials_that_have_no_error_rates(labels, scores):
    with pytest.raises(ValueError, match="1 of 2 scores are not finite|label 1 and trials with label 0"):
        eer(np.array(labels), np.array(scores))


def test_correlations_of_constants():
    constant, varied = np.full(4, 3.3), np.array([1.0, 2, 3, 4])
    assert ccc(varied, constant) == pytest.approx(0)  # says nothing about the labels
    assert np.isnan(pearson(varied, constant))
    assert np.isnan(ccc(constant, constant))
    weights = np.array([[1, 1, 1, 1], [3, 0, 0, 0]], dtype=np.float32)  # the second resample has one clip only
    assert METRICS["pearson"].resampled(varied, varied, weights) == pytest.approx([1, np.nan], nan_ok=True)


def test_large_values_keep_their_precision():
    labels, predictions = case_for("ccc")
    assert ccc(labels + 1e6, predictions + 1e6) == pytest.approx(ccc(labels, predictions), rel=1e-6)


def test_uar_counts_the_classes_of_the_test_split_only():
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])  # class 2 is predicted but never true
    assert uar(labels, predictions) == pytest.approx(0.75)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert uar(labels, predictions) == pytest.approx(balanced_accuracy_score(labels, predictions))


@pytest.mark.parametrize("name", METRICS)
def test_resampled_figures_equal_the_library_on_repeated_clips(name):
    labels, predictions = case_for(name)
    weights = np.random.default_rng(0).integers(0, 3, (7, len(labels))).astype(np.float32)
    weights[0] = 1
    if name in CLASSIFICATION:
        weights[1, labels == 2] = 0  # a class that a resample does not meet
    expected = [
        METRICS[name].compute(np.repeat(labels, repeats), np.repeat(predictions, repeats, axis=0))
        for repeats in weights.astype(int)
    ]
    np.testing.assert_allclose(METRICS[name].resampled(labels, predictions, weights), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["eer", "min_dcf_01"])
def test_a_resample_without_target_trials_has_no_figure(name):
    labels, scores = trials()
    weights = np.ones((3, len(labels)), dtype=np.float32)
    weights[1, labels == 1] = 0
    figures = METRICS[name].resampled(labels, scores, weights)
    assert np.isnan(figures).tolist() == [False, True, False]
    assert figures[2] == pytest.approx(METRICS[name].compute(labels, scores))


def test_resamples_do_not_depend_on_the_blocks_they_are_computed_in(monkeypatch):
    labels, scores = trials()
    weights = np.random.default_rng(0).integers(0, 3, (9, len(labels))).astype(np.float32)
    whole = METRICS["eer"].resampled(labels, scores, weights)
    monkeypatch.setattr("wavcse.eval.metrics.verification.BLOCK", 2 * len(labels))
    np.testing.assert_array_equal(METRICS["eer"].resampled(labels, scores, weights), whole)


@pytest.mark.parametrize("name", ["eer", "min_dcf_01", "min_dcf_05"])
def test_thinned_trials_stand_for_all(name):
    labels, scores = trials(num_trials=60_000, decimals=9)
    rows, counts = thin_trials(labels, scores, all_up_to=2000)
    assert len(rows) < 22_000
    assert len(set(rows)) == len(rows)
    for label in (0, 1):
        assert counts[labels[rows] == label].sum() == np.sum(labels == label)
    thinned = METRICS[name].resampled(labels[rows], scores[rows], counts[None].astype(np.float32))
    assert thinned == pytest.approx(METRICS[name].compute(labels, scores), rel=0.003)


def test_few_trials_are_not_thinned():
    labels, scores = trials()
    rows, counts = thin_trials(labels, scores, all_up_to=len(labels))
    assert sorted(rows) == list(range(len(labels)))
    assert set(counts) == {1}


def test_thinning_hardly_moves_an_interval(monkeypatch):
    labels, scores = trials(num_trials=20_000, decimals=9)
    speakers = np.random.default_rng(5).integers(0, 40, (len(labels), 2))
    whole = bootstrap_interval(METRICS["eer"], labels, [scores], speakers, num_resamples=300)
    monkeypatch.setattr("wavcse.eval.metrics.verification.thin_trials.__defaults__", (1500,))
    thinned = bootstrap_interval(METRICS["eer"], labels, [scores], speakers, num_resamples=300)
    assert thinned != whole
    assert thinned == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("name", CLASSIFICATION)
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


def test_both_speakers_of_a_trial_are_resampled():
    num_speakers = 150
    effect = np.random.default_rng(2).uniform(1, 3, num_speakers)
    first, second = np.triu_indices(num_speakers, k=1)
    errors = effect[first] + effect[second]  # the mean over all pairs is twice the mean effect
    low, high = bootstrap_interval(METRICS["mae"], np.zeros(len(errors)), [errors], np.stack([first, second], axis=1))
    assert (high - low) / (2 * 1.96) == pytest.approx(2 * effect.std() / np.sqrt(num_speakers), rel=0.1)


def test_a_trial_within_one_speaker_counts_as_often_as_the_speaker():
    labels, predictions = case_for("mae")
    speakers = np.arange(len(labels)) % 11
    pairs = np.stack([speakers, speakers], axis=1)
    by_pair, by_speaker = (bootstrap_interval(METRICS["mae"], labels, [predictions], own) for own in (pairs, speakers))
    assert by_pair == by_speaker


def test_names_of_speakers_do_not_matter():
    labels, scores = trials()
    pairs = np.random.default_rng(3).integers(10, 30, (len(labels), 2))
    by_number, by_name = (bootstrap_interval(METRICS["eer"], labels, [scores], own) for own in (pairs, pairs.astype(str)))
    assert by_number == by_name


def test_interval_is_seeded(random_case):
    labels, predictions = random_case
    first, again, other = (bootstrap_interval(METRICS["uar"], labels, [predictions], seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", ["uar", "mae", "eer"])
def test_interval_does_not_depend_on_the_chunks_it_is_computed_in(name, monkeypatch):
    labels, predictions = case_for(name)
    whole = bootstrap_interval(METRICS[name], labels, [predictions])
    monkeypatch.setattr("wavcse.eval.metrics.bootstrap.MAX_WEIGHTS_PER_CHUNK", 7 * len(labels))
    assert bootstrap_interval(METRICS[name], labels, [predictions]) == pytest.approx(whole, rel=1e-6)


def test_several_seeds_share_one_interval():
    always, never = LABELS, (LABELS + 1) % 3
    assert bootstrap_interval(METRICS["accuracy"], LABELS, [always, never]) == pytest.approx((0.5, 0.5))


def test_one_speaker_allows_no_interval():
    assert bootstrap_interval(METRICS["accuracy"], LABELS, [PREDICTIONS], np.array(["a"] * 6)) is None


def test_resamples_without_a_figure_are_left_out():
    labels, scores = np.array([1, 0, 0, 0, 0, 0]), np.array([0.5, 0.9, 0.1, 0.2, 0.3, 0.4])
    low, high = bootstrap_interval(METRICS["eer"], labels, [scores], np.array(list("abcdef")))  # a third draws no "a"
    assert 0 == low < high <= 1
    assert bootstrap_interval(METRICS["pearson"], np.arange(6.0), [np.ones(6)]) is None


def test_paired_interval_drops_what_both_systems_share():
    speakers = np.repeat(np.arange(20), 10)
    num_right = np.random.default_rng(0).integers(2, 9, 20)  # of 10 clips of each speaker
    place = np.tile(np.arange(10), 20)
    labels = np.zeros(200, dtype=int)
    worse = (place >= num_right[speakers]).astype(int)
    better = (place >= num_right[speakers] + 1).astype(int)  # one more clip of every speaker
    alone = [bootstrap_interval(METRICS["accuracy"], labels, [own], speakers) for own in (better, worse)]
    assert alone[0][0] < alone[1][1]  # each alone they overlap
    paired = paired_interval(METRICS["accuracy"], labels, [better], [worse], speakers)
    assert paired == pytest.approx((0.1, 0.1), abs=1e-6)
    assert paired_interval(METRICS["accuracy"], labels, [worse], [better], speakers) == pytest.approx((-0.1, -0.1), abs=1e-6)


def test_paired_interval_of_equal_systems_is_zero():
    labels, scores = trials()
    assert paired_interval(METRICS["eer"], labels, [scores], [2 * scores + 1]) == pytest.approx((0, 0))
    assert paired_interval(METRICS["eer"], labels, [scores], [scores], np.zeros(len(labels))) is None


@pytest.mark.slow
def test_modules_for_evaluate(tmp_path):
    pytest.importorskip("evaluate")
    pytest.importorskip("jiwer")
    folder = Path(metrics_package.__file__).parent
    script = (
        "import evaluate, json, sys\n"
        "load = lambda name: evaluate.load(f'{sys.argv[1]}/{name}')\n"
        "trials = dict(predictions=[3, 2, 0, 2.5, 1, -1], references=[1, 1, 1, 0, 0, 0])\n"
        "found = load('eer').compute(**trials) | load('min_dcf').compute(p_target=0.9, **trials)\n"
        "found |= load('ccc').compute(predictions=[2, 3, 4], references=[1, 2, 3])\n"
        "found |= load('uar').compute(predictions=[0, 0, 1, 1, 0, 0], references=[0, 0, 0, 1, 1, 2])\n"
        "texts = dict(predictions=['the cat', 'no'], references=['the cat sat', 'yes'])\n"
        "found |= load('wer').compute(**texts) | load('cer').compute(**texts)\n"
        "print(json.dumps(found))\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    expected = {"eer": 1 / 3, "min_dcf": 2 / 3, "ccc": 4 / 7, "uar": (2 / 3 + 1 / 2) / 3, "wer": 2 / 4, "cer": 7 / 14}
    assert json.loads(run.stdout.splitlines()[-1]) == pytest.approx(expected)
