"""The layer poolings: against float64 NumPy, their limits, their symmetry, their numerical safety."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from wavcse.configuration_wavcse import LAYER_POOLINGS
from wavcse.pooling_wavcse import LAYER_POOLING_CLASSES, build_layer_pooling, inverse_softplus

B, K, D = 3, 5, 4
LEARNABLE = ("mixed", "learned_norm", "log_sum_exp", "smooth_maximum")
VARIANTS = [(name, {}) for name in LAYER_POOLINGS] + [(name, {"learnable": True}) for name in LEARNABLE]
IDS = [name + ("-learnable" if kwargs else "") for name, kwargs in VARIANTS]
WEIGHTED = ("weighted_average", "gated")
ORDERED = (*WEIGHTED, "concat")
every_variant = pytest.mark.parametrize(("name", "kwargs"), VARIANTS, ids=IDS)


def build(name: str, num_layers: int = K, **kwargs):
    torch.manual_seed(0)
    return build_layer_pooling(name, num_layers, D, **kwargs)


def layers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape or (B, K, D))).float()


def reference(name: str, x: np.ndarray, module) -> np.ndarray:
    """The formula of seed paper and origin, written again in NumPy; `x` is `[B, K, D]` float64."""
    if name == "concat":
        return np.concatenate([x[:, k] for k in range(x.shape[1])], axis=1)
    top, mean = x.max(axis=1), x.mean(axis=1)
    parameters = {key: value.detach().double().numpy() for key, value in module.named_parameters()}
    if name == "weighted_average":
        return np.tensordot(softmax(parameters["weight"]), x, axes=(0, 1))
    if name == "max":
        return top
    if name == "mean":
        return mean
    if name == "mixed":
        return 0.5 * top + 0.5 * mean
    if name == "gated":
        gate = 1 / (1 + np.exp(-np.tensordot(parameters["weight"], x, axes=(0, 1))))
        return gate * top + (1 - gate) * mean
    if name == "learned_norm":
        return (np.abs(x) ** 16).mean(axis=1) ** (1 / 16)
    if name == "log_sum_exp":
        return logsumexp(x, axis=1) - np.log(x.shape[1])
    if name in ("smooth_maximum", "auto"):
        return (softmax((1.0 if name == "smooth_maximum" else 0.01) * x, axis=1) * x).sum(axis=1)
    hidden = np.tanh(x @ parameters["hidden.weight"].T + parameters["hidden.bias"])
    return (softmax(hidden @ parameters["score.weight"].T, axis=1) * x).sum(axis=1)


def test_every_configured_pooling_exists():
    assert list(LAYER_POOLING_CLASSES) == list(LAYER_POOLINGS)


@every_variant
def test_equals_reference(name, kwargs):
    module, x = build(name, **kwargs), layers()
    if name in WEIGHTED:
        with torch.no_grad():
            module.weight.copy_(torch.linspace(-1, 1, K))
    result = module(x)
    assert result.shape == (B, K * D if name == "concat" else D)
    np.testing.assert_allclose(result.detach(), reference(name, x.double().numpy(), module), rtol=2e-5, atol=2e-6)


HAND_WORKED = [  # one clip, one channel, layers 1, -2, 3
    ("weighted_average", {}, 2 / 3),  # weights start equal
    ("max", {}, 3.0),
    ("mean", {}, 2 / 3),
    ("mixed", {"max_weight": 0.25}, 0.25 * 3 + 0.75 * 2 / 3),
    ("gated", {}, 3 / (1 + np.exp(-2)) + 2 / 3 / (1 + np.exp(2))),  # weights start at one: gate = sigmoid(1 - 2 + 3)
    ("learned_norm", {"p": 2.0}, np.sqrt(14 / 3)),
    ("learned_norm", {"p": 16.0}, ((1 + 2**16 + 3**16) / 3) ** (1 / 16)),
    ("log_sum_exp", {"r": 2.0}, np.log((np.exp(2) + np.exp(-4) + np.exp(6)) / 3) / 2),
    (
        "smooth_maximum",
        {"sharpness": 0.5},
        (np.exp(0.5) - 2 * np.exp(-1) + 3 * np.exp(1.5)) / (np.exp(0.5) + np.exp(-1) + np.exp(1.5)),
    ),
    (
        "auto",
        {"alpha": -1.0},
        (np.exp(-1) - 2 * np.exp(2) + 3 * np.exp(-3)) / (np.exp(-1) + np.exp(2) + np.exp(-3)),
    ),
]


@pytest.mark.parametrize(("name", "kwargs", "expected"), HAND_WORKED)
def test_hand_worked_case(name, kwargs, expected):
    x = torch.tensor([[[1.0], [-2.0], [3.0]]])
    assert build_layer_pooling(name, 3, 1, **kwargs)(x).item() == pytest.approx(expected, rel=1e-5)


def test_self_attention_hand_worked():
    module = build_layer_pooling("self_attention", 2, 1)
    with torch.no_grad():
        module.hidden.weight.fill_(1.0), module.hidden.bias.fill_(0.5), module.score.weight.fill_(2.0)
    scores = np.exp(2 * np.tanh([1.5, -0.5]))  # x = 1, -1
    expected = (scores[0] - scores[1]) / scores.sum()
    assert module(torch.tensor([[[1.0], [-1.0]]])).item() == pytest.approx(expected, rel=1e-5)


def zeroed(name: str, parameter: str):
    module = build(name)
    torch.nn.init.zeros_(module.get_parameter(parameter))
    return module


LIMITS = {
    "learned_norm p=1 is mean|x|": (lambda: build("learned_norm", p=1.0), lambda x: x.abs().mean(1), 1e-6),
    # (1/K)^(1/64) = 0.975 for K = 5: the norm lies below the maximum by at most that
    "learned_norm p=64 nears max|x|": (lambda: build("learned_norm", p=64.0), lambda x: x.abs().amax(1), 0.03),
    "log_sum_exp r=0 is the mean": (lambda: build("log_sum_exp", r=0.0), lambda x: x.mean(1), 1e-6),
    "log_sum_exp r->0 nears the mean": (lambda: build("log_sum_exp", r=1e-3), lambda x: x.mean(1), 2e-3),
    "log_sum_exp r=1e4 nears the maximum": (lambda: build("log_sum_exp", r=1e4), lambda x: x.amax(1), 1e-3),
    "log_sum_exp r=-1e4 nears the minimum": (lambda: build("log_sum_exp", r=-1e4), lambda x: x.amin(1), 1e-3),
    "smooth_maximum s=0 is the mean": (lambda: build("smooth_maximum", sharpness=0.0), lambda x: x.mean(1), 1e-6),
    "smooth_maximum s=1e4 is the maximum": (lambda: build("smooth_maximum", sharpness=1e4), lambda x: x.amax(1), 1e-6),
    "mixed 0 is the mean": (lambda: build("mixed", max_weight=0.0), lambda x: x.mean(1), 1e-6),
    "mixed 1 is the maximum": (lambda: build("mixed", max_weight=1.0), lambda x: x.amax(1), 1e-6),
    "gated w=0": (lambda: zeroed("gated", "weight"), lambda x: (x.amax(1) + x.mean(1)) / 2, 1e-6),
    "self_attention v=0 is the mean": (lambda: zeroed("self_attention", "score.weight"), lambda x: x.mean(1), 1e-6),
    "auto alpha=0 is the mean": (lambda: build("auto", alpha=0.0), lambda x: x.mean(1), 1e-6),
    "equal weights give the mean": (lambda: build("weighted_average"), lambda x: x.mean(1), 1e-6),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limit(limit):
    make, expected, tolerance = LIMITS[limit]
    torch.testing.assert_close(make()(layers()), expected(layers()), rtol=tolerance, atol=tolerance)


@every_variant
def test_order_of_layers(name, kwargs):
    module, x = build(name, **kwargs), layers()
    if name in WEIGHTED:
        with torch.no_grad():
            module.weight.copy_(torch.linspace(-1, 1, K))
    same = torch.allclose(module(x), module(x.flip(1)), atol=1e-6)
    assert same == (name not in ORDERED)


@every_variant
@pytest.mark.parametrize("num_layers", [1, 25])
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-30, 1.0, 1e4, 1e30])
def test_values_and_gradients_are_finite(name, kwargs, num_layers, scale):
    module = build(name, num_layers, **kwargs)
    x = (layers(B, num_layers, D) * scale).requires_grad_()
    y = module(x)
    assert y.isfinite().all()
    y.sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    magnitude = x.detach().abs().amax(1).repeat(1, y.shape[1] // D)
    assert (y.detach().abs() <= magnitude * (1 + 1e-5) + 1e-6).all()  # every pooling stays inside the layers' range


@every_variant
def test_some_zero_layers_are_safe(name, kwargs):
    module, x = build(name, **kwargs), layers()
    x[:, :2] = 0
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", LAYER_POOLINGS)
def test_one_layer_passes_through(name):
    x = layers(B, 1, D)
    expected = x[:, 0].abs() if name == "learned_norm" else x[:, 0]
    torch.testing.assert_close(build(name, 1)(x), expected, rtol=1e-5, atol=1e-6)


@every_variant
def test_half_precision_keeps_its_dtype(name, kwargs):
    module, x = build(name, **kwargs), layers()
    half = module.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), build(name, **kwargs)(x), rtol=0.03, atol=0.03)


STARTS = [
    ("mixed", {"max_weight": 0.25}),
    ("learned_norm", {"p": 16.0}),
    ("learned_norm", {"p": 2.0}),
    ("log_sum_exp", {"r": 5.0}),
    ("smooth_maximum", {"sharpness": 0.5}),
]


@pytest.mark.parametrize(("name", "kwargs"), STARTS)
def test_learnable_starts_as_fixed_and_learns(name, kwargs):
    learnable = build(name, learnable=True, **kwargs)
    result = learnable(layers())
    torch.testing.assert_close(result, build(name, **kwargs)(layers()), rtol=1e-5, atol=1e-6)
    result.square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in learnable.parameters())
    assert list(build(name, **kwargs).parameters()) == []


@pytest.mark.parametrize("name", ["weighted_average", "gated", "auto", "self_attention"])
def test_parameters_get_gradients(name):
    module = build(name)
    module(layers()).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@every_variant
def test_gradients_equal_finite_differences(name, kwargs):
    """In float64 where the pooling computes in its input's precision; in float32 with a wider step elsewhere."""
    module, x = build(name, **kwargs).double(), layers().double().requires_grad_()
    module(x).sum().backward()
    step = 1e-3
    for index in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        up, down = x.detach().clone(), x.detach().clone()
        up[index] += step
        down[index] -= step
        slope = (module(up).sum() - module(down).sum()) / (2 * step)
        assert x.grad[index].item() == pytest.approx(slope.item(), rel=5e-3, abs=2e-3)


@pytest.mark.parametrize("name", ["weighted_average", "max", "mean", "mixed", "gated", "self_attention"])
def test_gradcheck(name):
    module = build(name).double()
    assert torch.autograd.gradcheck(module, layers().double().requires_grad_())


def test_learned_exponent_stays_in_its_range():
    module = build("learned_norm", learnable=True)
    for rho, exponent in ((-100.0, 1.0), (1000.0, 64.0)):
        torch.nn.init.constant_(module.rho, rho)
        assert module.exponent().item() == exponent
        assert module(layers()).isfinite().all()


@pytest.mark.parametrize("value", [1e-3, 1.0, 15.0, 63.0])
def test_inverse_softplus(value):
    assert torch.nn.functional.softplus(torch.tensor(inverse_softplus(value))).item() == pytest.approx(value, rel=1e-5)
