"""The packed path: the transformers module's numbers, in any batch and cut anywhere; its precisions, caches and memory."""

import copy
import gc
import itertools
import os
import platform
import subprocess
import sys
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.modeling_utils import PreTrainedModel

from wavcse import (
    WavCSEConfig,
    WavCSEFeatureExtractor,
    WavCSEForMultiTask,
    WavCSEModel,
    packed_encoder_wavcse,
    packed_layers_wavcse,
    upstream_wavcse,
)
from wavcse.configuration_wavcse import count_frames
from wavcse.packed_encoder_wavcse import (
    FFT_FROM_KERNEL,
    FFT_SIZE,
    GPU_BUDGET,
    Budget,
    PackedUpstream,
    Window,
    modules_in,
    packs,
    spans_of,
    unsupported_part,
    windows_of,
)
from wavcse.packed_layers_wavcse import FlexAttention, Span, groups_of
from wavcse.pipeline_wavcse import WavCSEFeatureExtractionPipeline
from wavcse.upstream_wavcse import UpstreamRunner, run_upstream, visiting_layers

RATE = 16_000
NUM_LAYERS = 4
LAYERS = range(NUM_LAYERS + 1)
EXACT = 1e-5  # of the packed path against the transformers module, relative to the largest value of a layer
NEIGHBOURS = 1e-6  # of a clip against the same clip in another batch, at transformers' initialisation
NEIGHBOURS_SPREAD = 2e-6  # at the wide weights of `encoder`, which carry each rounding further
SHAPES = [(family, norm) for family in ("wavlm", "wav2vec2", "hubert") for norm in ("group", "layer")]
every_shape = pytest.mark.parametrize(("family", "norm"), SHAPES)
both_norms = pytest.mark.parametrize("norm", ["group", "layer"])
LOW_PRECISIONS = ("bfloat16", "int8")
QUIET = {"layerdrop": 0.0, "mask_time_prob": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def stem(kernels: tuple[int, ...], strides: tuple[int, ...], width: int = 16) -> dict:
    """Fields of an upstream with another convolutional stem."""
    fields = {"conv_dim": [width] * len(kernels), "conv_kernel": kernels, "conv_stride": strides}
    return {**fields, "num_feat_extract_layers": len(kernels)}


VARIANTS = {
    "bias in the stem": {"conv_bias": True},
    "short odd kernel": {"num_conv_pos_embeddings": FFT_FROM_KERNEL - 1},
    "shortest kernel by FFT": {"num_conv_pos_embeddings": FFT_FROM_KERNEL},
    "odd kernel by FFT": {"num_conv_pos_embeddings": FFT_FROM_KERNEL + 1},
    "kernel of the published models": {"num_conv_pos_embeddings": 128},
    "longest kernel by FFT": {"num_conv_pos_embeddings": FFT_SIZE // 2, "num_conv_pos_embedding_groups": 8},
    "kernel longer than an FFT": {"num_conv_pos_embeddings": FFT_SIZE + 88},
    "stem of two": stem((400, 3), (160, 2)),
    "stem of five": {**stem((20, 3, 3, 2, 2), (10, 4, 2, 2, 2)), "conv_bias": True},
    "stem with gaps": stem((10, 2, 3), (5, 4, 2)),
    "stem of one": stem((30,), (20,)),
    "heads of four": {"num_attention_heads": 8},
    "few, near buckets": {"num_buckets": 8, "max_bucket_distance": 20},
}


@pytest.fixture(scope="module")
def encoder(tiny_upstream):
    """Factory: a tiny encoder whose stem's norms, biases and projection are spread out too, each made once."""
    made: dict[str, PreTrainedModel] = {}

    def make(family: str = "wavlm", norm: str = "layer", fresh: bool = False, **changes) -> PreTrainedModel:
        key = f"{family} {norm} {changes}"
        if key not in made or fresh:
            upstream = tiny_upstream(family, norm, **changes)
            with torch.no_grad():
                for name, parameter in upstream.named_parameters():
                    if name.startswith("feature_") and (parameter.ndim == 1 or "projection" in name):
                        parameter.add_(0.2 * torch.randn_like(parameter))
            if fresh:
                return upstream
            made[key] = upstream
        return made[key]

    return make


@pytest.fixture
def spread_model(encoder):
    """Factory: a `WavCSEModel` on a fresh `encoder`."""

    def make(family: str = "wavlm", norm: str = "layer", upstream: dict | None = None, **fields) -> WavCSEModel:
        spread = encoder(family, norm, fresh=True, **(upstream or {}))
        fields = {"selected_layers": [0, 1, 4], "layer_projection_size": 8, "embedding_size": 20, **fields}
        torch.manual_seed(1)
        return WavCSEModel(WavCSEConfig(spread.config, **fields), upstream=spread).eval()

    return make


def noise(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    """Normalised clips whose loudness changes along their length, so that no two stretches are alike."""
    generator = np.random.default_rng(seed)
    clips = []
    for n in lengths:
        samples = generator.standard_normal(n) * (1 + np.sin(np.arange(n) / 3_000 + generator.uniform(0, 6)))
        clips.append(torch.from_numpy(((samples - samples.mean()) / samples.std()).astype(np.float32)))
    return clips


def random_lengths(count: int, longest: int, seed: int) -> list[int]:
    """From 400 samples upwards, as many short as long ones."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(400), np.log(longest), count)).astype(int).tolist()


def padded(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_values` and `attention_mask` `[B, samples]`."""
    mask = [torch.ones(len(clip), dtype=torch.long) for clip in clips]
    return tuple(nn.utils.rnn.pad_sequence(tensors, batch_first=True) for tensors in (clips, mask))


def ordinary(upstream: PreTrainedModel, clips: list[torch.Tensor], layers=LAYERS) -> torch.Tensor:
    """`[B, K, D]` by the transformers module."""
    with torch.no_grad():
        return run_upstream(upstream, *padded(clips), list(layers)).pooled_layers


def packed(upstream: PreTrainedModel, clips: list[torch.Tensor], layers=LAYERS, **kwargs) -> torch.Tensor:
    return PackedUpstream(upstream)(clips, list(layers), **kwargs)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of `[B, K, D]`, relative to the largest value of the same clip and layer."""
    assert actual.shape == expected.shape
    return float(((actual - expected).abs().amax(dim=-1) / expected.abs().amax(dim=-1)).max())


def cosine(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Smallest cosine over clips and layers."""
    return float(nn.functional.cosine_similarity(actual.double(), expected.double(), dim=-1).min())


# ---- exact ----


@every_shape
@pytest.mark.parametrize("kernel", [16, 128])
def test_every_layer_at_random_lengths(encoder, family, norm, kernel):
    upstream = encoder(family, norm, num_conv_pos_embeddings=kernel)
    clips = noise(400, 719, 720, *random_lengths(5, 15 * RATE, seed=kernel))
    expected = ordinary(upstream, clips)
    assert error(packed(upstream, clips), expected) <= EXACT
    steps = (expected[:, 1:] - expected[:, :-1]).abs().amax(dim=-1)
    assert (steps > 0.1).all()  # no two layers alike, so a shifted one would show


@every_shape
@pytest.mark.parametrize("precision", packed_encoder_wavcse.PRECISIONS)
def test_without_onednn(encoder, monkeypatch, family, norm, precision):
    """Another device, or a PyTorch without that operator, multiplies by the ordinary one."""
    upstream, clips = encoder(family, norm), noise(400, 20_000, 4 * RATE)
    monkeypatch.setattr(packed_layers_wavcse, "HAS_ONEDNN_LINEAR", False)
    with Products() as products:
        without = PackedUpstream(upstream, precision)(clips, LAYERS)
    assert "_linear_pointwise" not in products.names
    if precision == "float32":
        assert error(without, ordinary(upstream, clips)) <= EXACT
    else:
        assert cosine(without, ordinary(upstream, clips)) >= NEAR[precision]


@every_shape
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attention_of_a_whole_pack(encoder, family, norm, precision):
    """What a GPU runs compiled, here by PyTorch's uncompiled kernel: clips that end inside, at and after a block of rows."""
    upstream = encoder(family, norm, max_bucket_distance=100)
    clips = noise(*(400 + 320 * (frames - 1) for frames in (1, 3, 124, 128, 300, 5)))
    runner = PackedUpstream(upstream, precision)
    one_by_one = runner(clips, LAYERS)
    for block in runner.blocks:
        block.attention = FlexAttention(block.attention.num_heads, block.attention.bias, is_compiled=False)
    together = runner(clips, LAYERS)
    if precision == "float32":
        assert error(together, ordinary(upstream, clips)) <= EXACT
    assert cosine(together, one_by_one) >= (1 - 1e-6 if precision == "float32" else NEAR[precision])


def test_attention_of_a_pack_that_cannot_be_compiled(encoder, monkeypatch):
    upstream, clips = encoder(), noise(5_000, 30_000)
    runner = PackedUpstream(upstream)
    expected = runner(clips, LAYERS)

    def refuses(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(packed_layers_wavcse.Kernel, "compiled", refuses)
    monkeypatch.setattr(packed_layers_wavcse.Kernel, "is_broken", False)
    for block in runner.blocks:
        block.attention = FlexAttention(block.attention.num_heads, block.attention.bias)
    with pytest.warns(UserWarning, match="no compiler.*clip by clip"):
        assert torch.equal(runner(clips, LAYERS), expected)


@pytest.mark.slow
@both_norms
@pytest.mark.parametrize("family", ["wavlm", "hubert"])
def test_a_minute(encoder, family, norm):
    upstream = encoder(family, norm, num_hidden_layers=2, num_attention_heads=2, num_conv_pos_embeddings=128)
    clips = noise(60 * RATE)
    assert error(packed(upstream, clips, range(3)), ordinary(upstream, clips, range(3))) <= EXACT


@both_norms
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(encoder, norm, variant):
    upstream = encoder("wavlm", norm, **VARIANTS[variant])
    assert unsupported_part(upstream) is None
    lowest = 2 if variant == "stem of one" and norm == "group" else 1  # transformers' group norm wants two values
    shortest = next(n for n in itertools.count(1) if count_frames(torch.tensor(n), upstream.config) == lowest)
    samples_per_frame = int(np.prod(upstream.config.conv_stride))
    clips = noise(shortest, *(shortest + samples_per_frame * frames + 7 for frames in (5, 40, 130)))
    assert error(packed(upstream, clips), ordinary(upstream, clips)) <= EXACT


@every_shape
def test_norms_of_stem_and_blocks_are_independent(encoder, family, norm):
    upstream = encoder(family, norm, do_stable_layer_norm=norm == "group")
    clips = noise(3_000, 20_000)
    assert error(packed(upstream, clips), ordinary(upstream, clips)) <= EXACT


def test_projection_without_a_norm(encoder):
    upstream = encoder("hubert", "group", feat_proj_layer_norm=False)
    clips = noise(3_000, 20_000)
    assert error(packed(upstream, clips), ordinary(upstream, clips)) <= EXACT


@every_shape
def test_transformers_hidden_states(encoder, family, norm):
    """No code of this package in the reference; its last state may hold the final norm, so that layer is not compared."""
    upstream, clip = encoder(family, norm), noise(20_000)[0]
    with torch.no_grad():
        states = upstream(clip[None], output_hidden_states=True).hidden_states[:NUM_LAYERS]
    expected = torch.stack([state[0].mean(dim=0) for state in states])
    assert error(packed(upstream, [clip], range(NUM_LAYERS)), expected[None]) <= EXACT


@pytest.mark.parametrize("layers", [[0], [4], [3], [2, 0, 4], [4, 1], [1, 0], [0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize(("family", "norm"), [("wavlm", "layer"), ("wavlm", "group"), ("hubert", "layer")])
def test_selected_layers(encoder, family, norm, layers):
    upstream, clips = encoder(family, norm), noise(5_000, 9_000)
    assert error(packed(upstream, clips, layers), ordinary(upstream, clips)[:, layers]) <= EXACT


@every_shape
@pytest.mark.parametrize("kernel", [16, 128])
@pytest.mark.parametrize("weights", ["initial", "spread"])
def test_other_clips_of_the_batch_do_not_matter(encoder, tiny_model, family, norm, kernel, weights):
    changes = {"num_conv_pos_embeddings": kernel}
    if weights == "initial":
        upstream, limit = tiny_model(family, norm, upstream=changes, selected_layers=[NUM_LAYERS]).upstream, NEIGHBOURS
    else:
        upstream, limit = encoder(family, norm, **changes), NEIGHBOURS_SPREAD
    run = PackedUpstream(upstream)
    clips = noise(400, *random_lengths(6, 12 * RATE, seed=3), 5_000)
    alone = torch.cat([run([clip], LAYERS) for clip in clips])
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(clips))[: len(clips) - seed]
        assert error(run([clips[i] for i in order], LAYERS), alone[order]) <= limit


@pytest.mark.parametrize("family", ["wavlm", "hubert"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_clips_of_about_one_length_attend_in_one_call(encoder, monkeypatch, family, precision):
    """And a clip does not see what fills up its neighbours."""
    upstream = encoder(family, "layer")
    clips = noise(*(400 + 320 * (frames - 1) for frames in (40, 50, 47, 41)))
    calls, attend = [], nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(a) or attend(*a, **k))
    monkeypatch.setattr(packed_layers_wavcse, "FRAMES_BY_HEAD", whatever_multiplies(10**6))
    together = PackedUpstream(upstream, precision)(clips, LAYERS)
    assert len(calls) == NUM_LAYERS
    if precision == "float32":
        assert error(together, ordinary(upstream, clips)) <= EXACT
    calls.clear()  # transformers makes such calls too
    monkeypatch.setattr(packed_layers_wavcse, "NEAR_LENGTHS", 1.0)
    alone = PackedUpstream(upstream, precision)(clips, LAYERS)
    assert len(calls) == 4 * NUM_LAYERS
    assert cosine(together, alone) >= (1 - 1e-6 if precision == "float32" else NEAR[precision])


def test_which_windows_attend_together():
    """Neighbours, up to a ratio of lengths and a number of scores; long ones alone."""
    ends = list(itertools.accumulate([40, 50, 51, 63, 30, 30, 30, 200, 200]))
    spans = tuple(Span(start, end, start, end) for start, end in zip([0, *ends], ends))
    assert groups_of(spans, 8000, 1.25, 150) == [
        (0, (40, 50)),
        (90, (51, 63)),
        (204, (30, 30, 30)),
        (294, (200,)),
        (494, (200,)),
    ]
    assert groups_of(spans[4:7], 1800, 1.25, 150) == [(204, (30, 30)), (264, (30,))]


def test_modules_are_found_by_the_short_way(spread_model):
    model = spread_model()
    assert {id(module) for module in modules_in(model)} == {id(module) for module in model.modules()}


def test_the_same_clip_twice_and_the_same_call_twice(encoder):
    upstream, (clip,) = PackedUpstream(encoder()), noise(9_000)
    first, second = upstream([clip, clip], LAYERS), upstream([clip, clip], LAYERS)
    assert torch.equal(first, second)
    assert error(first[1:], first[:1]) <= NEIGHBOURS_SPREAD


def test_inputs_are_left_as_they_were(encoder):
    upstream, clips = PackedUpstream(encoder("wavlm", "group")), noise(400, 9_000)
    before = [clip.clone() for clip in clips]
    upstream(clips, LAYERS)
    assert all(torch.equal(a, b) for a, b in zip(clips, before))


def test_waveforms_that_do_not_lie_in_one_piece(encoder):
    upstream, (clip,) = encoder(), noise(9_000)
    strided = torch.stack([clip, -clip], dim=1)[:, 0]
    assert error(packed(upstream, [strided]), ordinary(upstream, [clip])) <= EXACT


def test_empty_batch(spread_model):
    with torch.no_grad():
        assert spread_model()(torch.zeros(0, 16_000)).embeddings.shape == (0, 20)


@pytest.mark.parametrize("precision", packed_encoder_wavcse.PRECISIONS)
def test_autocast_around_it_changes_nothing(encoder, precision):
    upstream, clips = PackedUpstream(encoder(), precision), noise(5_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = upstream(clips, LAYERS)
    assert torch.equal(inside, upstream(clips, LAYERS))


# ---- packs and pieces ----


@pytest.mark.parametrize("window_frames", [1, 2, 7, 10, 15, 64, 99, 500])
def test_windows(window_frames):
    for num_frames in [*range(1, 3 * window_frames + 3), 10 * window_frames + 1, 1_234 * window_frames + 5]:
        windows = windows_of(num_frames, window_frames)
        kept = [frame for _, _, start, end in windows for frame in range(start, end)]
        assert kept == list(range(num_frames))
        assert all(0 <= start <= keep < keep_end <= end <= num_frames for start, end, keep, keep_end in windows)
        assert {end - start for start, end, _, _ in windows} == {min(num_frames, window_frames)}
        for (_, end, _, _), (start, _, _, _) in itertools.pairwise(windows):
            assert end - start >= window_frames // 10
        if len(windows) > 1:  # no more of them than that overlap asks for
            step = window_frames - window_frames // 10
            assert (len(windows) - 2) * step + window_frames < num_frames


def test_frames_are_kept_where_they_have_more_context():
    windows = windows_of(1_000, 100)
    for frame in range(1_000):
        context = {
            i: min(frame - start, end - 1 - frame) for i, (start, end, _, _) in enumerate(windows) if start <= frame < end
        }
        keeper = next(i for i, (_, _, keep, keep_end) in enumerate(windows) if keep <= frame < keep_end)
        at_the_ends = frame < 100 or frame >= 900
        assert at_the_ends or context[keeper] >= max(context.values()) - 1  # the middle of an overlap is no frame


@pytest.mark.parametrize("num_frames", [1, 100, 10**6])
def test_one_window(num_frames):
    assert windows_of(num_frames, None) == windows_of(num_frames, 10**6) == [(0, num_frames, 0, num_frames)]


@pytest.mark.parametrize("seed", range(5))
def test_packs(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 4096 // 2, 60)
    lengths[generator.integers(0, 60, 8)] = generator.integers(4096, 3 * 4096, 8)
    windows = [Window(i, 5, 5 + int(length), 5, 5 + int(length)) for i, length in enumerate(lengths)]
    made = list(packs(windows, 4096))
    assert [window for pack in made for window in pack] == windows
    sizes = [sum(window.end - window.start for window in pack) for pack in made]
    assert all(size <= 4096 or len(pack) == 1 for size, pack in zip(sizes, made))
    for size, following in zip(sizes, made[1:]):
        assert size + following[0].end - following[0].start > 4096  # the next did not fit
    for size, pack in zip(sizes, made):
        spans = spans_of(pack)
        assert [span.end - span.start for span in spans] == [window.end - window.start for window in pack]
        assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == size


def test_no_packs():
    assert list(packs([], 9)) == []


def whatever_multiplies(value: int) -> dict[str, int]:
    return {"onednn": value, "mkl": value}


SMALL = {"QUERY_ROWS": 5, "MOMENT_WINDOWS": 101, "FRAMES_BY_HEAD": whatever_multiplies(20), "CPU_BUDGET": Budget(40, 7, 13)}
LARGEST = {"FRAMES_BY_HEAD": whatever_multiplies(10**6)}  # all heads at once, whatever the length
BORDERS = [
    *({name: value} for name, value in SMALL.items()),
    SMALL,
    {"CPU_BUDGET": Budget(1, 50, 512)},
    {"CPU_BUDGET": Budget(1024, 7, 512)},
    {"CPU_BUDGET": Budget(1024, 50, 13)},
    {"CPU_BUDGET": GPU_BUDGET},
    {"MASK_ELEMENTS": 1, **LARGEST},
    {"QUERY_ROWS": 5, **LARGEST},
    {"FRAMES_BY_HEAD": whatever_multiplies(1), "SCORE_ELEMENTS": whatever_multiplies(200)},
    {"GROUP_ELEMENTS": 1},
    {"NEAR_LENGTHS": 100.0, **LARGEST},
    {"NEAR_LENGTHS": 1.0, "SQUARE_ELEMENTS": 0, **LARGEST},
    {"CPU_BUDGET": Budget(1024, 50, 512, 1)},
]
MODULES = (packed_encoder_wavcse, packed_layers_wavcse)


@both_norms
@pytest.mark.parametrize("kernel", [16, 128])
@pytest.mark.parametrize("sizes", BORDERS, ids=lambda sizes: "+".join(sizes))
def test_every_border_of_the_chunks(encoder, monkeypatch, norm, kernel, sizes):
    upstream = encoder("wavlm", norm, num_conv_pos_embeddings=kernel)
    clips = noise(400, 20_000, 720, 8_000, 8_321)
    expected = ordinary(upstream, clips)
    for name, value in sizes.items():
        (module,) = (module for module in MODULES if hasattr(module, name))
        monkeypatch.setattr(module, name, value)
    assert error(packed(upstream, clips), expected) <= EXACT


# ---- windows of a long clip ----

WINDOW = 60


def windowed_by_hand(upstream: PreTrainedModel, clip: torch.Tensor, window_frames: int) -> torch.Tensor:
    """Stem over the whole clip, blocks over each window, mean over the frames that the windows keep: `[K, D]`."""
    total = torch.zeros(len(LAYERS), upstream.config.hidden_size)
    with torch.no_grad():
        features = upstream.feature_extractor(clip[None]).transpose(1, 2)
        for start, end, keep_start, keep_end in windows_of(features.shape[1], window_frames):
            projected = upstream.feature_projection(features[:, start:end])
            states = {}
            with visiting_layers(upstream, states.__setitem__):
                upstream.encoder(projected[0] if isinstance(projected, tuple) else projected)
            for layer in LAYERS:
                total[layer] += states[layer][0, keep_start - start : keep_end - start].sum(dim=0)
    return total / features.shape[1]


@every_shape
def test_windows_are_their_frame_weighted_mean(encoder, family, norm):
    """With the group norm of the base shape this holds only if its statistics are those of the whole clip."""
    upstream = encoder(family, norm)
    clips = noise(5 * RATE, 400, 3 * RATE + 17, int(1.3 * RATE))
    expected = torch.stack([windowed_by_hand(upstream, clip, WINDOW) for clip in clips])
    assert error(packed(upstream, clips, window_frames=WINDOW), expected) <= EXACT
    assert error(packed(upstream, clips), expected) > 100 * EXACT  # one piece is something else


def test_a_window_is_the_clip_cut_there(encoder):
    """Of the large shape, whose stem looks at no more than its receptive field: samples 320 a to 320 (b - 1) + 400."""
    upstream, (clip,) = encoder(), noise(3 * RATE)
    windows = windows_of(int(count_frames(torch.tensor(len(clip)), upstream.config)), WINDOW)
    total = 0
    for start, end, keep_start, keep_end in windows:
        with torch.no_grad():
            states = upstream(clip[None, 320 * start : 320 * (end - 1) + 400], output_hidden_states=True).hidden_states
        kept = [state[0, keep_start - start : keep_end - start].sum(dim=0) for state in states[:NUM_LAYERS]]
        total = total + torch.stack(kept) / windows[-1][1]
    assert error(packed(upstream, [clip], range(NUM_LAYERS), window_frames=WINDOW), total[None]) <= EXACT


NEAR_ONE_PIECE = 0.995  # smallest cosine of a layer, noise of 20 s in windows of 5 s; wide weights, so a strict case


@every_shape
@pytest.mark.parametrize("kernel", [16, 128])
def test_windows_come_close_to_one_piece(encoder, family, norm, kernel):
    upstream, clips = encoder(family, norm, num_conv_pos_embeddings=kernel), noise(20 * RATE)
    one_piece, in_windows = packed(upstream, clips), packed(upstream, clips, window_frames=250)
    assert NEAR_ONE_PIECE <= cosine(in_windows, one_piece) < 1 - 1e-6


def test_group_norm_of_a_window_is_the_whole_clips(encoder):
    """A clip that gets louder: a window's own statistics would level that out."""
    upstream, (clip,) = encoder("wavlm", "group"), noise(4 * RATE)
    louder = clip * torch.linspace(0.1, 3, len(clip))
    assert error(packed(upstream, [louder], window_frames=50), windowed_by_hand(upstream, louder, 50)[None]) <= EXACT


@both_norms
def test_model_takes_its_window_from_the_configuration(spread_model, norm):
    model, (clip,) = spread_model("wavlm", norm, window_s=1.2), noise(5 * RATE)
    assert model.config.window_frames == WINDOW
    with torch.no_grad():
        pooled = model(clip[None]).pooled_layers
    assert error(pooled, windowed_by_hand(model.upstream, clip, WINDOW)[None, model.config.selected_layers]) <= EXACT


# ---- a cache, not state ----


def pooled(model: WavCSEModel, clips: list[torch.Tensor]) -> torch.Tensor:
    """By whichever way the model takes in eval mode without gradients."""
    with torch.no_grad():
        return model.eval()(*padded(clips)).pooled_layers


def ordinary_pooled(model: WavCSEModel, clips: list[torch.Tensor]) -> torch.Tensor:
    """By the transformers module; the weights are copied, so that nothing derived from them can be met."""
    return ordinary(copy.deepcopy(model.upstream), clips, model.config.selected_layers)


def test_no_new_state(spread_model, tmp_path):
    model, clips = spread_model(), noise(5_000)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    expected = pooled(model, clips)
    for precision in LOW_PRECISIONS:
        with torch.no_grad():
            model(clips[0][None], precision=precision)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, _ in model.named_modules()] == modules
    model.save_pretrained(tmp_path)
    assert torch.equal(pooled(WavCSEModel.from_pretrained(tmp_path), clips), expected)


def scaled_state(model: WavCSEModel) -> dict:
    return {name: 1.1 * tensor for name, tensor in model.state_dict().items()}


def write_in_place(model: WavCSEModel) -> None:
    with torch.no_grad():
        for parameter in model.upstream.parameters():
            parameter.mul_(1.1)


def write_one(name: str):
    def write(model: WavCSEModel) -> None:
        with torch.no_grad():
            parameter = model.upstream.get_parameter(name)
            parameter.add_(0.3 * torch.randn_like(parameter))

    return write


def replace_parameter(model: WavCSEModel) -> None:
    convolution = model.upstream.feature_extractor.conv_layers[2].conv
    convolution.weight = nn.Parameter(convolution.weight.detach().flip(0))


def replace_module(model: WavCSEModel) -> None:
    block = model.upstream.encoder.layers[1]
    block.final_layer_norm = nn.LayerNorm(32)
    block.attention.v_proj = nn.Linear(32, 32)


ATTENTION = "encoder.layers.0.attention"
CHANGES = {
    "load_state_dict": lambda model: model.load_state_dict(scaled_state(model)),
    "load_state_dict, assign": lambda model: model.load_state_dict(scaled_state(model), assign=True),
    "in place": write_in_place,
    "replaced parameter": replace_parameter,
    "replaced module": replace_module,
    "rounded": lambda model: model.half().float(),
    **{
        f"only {name}": write_one(name)
        for name in (
            "feature_extractor.conv_layers.0.conv.weight",
            "feature_extractor.conv_layers.0.layer_norm.bias",
            "feature_projection.projection.bias",
            "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
            "encoder.layers.2.final_layer_norm.weight",
            f"{ATTENTION}.rel_attn_embed.weight",
            f"{ATTENTION}.gru_rel_pos_const",
            f"{ATTENTION}.gru_rel_pos_linear.weight",
        )
    },
}


@both_norms
@pytest.mark.parametrize("change", CHANGES)
def test_made_anew_when_weights_change(spread_model, norm, change):
    model, clips = spread_model("wavlm", norm), noise(5_000, 9_000)
    before = pooled(model, clips)
    torch.manual_seed(2)
    CHANGES[change](model)
    after = pooled(model, clips)
    assert error(after, before) > 10 * EXACT
    assert error(after, ordinary_pooled(model, clips)) <= EXACT
    kept = model.run_upstream.packed
    pooled(model, clips)
    assert model.run_upstream.packed is kept  # and only then


@pytest.mark.parametrize("precision", LOW_PRECISIONS)
def test_low_precision_is_made_anew_too(spread_model, precision):
    model, clips = spread_model(precision=precision), noise(5_000, 9_000)
    pooled(model, clips)
    write_in_place(model)
    assert torch.equal(pooled(model, clips), pooled(copy.deepcopy(model), clips))


def test_other_dtype_and_back(spread_model):
    model, clips = spread_model(), noise(5_000, 9_000)
    expected = pooled(model, clips)
    model.to(torch.float64)
    assert "not float32" in unsupported_part(model.upstream)
    assert error(pooled(model, clips), expected) <= EXACT
    model.to(torch.float32)
    assert torch.equal(pooled(model, clips), expected)


def test_the_old_arrangement_is_let_go_of_at_once(spread_model):
    """Its rearranged weights are large; no garbage collection may be needed."""
    model, clips = spread_model(), noise(5_000)
    pooled(model, clips)
    old = weakref.ref(model.run_upstream.packed)
    gc.disable()
    try:
        write_in_place(model)
        pooled(model, clips)
        assert old() is None
    finally:
        gc.enable()


def test_deep_copy_is_independent(spread_model):
    model, clips = spread_model(), noise(5_000, 9_000)
    expected = pooled(model, clips)
    copied = copy.deepcopy(model)
    assert copied.run_upstream.packed is None
    assert torch.equal(pooled(copied, clips), expected)
    write_in_place(copied)
    assert error(pooled(copied, clips), expected) > 10 * EXACT
    assert torch.equal(pooled(model, clips), expected)


OPTIMISERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "fused adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "writing to data": lambda parameters: DataWriter(parameters, {"lr": 0.01}),
}


class DataWriter(torch.optim.Optimizer):
    """Steps behind autograd's back, as some sharding optimisers do."""

    def step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data.sub_(0.01 * parameter.grad.sign())


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("family", "norm"), [("wavlm", "layer"), ("wavlm", "group"), ("hubert", "layer")])
def test_fine_tuning(spread_model, family, norm, optimiser):
    model, clips = spread_model(family, norm, upstream=QUIET, freeze_upstream=False), noise(2_000, 5_000)
    step = OPTIMISERS[optimiser]([parameter for parameter in model.parameters() if parameter.requires_grad])
    previous = pooled(model, clips)
    for _ in range(3):
        step.zero_grad()
        model.train()(*padded(clips)).embeddings.square().mean().backward()
        step.step()
        current = pooled(model, clips)
        with_gradients = model(*padded(clips)).pooled_layers
        assert with_gradients.requires_grad
        assert error(current, with_gradients.detach()) <= EXACT
        assert error(current, previous) > 100 * EXACT
        previous = current


# ---- which path runs ----


@pytest.fixture
def paths(monkeypatch):
    """Names of the paths taken, in order."""
    taken = []

    def spy(target, name: str, label: str) -> None:
        original = getattr(target, name)
        monkeypatch.setattr(target, name, lambda *args, **kwargs: (taken.append(label), original(*args, **kwargs))[1])

    spy(PackedUpstream, "__call__", "packed")
    spy(upstream_wavcse, "run_upstream", "ordinary")
    return taken


def test_unfrozen_upstream_gets_gradients_by_the_ordinary_path(spread_model, paths):
    model, inputs = spread_model(upstream=QUIET, freeze_upstream=False), padded(noise(2_000, 5_000))
    model(*inputs).embeddings.sum().backward()
    assert paths == ["ordinary"]
    assert model.run_upstream.packed is None
    used = [p for name, p in model.upstream.named_parameters() if p.requires_grad and name != "masked_spec_embed"]
    assert all(parameter.grad is not None for parameter in used)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert not model(*inputs).embeddings.requires_grad
    assert paths == ["ordinary", "packed", "packed"]


class Halved(torch.nn.Module):
    """A linear layer with half of its output: it adds no weight."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.layer(x)


@torch.no_grad()
def test_a_layer_that_is_wrapped_afterwards_is_noticed(spread_model, paths):
    model, inputs = spread_model(), padded(noise(2_000, 5_000))
    before = model(*inputs).pooled_layers
    feed_forward = model.upstream.encoder.layers[0].feed_forward
    feed_forward.output_dense = Halved(feed_forward.output_dense)
    after = model(*inputs).pooled_layers
    states = model(*inputs, output_hidden_states=True).hidden_states
    assert paths == ["packed", "ordinary", "ordinary"]
    means = torch.stack([states[layer][1].float().mean(dim=0) for layer in model.config.selected_layers])
    assert error(after[1], means) <= EXACT
    assert error(before[1], means) > EXACT


def test_what_runs_is_found_out_once_for_the_same_weights(spread_model, monkeypatch):
    model, inputs, asked = spread_model(), padded(noise(2_000, 5_000)), []
    original = upstream_wavcse.unsupported_part
    monkeypatch.setattr(upstream_wavcse, "unsupported_part", lambda upstream: asked.append(upstream) or original(upstream))
    with torch.no_grad():
        for _ in range(3):
            model(*inputs)
        assert len(asked) == 1
        model.upstream.to(torch.bfloat16)
        for _ in range(3):
            model(*inputs)  # the ordinary path
        assert len(asked) == 2
        assert model.run_upstream.packed is None
        model.upstream.float()
        model(*inputs)
    assert len(asked) == 3
    assert model.run_upstream.packed is not None


def test_frozen_upstream_runs_packed_under_gradients(spread_model, paths):
    model, inputs = spread_model(), padded(noise(2_000, 5_000))
    for mode in (True, False):
        model.train(mode).zero_grad()
        output = model(*inputs)
        output.embeddings.sum().backward()
        assert not output.pooled_layers.requires_grad
        assert all(parameter.grad is not None for parameter in model.downstream.parameters())
        assert all(parameter.grad is None for parameter in model.upstream.parameters())
    assert paths == ["packed", "packed"]


def test_gradient_of_the_input_is_by_the_ordinary_path(spread_model, paths):
    values = noise(5_000)[0][None].requires_grad_()
    spread_model()(values).embeddings.sum().backward()
    assert values.grad.abs().sum() > 0
    assert paths == ["ordinary"]


def test_gradients_after_inference_mode(spread_model):
    """What was arranged in inference mode serves later calls that train the downstream part."""
    model, inputs = spread_model(), padded(noise(5_000))
    with torch.inference_mode():
        expected = model(*inputs).embeddings
    embeddings = model(*inputs).embeddings
    embeddings.sum().backward()
    assert torch.equal(embeddings, expected)


@pytest.mark.parametrize("wanted", ["output_hidden_states", "output_attentions"])
def test_frames_are_by_the_ordinary_path(spread_model, paths, wanted):
    with torch.no_grad():
        spread_model()(*padded(noise(5_000)), **{wanted: True})
    assert paths == ["ordinary"]


# ---- precision ----

# Smallest cosine of a layer with float32. bfloat16 keeps 8 bits: each product's relative error is about 2^-9, and the wide
# weights of these encoders carry it through every softmax; int8 adds steps of 1/127 of a row's largest value. Over seeds and
# shapes 1 - cosine reached a third of what is allowed here.
NEAR = packed_layers_wavcse.LOWEST_COSINES


@every_shape
@pytest.mark.parametrize("kernel", [16, 128])
@pytest.mark.parametrize("precision", LOW_PRECISIONS)
def test_low_precision_is_near(encoder, family, norm, kernel, precision):
    upstream = encoder(family, norm, num_conv_pos_embeddings=kernel)
    clips = noise(400, 5_000, 30_000)
    exact, near = packed(upstream, clips), PackedUpstream(upstream, precision)(clips, LAYERS)
    assert near.dtype == torch.float32
    assert NEAR[precision] <= cosine(near, exact) < 1 - 1e-9


def test_int8_scales_every_row_and_every_output():
    """A loud frame or a large output does not cost the others their bits."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 32)
    rows = torch.randn(20, 64) * torch.logspace(-3, 3, 20)[:, None]
    rows[7] = 0
    with torch.no_grad():
        linear.weight.mul_(torch.logspace(-3, 1, 32)[:, None])
        linear.bias.zero_()
        expected = linear(rows)
    largest = rows.norm(dim=1)[:, None] * linear.weight.detach().norm(dim=1)
    actual = packed_layers_wavcse.Int8Linear(linear.weight, linear.bias)(rows).float()
    assert ((actual - expected).abs() <= 0.005 * largest).all()


class Products(TorchDispatchMode):
    """Names of the operators that run, and dtypes of the operands of matrix products."""

    def __init__(self):
        super().__init__()
        self.names, self.dtypes = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        operands = {"_linear_pointwise": args[:2], "addmm": args[1:3]}
        operands |= dict.fromkeys(("mm", "_int_mm", "linear"), args[:2])
        self.dtypes |= {tensor.dtype for tensor in operands.get(func.overloadpacket.__name__, ())}
        return func(*args, **(kwargs or {}))


@both_norms
@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", {torch.float32}),
        ("bfloat16", {torch.bfloat16}),
        ("int8", {torch.bfloat16, torch.int8}),  # the stem stays in bfloat16
    ],
)
def test_products_run_in_the_precision_asked_for(encoder, norm, precision, expected):
    upstream = PackedUpstream(encoder("wav2vec2", norm), precision)  # WavLM's gates are float32 in every case
    with Products() as products:
        upstream(noise(5_000), LAYERS)
    assert products.dtypes - {torch.float64} == expected  # the moments of a group norm are float64


@pytest.mark.parametrize("precision", LOW_PRECISIONS)
def test_other_clips_of_the_batch_at_low_precision(encoder, precision):
    """A clip may fall on other block borders, and a last bit then rounds the other way; nothing larger."""
    upstream, clips = PackedUpstream(encoder(), precision), noise(400, 5_000, 30_000)
    alone = torch.cat([upstream([clip], LAYERS) for clip in clips])
    assert cosine(upstream(clips[::-1], LAYERS).flip(0), alone) >= NEAR[precision]


@pytest.mark.parametrize("precision", LOW_PRECISIONS)
def test_residuals_and_means_stay_float32(encoder, precision):
    """A small contribution beside a large residual: 8 bits could not hold both."""
    upstream = encoder(fresh=True)
    with torch.no_grad():
        upstream.feature_projection.projection.bias.fill_(200.0)
        for block in upstream.encoder.layers:
            block.attention.out_proj.weight.mul_(0.01), block.attention.out_proj.bias.zero_()
            block.feed_forward.output_dense.weight.mul_(0.01), block.feed_forward.output_dense.bias.zero_()
    clips = noise(30_000)
    exact, near = packed(upstream, clips), PackedUpstream(upstream, precision)(clips, LAYERS)
    contributions = [means[0, 1:] - means[0, :1] for means in (exact, near)]
    assert exact.abs().min() > 100
    assert contributions[0].abs().max() < 0.5  # under the step of bfloat16 at 200, which is 1
    assert cosine(*contributions) >= NEAR[precision]


@pytest.mark.parametrize("precision", LOW_PRECISIONS)
def test_precision_of_model_and_configuration(spread_model, tmp_path, precision):
    model, inputs = spread_model(), padded(noise(5_000, 9_000))
    model.save_pretrained(tmp_path)
    loaded = WavCSEModel.from_pretrained(tmp_path, precision=precision)
    with torch.no_grad():
        exact, wanted = model(*inputs), model(*inputs, precision=precision)
        assert torch.equal(loaded(*inputs).pooled_layers, wanted.pooled_layers)
        assert torch.equal(loaded(*inputs, precision="float32").pooled_layers, exact.pooled_layers)
        assert torch.equal(model(*inputs).pooled_layers, exact.pooled_layers)
    assert not torch.equal(exact.pooled_layers, wanted.pooled_layers)
    assert wanted.embeddings.dtype == wanted.pooled_layers.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    loaded.save_pretrained(tmp_path / "again")
    assert WavCSEConfig.from_pretrained(tmp_path / "again").precision == precision


def test_precision_of_a_multi_task_model(tiny_multi_task_model):
    exact, low = tiny_multi_task_model(), tiny_multi_task_model(precision="bfloat16")
    inputs = padded(noise(5_000))
    with torch.no_grad():
        assert isinstance(low, WavCSEForMultiTask)
        assert torch.equal(low(*inputs).embeddings, exact.wavcse(*inputs, precision="bfloat16").embeddings)
        assert not torch.equal(low(*inputs).embeddings, exact(*inputs).embeddings)


@pytest.mark.parametrize("precision", LOW_PRECISIONS)
def test_precision_of_the_pipeline(spread_model, waves, precision):
    model, clip = spread_model(), waves(5_000)[0]
    parts = {"model": model, "feature_extractor": WavCSEFeatureExtractor.from_config(model.config)}
    plain = WavCSEFeatureExtractionPipeline(**parts)
    low = WavCSEFeatureExtractionPipeline(**parts, precision=precision)
    exact, wanted = plain(clip, return_tensors=True), low(clip, return_tensors=True)
    assert torch.equal(plain(clip, return_tensors=True, precision=precision), wanted)
    assert torch.equal(low(clip, return_tensors=True, precision="float32"), exact)
    assert not torch.equal(exact, wanted)


def test_unknown_precision(spread_model, encoder):
    with pytest.raises(ValueError, match="precision is 'float16'; allowed: 'float32', 'bfloat16', 'int8'"):
        WavCSEConfig(precision="float16")
    with pytest.raises(ValueError, match="precision is 'float16'; allowed: float32, bfloat16, int8"):
        PackedUpstream(encoder(), "float16")
    with torch.no_grad(), pytest.raises(ValueError, match="precision is 'float16'"):
        spread_model()(*padded(noise(5_000)), precision="float16")


@pytest.mark.parametrize("precision", LOW_PRECISIONS)
@pytest.mark.parametrize("wanted", ["output_hidden_states", "output_attentions"])
def test_low_precision_has_no_frames(spread_model, precision, wanted):
    with torch.no_grad(), pytest.raises(ValueError, match=f"precision='{precision}' is for inference on pooled layers"):
        spread_model()(*padded(noise(5_000)), precision=precision, **{wanted: True})


def test_low_precision_has_no_gradients(spread_model):
    model = spread_model(freeze_upstream=False, precision="bfloat16")
    with pytest.raises(ValueError, match="precision='bfloat16' is for inference"):
        model(*padded(noise(5_000)))
    with torch.no_grad(), pytest.raises(ValueError, match="precision='bfloat16' is for inference"):
        model.train()(*padded(noise(5_000)))
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="not available .* its weights are not float32"),
    ):
        model.eval().bfloat16()(*padded(noise(5_000)))


@pytest.mark.parametrize("precision", packed_encoder_wavcse.PRECISIONS)
@pytest.mark.parametrize("kernel", [16, 128])  # by FFT, clips share blocks
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_input_that_is_not_finite(spread_model, precision, kernel, value):
    model, clips = spread_model(upstream={"num_conv_pos_embeddings": kernel}), noise(5_000, 9_000, 400)
    clips[1][4_000] = value
    with torch.no_grad(), pytest.raises(FloatingPointError, match=f"clip 1: .*not finite at precision='{precision}'"):
        model(*padded(clips), precision=precision)


@pytest.mark.parametrize("precision", packed_encoder_wavcse.PRECISIONS)
@pytest.mark.parametrize("name", ["encoder.layers.3.feed_forward.output_dense.bias", f"{ATTENTION}.q_proj.weight"])
def test_weights_that_are_not_finite(spread_model, precision, name):
    model = spread_model()
    with torch.no_grad():
        model.upstream.get_parameter(name).view(-1)[3] = float("nan")
        with pytest.raises(FloatingPointError, match="clip 0: .*Check its weights"):
            model(*padded(noise(5_000, 9_000)), precision=precision)


# ---- upstreams that cannot run packed ----


class LowRankLinear(nn.Module):
    """A linear layer with an update of rank 1, shaped like those of adapter libraries."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer = base
        self.update = nn.Parameter(torch.randn(base.out_features, 1) @ torch.randn(1, base.in_features))

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + x @ self.update.T


def with_low_rank_update(model: WavCSEModel) -> None:
    attention = model.upstream.encoder.layers[1].attention
    attention.v_proj = LowRankLinear(attention.v_proj)


def with_low_rank_projection(model: WavCSEModel) -> None:
    projection = model.upstream.feature_projection
    projection.projection = LowRankLinear(projection.projection)


def with_low_rank_gate(model: WavCSEModel) -> None:
    attention = model.upstream.encoder.layers[1].attention
    attention.gru_rel_pos_linear = LowRankLinear(attention.gru_rel_pos_linear)


UNSUPPORTED = {
    "stem activation": ("wavlm", {"feat_extract_activation": "relu"}, None, "feat_extract_activation is 'relu'"),
    "block activation": ("wavlm", {"hidden_act": "relu"}, None, "hidden_act is 'relu'"),
    "batch norm": ("hubert", {"conv_pos_batch_norm": True}, None, "positional convolution has a batch norm"),
    "attention adapters": ("wav2vec2", {"adapter_attn_dim": 8}, None, "attention adapters"),
    "bfloat16 weights": ("wavlm", {}, lambda model: model.bfloat16(), "weights are not float32"),
    "low-rank update": ("wavlm", {}, with_low_rank_update, "one of its linear layers is a LowRankLinear"),
    "low-rank projection": ("hubert", {}, with_low_rank_projection, "one of its linear layers is a LowRankLinear"),
    "low-rank gate": ("wavlm", {}, with_low_rank_gate, "one of its linear layers is a LowRankLinear"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_run_packed_runs_as_ever(spread_model, paths, case):
    family, changes, change, reason = UNSUPPORTED[case]
    model, inputs = spread_model(family, upstream=changes), padded(noise(5_000, 9_000))
    if change:
        change(model)
    assert reason in unsupported_part(model.upstream)
    with pytest.raises(ValueError, match="cannot run packed: .*" + reason):
        PackedUpstream(model.upstream)
    with torch.no_grad():
        pooled_layers = model(*inputs).pooled_layers
        states = model(*inputs, output_hidden_states=True).hidden_states
        with pytest.raises(ValueError, match="precision='bfloat16' is not available for this"):
            model(*inputs, precision="bfloat16")
    assert paths == ["ordinary", "ordinary"]
    means = torch.stack([states[layer][1].float().mean(dim=0) for layer in model.config.selected_layers])
    assert error(pooled_layers[1], means) <= EXACT


def test_supported_upstreams_name_nothing(encoder):
    assert [unsupported_part(encoder(*shape)) for shape in SHAPES] == [None] * len(SHAPES)


def largest_int8_error(steps: int) -> float:
    """Of products with weights up to `steps`, against float64: extreme and random operands, few and many rows and columns."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    for rows, inner, columns in itertools.product((1, 33, 200), (8, 64, 100), (8, 96)):
        x = torch.randint(-127, 128, (rows, inner), generator=generator, dtype=torch.int8)
        weight = torch.randint(-steps, steps + 1, (columns, inner), generator=generator, dtype=torch.int8)
        highest = torch.full_like(x, 127), torch.full_like(weight, steps)
        for a, b in ((x, weight), (127 * x.sign(), steps * weight.sign()), highest, (highest[0], -highest[1])):
            errors.append((torch._int_mm(a, b.T).double() - a.double() @ b.double().T).abs().max())
    return float(max(errors))


def saturating_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`torch._int_mm` of x86 processors with AVX2 or AVX-512 but no VNNI: x is shifted to 0..255, and neighbouring products
    are added in pairs that stop at the limits of 16 bits."""
    products = (x.int()[:, :, None] + 128) * weight.int()
    pairs = products.unflatten(1, (-1, 2)).sum(dim=2).clamp(-(2**15), 2**15 - 1)
    return (pairs.sum(dim=1) - 128 * weight.int().sum(dim=0)).int()


def test_int8_products_are_exact_on_this_processor():
    """Whatever it is; and weights are made smaller only where larger ones would go wrong."""
    steps = packed_layers_wavcse.weight_steps(torch.device("cpu"))
    assert steps in (63, 127)
    assert largest_int8_error(steps) == 0
    assert steps == 127 or largest_int8_error(127) > 0


def test_int8_products_are_exact_where_pairs_of_them_saturate(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", saturating_product)
    assert largest_int8_error(127) > 0
    steps = packed_layers_wavcse.weight_steps.__wrapped__(torch.device("cpu"))  # not the value kept for the processor at hand
    assert steps == 63
    assert largest_int8_error(steps) == 0


OLD_PROCESSOR = """
import sys, torch
from transformers import AutoModel
from wavcse import packed_layers_wavcse
from wavcse.packed_encoder_wavcse import PackedUpstream
from wavcse.tests.root.test_packed import largest_int8_error
upstream = AutoModel.from_pretrained(sys.argv[1]).eval()
clips = [torch.randn(20_000, generator=torch.Generator().manual_seed(0))]
exact, *low = (PackedUpstream(upstream, precision)(clips, [0, 1, 2]) for precision in ("float32", "bfloat16", "int8"))
steps = packed_layers_wavcse.weight_steps(torch.device("cpu"))
print(steps, largest_int8_error(steps), largest_int8_error(127), packed_layers_wavcse.uses_onednn(low[0].bfloat16()))
print(*(float(torch.nn.functional.cosine_similarity(exact, other, dim=-1).min()) for other in low))
"""


@pytest.mark.slow  # the machines of CI have them or not
def test_processors_without_the_newest_instructions(upstream_folder):
    """AVX2 and no more, simulated where oneDNN knows that limit (x86); other processors keep the promises that all keep.

    Without bfloat16 instructions the ordinary products run; int8 weights are as large as this processor multiplies exactly.
    """
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-c", OLD_PROCESSOR, str(upstream_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[-2:]
    steps, error_of_steps, error_of_127, uses_bfloat16 = first.split()
    assert (steps, float(error_of_steps)) in {("63", 0), ("127", 0)}
    assert steps == "127" or float(error_of_127) > 0
    if platform.machine() == "x86_64":
        assert uses_bfloat16 == "False"
    assert min(map(float, second.split())) >= NEAR["int8"]


FREED_MEMORY = """
import ctypes, resource, sys, torch
from transformers import AutoModel
from wavcse.packed_encoder_wavcse import PackedUpstream

malloc = ctypes.CDLL(None).malloc
malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p

def is_mapped():  # glibc notes this of each block in the second bit of the number before it; nothing is freed here
    return ctypes.c_size_t.from_address(malloc(30 * 2**20) - ctypes.sizeof(ctypes.c_size_t)).value >> 1 & 1

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**21) for _ in range(6)]  # 48 MB together, more than twice the largest
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

upstream = AutoModel.from_pretrained(sys.argv[1]).eval()
print(is_mapped(), end=" ")
PackedUpstream(upstream)
print(is_mapped(), min(new_pages() for _ in range(5)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_intermediate_results_take_memory_that_is_there(upstream_folder):
    """The packed path has glibc keep what is freed, in a process that did not ask for anything itself.

    Whether pages of freed blocks go back without it is partly chance (a small block behind them holds them), so what
    is seen before is only that a block of 30 MB is mapped by itself: half of what glibc keeps is the bound for that.
    """
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", FREED_MEMORY, str(upstream_folder)]
    done = subprocess.run(command, env=unset, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mapped_before, mapped_after, new_pages = map(int, done.stdout.split())
    assert (mapped_before, mapped_after) == (1, 0)
    assert new_pages < 600  # of 12,288


def test_int8_with_smaller_weights(monkeypatch):
    torch.manual_seed(0)
    layer, rows = nn.Linear(64, 32), torch.randn(20, 64)
    monkeypatch.setattr(packed_layers_wavcse, "weight_steps", lambda device: 63)
    small = packed_layers_wavcse.Int8Linear(layer.weight, layer.bias)
    assert small.weight.abs().max() == 63
    assert (small(rows).float() - layer(rows)).abs().max() <= 0.02


def test_norms_are_float32(encoder):
    """CUDA has no norm of bfloat16 rows with float32 weights, and no precision asks for one."""

    class Norms(TorchDispatchMode):
        dtypes: ClassVar = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "layer_norm" in func.overloadpacket.__name__:
                self.dtypes |= {tensor.dtype for tensor in tree_leaves(args) if isinstance(tensor, torch.Tensor)}
            return func(*args, **(kwargs or {}))

    for precision in packed_encoder_wavcse.PRECISIONS:
        with Norms() as norms:
            PackedUpstream(encoder(), precision)(noise(5_000), LAYERS)
        assert norms.dtypes == {torch.float32}


# ---- memory ----


class LargestTensor(TorchDispatchMode):
    """Elements of the largest storage that any operation returns, other than those of the tensors it was told of."""

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, torch.Tensor)
                and not tensor.is_mkldnn
                and tensor.untyped_storage().data_ptr() not in self.known
            ):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def largest_tensor(run, *known: torch.Tensor) -> int:
    with torch.no_grad(), LargestTensor(*known) as mode:
        run()
    return mode.elements


@pytest.mark.parametrize(("family", "norm"), [("wavlm", "layer"), ("wavlm", "group"), ("hubert", "layer")])
@pytest.mark.parametrize("precision", packed_encoder_wavcse.PRECISIONS)
@pytest.mark.parametrize("kernel", [16, 128])
def test_memory_grows_with_the_length(encoder, family, norm, precision, kernel):
    upstream = encoder(family, norm, num_conv_pos_embeddings=kernel)
    runner = PackedUpstream(upstream, precision)
    for seconds in (10, 40):
        (clip,) = noise(seconds * RATE)
        num_frames = count_frames(len(clip), upstream.config)
        # A block of position bias, [H, rows, T], takes 512 per frame, the moments of the base shape's windows 640.
        assert largest_tensor(lambda clip=clip: runner([clip], LAYERS), clip) <= 700 * num_frames < num_frames**2 * 2


def test_the_ordinary_path_would_show(encoder):
    """That the count above sees a `T x T` tensor."""
    upstream, (clip,) = encoder(), noise(10 * RATE)
    assert largest_tensor(lambda: run_upstream(upstream, clip[None], None, [4]), clip) >= 499**2


@pytest.mark.slow
def test_memory_of_an_hour_is_that_of_a_window():
    """The waveform itself aside, nothing is longer than a window or a pack."""
    fields = {"model_type": "wavlm", "do_stable_layer_norm": True, "feat_extract_norm": "layer", "num_conv_pos_embeddings": 8}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    upstream = {**fields, **sizes, **stem((400, 3), (160, 2), width=4), "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    model = WavCSEModel(WavCSEConfig(upstream, selected_layers=[0, 1], layer_projection_size=8, embedding_size=4)).eval()
    largest = {}
    for seconds in (100, 3_600):
        values = torch.randn(1, seconds * RATE)
        outputs = []
        largest[seconds] = largest_tensor(lambda values=values, outputs=outputs: outputs.append(model(values)), values)
        assert torch.isfinite(outputs[0].embeddings).all()
    assert largest[3_600] <= largest[100] <= packed_layers_wavcse.SCORE_ELEMENTS["onednn"]


def test_runner_keeps_one_arrangement(encoder):
    runner, upstream, (clip,) = UpstreamRunner(), encoder(), noise(5_000)
    with torch.no_grad():
        for precision in (*packed_encoder_wavcse.PRECISIONS, "float32"):
            runner(upstream, clip[None], None, [4], precision=precision)
            assert runner.packed.precision == precision
