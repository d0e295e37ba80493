"""Calibration of similarities against scikit-learn, the plain formulas, and a case whose ratios are known."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from wavcse.data.embedding_table import write_table
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.retrieval.calibration import Calibration, calibrate, cllr, labelled_pairs, logistic_fit
from wavcse.retrieval.nearest import unit_rows


def test_the_curve_is_that_of_logistic_regression_with_both_kinds_weighing_the_same():
    generator = np.random.default_rng(0)
    is_same = generator.random(3000) < 0.2
    similarities = np.where(is_same, 0.6, 0.2) + 0.2 * generator.standard_normal(3000)
    counts = np.where(is_same, is_same.sum(), (~is_same).sum())
    targets = np.where(is_same, (counts + 1) / (counts + 2), 1 / (counts + 2))
    reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000)  # fractional targets as weighted pairs of both kinds
    weights = 3000 * np.concatenate([targets / counts, (1 - targets) / counts])
    reference.fit(np.tile(similarities, 2)[:, None], np.repeat([1, 0], 3000), sample_weight=weights)
    offset, slope = logistic_fit(similarities, is_same)
    np.testing.assert_allclose([offset, slope], [reference.intercept_[0], reference.coef_[0, 0]], rtol=1e-4)


def test_the_log_ratio_of_two_normal_distributions_is_found():
    """Of equal variance s^2 and means m1, m0 it is (m1 - m0) / s^2 * (x - (m1 + m0) / 2)."""
    generator = np.random.default_rng(1)
    is_same = np.arange(400_000) % 4 == 0
    similarities = np.where(is_same, 0.5, 0.1) + 0.2 * generator.standard_normal(400_000)
    offset, slope = logistic_fit(similarities, is_same)
    np.testing.assert_allclose([offset, slope], [-3.0, 10.0], rtol=0.02)


def test_pairs_that_are_told_apart_without_a_mistake_have_a_finite_slope():
    offset, slope = logistic_fit(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert np.isfinite([offset, slope]).all()
    assert slope > 0


def test_cllr_is_one_of_nothing_and_the_mean_of_both_costs():
    is_same = np.array([True, True, False])
    assert cllr(np.zeros(3), is_same) == pytest.approx(1.0)
    ratios = np.array([2.0, -1.0, -3.0])
    same = np.mean([np.log2(1 + np.exp(-2.0)), np.log2(1 + np.exp(1.0))])
    assert cllr(ratios, is_same) == pytest.approx((same + np.log2(1 + np.exp(-3.0))) / 2)


def test_probability_is_one_half_at_even_odds_and_never_overflows():
    known = Calibration("speaker", -5.0, 10.0, 0.1, 0.3, 5, 5, {})
    assert known.probability(0.5) == pytest.approx(0.5)
    assert known.probability(0.7) == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert Calibration("speaker", 0.0, 1e6, 0.1, 0.3, 5, 5, {}).probability(1.0) == 1.0


@pytest.fixture
def table(tmp_path):
    """64 clips of 8 speakers, two windows each, whose vectors lie around one of their speaker."""
    generator = np.random.default_rng(2)
    speakers = np.repeat(np.arange(8), 16)
    vectors = generator.standard_normal((8, 12))[speakers] + 0.8 * generator.standard_normal((128, 12))
    rows = pd.DataFrame(
        {"id": [f"c{i // 2}" for i in range(128)], "path": "x", "speaker": speakers.astype(str), "few": speakers // 4}
    )
    rows.loc[:3, "speaker"] = None
    write_table(tmp_path / "t.parquet", rows, vectors.astype(np.float32), {"embedding_size": 12, "weights_sha256": "w"})
    return StoredEmbeddings(tmp_path / "t.parquet")


def test_pairs_of_windows_of_one_clip_are_left_out(table):
    units = unit_rows(table.embeddings(range(6)))
    found, is_same = labelled_pairs(units, np.array(list("aabbab")), np.array([0, 0, 1, 1, 2, 2]))
    wanted = [(i, j) for i in range(6) for j in range(i + 1, 6) if i // 2 != j // 2]
    np.testing.assert_allclose(found, [float(units[i] @ units[j]) for i, j in wanted], atol=1e-6)
    assert is_same.tolist() == ["aabbab"[i] == "aabbab"[j] for i, j in wanted]


def test_figures_are_of_speakers_that_were_not_fitted(table):
    found = calibrate(table, None, "speaker")
    # Four speakers of 8 clips in 2 windows each; or one of them is the first speaker, who has 6 clips with a label.
    whole = (4 * (120 - 8), 64 * 63 // 2 - 32)
    assert (found.same, found.same + found.different) in (whole, (3 * (120 - 8) + 66 - 6, 60 * 59 // 2 - 30))
    assert 0 < found.eer < 0.3
    assert 0 < found.cllr < 0.9
    assert found.made_with == {"embedding_size": 12, "weights_sha256": "w"}
    assert calibrate(table, None, "speaker") == found


def test_labels_that_give_no_pairs_are_refused(table):
    with pytest.raises(ValueError, match="few: half of its 2 values has no pairs of clips that agree, or none that differ"):
        calibrate(table, None, "few")
    with pytest.raises(ValueError, match="label is 'absent'; the columns are id, path, speaker, few"):
        calibrate(table, None, "absent")
