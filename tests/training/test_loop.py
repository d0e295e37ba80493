"""The loop's shortcuts equal the plain formulas: pooled before FC1, heads on labelled rows, folded heads, together."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from wavcse.data.composite import CompositeSet
from wavcse.modeling_wavcse import (
    IGNORED_LABEL,
    CosineHead,
    WavCSEDownstream,
    WavCSEHeads,
    combine_losses,
    cross_entropy_per_task,
)
from wavcse.pooling_wavcse import ConcatPooling
from wavcse.search.together import train_epoch_together
from wavcse.train_accelerate import train_epoch
from wavcse.training import fast_parts
from wavcse.training.arguments import RunArguments
from wavcse.training.fast_parts import Dropout, linear
from wavcse.training.features import MemoryTable, PooledLayers, SplitFeatures
from wavcse.training.heads import MultiTaskNetwork, evaluate, losses_of, model_config, new_learner, total_loss

N, L, D = 60, 5, 16
UPSTREAM = {"model_type": "wavlm", "hidden_size": D, "num_hidden_layers": L - 1, "num_attention_heads": 2}
CLASSES = {"keyword": ["a", "b", "c"], "speaker": ["d", "e", "f", "g"]}
LINEAR = ("weighted_average", "mean")
FORMS = {name: {"pooling_type": name} for name in (*LINEAR, "learned_norm", "gated", "self_attention", "concat")}
FORMS |= {f"scaled {name}": {**FORMS[name], "layer_scaling": "standard"} for name in ("weighted_average", "gated", "concat")}
FORMS |= {f"{name} without FC1": {**FORMS[name], "layer_projection_size": None} for name in ("mean", "gated", "scaled concat")}
DECODED = {name: {**FORMS[name], "reconstruction_weight": 0.3} for name in ("mean", "scaled concat", "gated without FC1")}
FORMS |= {f"{name}, decoded": form for name, form in DECODED.items()}
MARGIN = {"losses": {"speaker": {"loss": "aam_softmax", "scale": 7.0, "margin": 0.3}}}
FORMS |= {f"{name} with a margin": {**FORMS[name], **MARGIN} for name in ("mean", "gated")}
CUT = {
    name: {**FORMS[name], "matryoshka_sizes": [2, 5]} for name in ("weighted_average", "gated with a margin", "mean, decoded")
}
FORMS |= {f"{name}, cut": form for name, form in CUT.items()}
every_form = pytest.mark.parametrize("form", FORMS)


def arguments(**changes) -> RunArguments:
    sizes = {"layer_projection_size": 8, "embedding_size": 12, "layer_dropout": 0.0, "embedding_dropout": 0.0}
    losses = changes.pop("losses", {})
    tasks = {
        name: {"manifest": "none.csv", "label_column": name, "loss_weight": weight, **losses.get(name, {})}
        for name, weight in (("keyword", 1.0), ("speaker", 0.5))
    }
    fields = {"tasks": tasks, "selected_layers": [0, 1, 3], "batch_size": 16, "l1": 1e-3, "l2": 1e-2, **sizes, **changes}
    return RunArguments(**fields, save_hub=False)


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((N, L, D), dtype=np.float32))


@pytest.fixture(scope="module")
def composite() -> CompositeSet:
    """Some clips have one label, some both, each split its third of the clips."""
    generator = np.random.default_rng(1)
    targets = {}
    for i, split in enumerate(("train", "validation", "test")):
        is_here = np.arange(N) % 3 == i
        which = generator.integers(3, size=N)  # 0 = keyword only, 1 = speaker only, 2 = both
        keyword = np.where(is_here & (which != 1), generator.integers(3, size=N), IGNORED_LABEL)
        speaker = np.where(is_here & (which != 0), generator.integers(4, size=N), IGNORED_LABEL)
        targets[split] = {"keyword": keyword, "speaker": speaker}
    return CompositeSet([], CLASSES, targets)


def learner_of(args: RunArguments):
    learner = new_learner(args, model_config(args, UPSTREAM, CLASSES), torch.device("cpu"))
    pooling = learner.network.downstream.layer_pooling
    if args.pooling_type in ("weighted_average", "gated"):
        with torch.no_grad():
            pooling.weight.copy_(torch.linspace(-1, 1, len(args.selected_layers)))
    if args.layer_scaling == "standard":
        downstream, layers = learner.network.downstream, torch.tensor(args.selected_layers)[:, None]
        downstream.layer_mean.copy_(0.1 * layers + torch.linspace(-1, 1, D))
        downstream.layer_scale.copy_(1 + 0.1 * layers + torch.linspace(0, 1, D))
    return learner


def splits_of(features, composite, args) -> dict[str, SplitFeatures]:
    table = MemoryTable(features, args.selected_layers)
    return {split: SplitFeatures(table, composite, split, torch.device("cpu")) for split in composite.targets}


def plain_loss(network, layers: torch.Tensor, labels: dict[str, torch.Tensor], args: RunArguments) -> torch.Tensor:
    """All of it but the penalties, of the given clips."""
    sizes = [*args.matryoshka_sizes, args.embedding_size]
    loss = sum(plain_task_loss(network, plain_logits(network, layers, size), labels, args) for size in sizes) / len(sizes)
    if args.reconstruction_weight:
        scaled, embeddings = plain_layers(network, layers), plain_embeddings(network, layers)
        decoded = embeddings @ network.decoder.weight.T + network.decoder.bias
        loss = loss + 0.3 * ((decoded - torch.cat(scaled.unbind(1), dim=1)) ** 2).mean()
    return loss


def plain_task_loss(network, logits: dict, labels: dict[str, torch.Tensor], args: RunArguments) -> torch.Tensor:
    if network.training and "margin" in args.tasks["speaker"]:
        own = torch.zeros_like(logits["speaker"])
        own[labels["speaker"] >= 0] = torch.nn.functional.one_hot(labels["speaker"][labels["speaker"] >= 0], 4).float()
        logits["speaker"] = 7 * torch.cos(torch.acos(logits["speaker"] / 7) + 0.3 * own)
    losses = cross_entropy_per_task(logits, labels)
    return (losses["keyword"] + 0.5 * losses["speaker"]) / 2


def plain_layers(network, layers: torch.Tensor) -> torch.Tensor:
    downstream = network.downstream
    return (layers - downstream.layer_mean) / downstream.layer_scale if hasattr(downstream, "layer_mean") else layers


def plain_logits(network, layers: torch.Tensor, size: int = 12) -> dict[str, torch.Tensor]:
    """Of the first `size` numbers of the embedding."""
    embeddings = plain_embeddings(network, layers)[:, :size]
    weights = {task: head.weight[:, :size] for task, head in network.heads.tasks.items()}
    logits = {
        task: torch.nn.functional.linear(embeddings, weights[task], head.bias) for task, head in network.heads.tasks.items()
    }
    if isinstance(network.heads.tasks["speaker"], CosineHead):
        lengths = embeddings.norm(dim=1)[:, None] * weights["speaker"].norm(dim=1)
        logits["speaker"] = 7 * logits["speaker"] / lengths
    return logits


def plain_embeddings(network, layers: torch.Tensor) -> torch.Tensor:
    """Figure 1 of the paper, word for word: FC1 on every layer, pooling, FC2, all heads on all clips.

    Scaled layers are scaled before, and layers side by side go through FC1 as one.
    """
    downstream, layers = network.downstream, plain_layers(network, layers)
    if isinstance(downstream.layer_pooling, ConcatPooling):
        pooled = downstream.layer_projection(torch.cat(layers.unbind(1), dim=1))
    else:
        pooled = downstream.layer_pooling(downstream.layer_projection(layers))
    return downstream.embedding_projection(pooled)


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()


def gradients_of(network, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@every_form
def test_loss_and_every_gradient_are_those_of_the_plain_formula(features, composite, form):
    args = arguments(**FORMS[form])
    learner = learner_of(args)
    (batch,) = splits_of(features, composite, args)["train"].batches(1000)
    output = learner.network(batch.features, batch.rows)
    loss = total_loss(losses_of(learner.network, output, batch.labels, batch.num_labelled, batch.num_clips), args)
    learner.network.zero_grad()
    loss.backward()
    learner.network.add_penalty_gradient(args.l1, args.l2)
    fast = {name: parameter.grad.clone() for name, parameter in learner.network.named_parameters()}

    rows = composite.rows("train")
    labels = {task: torch.from_numpy(targets[rows]) for task, targets in composite.targets["train"].items()}
    expected = plain_loss(learner.network, features[rows][:, args.selected_layers], labels, args)
    penalty = sum(args.l1 * p.abs().sum() + args.l2 * p.square().sum() for p in learner.network.parameters())
    plain = gradients_of(learner.network, expected + penalty)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert learner.network.fast_penalty(args.l1, args.l2).item() == pytest.approx(penalty.item(), rel=1e-5)
    assert learner.network.penalty(args.l1, args.l2).item() == pytest.approx(penalty.item(), rel=1e-5)
    assert max(relative_difference(fast[name], plain[name]) for name in plain) < 1e-5
    if form == "weighted_average":
        assert plain["downstream.layer_pooling.weight"].abs().min() > 0


@every_form
def test_evaluation_with_folded_heads_is_that_of_the_plain_formula(features, composite, form):
    args = arguments(**FORMS[form], layer_dropout=0.4, embedding_dropout=0.6)
    learner, accelerator = learner_of(args), Accelerator(cpu=True)
    result = evaluate(accelerator, learner, splits_of(features, composite, args)["validation"])
    rows = composite.rows("validation")
    labels = {task: torch.from_numpy(targets[rows]) for task, targets in composite.targets["validation"].items()}
    with torch.no_grad():
        logits = plain_logits(learner.network, features[rows][:, args.selected_layers])
        loss = plain_loss(learner.network, features[rows][:, args.selected_layers], labels, args)
        loss = loss + sum(args.l1 * p.abs().sum() + args.l2 * p.square().sum() for p in learner.network.parameters())
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for task in CLASSES:
        is_labelled = labels[task] != IGNORED_LABEL
        is_correct = (logits[task].argmax(dim=1) == labels[task])[is_labelled]
        assert result.is_correct[task].tolist() == is_correct.tolist()
        assert result.accuracy[task] == pytest.approx(is_correct.double().mean().item())
    assert result.mean_accuracy == pytest.approx(sum(result.accuracy.values()) / 2)


@every_form
def test_epochs_with_and_without_fast_parts_are_equal(features, composite, form):
    """The whole of an epoch, twice: losses, figures and weights. Without them, nothing but PyTorch's modules runs."""
    learners = [learner_of(arguments(**FORMS[form], fast_parts=is_fast)) for is_fast in (True, False)]
    accelerator = Accelerator(cpu=True)
    for epoch in (1, 2):
        entries, operators = [], Operators()
        for learner in learners:
            with operators if not learner.args.fast_parts else nullcontext():
                splits = splits_of(features, composite, learner.args)
                entries.append(train_epoch(accelerator, learner, splits, epoch))
        assert entries[1]["train_loss"] == pytest.approx(entries[0]["train_loss"], rel=1e-5)
        assert entries[1]["validation"]["loss"] == pytest.approx(entries[0]["validation"]["loss"], rel=1e-5)
        assert entries[1]["validation"]["accuracy"] == entries[0]["validation"]["accuracy"]
        assert not operators.names & {"_linear_pointwise", "_embedding_bag", "_foreach_sign", "_foreach_norm"}
    fast, plain = (learner.network for learner in learners)
    dropouts = [type(module) for network in (plain, fast) for module in (network.downstream.dropout, network.heads.dropout)]
    assert dropouts == [torch.nn.Dropout] * 2 + [Dropout] * 2
    for name, weight in fast.state_dict().items():
        assert relative_difference(plain.state_dict()[name], weight) < 1e-3, name  # AdamW divides by what is nearly zero


def test_layers_are_read_where_they_lie(features):
    rows, layers = torch.tensor([7, 0, 7, 59]), torch.tensor([4, 1])
    taken = PooledLayers(features, rows, layers)
    assert torch.equal(taken.stacked(), features[rows][:, layers])
    weights = torch.tensor([0.25, 0.75])
    torch.testing.assert_close(taken.averaged(weights), torch.einsum("k,nkd->nd", weights, features[rows][:, layers]))
    table = MemoryTable(features, [4, 1])
    assert table.take(rows).table.data_ptr() == features.data_ptr()


def test_dropout_keeps_the_expectation_and_the_rate():
    torch.manual_seed(0)
    dropout, x = Dropout(0.6), torch.full((400, 500), 2.0, requires_grad=True)
    y = dropout(x)
    assert (y == 0).float().mean().item() == pytest.approx(0.6, abs=0.005)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 2.0 / 0.4), rtol=5e-5, atol=0.0)
    both_kept = (y[:, 1:] != 0) & (y[:, :-1] != 0)
    assert both_kept.float().mean().item() == pytest.approx(0.4**2, abs=0.005)  # neighbours share one random number
    assert not torch.equal(dropout(x), y)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
    assert dropout.eval()(x) is x


def test_each_network_of_a_stack_has_its_own_dropout_rate():
    dropouts, x = [Dropout(rate) for rate in (0.2, 0.7)], torch.ones(2, 300, 300)
    rates = torch.stack([dropout.rate for dropout in dropouts])

    def drop(rate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(dropouts[0], {"rate": rate}, (x,))

    torch.manual_seed(0)
    y = torch.func.vmap(drop, randomness="different")(rates, x)
    assert (y == 0).float().mean(dim=(1, 2)).tolist() == pytest.approx([0.2, 0.7], abs=0.01)


@every_form
def test_networks_that_train_together_train_as_each_alone(features, composite, form):
    changes = [
        {"seed": 0},
        {"seed": 1, "learning_rate": 1e-2, "l1": 0.0},
        {"seed": 2, "l2": 0.0, "scheduler_patience": 0, "selected_layers": [4, 2, 0]},
    ]
    many = [arguments(**FORMS[form], **change) for change in changes]
    accelerator = Accelerator(cpu=True)
    alone = [learner_of(args) for args in many]
    together = [learner_of(args) for args in many]
    splits = [splits_of(features, composite, args) for args in many]
    for epoch in (1, 2, 3):
        entries = train_epoch_together(accelerator, together, splits, epoch)
        for learner, own_splits, entry in zip(alone, splits, entries):
            own = train_epoch(accelerator, learner, own_splits, epoch)
            assert entry["train_loss"] == pytest.approx(own["train_loss"], rel=1e-4)
            assert entry["validation"]["loss"] == pytest.approx(own["validation"]["loss"], rel=1e-4)
            assert entry["learning_rate"] == own["learning_rate"]
    for one, other in zip(alone, together):
        theirs = other.network.state_dict()
        for name, weight in one.network.state_dict().items():
            assert relative_difference(theirs[name], weight) < 1e-3, name


# -- products by oneDNN

needs_onednn = pytest.mark.skipif(not fast_parts.HAS_ONEDNN_LINEAR, reason="PyTorch without oneDNN")


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def operands(shape: tuple[int, ...], layout: str = "dense", has_bias: bool = True) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x, wide = torch.randn(*shape, 7, generator=generator), torch.randn(5, 14, generator=generator)
    weight = {"dense": wide[:, :7].clone(), "transposed": wide[:, :7].T.contiguous().T, "slice": wide[:, :7]}[layout]
    bias = torch.randn(5, generator=generator) if has_bias else None
    return [None if tensor is None else tensor.requires_grad_() for tensor in (x, weight, bias)]


def value_and_gradients(function, tensors) -> list[torch.Tensor]:
    """Also the gradient of the gradients' squared length."""
    given = [tensor for tensor in tensors if tensor is not None]
    y = function(*tensors)
    first = torch.autograd.grad(y.square().sum(), given, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), given)
    return [y, *first, *second]


@needs_onednn
@pytest.mark.parametrize("layout", ["dense", "transposed", "slice"])
@pytest.mark.parametrize("shape", [(6,), (1,), (3, 4), ()])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_and_gradients_are_those_in_float64(layout, shape, has_bias):
    tensors = operands(shape, layout, has_bias)
    exact = [None if tensor is None else tensor.detach().double().requires_grad_() for tensor in tensors]
    with Operators() as operators:
        found = value_and_gradients(linear, tensors)
    assert "_linear_pointwise" in operators.names
    assert not operators.names & {"mm", "addmm", "bmm"}
    for own, expected in zip(found, value_and_gradients(torch.nn.functional.linear, exact), strict=True):
        assert own.shape == expected.shape
        assert relative_difference(own.double(), expected) < 1e-6


def test_a_product_of_no_rows_has_gradients_of_zero():
    x, weight, bias = operands((0,))
    linear(x, weight, bias).sum().backward()
    assert x.grad.shape == (0, 7)
    assert not weight.grad.any()
    assert not bias.grad.any()


@pytest.mark.parametrize("case", ["float64", "autocast", "vmap", "func.grad", "compile", "without the operator"])
def test_where_onednn_is_not_for_us_the_ordinary_operator_runs(case, monkeypatch):
    x, weight, bias = operands((6,))
    expected = torch.nn.functional.linear(x, weight, bias)
    with Operators() as operators:
        if case == "float64":
            y = linear(x.double(), weight.double(), bias.double())
        elif case == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                y = linear(x, weight, bias)
            assert y.dtype == torch.bfloat16
        elif case == "vmap":
            y = torch.func.vmap(linear, in_dims=(0, None, None))(x, weight, bias)
        elif case == "func.grad":
            y = torch.func.grad(lambda x: linear(x, weight, bias).square().sum() / 2)(x)
            expected = expected @ weight
        elif case == "without the operator":
            monkeypatch.setattr(fast_parts, "HAS_ONEDNN_LINEAR", False)
            y = linear(x, weight, bias)
    if case == "compile":
        y = torch.compile(linear, backend="eager", fullgraph=True)(x, weight, bias)
    assert "_linear_pointwise" not in operators.names
    tolerance = 2e-2 if case == "autocast" else 1e-5
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


@needs_onednn
def test_a_training_step_multiplies_by_onednn_alone(features, composite):
    args = arguments()
    learner = learner_of(args)
    (batch,) = splits_of(features, composite, args)["train"].batches(1000)
    with Operators() as operators:
        losses = cross_entropy_per_task(learner.network(batch.features, batch.rows), batch.labels, batch.num_labelled)
        combine_losses(losses, args.loss_weights()).backward()
    assert "_linear_pointwise" in operators.names
    assert not operators.names & {"mm", "addmm", "bmm"}


def test_the_network_has_the_names_and_first_weights_of_the_models_parts():
    config = model_config(arguments(pooling_type="gated"), UPSTREAM, CLASSES)
    torch.manual_seed(0)
    network = MultiTaskNetwork(config).state_dict()
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict({"downstream": WavCSEDownstream(config), "heads": WavCSEHeads(config)}).state_dict()
    assert list(network) == list(parts)
    assert all(torch.equal(network[name], parts[name]) for name in parts)
