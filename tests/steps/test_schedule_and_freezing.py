"""The tri-stage schedule, Adam without decay, and parts of an encoder that stay as they are."""

import itertools
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import HubertConfig, Wav2Vec2Config, WavLMConfig, WhisperConfig

from wavcse.steps.arguments import StepArguments, learning_rate_factor, tri_stage_factor
from wavcse.steps.freezing import Freeze, Freezing
from wavcse.steps.loop import new_learner, update
from wavcse.tests.helpers.tiny_families import DROPOUTS, SMALLEST
from wavcse.upstream_wavcse import build_upstream
from wavcse.whisper_wavcse import visit_encoder_layers

SIZES = {**SMALLEST, "num_hidden_layers": 3, **dict.fromkeys(DROPOUTS, 0.5)}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {"d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8}
CONFIGS = {
    "wavlm": WavLMConfig(**SIZES),
    "wav2vec2": Wav2Vec2Config(**SIZES, **STABLE),
    "hubert": HubertConfig(**SIZES, conv_pos_batch_norm=True),
    "whisper": WhisperConfig(**WHISPER, max_source_positions=40, dropout=0.5),
}
every_family = pytest.mark.parametrize("family", CONFIGS)


def test_tri_stage_at_its_corners():
    factor = learning_rate_factor(500, 1000, "tri_stage")
    assert [factor(step) for step in (0, 100, 300, 500, 1000)] == pytest.approx([0.01, 1, 1, 1, 0.05], rel=1e-12)
    assert factor(50) == pytest.approx((0.01 + 1) / 2)
    assert factor(750) == pytest.approx(math.sqrt(0.05))


def test_tri_stage_does_not_jump():
    factors = [tri_stage_factor(step / 10_000) for step in range(10_001)]
    assert max(abs(one - other) for one, other in itertools.pairwise(factors)) < 1.1e-3


def test_without_decay_the_optimiser_is_adam():
    torch.manual_seed(0)
    one, other = nn.Linear(5, 3), nn.Linear(5, 3)
    other.load_state_dict(one.state_dict())
    args = StepArguments(weight_decay=0.0, learning_rate=1e-2, decay="tri_stage", max_steps=10)
    learner, adam = new_learner(args, one), torch.optim.Adam(other.parameters(), lr=1e-2, betas=(0.9, 0.98))
    for step in range(10):
        adam.param_groups[0]["lr"] = 1e-2 * tri_stage_factor(step / 10)
        for network, optimizer in ((one, learner.optimizer), (other, adam)):
            optimizer.zero_grad()
            network(torch.linspace(-1, 1, 5)).square().sum().backward()
            optimizer.step()
        learner.scheduler.step()
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-5, atol=1e-7)


class Network(nn.Module):
    """An encoder and a head on its last frames, as it is trained: what is frozen stays in eval mode."""

    def __init__(self, family: str, freeze: Freeze):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = build_upstream(CONFIGS[family])
        self.head = nn.Linear(16, 1)
        self.freezing = Freezing(self.encoder, freeze)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.freezing.hold()
        return self

    def forward(self, batch: torch.Tensor, seed: int) -> torch.Tensor:
        return self.head(self.frames(batch)).square().mean()

    def frames(self, batch: torch.Tensor) -> torch.Tensor:
        if self.encoder.config.model_type != "whisper":
            mask = torch.arange(4).expand(len(batch), 4) == 1
            return self.encoder(batch, mask_time_indices=mask).last_hidden_state
        layers = {}
        visit_encoder_layers(self.encoder, batch[:, : 8 * 60].view(-1, 8, 60), layers.__setitem__)
        return self.encoder.layer_norm(layers[3])


class Untold:
    def add(self, batch, output) -> None:
        pass


def changes(network: Network, step: int, num_steps: int = 2) -> set[str]:
    """Names of the parameters and buffers that change in updates from `step` on."""
    learner = new_learner(StepArguments(decay="constant", warmup_steps=0), network)
    learner.progress.step = step
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(num_steps):
        network.freezing.at(learner.progress.step)
        batch = torch.randn(2, 1600, generator=torch.Generator().manual_seed(step))
        update(Accelerator(cpu=True), learner, [batch], Untold(), lambda loss, *_: loss)
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def of_blocks(family: str, first: int) -> tuple[str, ...]:
    place = "encoder.layers" if family == "whisper" else "encoder.encoder.layers"
    return tuple(f"{place}.{block}." for block in range(first, 3))


@every_family
def test_before_encoder_until_only_heads_change(family):
    network = Network(family, Freeze(encoder_until=3))
    assert changes(network, 0) == {"head.weight", "head.bias"}
    batch = torch.randn(2, 1600)
    assert torch.equal(network.train().frames(batch), network.frames(batch))  # no dropout
    network.freezing.at(3)
    assert not torch.equal(network.train().frames(batch), network.frames(batch))


@every_family
def test_the_stem_stays_and_the_rest_learns(family):
    network = Network(family, Freeze(encoder_until=3))
    changed, stem = changes(network, 3), ("encoder.conv", "encoder.embed_positions", "encoder.feature_extractor")
    assert not {name for name in changed if name.startswith(stem)}
    learnt = {name for name, _ in network.named_parameters() if not name.startswith(stem)}
    learnt -= {name for name in learnt if name.endswith(("k_proj.bias", "gru_rel_pos_const"))}  # a key's bias has none
    assert learnt <= changed


@every_family
def test_lower_blocks_stay_and_have_no_dropout(family):
    network = Network(family, Freeze(stem=False, blocks=2))
    changed = changes(network, 0)
    upper = (*of_blocks(family, 2), "head.", *(["encoder.layer_norm."] if family == "whisper" else []))
    upper += ("encoder.encoder.layer_norm.",) if family == "wav2vec2" else ()  # the final norm of the large shape
    assert {name for name in changed if not name.startswith(upper)} == set()
    for prefix in upper:
        assert any(name.startswith(prefix) for name in changed), prefix
    blocks = network.train().encoder.layers if family == "whisper" else network.train().encoder.encoder.layers
    assert [block.training for block in blocks] == [False, False, True]


@every_family
def test_nothing_is_frozen_where_nothing_is_asked_for(family):
    network = Network(family, Freeze(stem=False))
    stem = ("encoder.conv1.", "encoder.feature_extractor.")
    assert any(name.startswith(stem) for name in changes(network, 0, 1))


def test_what_had_no_gradient_never_gets_one():
    network = Network("wav2vec2", Freeze(stem=False))
    network.encoder.encoder.layer_norm.requires_grad_(False)  # as where no task reads the encoder's output
    freezing = Freezing(network.encoder, Freeze(stem=False, encoder_until=1))
    for step in (0, 1):
        freezing.at(step)
        assert not network.encoder.encoder.layer_norm.weight.requires_grad
        assert network.encoder.encoder.layers[0].layer_norm.weight.requires_grad == (step == 1)


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match="freeze: blocks is 4; the encoder has 3"):
        Freezing(build_upstream(CONFIGS["wavlm"]), Freeze(blocks=4))
