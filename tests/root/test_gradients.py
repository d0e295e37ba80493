"""The warning about parameters that get no gradient: adapters (LoRA) where WavLM's attention never calls them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from wavcse.gradients_wavcse import RAW_WEIGHTS, STEPS_WITH_LAYERDROP

LABELS = {"keyword": torch.tensor([0, 1, 2]), "emotion": torch.tensor([0, 1, 0])}


class Lora(nn.Module):
    """A linear layer with an adapter of rank 2, built as PEFT builds it: `weight` and `bias` are those of the layer."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer
        self.lora_a = nn.Parameter(torch.randn(2, layer.in_features))
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, 2))

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.lora_a.T @ self.lora_b.T


def with_lora(model, targets: tuple[str, ...]):
    """The model frozen but for its heads and adapters on every layer whose name is among the targets."""
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    for parent in list(model.wavcse.upstream.modules()):
        for name, layer in list(parent.named_children()):
            if name in targets:
                setattr(parent, name, Lora(layer))
    return model.train()


def train(model, steps: int, seed: int = 0) -> None:
    """Plain gradient descent on noise."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(steps):
        model(torch.randn(3, 4_000), labels=LABELS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adapters(model) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("lora_b")}


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "out_proj")], ids=str)
@pytest.mark.parametrize("trained_downstream", [False, True])
def test_adapters_that_wavlm_never_calls(tiny_multi_task_model, log, targets, trained_downstream):
    model = with_lora(tiny_multi_task_model(), targets)
    model.wavcse.downstream.requires_grad_(trained_downstream)
    train(model, 2)
    assert not any(weight.any() for weight in adapters(model).values())
    assert "12 parameters that require gradients got none in the first training step and are not trained: " in log.text
    assert f"upstream.encoder.layers.0.attention.{targets[0]}.lora_a" in log.text
    assert "Choose intermediate_dense and output_dense." in log.text
    assert log.text.count("require gradients") == 1
    train(model, 2)
    assert log.text.count("require gradients") == 1  # once


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("wavlm", ("intermediate_dense", "output_dense")),
        ("wav2vec2", ("q_proj", "v_proj")),
        ("hubert", RAW_WEIGHTS),
    ],
)
def test_adapters_that_are_trained(tiny_multi_task_model, log, family, targets):
    model = with_lora(tiny_multi_task_model(family), targets)
    train(model, 2)
    assert adapters(model)
    assert all(weight.any() for weight in adapters(model).values())
    assert "require gradients" not in log.text


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert"])
def test_full_fine_tuning_does_not_warn(tiny_multi_task_model, log, family):
    model = tiny_multi_task_model(family, freeze_upstream=False, upstream={"layerdrop": 0.5}).train()
    train(model, STEPS_WITH_LAYERDROP + 1)  # blocks that LayerDrop skips have no gradient in that step
    assert "require gradients" not in log.text
    assert model.wavcse.gradient_watch.done


def test_layerdrop_delays_the_warning(tiny_multi_task_model, log):
    model = tiny_multi_task_model(freeze_upstream=False, upstream={"layerdrop": 0.5}).train()
    model.wavcse.unused = nn.Linear(2, 2)
    train(model, STEPS_WITH_LAYERDROP)
    assert "require gradients" not in log.text
    train(model, 1)
    assert "2 parameters that require gradients got none" in log.text
    assert "unused.weight, unused.bias." in log.text
    assert "intermediate_dense" not in log.text


def test_nothing_stays_behind(tiny_multi_task_model):
    model = tiny_multi_task_model().train()
    watched = copy.deepcopy(model)
    names = set(watched.state_dict())
    train(watched, 1)
    assert watched.wavcse.gradient_watch.handles
    twin = copy.deepcopy(watched)  # in the middle of it
    assert twin.wavcse.gradient_watch.handles is None
    train(watched, 1)
    assert watched.wavcse.gradient_watch.done
    assert not any(p._post_accumulate_grad_hooks for p in watched.parameters())
    assert set(watched.state_dict()) == names
    model.eval()
    model(torch.randn(1, 4_000))
    assert model.wavcse.gradient_watch.handles is None  # inference is not looked at


def test_two_passes_before_the_first_backward_one(tiny_multi_task_model, log):
    model = with_lora(tiny_multi_task_model(), ("output_dense",))
    first, second = (model(torch.randn(3, 4_000), labels=LABELS).loss for _ in range(2))
    (first + second).backward()
    train(model, 1)
    assert "require gradients" not in log.text
