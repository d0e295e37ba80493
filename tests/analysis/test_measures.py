"""Hand-worked triplets, edit distances, overlaps, CKA and effective rank."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import hypergeom
from sklearn.metrics import average_precision_score

from wavcse.analysis.analyses import overlap
from wavcse.analysis.analyses.discrimination import (
    PRECISION,
    Triplets,
    closest_labels,
    edit_distance,
    is_right,
    make_triplets,
)
from wavcse.analysis.analyses.geometry import cka, cka_table, effective_rank, gram_of, mean_cosine, variance_between
from wavcse.analysis.analyses.layers import is_above_floors
from wavcse.analysis.analyses.overlap import corrected, holm, overlap_of, overlaps, shared_view
from wavcse.analysis.analyses.prosody import RATE_HZ, duration, energy, pitch
from wavcse.analysis.figures import figure, half_width, jackknifed, rows_without
from wavcse.analysis.report import lines_on_top

AUTHORS_LISTS = Path(__file__).parents[3] / "shared/design/important_dims.json"


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("", "", 0), ("cat", "", 3), ("kitten", "sitting", 3), ("left", "right", 4), ("go", "no", 1), ("ab", "ba", 2)],
)
def test_edit_distance(one, other, distance):
    assert edit_distance(one, other) == edit_distance(other, one) == distance


def test_labels_come_nearest_first_and_equally_near_ones_together():
    words = ["go", "no", "left", "right"]
    assert closest_labels(words, "edit") == {
        "go": [["no"], ["left", "right"]],  # distances 1, 4, 4
        "no": [["go"], ["left"], ["right"]],  # 1, 4, 5
        "left": [["go", "no", "right"]],  # 4
        "right": [["go", "left"], ["no"]],  # 4, 4, 5
    }
    assert closest_labels(words, "difflib")["right"][0] == ["go"]  # 2 of 7 letters match, of "left" 2 of 9
    assert closest_labels(words, "random")["go"] == [["no", "left", "right"]]
    assert closest_labels(["go"], "edit") == {"go": []}


def test_a_triplet_is_right_only_where_the_positive_is_nearer():
    vectors = np.array([[1, 0], [2, 0.1], [0, 1], [10, 0], [0, 0]], np.float32)
    triplets = Triplets(np.array([0, 0, 0, 2]), np.array([1, 2, 3, 4]), np.array([2, 1, 3, 0]))
    # nearer; farther; a tie; both cosines 0
    assert is_right(vectors, triplets).tolist() == [True, False, False, False]


def test_conditions_choose_speakers_as_they_say():
    labels = np.array(["a", "a", "b", "b", "a", "b"], dtype=object)
    speakers = np.array(["x", "y", "x", "y", "z", ""], dtype=object)
    closest = closest_labels(["a", "b"], "edit")
    for condition in ("any", "across", "hard"):
        own = make_triplets(labels, speakers, condition, closest, 20, 0)
        anchors, positives, negatives = (speakers[rows] for rows in own)
        assert (labels[own.anchors] == labels[own.positives]).all()
        assert (labels[own.anchors] != labels[own.negatives]).all()
        assert (own.anchors != own.positives).all()
        if condition != "any":
            assert (anchors != positives).all()
            assert "" not in {*anchors, *positives, *negatives}
            assert ((negatives == anchors) if condition == "hard" else (negatives != anchors)).all()
    hard = make_triplets(labels, speakers, "hard", closest, 1, 0)
    assert set(hard.anchors) == {0, 1, 2, 3}  # z has one label only, and the last clip no speaker


def test_a_negative_is_of_the_closest_label_that_has_a_clip_which_fits():
    labels = np.array(["go", "go", "no", "left", "nor", "go", "left"], dtype=object)
    speakers = np.array(["x", "y", "y", "x", "x", "z", "z"], dtype=object)
    closest = closest_labels(sorted(set(labels)), "edit")
    assert closest["go"] == [["no"], ["nor"], ["left"]]

    def negatives(condition, anchor):
        own = make_triplets(labels, speakers, condition, closest, 30, 0)
        return set(own.negatives[own.anchors == anchor].tolist())

    assert negatives("any", 0) == {2}  # the only "no"
    assert negatives("across", 0) == {2}
    assert negatives("hard", 0) == {4}  # x has said no "no": "nor" comes next, not "left"
    assert negatives("hard", 1) == {2}
    assert negatives("hard", 5) == {6}  # z has said neither: "left" is the nearest that is there
    assert negatives("across", 3) == {1, 2, 5}  # to "left" all others are equally near: what others than x have said
    assert negatives("hard", 3) == {0, 4}


def test_resampled_precision_is_that_of_repeated_pairs():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40).astype(bool), rng.integers(0, 12, 40) / 10  # with ties
    weights = rng.integers(0, 4, (5, 40)).astype(np.float32)
    found = PRECISION.resampled(labels, scores, weights)
    for own, row in zip(found, weights.astype(int)):
        expected = average_precision_score(np.repeat(labels, row), np.repeat(scores, row))
        assert own == pytest.approx(expected, abs=1e-6)


def test_overlaps_of_lists_of_76_of_768():
    lists = [list(range(76)), list(range(64, 140)), list(range(48, 124))]
    shared = overlap_of(lists[0], lists[1], 768)
    assert (shared.shared, shared.expected) == (12, pytest.approx(7.52, abs=0.01))
    assert shared.p == pytest.approx(0.06, abs=0.005)
    assert overlap_of(lists[0], lists[2], 768)[0] == 28
    assert overlap_of(lists[0], lists[2], 768).p == pytest.approx(8e-12, rel=0.1)
    assert overlap_of([0, 1], [2, 3], 4) == (0, 1.0, 1.0)
    assert overlap_of([0, 1], [1, 0], 4).p == pytest.approx(1 / 6)  # one of the six pairs of four
    with pytest.raises(ValueError, match="must name each once"):
        overlap_of([1, 1], [2, 3], 4)


@pytest.mark.skipif(not AUTHORS_LISTS.exists(), reason="the authors' lists are not on this machine")
@pytest.mark.parametrize(("model", "shared"), [("wav2vec2_base", 12), ("whisper", 5)])
def test_the_authors_lists(model, shared):
    lists = json.loads(AUTHORS_LISTS.read_text())["lists"]
    own = overlap_of(lists[f"{model}.emotion"], lists[f"{model}.gender"], 768)
    assert own.shared == shared
    assert own.p == pytest.approx(sum(hypergeom.pmf(k, 768, 76, 76) for k in range(shared, 77)))
    assert own.p > 0.05


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_overlaps_of_tasks_and_seeds_beside_scipy_and_a_holm_by_hand():
    size = 40
    lists = {
        "word": [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 8], [0, 1, 2, 3, 20, 21, 22, 23]],
        "emotion": [[0, 1, 2, 3, 4, 5, 30, 31], [10, 11, 12, 13, 14, 15, 16, 17], [0, 1, 2, 3, 4, 5, 6, 7]],
        "gender": [[7, 32, 33, 34, 35, 36, 37, 38]],
    }
    one, two = ({"about": {"encoder": name}, "found": overlaps(lists, size, "layer 3")} for name in ("a", "b"))
    assert (one["found"]["view"], one["found"]["kept"], one["found"]["size"]) == ("layer 3", 8, 40)
    pairs = {tuple(own["tasks"]): own for own in one["found"]["pairs"]}
    assert {tasks: own["shared"] for tasks, own in pairs.items()} == {
        ("word", "emotion"): 6,
        ("word", "gender"): 1,
        ("emotion", "gender"): 0,
    }
    for own in pairs.values():
        assert own["expected"] == pytest.approx(8 * 8 / 40)
        assert own["p"] == pytest.approx(sum(hypergeom.pmf(k, size, 8, 8) for k in range(own["shared"], 9)))
    assert pairs["word", "emotion"]["share_of_seeds"] == [0.0, 1.0]
    ceiling = one["found"]["ceilings"]["word"]
    assert [own["shared"] for own in ceiling["pairs"]] == [7, 4, 4]
    assert [own["seeds"] for own in ceiling["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    assert (ceiling["value"], ceiling["interval"], ceiling["floor"]) == (pytest.approx(5 / 8), [0.5, 7 / 8], 0.2)
    assert ceiling["pairs"][0]["p"] == pytest.approx(hypergeom.sf(6, size, 8, 8))
    assert one["found"]["ceilings"]["gender"] is None  # one seed
    tasks, seeds = corrected([one, two])
    assert (len(tasks), len(seeds)) == (6, 12)
    p = hypergeom.sf(5, size, 8, 8)
    by_hand = [min(1, 6 * p), 1.0, 1.0] * 2  # the two smallest are equal; then 4 * 0.86 and more, cut at 1
    assert [own["p_holm"] for own in tasks] == pytest.approx(by_hand)
    assert overlap.answers([one, two])[0].startswith("2 of 6 pairs of tasks, at one vector per encoder, share more")
    assert "| a | word | 0 and 1 | 7 (1.6) | 88 |" in overlap.section([one, two])[-1]


def test_overlaps_are_of_the_vector_that_most_tasks_have_chosen():
    records = [{"found": {"view": view}} for view in ("layer 1", "layer 2", "layer 2", "embedding")]
    assert shared_view(records) == "layer 2"
    assert shared_view(records[:2]) == "layer 1"


def test_cka_does_not_see_rotations_and_scales_and_is_zero_for_what_is_unrelated():
    rng = np.random.default_rng(0)
    vectors, others = rng.standard_normal((2, 60, 200))
    rotation = np.linalg.qr(rng.standard_normal((200, 200)))[0]
    turned = 3 * vectors @ rotation + 5
    assert cka(gram_of(vectors), gram_of(turned)) == pytest.approx(1)
    assert abs(cka(gram_of(vectors), gram_of(others))) < 0.1  # the usual, biased estimate gives 0.77 here
    assert np.isnan(cka(gram_of(vectors), gram_of(np.ones((60, 2)))))


def test_a_table_of_cka_is_that_of_every_pair_and_so_are_its_intervals():
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal((30, 5)) for _ in range(2)]
    vectors.append(vectors[0] + 0.5 * rng.standard_normal((30, 5)))
    grams, groups = [gram_of(own) for own in (*vectors, np.ones((30, 2)))], np.repeat(np.arange(10), 3)
    values = cka_table(grams, grams)
    half = half_width(np.array([cka_table(grams, grams, rows) for rows in rows_without(groups, 0)]))
    assert np.isnan(values[3]).all()
    np.testing.assert_allclose(np.diag(values)[:3], 1)
    for i, j in ((0, 1), (0, 2), (2, 1)):
        one, other = grams[i], grams[j]
        own = jackknifed(lambda rows, a=one, b=other: cka(a[np.ix_(rows, rows)], b[np.ix_(rows, rows)]), groups, "speaker", 0)
        assert own["value"] == pytest.approx(values[i, j])
        assert own["interval"] == pytest.approx([values[i, j] - half[i, j], values[i, j] + half[i, j]])


def test_effective_rank_is_the_number_of_equal_directions():
    signs = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], float)  # three orthogonal columns of mean 0
    assert effective_rank(signs + 7) == pytest.approx(3)
    assert effective_rank(np.pad(signs[:, :1], ((0, 0), (0, 5)))) == pytest.approx(1)
    assert effective_rank(np.ones((4, 3))) == 0
    weights = np.array([2.0, 1.0, 1.0]) / 4  # singular values as shares: entropy 1.5 bits
    assert effective_rank(signs * weights) == pytest.approx(2**1.5)


def test_mean_cosine_and_variance_between_by_hand():
    assert mean_cosine(np.array([[1.0, 0], [0, 2.0], [-3.0, 0]])) == pytest.approx(-1 / 3)  # cosines 0, 0, -1
    vectors = np.array([[0.0, 1], [0, -1], [4, 1], [4, -1]])
    assert variance_between(vectors, np.array(["a", "a", "b", "b"])) == pytest.approx(16 / 20)
    assert variance_between(vectors, np.array(["a", "b", "a", "b"])) == pytest.approx(4 / 20)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).standard_normal(20)
    own = jackknifed(lambda rows: values[rows].mean(), np.arange(20).astype(str), "clip", 0)
    half = 2.093 * values.std(ddof=1) / np.sqrt(20)  # t of 19 degrees of freedom
    assert own["interval"] == pytest.approx([values.mean() - half, values.mean() + half], abs=1e-3)
    assert jackknifed(lambda rows: 1.0, np.array(["a", "b", "a"]), "speaker", 0)["interval"] is None


def test_a_figure_is_above_its_floors_by_the_whole_interval():
    def found(interval, minus_chance, shuffled=None, greater_is_better=True):
        floor = {"chance": figure(0.5, (0.1, 0.9), 9, 9, "speaker")}  # as wide as the mix of speakers: differences count
        if shuffled is not None:
            floor["shuffled"] = figure(0.4, shuffled, 9, 9, "speaker")
        test = figure(0.8, interval, 9, 9, "speaker", **floor)
        return {"test": test, "test_minus_chance": minus_chance, "greater_is_better": greater_is_better}

    assert is_above_floors(found((0.7, 0.9), [0.1, 0.6], (0.3, 0.5)))
    assert is_above_floors(found((0.7, 0.9), [0.1, 0.6]))
    assert not is_above_floors(found((0.7, 0.9), [-0.1, 0.6], (0.3, 0.5)))
    assert not is_above_floors(found((0.45, 0.9), [0.1, 0.6], (0.3, 0.5)))
    assert not is_above_floors(found((0.3, 0.5), [0.1, 0.6], (0.3, 0.5)))  # shuffled labels themselves
    assert not is_above_floors(found(None, None))
    assert is_above_floors(found((0.2, 0.3), [-0.6, -0.1], (0.35, 0.5), greater_is_better=False))  # an error
    assert not is_above_floors(found((0.2, 0.3), [0.1, 0.6], (0.35, 0.5), greater_is_better=False))
    assert not is_above_floors(found((0.2, 0.4), [-0.6, -0.1], (0.35, 0.5), greater_is_better=False))


def test_ten_lines_on_top_at_most_and_every_sentence_in_them():
    groups = [[f"layers {place} {'x' * place}." for place in range(8)], ["one."], [], ["a.", "b."], ["cost."]]
    lines = lines_on_top(groups)
    assert len(lines) == 10
    assert " ".join(lines) == " ".join(line for group in groups for line in group)
    assert "a. b." in lines  # the shortest ones
    assert lines_on_top(groups[1:]) == ["one.", "a.", "b.", "cost."]
    assert len(lines_on_top([[str(place)] for place in range(12)])) == 12  # of different analyses


@pytest.mark.parametrize("hertz", [80, 125, 210, 330])
def test_the_pitch_of_a_voice_is_its_fundamental(hertz):
    time_s = np.arange(RATE_HZ) / RATE_HZ
    voice = sum(np.sin(2 * np.pi * k * hertz * time_s + k) / k for k in range(1, 12))
    noise = 0.02 * np.random.default_rng(0).standard_normal(RATE_HZ)
    assert 2 ** pitch((0.1 * voice + noise).astype(np.float32)) == pytest.approx(hertz, rel=0.02)


def test_measures_of_noise_silence_and_length():
    noise = np.random.default_rng(0).standard_normal(2 * RATE_HZ).astype(np.float32)
    assert np.isnan(pitch(noise))
    assert np.isnan(pitch(np.zeros(RATE_HZ, np.float32)))
    assert np.isnan(energy(np.zeros(10, np.float32)))
    assert energy(0.1 * noise / noise.std()) == pytest.approx(-20, abs=0.01)
    assert duration(noise) == 1.0
