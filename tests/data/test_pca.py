"""Principal components by blocks are scikit-learn's, from few vectors and from many; whitening, and the way back."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from wavcse.data.pca import LEAST_VARIANCE, fit_pca, random_rotation

E = 12


def vectors(count: int, directions: int = E) -> np.ndarray:
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(count, directions)) * np.geomspace(5, 0.2, directions)
    return mixed @ generator.normal(size=(directions, E)) + 100


@pytest.mark.parametrize(("count", "most"), [(200, 5), (200, E), (E + 1, 5), (E, 5), (8, 5), (8, 7)])
def test_they_are_scikit_learns_whichever_products_are_smaller(count, most):
    rows = vectors(count)
    mine, theirs = fit_pca(np.array_split(rows, 3), most), PCA(most).fit(rows)
    signs = np.sign((mine.components * theirs.components_).sum(1))
    np.testing.assert_allclose(mine.components, signs[:, None] * theirs.components_, atol=1e-8)
    np.testing.assert_allclose(mine.variances, theirs.explained_variance_)
    np.testing.assert_allclose(mine.variances / mine.total_variance, theirs.explained_variance_ratio_)
    np.testing.assert_allclose(mine.mean, theirs.mean_)
    assert mine.rank == min(count - 1, E)


@pytest.mark.parametrize("count", [200, 8])
def test_the_rank_is_that_of_what_varies_in_float32(count):
    rows = vectors(count, directions=3).astype(np.float32)
    assert fit_pca([rows], 3).rank == 3
    assert fit_pca([rows], E).components.shape == (E, E)  # those beyond are some directions in which nothing varies
    assert fit_pca([np.ones((count, E))], 1).rank == 0


def test_whitening_lies_between_none_and_unit_variance():
    rows = vectors(300)
    found = fit_pca([rows], 4)
    for whiten in (0.0, 0.5, 1.0):
        weight, bias = found.encoder(whiten)
        coordinates = rows @ weight.T + bias
        np.testing.assert_allclose(coordinates.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(np.cov(coordinates.T), np.diag(found.variances ** (1 - whiten)), atol=1e-8)
        back, mean = found.decoder(whiten)
        theirs = PCA(4).fit(rows)
        np.testing.assert_allclose(coordinates @ back.T + mean, theirs.inverse_transform(theirs.transform(rows)), rtol=1e-9)


def test_what_hardly_varies_is_not_blown_up():
    rows = vectors(300) * 0
    rows[:, 0], rows[:, 1] = np.random.default_rng(1).normal(size=(2, 300)) * [[1.0], [1e-4]]
    found = fit_pca([rows], 2)
    assert found.rank == 2
    np.testing.assert_allclose(found.lengths(1.0), np.sqrt(found.variances[0] * np.array([1, LEAST_VARIANCE])))


def test_a_rotation_keeps_cosines_and_spreads_the_variance():
    vectors = np.random.default_rng(0).standard_normal((400, 24)) * np.geomspace(10, 0.1, 24) + 3
    found = fit_pca([vectors], 16)
    plain, rotated = (found.encoder(0.3, rotate) for rotate in (False, True))
    first, second = (vectors @ weight.T + bias for weight, bias in (plain, rotated))
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=1e-8)
    spreads = [deviations.max() / deviations.min() for deviations in (first.std(0), second.std(0))]
    assert spreads[0] > 3 * spreads[1]
    weight, mean = found.decoder(0.3, rotate=True)
    np.testing.assert_allclose(second @ weight.T + mean, first @ found.decoder(0.3)[0].T + found.mean, atol=1e-8)
    rotation = random_rotation(16)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-12)
    np.testing.assert_array_equal(rotation, random_rotation(16))
