"""Gradients of several tasks: against one backward pass of the weighted sum, and against a straight reference."""

import copy

import pytest
import torch
from torch import nn

from wavcse.finetuning.gradients import clip, combined, cosine, norm_of

WEIGHTS = {"low": 0.9, "high": 0.1}


class Network(nn.Module):
    """Two blocks; one task reads the first, the other the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.heads = nn.ModuleDict({"low": nn.Linear(4, 2), "high": nn.Linear(4, 3)})

    def loss(self, task: str, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        hidden = torch.tanh(self.second(hidden)) if task == "high" else hidden
        return WEIGHTS[task] * self.heads[task](hidden).square().sum()


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


BATCHES = {"low": torch.linspace(-1, 2, 20).view(5, 4), "high": torch.linspace(1, -2, 12).view(3, 4)}


def task_gradients(network: Network) -> list[list]:
    parameters = list(network.parameters())
    return [list(torch.autograd.grad(network.loss(task, x), parameters, allow_unused=True)) for task, x in BATCHES.items()]


def by_backward(network: Network, *tasks: str) -> dict[str, torch.Tensor]:
    own = copy.deepcopy(network)
    sum(own.loss(task, BATCHES[task]) for task in tasks).backward()
    return {name: weight.grad for name, weight in own.named_parameters() if weight.grad is not None}


def named(network: Network, gradients: list) -> dict[str, torch.Tensor]:
    return {name: own for (name, _), own in zip(network.named_parameters(), gradients, strict=True)}


def test_a_sum_is_one_backward_pass_of_the_weighted_sum(network):
    found, expected = named(network, combined(task_gradients(network), "sum")), by_backward(network, "low", "high")
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_a_mean_halves_what_both_tasks_reach(network):
    """The first block is shared; the second and the heads have the gradient of one task."""
    found, expected = named(network, combined(task_gradients(network), "mean")), by_backward(network, "low", "high")
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient / 2 if name.startswith("first.") else gradient)


def test_of_three_tasks_only_those_that_reach_a_parameter_count():
    lists = [
        [torch.tensor([3.0]), None, None],
        [torch.tensor([5.0]), torch.tensor([7.0]), None],
        [None, torch.tensor([1.0]), None],
    ]
    assert combined(lists, "mean") == [torch.tensor([4.0]), torch.tensor([4.0]), None]


@pytest.mark.parametrize("most", [0.1, 1e6])
def test_each_clipped_is_torchs_own_clipping_of_every_backward_pass(network, most):
    """A straight loop: backward of a task, torch's clipping, next task; then the sum."""
    expected: dict[str, torch.Tensor] = {}
    for task in BATCHES:
        own = copy.deepcopy(network)
        own.loss(task, BATCHES[task]).backward()
        norm = torch.nn.utils.clip_grad_norm_(own.parameters(), most)
        assert (norm > most) == (most < 1)
        for name, weight in own.named_parameters():
            if weight.grad is not None:
                expected[name] = expected.get(name, 0.0) + weight.grad
    gradients = task_gradients(network)
    for one in gradients:
        clip(one, "norm", most)
    for name, gradient in named(network, combined(gradients, "sum")).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize(("kind", "theirs"), [("norm", nn.utils.clip_grad_norm_), ("value", nn.utils.clip_grad_value_)])
def test_the_total_clipped_is_torchs_own(network, kind, theirs):
    own = copy.deepcopy(network)
    sum(own.loss(task, x) for task, x in BATCHES.items()).backward()
    before = torch.linalg.vector_norm(torch.cat([weight.grad.flatten() for weight in own.parameters()]))
    theirs(own.parameters(), 0.3)
    gradients = combined(task_gradients(network), "sum")
    torch.testing.assert_close(clip(gradients, kind, 0.3), before)
    for gradient, weight in zip(gradients, own.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad)


def test_a_norm_says_what_is_not_finite():
    """Cutting values would hide an infinity."""
    for kind in ("norm", "value"):
        assert not torch.isfinite(clip([torch.tensor([torch.inf, 1.0]), None], kind, 1.0))
    assert clip([None], "norm", 1.0) == norm_of([]) == 0


def test_a_cosine_is_over_what_both_tasks_reach():
    one, other = (
        [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]]), None],
        [torch.tensor([0.0, 2.0]), torch.tensor([[-5.0]]), None],
    )
    lone = torch.tensor([100.0])
    torch.testing.assert_close(cosine([*one, lone], [*other, None]), torch.tensor(-20 / (5 * 29**0.5)))
    assert cosine([lone, None], [None, lone]) is None
    assert cosine([lone], [torch.zeros(1)]) == 0


def test_what_is_refused():
    with pytest.raises(ValueError, match="combine is 'average'"):
        combined([[None]], "average")
    with pytest.raises(ValueError, match="kind is 'l1'"):
        clip([], "l1", 1.0)
