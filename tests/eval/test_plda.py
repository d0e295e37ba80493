"""PLDA against planted parameters, closed forms and joint Gaussians; LDA against scikit-learn; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from wavcse.eval.metrics.verification import eer
from wavcse.eval.plda import PLDA, TwoCovariance, fit_lda, ledoit_wolf


def covariance(rng: np.random.Generator, size: int) -> np.ndarray:
    root = rng.standard_normal((size, 2 * size))
    return root @ root.T / (2 * size)


def draw(
    rng: np.random.Generator, between: np.ndarray, within: np.ndarray, sizes: np.ndarray, mean: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Clips and speaker numbers of speakers with `sizes` clips each."""
    speakers = np.repeat(np.arange(len(sizes)), sizes)
    points = rng.multivariate_normal(np.full(len(between), mean), between, len(sizes))
    return points[speakers] + rng.multivariate_normal(np.zeros(len(within)), within, len(speakers)), speakers


@pytest.fixture(scope="module")
def corpus() -> tuple[np.ndarray, np.ndarray]:
    """120 speakers with 2 to 6 clips of 12 dimensions."""
    rng = np.random.default_rng(0)
    return draw(rng, covariance(rng, 12), covariance(rng, 12), rng.integers(2, 7, 120), mean=5.0)


def joint_llr(model: TwoCovariance, enrolment: np.ndarray, test: np.ndarray) -> float:
    """The definition: all vectors stacked into one Gaussian, with and without a common speaker."""

    def log_density(vectors: np.ndarray) -> float:
        num = len(vectors)
        joint = np.kron(np.ones((num, num)), model.between) + np.kron(np.eye(num), model.within)
        return multivariate_normal.logpdf(vectors.ravel(), np.tile(model.mean, num), joint)

    return log_density(np.vstack([enrolment, test])) - log_density(enrolment) - log_density(test[None])


def test_planted_covariances_are_recovered():
    rng = np.random.default_rng(3)
    between, within = covariance(rng, 4), 0.5 * covariance(rng, 4)
    model = TwoCovariance().fit(*draw(rng, between, within, rng.integers(2, 6, 4000), mean=-2.0))
    assert np.linalg.norm(model.within - within) < 0.03 * np.linalg.norm(within)
    assert np.linalg.norm(model.between - between) < 0.08 * np.linalg.norm(between)
    assert model.mean == pytest.approx(np.full(4, -2.0), abs=0.05)


def test_one_dimension_equals_the_closed_form():
    rng = np.random.default_rng(4)
    num_speakers, num_clips = 50, 4
    vectors, speakers = draw(rng, np.eye(1) * 2, np.eye(1), np.full(num_speakers, num_clips), mean=3.0)
    model = TwoCovariance(max_iterations=3000, tolerance=0).fit(vectors, speakers)
    means = vectors.reshape(num_speakers, num_clips).mean(axis=1)  # balanced one-way analysis of variance
    within = np.sum((vectors[:, 0] - means[speakers]) ** 2) / (num_speakers * (num_clips - 1))
    between = means.var() - within / num_clips
    assert model.mean == pytest.approx(means.mean())
    assert (model.within.item(), model.between.item()) == pytest.approx((within, between), rel=1e-5)
    x, y = 1.7, -0.4  # two clips are a bivariate normal of correlation r
    total, r = between + within, between / (between + within)
    expected = -0.5 * np.log(1 - r**2) - (r**2 * (x**2 + y**2) - 2 * r * x * y) / (2 * (1 - r**2) * total)
    scores = model.llr(model.mean + np.array([[x]]), np.array([1]), model.mean + np.array([[y]]))
    assert scores.item() == pytest.approx(expected, rel=1e-4)


def test_scores_equal_the_joint_gaussians(corpus):
    model = TwoCovariance().fit(corpus[0][:, :3], corpus[1])
    rng = np.random.default_rng(1)
    enrolments = [rng.standard_normal((num, 3)) + 5 for num in (1, 4, 2, 1)]
    tests = rng.standard_normal((5, 3)) + 5
    means, sizes = np.stack([own.mean(axis=0) for own in enrolments]), np.array([1, 4, 2, 1])
    expected = [[joint_llr(model, own, test) for test in tests] for own in enrolments]
    np.testing.assert_allclose(model.llr(means, sizes, tests), expected, rtol=1e-9, atol=1e-9)


def test_likelihood_never_falls_and_is_that_of_the_joint_gaussians(corpus):
    vectors, speakers = corpus[0][:, :5], corpus[1]
    model = TwoCovariance(max_iterations=40, tolerance=0).fit(vectors, speakers)
    assert len(model.log_likelihoods) == 41
    gains = np.diff(model.log_likelihoods)
    assert (gains > -1e-7).all()
    assert gains[0] > 0
    expected = 0.0
    for speaker in np.unique(speakers):
        own = vectors[speakers == speaker]
        joint = np.kron(np.ones((len(own),) * 2), model.between) + np.kron(np.eye(len(own)), model.within)
        expected += multivariate_normal.logpdf(own.ravel(), np.tile(model.mean, len(own)), joint)
    assert model.log_likelihoods[-1] == pytest.approx(expected)


def test_whole_chain_scores_several_enrolment_clips(corpus):
    embeddings, speakers = corpus
    plda = PLDA(lda_size=4).fit(embeddings, speakers)
    enrolments, tests = [embeddings[:3], embeddings[10:11], embeddings[20:25]], embeddings[30:34]
    np.testing.assert_allclose(np.linalg.norm(plda.project(tests), axis=1), 2)  # sqrt(4)
    expected = [[joint_llr(plda.model, plda.project(own), test) for test in plda.project(tests)] for own in enrolments]
    np.testing.assert_allclose(plda.score(enrolments, tests), expected, rtol=1e-8, atol=1e-8)


def held_out_eer(plda: PLDA, embeddings: np.ndarray, speakers: np.ndarray) -> float:
    first, second = np.triu_indices(len(speakers), k=1)
    scores = plda.score(list(embeddings[:, None]), embeddings)[first, second]
    return eer((speakers[first] == speakers[second]).astype(int), scores)


def test_more_speakers_lower_the_error_on_others():
    rng = np.random.default_rng(6)
    directions = rng.standard_normal((30, 8))
    between, within = directions @ directions.T / 8, 0.6 * covariance(rng, 30)
    held_out = draw(rng, between, within, np.full(100, 5))
    train, speakers = draw(rng, between, within, np.full(800, 4))
    errors = []
    for num_speakers in (12, 60, 800):
        own = speakers < num_speakers
        errors.append(held_out_eer(PLDA(lda_size=8).fit(train[own], speakers[own]), *held_out))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.8 * errors[0]


def test_many_clips_of_a_speaker_enrol_better_than_one():
    rng = np.random.default_rng(7)
    between, within = 2 * np.eye(10), np.eye(10)
    plda = PLDA(lda_size=10).fit(*draw(rng, between, within, np.full(300, 4)))
    clips = draw(rng, between, within, np.full(80, 7))[0].reshape(80, 7, 10)
    labels = np.eye(80, dtype=int).ravel()
    one, six = (eer(labels, plda.score(list(clips[:, 1 : 1 + num]), clips[:, 0]).ravel()) for num in (1, 6))
    assert six < 0.7 * one


def scores_of(embeddings: np.ndarray, speakers: np.ndarray, shrinkage: float | None) -> np.ndarray:
    plda = PLDA(lda_size=5, shrinkage=shrinkage).fit(embeddings, speakers)
    return plda.score([embeddings[:2], embeddings[5:6]], embeddings[10:20])


def test_scores_do_not_depend_on_where_and_in_which_unit_a_dimension_is(corpus):
    embeddings, speakers = corpus
    moved = embeddings * np.logspace(-3, 3, 12) + np.linspace(-50, 50, 12)
    expected = scores_of(embeddings, speakers, None)
    np.testing.assert_allclose(scores_of(moved, speakers, None), expected, rtol=1e-5, atol=1e-6)
    with_constant = np.insert(embeddings, 3, 7.25, axis=1)
    np.testing.assert_allclose(scores_of(with_constant, speakers, None), expected, rtol=1e-5, atol=1e-6)


def test_scores_do_not_depend_on_an_invertible_map_without_shrinkage(corpus):
    embeddings, speakers = corpus
    rng = np.random.default_rng(8)
    mapped = embeddings @ rng.standard_normal((12, 12)) + rng.standard_normal(12)
    expected = scores_of(embeddings, speakers, 0.0)
    np.testing.assert_allclose(scores_of(mapped, speakers, 0.0), expected, rtol=1e-5, atol=1e-6)


def test_names_and_order_of_speakers_do_not_matter(corpus):
    embeddings, speakers = corpus
    order = np.random.default_rng(9).permutation(len(speakers))
    names = np.array([f"speaker {97 * number % 120}" for number in speakers])
    plda, again = PLDA(lda_size=5).fit(embeddings, speakers), PLDA(lda_size=5).fit(embeddings[order], names[order])
    pair = [embeddings[:2]], embeddings[10:20]
    np.testing.assert_allclose(again.score(*pair), plda.score(*pair), rtol=1e-6, atol=1e-7)


def test_lda_equals_scikit_learn(corpus):
    embeddings, speakers = corpus
    lda = fit_lda(embeddings, speakers, shrinkage=0.0)
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(embeddings, speakers)
    expected = (embeddings - embeddings.mean(axis=0)) @ reference.scalings_[:, :6]
    np.testing.assert_allclose(np.abs(lda.project(embeddings, 6)), np.abs(expected), rtol=1e-6, atol=1e-8)


def test_lda_does_not_depend_on_the_blocks_it_is_computed_in(corpus, monkeypatch):
    whole = fit_lda(*corpus)
    monkeypatch.setattr("wavcse.eval.plda.BLOCK", 50)
    parts = fit_lda(*corpus)
    assert parts.shrinkage == pytest.approx(whole.shrinkage)
    np.testing.assert_allclose(np.abs(parts.project(corpus[0], 6)), np.abs(whole.project(corpus[0], 6)), rtol=1e-7, atol=1e-9)


def test_shrinkage_equals_scikit_learn():
    vectors = np.random.default_rng(0).standard_normal((40, 25)) * np.linspace(0.5, 2, 25)
    fourth_moment = np.mean(np.sum(vectors**2, axis=1) ** 2)
    expected = ledoit_wolf_shrinkage(vectors, assume_centered=True)
    assert 0 < expected < 1
    assert ledoit_wolf(vectors.T @ vectors / 40, fourth_moment, 40) == pytest.approx(expected)


def test_few_clips_of_many_dimensions_are_regularised():
    rng = np.random.default_rng(10)
    directions = rng.standard_normal((10, 200))  # speakers differ in 10 of 200 dimensions

    def clips(num_speakers: int) -> tuple[np.ndarray, np.ndarray]:
        vectors, speakers = draw(rng, np.eye(10), 0.05 * np.eye(10), np.full(num_speakers, 3))
        return vectors @ directions / np.sqrt(10) + 0.5 * rng.standard_normal((len(vectors), 200)), speakers

    train, test = clips(30), clips(30)
    plda = PLDA(lda_size=20).fit(*train)
    assert 0 < plda.lda.shrinkage < 1
    assert held_out_eer(plda, *test) < 0.1
    with pytest.raises(ValueError, match="200 dimensions need 200 clips beyond one per speaker; there are 60"):
        PLDA(lda_size=20, shrinkage=0.0).fit(*train)


def broken(corpus: tuple[np.ndarray, np.ndarray], case: str) -> tuple[np.ndarray, np.ndarray]:
    embeddings, speakers = corpus[0].copy(), corpus[1].copy()
    if case == "nan":
        embeddings[[4, 9], 2] = np.nan
    elif case == "one clip each":
        _, first = np.unique(speakers, return_index=True)
        return embeddings[first], speakers[first]
    elif case == "one speaker":
        speakers[:] = 0
    elif case == "few speakers":
        own = speakers < 5
        return embeddings[own], speakers[own]
    elif case == "two speakers":
        own = speakers < 2
        return embeddings[own], speakers[own]
    elif case == "equal clips":
        embeddings = embeddings[speakers * 3]
    elif case == "constant":
        embeddings[:] = 1.5
    elif case == "lengths":
        speakers = speakers[:-1]
    return embeddings, speakers


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nan", "2 of .* training embeddings are not finite"),
        ("one clip each", "Each of 120 training speakers has one clip"),
        ("one speaker", "1 training speaker;"),
        ("few speakers", "lda_size is 6; .* clips of 5 speakers in 12 dimensions allow 2 to 4"),
        ("two speakers", "clips of 2 speakers in 12 dimensions are too few for PLDA"),
        ("equal clips", "same embedding"),
        ("constant", "same embedding"),
        ("lengths", "do not fit"),
    ],
)
def test_what_cannot_be_fitted_is_refused(corpus, case, message):
    with pytest.raises(ValueError, match=message):
        PLDA(lda_size=6).fit(*broken(corpus, case))


def test_what_the_model_cannot_be_fitted_to_is_refused(corpus):
    embeddings, speakers = corpus
    few = speakers < 5
    with pytest.raises(ValueError, match="12 dimensions need as many clips beyond one per speaker; there are"):
        TwoCovariance().fit(embeddings[few][:, :12][:15], speakers[few][:15])
    flat = np.hstack([embeddings[:, :2], speakers[:, None].astype(float)])  # no spread within speakers in the last dimension
    with pytest.raises(ValueError, match="alike in some direction"):
        TwoCovariance().fit(flat, speakers)
    plda = PLDA(lda_size=5).fit(embeddings, speakers)
    with pytest.raises(ValueError, match="Enrolment 1 has no clips"):
        plda.score([embeddings[:2], embeddings[:0]], embeddings)
