"""ECAPA-TDNN: against transformers' own (Qwen2.5-Omni's), what its norms do, and that padding changes nothing."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import ECAPA_TimeDelayNet

from wavcse.ecapa_wavcse import EcapaTdnn, FrameLayer, FrameNorm, extent_of, mirrored

SIZES = {"input_size": 12, "channels": 16, "aggregated_channels": 24, "embedding_size": 6}


@pytest.fixture(scope="module")
def network() -> EcapaTdnn:
    """Weights far from zero, and norms that change what goes through them."""
    torch.manual_seed(0)
    network = EcapaTdnn(**SIZES)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.uniform_(-0.5, 0.5)
    return network


@pytest.fixture
def eval_network(network) -> EcapaTdnn:
    return copy.deepcopy(network).eval()


def transformers_form(network: EcapaTdnn) -> ECAPA_TimeDelayNet:
    """transformers' class, which has no norms, with the same weights."""
    config = SimpleNamespace(
        mel_dim=12,
        enc_channels=[16, 16, 16, 16, 24],
        enc_kernel_sizes=[5, 3, 3, 3, 1],
        enc_dilations=[1, 2, 3, 4, 1],
        enc_res2net_scale=8,
        enc_se_channels=128,
        enc_attention_channels=128,
        enc_dim=6,
    )
    # Where it has blocks of 24 channels at the end, ours aggregates 3 x 16; its `mfa` takes what is concatenated.
    theirs = ECAPA_TimeDelayNet(config)
    theirs.mfa.conv = torch.nn.Conv1d(48, 24, 1)
    pairs = [(network.first.conv, theirs.blocks[0].conv), (network.aggregation.conv, theirs.mfa.conv)]
    for ours, block in zip(network.blocks, theirs.blocks[1:], strict=True):
        pairs += [(ours.before.conv, block.tdnn1.conv), (ours.after.conv, block.tdnn2.conv)]
        pairs += [(ours.gate.squeeze, block.se_block.conv1), (ours.gate.excite, block.se_block.conv2)]
        pairs += [(one.conv, other.conv) for one, other in zip(ours.between.layers, block.res2net_block.blocks, strict=True)]
    pairs += [(network.pooling.layer.conv, theirs.asp.tdnn.conv), (network.pooling.score, theirs.asp.conv)]
    pairs += [(network.projection, theirs.fc)]
    for one, other in pairs:
        other.weight.data, other.bias.data = one.weight.data.view(other.weight.shape), one.bias.data
    assert sum(own.numel() for one, _ in pairs for own in one.parameters()) == sum(w.numel() for w in theirs.parameters())
    return theirs


def test_with_neutral_norms_it_is_transformers_ecapa(eval_network):
    for module in eval_network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eps = 0.0
            for name, value in (("running_mean", 0.0), ("running_var", 1.0), ("weight", 1.0), ("bias", 0.0)):
                getattr(module, name).data.fill_(value)
    frames = torch.randn(3, 40, 12)
    with torch.no_grad():
        found, expected = eval_network(frames), transformers_form(eval_network)(frames)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_layer_is_convolution_then_relu_then_norm():
    layer, frames = FrameLayer(4, 3, kernel_size=3, dilation=2).eval(), torch.randn(2, 4, 9)
    layer.norm.running_mean.data, layer.norm.running_var.data = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([4.0, 1.0, 0.25])
    rectified = F.relu(F.conv1d(F.pad(frames, (2, 2), mode="reflect"), layer.conv.weight, layer.conv.bias, dilation=2))
    expected = (rectified - torch.tensor([0.5, -1.0, 2.0])[:, None]) / torch.tensor([4.0, 1.0, 0.25]).add(1e-5).sqrt()[:, None]
    torch.testing.assert_close(layer(frames, extent_of(frames.transpose(1, 2), None)), expected)


def test_its_size_is_that_of_the_paper():
    """6.2 M with 512 channels on 80 filterbank energies (Desplanques et al., Table 1)."""
    assert 6.15e6 < sum(weight.numel() for weight in EcapaTdnn(80).parameters()) < 6.25e6
    assert EcapaTdnn(80).eval()(torch.randn(1, 10, 80)).shape == (1, 192)


def padded(clips: list[torch.Tensor], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips `[T, D]` as one batch, with large numbers in the padding, and its mask."""
    longest = max(map(len, clips)) + extra
    frames = torch.stack([torch.cat([clip, 100 * torch.randn(longest - len(clip), clip.shape[1])]) for clip in clips])
    return frames, torch.arange(longest) < torch.tensor([[len(clip)] for clip in clips])


@pytest.mark.parametrize("extra", [0, 3])
def test_padding_does_not_change_a_vector(eval_network, extra):
    """Lengths down to one frame, which is shorter than what a convolution mirrors."""
    clips = [torch.randn(length, 12) + 2 * torch.randn(12) for length in (30, 17, 4, 1)]
    with torch.no_grad():
        together = eval_network(*padded(clips, extra))
        for clip, vector in zip(clips, together, strict=True):
            torch.testing.assert_close(eval_network(clip[None])[0], vector, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_padding_does_not_change_a_training_step(network):
    """Loss, gradients and the norms' running figures, which are batch statistics in training."""
    clips = [torch.randn(20, 12) for _ in range(4)]
    found = []
    for batch in ((torch.stack(clips),), padded(clips, extra=7)):
        own = copy.deepcopy(network).train()
        own(*batch).square().sum().backward()
        found.append({**{name: weight.grad for name, weight in own.named_parameters()}, **dict(own.named_buffers())})
    plain, with_padding = found
    largest = max(value.norm() for name, value in plain.items() if value.is_floating_point())
    for name, value in plain.items():
        assert torch.linalg.norm((with_padding[name] - value).float()) <= 1e-5 * value.float().norm() + 1e-6 * largest, name


def test_norms_of_training_see_frames_that_are_there():
    norm, clips = FrameNorm(2), [torch.randn(5, 2), 3 + torch.randn(2, 2)]
    frames, mask = padded(clips)
    found = norm(frames.transpose(1, 2), extent_of(frames, mask)).transpose(1, 2)
    rows = torch.cat(clips)
    expected = (rows - rows.mean(dim=0)) / (rows.var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(found[mask], expected)


def test_a_clip_alone_in_training_is_normed_by_the_running_figures(network):
    norm = copy.deepcopy(network.norm).train()
    vector = torch.randn(1, 48)
    expected = (vector - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(vector), expected)
    assert torch.equal(norm.running_mean, network.norm.running_mean)


def test_a_clip_is_mirrored_at_its_own_end():
    row = torch.tensor([0.0, 1.0, 2.0, 9.0, 9.0]).expand(1, 1, -1)
    assert mirrored(row, 2, torch.tensor([3]))[0, 0, :7].tolist() == [2, 1, 0, 1, 2, 1, 0]
    assert mirrored(row[..., :2], 3, None)[0, 0].tolist() == [1, 0, 1, 0, 1, 0, 1, 0]  # as often as it takes


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 4, dtype=torch.bool), r"mask has shape \[2, 4\], but frames \[2, 5, 12\]"),
        (torch.tensor([[False, True, True, True, True], [True] * 5]), "padding to their right"),
        (torch.tensor([[False] * 5, [True] * 5]), "at least one"),
    ],
)
def test_masks_that_are_none(eval_network, mask, message):
    with pytest.raises(ValueError, match=message):
        eval_network(torch.randn(2, 5, 12), mask)
