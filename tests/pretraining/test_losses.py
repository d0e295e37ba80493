"""The losses of LASR: worked by hand, against brute force, and their gradients."""

import itertools
import math

import numpy as np
import pytest
import torch

from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.pretraining.label_losses import (
    LABEL_LOSSES,
    angular_distance,
    cosine_matrix,
    pair_masks,
)

TRIPLETS = ("hard_triplet", "semi_hard_triplet", "random_triplet")


def on_circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_angular_distance_is_the_angle_in_units_of_pi():
    distances = angular_distance(cosine_matrix(on_circle(0, 45, 90, 180) * torch.tensor([[1.0], [7.0], [0.1], [3.0]])))
    expected = np.abs(np.subtract.outer([0, 45, 90, 180], [0, 45, 90, 180])) / 180
    np.testing.assert_allclose(distances, expected, atol=1e-3)


def test_hard_triplet_by_hand():
    # 0 and 30 degrees are one label, 50 and 90 another; per anchor the angle to its positive and to the closest negative.
    labels = torch.tensor([0, 0, 1, 1])
    output = LABEL_LOSSES["hard_triplet"](margin=0.1)(on_circle(0, 30, 50, 90), labels)
    per_anchor = [max(0, 0.1 + (p - n) / 180) for p, n in ((30, 50), (30, 20), (40, 20), (40, 60))]
    assert output.loss.item() == pytest.approx(np.mean(per_anchor), abs=1e-5)
    assert output.positive_distance.item() == pytest.approx(35 / 180, abs=1e-5)
    assert output.negative_distance.item() == pytest.approx(37.5 / 180, abs=1e-5)
    assert output.active_share.item() == 0.5


def test_semi_hard_triplet_by_hand():
    # One possible positive each. Anchor 0 (positive at 30): negatives at 20, 40 and 100; the closest beyond 30 is at 40.
    # Anchor 30: positive 30, negatives 10 (at 20 and at 40) and 70 (at 100): 70.
    labels = torch.tensor([0, 0, 1, 2, 3])
    output = LABEL_LOSSES["semi_hard_triplet"](margin=0.3)(on_circle(0, 30, 20, 40, 100), labels, generator())
    assert output.loss.item() == pytest.approx(np.mean([0.3 - 10 / 180, 0.3 - 40 / 180]), abs=1e-5)


def test_semi_hard_triplet_takes_the_farthest_negative_where_none_is_beyond_the_positive():
    output = LABEL_LOSSES["semi_hard_triplet"](margin=0.0)(on_circle(0, 90, 10, 20), torch.tensor([0, 0, 1, 2]), generator())
    # Anchor 0: positive 90, negatives 10 and 20 -> 20; anchor 90: positive 90, negatives 80 and 70 -> 80.
    assert output.loss.item() == pytest.approx(np.mean([70 / 180, 10 / 180]), abs=1e-5)


def test_ge2e_by_hand():
    embeddings, labels = on_circle(0, 60, 90, 180), torch.tensor([0, 0, 1, 1])
    output = LABEL_LOSSES["ge2e"]()(embeddings, labels)
    cos = {
        (i, j): math.cos(math.radians(a - b)) for (i, a), (j, b) in itertools.product(enumerate((0, 60, 90, 180)), repeat=2)
    }

    def sigmoid(cosine):
        return 1 / (1 + math.exp(-(10 * cosine - 5)))

    pairs = [((0, 1), (0, 2)), ((1, 0), (1, 2)), ((2, 3), (2, 1)), ((3, 2), (3, 1))]  # hardest positive, hardest negative
    expected = np.mean([1 - sigmoid(cos[p]) + sigmoid(cos[n]) for p, n in pairs])
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)


def test_ge2e_has_the_sign_that_works():
    """Gathered classes cost less than mixed ones, and a step downhill brings positives together."""
    loss, labels = LABEL_LOSSES["ge2e"](), torch.tensor([0, 0, 1, 1])
    assert loss(on_circle(0, 5, 90, 95), labels).loss < loss(on_circle(0, 90, 5, 95), labels).loss
    embeddings = on_circle(0, 60, 90, 180).requires_grad_()
    before = loss(embeddings, labels)
    before.loss.backward()
    after = loss(embeddings.detach() - 0.1 * embeddings.grad, labels)
    assert after.loss < before.loss
    assert after.positive_distance < before.positive_distance


@pytest.mark.parametrize("seed", range(5))
def test_hard_triplet_and_ge2e_against_brute_force(seed):
    torch.manual_seed(seed)
    embeddings, labels = torch.randn(24, 6), torch.randint(-1, 5, (24,))
    labels[labels == -1] = IGNORED_LABEL
    unit = (embeddings.double() / embeddings.double().norm(dim=1, keepdim=True)).numpy()
    hard, ge2e = [], []
    for i in range(24):
        others = [j for j in range(24) if j != i and labels[j] != IGNORED_LABEL]
        same = [float(unit[i] @ unit[j]) for j in others if labels[j] == labels[i]]
        different = [float(unit[i] @ unit[j]) for j in others if labels[j] != labels[i]]
        if labels[i] == IGNORED_LABEL or not same or not different:
            continue
        hard.append(max(0.0, 0.2 + (math.acos(min(same)) - math.acos(max(different))) / math.pi))
        ge2e.append(1 - 1 / (1 + math.exp(5 - 10 * min(same))) + 1 / (1 + math.exp(5 - 10 * max(different))))
    assert LABEL_LOSSES["hard_triplet"](0.2)(embeddings, labels).loss.item() == pytest.approx(np.mean(hard), abs=1e-5)
    assert LABEL_LOSSES["ge2e"]()(embeddings, labels).loss.item() == pytest.approx(np.mean(ge2e), abs=1e-5)


def test_random_triplet_draws_every_pair_and_only_allowed_ones():
    """Its mean over many draws is the mean over all triplets (with a margin so large that none is cut off)."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(8, 3), torch.tensor([0, 0, 0, 1, 1, 2, 2, IGNORED_LABEL])
    distance = angular_distance(cosine_matrix(embeddings)).numpy()
    positives, negatives = (mask.numpy() for mask in pair_masks(labels))
    expected = np.mean([5.0 + distance[i, positives[i]].mean() - distance[i, negatives[i]].mean() for i in range(7)])
    loss, draws = LABEL_LOSSES["random_triplet"](5.0), generator()
    assert np.mean([loss(embeddings, labels, draws).loss.item() for _ in range(2000)]) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_gradients_are_finite_at_identical_opposite_and_zero_vectors(name):
    base = torch.tensor([[1.0, 2.0, 3.0]])
    embeddings = torch.cat([base, base, 2 * base, base, -base, 0 * base, base + 1e-7, -3 * base]).requires_grad_()
    output = LABEL_LOSSES[name]()(embeddings, torch.tensor([0, 0, 1, 1, 2, 2, 0, 2]), generator())
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("name", LABEL_LOSSES)
@pytest.mark.parametrize("labels", [[IGNORED_LABEL] * 4, [0, 0, 0, 0], [0, 1, 2, 3], [0, 1, IGNORED_LABEL, IGNORED_LABEL]])
def test_without_an_anchor_the_loss_is_zero_and_still_has_a_graph(name, labels):
    embeddings = torch.randn(4, 3, requires_grad=True)
    loss = LABEL_LOSSES[name]()
    output = loss(embeddings, torch.tensor(labels), generator())
    output.loss.backward()
    assert [value.item() for value in output] == [0.0] * 4
    assert not embeddings.grad.any()
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_clips_without_a_label_change_nothing(name):
    torch.manual_seed(0)
    embeddings, labels = torch.randn(10, 4), torch.arange(10) % 3
    with_more = torch.cat([embeddings, torch.randn(5, 4)]), torch.cat([labels, torch.full((5,), IGNORED_LABEL)])
    loss = LABEL_LOSSES[name](margin=5.0)
    if name == "random_triplet":  # other draws: of its pairs only the allowed ones matter, see above
        with_more[0].requires_grad_()
        loss(*with_more, generator()).loss.backward()
        assert not with_more[0].grad[10:].any()
    else:
        pairs_of_one = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])  # one positive each, so that nothing is drawn
        labels = pairs_of_one if name == "semi_hard_triplet" else labels
        alone = loss(embeddings, labels, generator())
        both = loss(with_more[0], torch.cat([labels, torch.full((5,), IGNORED_LABEL)]), generator())
        for one, other in zip(alone, both):
            assert one.item() == pytest.approx(other.item(), abs=1e-6)


@pytest.mark.parametrize("name", TRIPLETS)
def test_separated_classes_cost_nothing(name):
    output = LABEL_LOSSES[name](0.2)(on_circle(0, 2, 90, 92, 180, 182), torch.tensor([0, 0, 1, 1, 2, 2]), generator())
    assert output.loss.item() == 0.0
    assert output.active_share.item() == 0.0
