"""Lists of trials, backends, the choice on validation and DET curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from wavcse.eval.metrics.verification import eer, error_rates
from wavcse.eval.plda import PLDA
from wavcse.eval.task import Trials, read_trials
from wavcse.eval.verification import CosineBackend, choose_backend, det_curve, score_trials, validation_eer

CLIPS = {"a1.wav": [0], "a2.wav": [1], "b1.wav": 2, "b2.wav": [3], "id-a": [0, 1]}
LIST = "label,enrolment,test\n1,b1.wav,b2.wav\n0,id-a,b2.wav\n0,id-a,b1.wav\n1,a1.wav,a2.wav\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "trials.csv"
    path.write_text(text, encoding="utf-8")
    return path


def speakers_of_dimensions(seed: int, num_speakers: int, num_clips: int, size: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Speakers differ in the first ten dimensions; the others are loud and say nothing."""
    rng = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(num_speakers), num_clips)
    points = np.zeros((num_speakers, size))
    points[:, :10] = rng.standard_normal((num_speakers, 10))
    noise = np.where(np.arange(size) < 10, 0.6, 3.0)
    return points[speakers] + noise * rng.standard_normal((len(speakers), size)) + 20, speakers


def test_trials_are_read(tmp_path):
    trials = read_trials(write(tmp_path, LIST), CLIPS)
    assert trials.enrolment_names == ["b1.wav", "id-a", "a1.wav"]
    assert trials.enrolments == [[2], [0, 1], [0]]
    rows = [(trials.enrolments[enrolment], int(trials.tests[test])) for enrolment, test in trials.pairs]
    assert rows == [([2], 3), ([0, 1], 3), ([0, 1], 2), ([0], 1)]
    assert trials.labels.tolist() == [1, 0, 0, 1]
    assert trials.rows.tolist() == [0, 1, 2, 3]


def test_a_clip_enrols_once_however_often_it_is_listed(tmp_path):
    trials = read_trials(write(tmp_path, LIST), CLIPS | {"id-a": [0, 1, 0, 1]})
    assert trials.enrolments == [[2], [0, 1], [0]]


def test_names_are_read_as_those_of_manifests_are(tmp_path):
    """Blanks at the edges are dropped, and an enrolment `1.0`, as pandas writes it beside a gap, is the manifest's `1`."""
    text = LIST.replace("id-a", " 1.0 ").replace("b1.wav", "b1.wav\u00a0")
    trials, plain = read_trials(write(tmp_path, text), CLIPS | {"1": [0, 1]}), read_trials(write(tmp_path, LIST), CLIPS)
    assert trials.enrolments == plain.enrolments
    np.testing.assert_array_equal(trials.pairs, plain.pairs)


def test_other_column_names_mean_the_same(tmp_path):
    trials = read_trials(write(tmp_path, LIST), CLIPS)
    again = read_trials(write(tmp_path, LIST.replace("enrolment,test", "file_a,file_b")), CLIPS)
    assert again.enrolments == trials.enrolments
    np.testing.assert_array_equal(again.pairs, trials.pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LIST.replace("0,id-a,b1.wav", "2,id-a,b1.wav"), "trials.csv, row 3: label '2' is neither 0 nor 1"),
        (LIST.replace("0,id-a,b1.wav", "0,id-a,c9.wav"), "trials.csv, row 3: 'c9.wav' is neither a clip nor"),
        (LIST.replace("1,b1.wav", "1,c9.wav"), "trials.csv, row 1: 'c9.wav' is neither a clip nor"),
        (LIST.replace("0,id-a,b1.wav", "0,,b1.wav"), "trials.csv, row 3: '' is neither a clip nor"),
        (LIST.replace("0,id-a,b1.wav", "0,b2.wav,id-a"), "trials.csv, row 3: test 'id-a' names several clips"),
        (LIST.replace("1,a1.wav,a2.wav", "1,id-a,a2.wav"), "trials.csv, row 4: test 'a2.wav' is among its own enrolment"),
        (LIST + "0,b1.wav,b2.wav\n", "trials.csv, row 5: test 'b2.wav' was tried with the same enrolment before"),
        (LIST.replace("label,", "lable,"), "no column 'label'"),
        ("label,enrolment,test\n1,a1.wav,a2.wav\n", "label 1 and trials with label 0; all are 1"),
        ("", "trials.csv: is empty"),
        (LIST + "0,b1.wav\n", "trials.csv: line 6 has 2 cells where the header has 3"),
    ],
)
def test_bad_trials_are_refused_by_row_and_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_trials(write(tmp_path, text), CLIPS)


def test_missing_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.csv: no such file"):
        read_trials(tmp_path / "none.csv", CLIPS)


def test_speakers_of_trials(tmp_path):
    trials = read_trials(write(tmp_path, LIST), CLIPS)
    enrolled, tested = trials.speakers(np.array(["a", "a", "b", "b"]))
    assert (enrolled.tolist(), tested.tolist()) == (["b", "a", "a", "a"], ["b", "b", "b", "a"])
    with pytest.raises(ValueError, match="enrolment 'id-a' has clips of 2 speakers: 'a' and 'c'"):
        trials.speakers(np.array(["a", "c", "b", "b"]))


def test_trials_without_some_clips(tmp_path):
    trials = read_trials(write(tmp_path, LIST), CLIPS)
    kept = trials.subset(np.array([1, 2, 3]))  # the first clip could not be read: one enrolment shrinks, one is gone
    assert kept.enrolment_names == ["b1.wav", "id-a"]
    assert kept.enrolments == [[1], [0]]
    assert [int(kept.tests[j]) for _, j in kept.pairs] == [2, 2, 1]
    assert kept.labels.tolist() == [1, 0, 0]
    nothing = trials.subset(np.array([], dtype=int))
    assert (len(nothing.pairs), len(nothing.rows)) == (0, 0)


def test_cosine_is_that_of_centred_unit_vectors():
    rng = np.random.default_rng(0)
    train, clips, tests = (rng.standard_normal((num, 6)) + 3 for num in (50, 4, 5))
    mean = train.mean(axis=0)
    backend = CosineBackend(train)
    unit = (clips - mean) / np.linalg.norm(clips - mean, axis=1, keepdims=True)
    expected = cosine_similarity([unit[0], unit[1:].mean(axis=0)], tests - mean)
    np.testing.assert_allclose(backend.score([clips[:1], clips[1:]], tests), expected)
    assert backend.score([mean[None]], tests).tolist() == [[0] * 5]  # no direction


def test_raw_cosine_is_that_of_the_embeddings_as_they_are():
    clips, tests = (np.random.default_rng(num).standard_normal((num, 6)).astype(np.float32) + 3 for num in (4, 5))
    expected = cosine_similarity(clips.astype(np.float64), tests.astype(np.float64))
    np.testing.assert_allclose(CosineBackend().score(list(clips[:, None]), tests), expected)


def test_scores_of_trials_are_those_of_the_matrix(monkeypatch):
    rng = np.random.default_rng(1)
    embeddings = rng.standard_normal((40, 6))
    enrolments = [[0, 1], [2], [3, 4, 5], [6], [7]]
    cells = rng.permutation(5 * 12)[:30]
    pairs = np.stack([cells // 12, cells % 12], axis=1)
    trials = Trials(list("abcde"), enrolments, np.arange(20, 32), pairs, cells % 2)
    backend = CosineBackend(embeddings)
    expected = backend.score([embeddings[rows] for rows in enrolments], embeddings[20:32])[pairs[:, 0], pairs[:, 1]]
    np.testing.assert_allclose(score_trials(backend, trials, embeddings), expected)
    monkeypatch.setattr("wavcse.eval.verification.MAX_SCORES", 24)  # two enrolments at a time
    np.testing.assert_allclose(score_trials(backend, trials, embeddings), expected)


def test_validation_chooses_the_size():
    train, validation = speakers_of_dimensions(0, 60, 5), speakers_of_dimensions(1, 30, 4)
    backend = choose_backend(*train, *validation, lda_sizes=(2, 8, 500))
    assert list(backend.validation_eers) == [2, 8, 30]  # 30 dimensions allow no more
    first, second = np.triu_indices(len(validation[1]), k=1)
    labels = (validation[1][first] == validation[1][second]).astype(int)
    for size, rate in backend.validation_eers.items():
        plda = PLDA(size).fit(*train)
        assert rate == pytest.approx(eer(labels, plda.score(list(validation[0][:, None]), validation[0])[first, second]))
    assert backend.validation_eer == min(backend.validation_eers.values())
    assert backend.validation_eers[backend.plda.lda_size] == backend.validation_eer
    assert backend.lda_size == backend.plda.lda_size > 2
    test = speakers_of_dimensions(2, 30, 4)
    cosine = validation_eer(CosineBackend(train[0]), *test)
    assert validation_eer(backend, *test) < 0.6 * cosine  # the loud dimensions are found out in training


def test_of_equally_good_sizes_the_smallest_is_taken():
    rng = np.random.default_rng(4)
    speakers = np.repeat(np.arange(20), 4)
    clips = 50 * rng.standard_normal((20, 12))[speakers] + rng.standard_normal((80, 12))
    backend = choose_backend(clips, speakers, clips, speakers, lda_sizes=(9, 11, 6))
    assert backend.validation_eers == {6: 0, 9: 0, 11: 0}
    assert backend.lda_size == 6


def test_many_validation_clips_are_drawn_from(monkeypatch):
    embeddings, speakers = speakers_of_dimensions(3, 40, 6)
    backend = CosineBackend(embeddings)
    seen = []
    monkeypatch.setattr(CosineBackend, "score", lambda self, own, tests: seen.append(tests) or cosine_similarity(tests))
    everything = validation_eer(backend, embeddings, speakers)
    monkeypatch.setattr("wavcse.eval.verification.MAX_VALIDATION_CLIPS", 90)
    drawn, again, other = (validation_eer(backend, embeddings, speakers, seed) for seed in (0, 0, 1))
    assert [len(tests) for tests in seen] == [240, 90, 90, 90]
    assert drawn == again != other
    assert everything not in (drawn, other)
    speaker_of = {tuple(row): speaker for row, speaker in zip(embeddings, speakers)}
    counts = np.bincount([speaker_of[tuple(row)] for row in seen[1]])
    assert sorted(set(counts)) == [2, 4]  # two of every speaker before anyone has more


@pytest.mark.parametrize("speakers", [["a", "b", "c"], ["a", "a", "a"]])
def test_validation_needs_both_kinds_of_trials(speakers):
    with pytest.raises(ValueError, match="Validation needs two speakers, one of them with two clips"):
        validation_eer(CosineBackend(np.eye(3)), np.eye(3), np.array(speakers))


def test_det_curve_is_thinned_evenly():
    rng = np.random.default_rng(0)
    labels = (rng.random(20_000) < 0.2).astype(int)
    scores = rng.standard_normal(20_000) + 1.5 * labels
    curve = det_curve(labels, scores, max_points=100)
    assert set(curve) == {"false_acceptance", "false_rejection"}
    points = np.stack([curve["false_acceptance"], curve["false_rejection"]], axis=1)
    assert 50 <= len(points) <= 100
    assert set(map(tuple, points)) <= set(zip(*error_rates(labels, scores)))
    assert (np.diff(points[:, 0]) >= 0).all()
    assert (np.diff(points[:, 1]) <= 0).all()
    assert points[0].tolist() == [0, 1]
    assert points[-1].tolist() == [1, 0]
    nearest = np.abs(points[:, 0] - points[:, 1]).min()
    assert nearest < 0.03  # the equal error rate lies on it
    assert np.sum(points[:, 0] < 0.01) > 10  # low rates are not lost, as they would be on linear axes


def test_short_det_curve_is_whole():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.4, 0.1])
    assert det_curve(labels, scores) == {"false_acceptance": [0, 0, 0.5, 0.5, 1], "false_rejection": [1, 0.5, 0.5, 0, 0]}
