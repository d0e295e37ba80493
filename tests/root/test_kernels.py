"""Which library multiplies: forced, measured once, handed on; int8 on processors that have no instructions for it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from wavcse import kernels_wavcse, packed_layers_wavcse
from wavcse.kernels_wavcse import FORCED, MEASURED, FbgemmProduct, float32_library, forced_library, times_faster, uses_fbgemm
from wavcse.packed_encoder_wavcse import PackedUpstream

CPU = torch.device("cpu")
MEASUREMENTS = (float32_library, kernels_wavcse.gelu_in_onednn, uses_fbgemm, packed_layers_wavcse.relative_speed)
has_both = pytest.mark.skipif(
    not (kernels_wavcse.HAS_ONEDNN_LINEAR and torch.backends.mkl.is_available()), reason="PyTorch with one library"
)
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim", "do_stable_layer_norm")
SHAPE += ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "feat_extract_norm")
needs_fbgemm = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="PyTorch without fbgemm")


@pytest.fixture
def environment(monkeypatch):
    """Sets or removes `WAVCSE_KERNELS`, everything measured forgotten, before and after."""

    def use(library: str | None) -> None:
        for measured in MEASUREMENTS:
            measured.cache_clear()
        monkeypatch.delenv(MEASURED, raising=False)
        monkeypatch.setenv(FORCED, library or "")

    yield use
    monkeypatch.undo()
    os.environ.pop(MEASURED, None)
    for measured in MEASUREMENTS:
        measured.cache_clear()


def clips(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=generator) for length in lengths]


@has_both
@pytest.mark.parametrize(
    ("kind", "mkl_speed", "expected"),
    [
        ("long", 0.5, "onednn"),  # AVX-512
        ("long", 0.8, "onednn"),
        ("long", 0.95, "mkl"),  # AVX2, on a busy machine
        ("long", 1.2, "mkl"),
        ("short", 0.7, "onednn"),
        ("short", 1.0, "onednn"),
        ("short", 1.2, "mkl"),
    ],
)
def test_the_faster_library_is_taken_whichever_way_a_measurement_errs(environment, monkeypatch, kind, mkl_speed, expected):
    asked = []
    monkeypatch.setattr(kernels_wavcse, "times_faster", lambda base, other: asked.append((base, other)) or mkl_speed)
    environment(None)
    assert float32_library(kind) == float32_library(kind) == expected
    assert len(asked) == len(kernels_wavcse.SHAPES[kind])  # once in a process
    assert json.loads(os.environ[MEASURED]) == {f"float32 {kind}": expected}


@pytest.mark.parametrize(
    ("rows", "shape", "expected"),
    [
        (99, (4096, 1024), "short"),
        (99, (1024, 4096), "short"),
        (256, (3072, 768), "short"),
        (257, (4096, 1024), "long"),
        (99, (1024, 1024), "long"),
        (9, (768, 192), "long"),
    ],
)
def test_kinds_of_products(rows, shape, expected):
    assert kernels_wavcse.kind_of(torch.empty(rows, shape[1]), torch.empty(shape)) == expected


@has_both
def test_each_kind_of_product_has_its_library(environment, monkeypatch):
    """Short ones by oneDNN, with a GELU of PyTorch's where that is faster; the same values to rounding."""
    environment(None)
    monkeypatch.setenv(MEASURED, json.dumps({"float32 long": "mkl", "float32 short": "onednn", "gelu": False}))
    called = []
    plain = packed_layers_wavcse.onednn_linear
    monkeypatch.setattr(packed_layers_wavcse, "onednn_linear", lambda *args: called.append(args) or plain(*args))
    torch.manual_seed(0)
    for rows, outer, by_onednn in ((40, 2048, True), (300, 2048, False), (40, 64, False)):
        x, weight, bias = torch.randn(rows, 1024), torch.randn(outer, 1024), torch.randn(outer)
        found = packed_layers_wavcse.linear(x, weight, bias, gelu=True)
        expected = nn.functional.gelu(x.double() @ weight.double().T + bias.double())
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert len(called) == by_onednn
        assert not any(args[3:] for args in called)  # no GELU in it
        called.clear()


@has_both
@needs_fbgemm
def test_a_process_that_is_started_obeys_its_parent(environment, monkeypatch):
    """All that is measured, by itself and before workers are forked, is handed on."""
    monkeypatch.setattr(kernels_wavcse, "times_faster", lambda base, other: 0.5)
    monkeypatch.setattr(packed_layers_wavcse, "times_faster", lambda base, other: 1.5)

    def all_found() -> tuple:
        libraries = [float32_library(kind) for kind in kernels_wavcse.SHAPES]
        return libraries, kernels_wavcse.gelu_in_onednn(), uses_fbgemm(CPU), packed_layers_wavcse.relative_speed("int8")

    environment(None)
    kernels_wavcse.measure_products()
    packed_layers_wavcse.relative_speed("int8")
    found_out = os.environ[MEASURED]  # which processes that are started inherit
    environment(None)
    monkeypatch.setenv(MEASURED, found_out)
    for module in (kernels_wavcse, packed_layers_wavcse):
        monkeypatch.setattr(module, "times_faster", lambda base, other: pytest.fail("measured"))
    assert all_found() == (["onednn"] * 2, True, True, 1.5)


@pytest.mark.parametrize("left", ["mkl", "[1]", "{"])
def test_an_environment_that_says_nothing_is_measured_for(environment, monkeypatch, left):
    """Such as the one that a process of an earlier version left."""
    environment(None)
    monkeypatch.setenv(MEASURED, left)
    assert kernels_wavcse.once("speed", lambda: 2.0) == kernels_wavcse.once("speed", lambda: pytest.fail("measured")) == 2.0


@has_both
@pytest.mark.parametrize("library", ["onednn", "mkl"])
def test_a_library_can_be_forced(environment, monkeypatch, library):
    monkeypatch.setattr(kernels_wavcse, "times_faster", lambda base, other: pytest.fail("measured"))
    environment(library)
    assert float32_library() == library
    assert packed_layers_wavcse.uses_onednn(torch.zeros(1)) == (library == "onednn")


def test_a_library_that_there_is_not(environment):
    environment("eigen")
    with pytest.raises(ValueError, match="WAVCSE_KERNELS is 'eigen'; allowed: onednn, mkl"):
        forced_library()


def test_the_median_of_paired_times(monkeypatch):
    """The first round, in which things are made ready, does not count; a disturbed one neither."""
    base_s, other_s = [50, *[4.0] * 8, 400], [1, *[2.0] * 9]
    now, times = [0.0], [[*base_s], [*other_s]]
    monkeypatch.setattr(kernels_wavcse.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(kernels_wavcse, "ROUNDS", 9)

    def takes(which: int):
        def run() -> None:
            now[0] += times[which].pop(0)

        return run

    assert times_faster(takes(0), takes(1)) == 2.0


@has_both
@pytest.mark.parametrize("family", ["wavlm", "wav2vec2"])
@pytest.mark.parametrize("frames_by_head", [1, 10**6])
def test_exact_with_mkl(environment, monkeypatch, upstream_folder, family, frames_by_head):
    """Against the transformers module, head by head and all heads at once, clips of one length together and alone."""
    monkeypatch.setitem(packed_layers_wavcse.FRAMES_BY_HEAD, "mkl", frames_by_head)
    monkeypatch.setitem(packed_layers_wavcse.SCORE_ELEMENTS, "mkl", 900)
    environment("mkl")
    fields = AutoConfig.from_pretrained(upstream_folder).to_dict()
    torch.manual_seed(0)
    upstream = AutoModel.from_config(AutoConfig.for_model(family, **{name: fields[name] for name in SHAPE})).eval()
    given = clips(400, 5_000, 5_000, 5_000, 30_000)
    layers = range(upstream.config.num_hidden_layers + 1)
    found = PackedUpstream(upstream)(given, layers)
    with torch.no_grad():
        for own, clip in zip(found, given):
            states = upstream(clip[None], output_hidden_states=True).hidden_states[:-1]  # the last may be normalised
            expected = torch.stack([state[0].mean(dim=0) for state in states])
            assert (own[: len(expected)] - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_fbgemm
def test_products_of_fbgemm_are_exact():
    """The largest numbers, all of one sign, and random ones: no pair of products overflows."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-63, 64, (48, 512), generator=generator, dtype=torch.int8)
    x = torch.randint(-127, 128, (33, 512), generator=generator).float()
    weight[:16], weight[16:32], x[:8], x[8:16] = 63, -63, 127, -127
    scale = torch.logspace(-3, 3, 48)
    expected = (x.double() @ weight.double().T).float() * scale
    assert torch.equal(FbgemmProduct(weight, scale)(x), expected)


@needs_fbgemm
def test_int8_by_fbgemm_is_int8_by_the_ordinary_product(monkeypatch):
    """The same whole numbers, so the same result to the bit where both have weights of 63 steps."""
    torch.manual_seed(0)
    layer, rows = nn.Linear(64, 32), torch.randn(20, 64) * torch.logspace(-3, 3, 20)[:, None]
    monkeypatch.setattr(packed_layers_wavcse, "weight_steps", lambda device: 63)
    monkeypatch.setattr(packed_layers_wavcse, "uses_fbgemm", lambda device: False)
    ordinary = packed_layers_wavcse.Int8Linear(layer.weight, layer.bias)
    monkeypatch.setattr(packed_layers_wavcse, "uses_fbgemm", lambda device: True)
    by_fbgemm = packed_layers_wavcse.Int8Linear(layer.weight, layer.bias)
    assert by_fbgemm.fbgemm is not None
    for gelu in (False, True):
        assert torch.equal(by_fbgemm(rows, gelu), ordinary(rows, gelu))


@needs_fbgemm
def test_fbgemm_leaves_the_quantised_engine_as_it_was():
    before = torch.backends.quantized.engine
    FbgemmProduct(torch.ones(16, 64, dtype=torch.int8), torch.ones(16))
    assert torch.backends.quantized.engine == before


@needs_fbgemm
@pytest.mark.parametrize(("speed_of_int_mm", "expected"), [(0.06, True), (3.0, False)])
def test_fbgemm_is_for_processors_whose_int8_products_are_slow(environment, monkeypatch, speed_of_int_mm, expected):
    environment(None)
    monkeypatch.setattr(kernels_wavcse, "times_faster", lambda base, other: speed_of_int_mm)
    assert uses_fbgemm(CPU) == expected
    environment("onednn")
    assert not uses_fbgemm(CPU)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_slow_precision_says_so_once(environment, monkeypatch, caplog, precision):
    environment(None)
    monkeypatch.setattr(packed_layers_wavcse, "relative_speed", lambda precision: 0.19)
    packed_layers_wavcse.logger.warning_once.cache_clear()
    monkeypatch.setattr(packed_layers_wavcse.logger, "propagate", True)
    monkeypatch.setattr(packed_layers_wavcse.logger.parent, "propagate", True)
    for _ in range(2):
        packed_layers_wavcse.check_speed(precision, CPU)
    packed_layers_wavcse.check_speed("float32", CPU)
    assert [record.message.split(" on ")[0] for record in caplog.records] == [
        f"precision={precision!r} multiplies at 0.19 times the speed of float32"
    ]
    monkeypatch.setattr(packed_layers_wavcse, "relative_speed", lambda precision: 1.4)
    packed_layers_wavcse.logger.warning_once.cache_clear()
    packed_layers_wavcse.check_speed(precision, CPU)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({"bfloat16": 0.2, "int8": 1.5}, "int8"),
        ({"bfloat16": 2.0, "int8": 1.5}, "bfloat16"),
        ({"bfloat16": 0.2, "int8": 1.05}, "float32"),  # not worth it
    ],
)
def test_auto_is_the_fastest(monkeypatch, speeds, expected):
    monkeypatch.setattr(packed_layers_wavcse, "relative_speed", speeds.get)
    assert packed_layers_wavcse.fastest_precision(CPU) == expected


def test_auto_of_a_model(monkeypatch, tiny_model, waves):
    model, clip = tiny_model(), waves(9_000)[0]
    monkeypatch.setattr(packed_layers_wavcse, "relative_speed", {"bfloat16": 0.2, "int8": 1.5}.get)
    assert np.array_equal(model.encode(clip, precision="auto"), model.encode(clip, precision="int8"))
    inputs = torch.from_numpy(clip)[None]
    states = model(inputs, precision="auto", output_hidden_states=True)  # by the transformers module, which has float32 only
    assert torch.equal(states.embeddings, model(inputs, output_hidden_states=True).embeddings)
    with pytest.raises(ValueError, match="precision is 'auto'"):
        PackedUpstream(model.upstream, "auto")
