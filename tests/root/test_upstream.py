"""The upstream: every layer is the transformers model's, a clip's result is its own in any batch, frozen means frozen."""

import logging

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import (
    AutoModel,
    AutoModelForCTC,
    AutoModelForPreTraining,
    Wav2Vec2FeatureExtractor,
    set_seed,
)

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEModel
from wavcse.configuration_wavcse import count_frames
from wavcse.upstream_wavcse import run_upstream

RATE = 16_000
NUM_LAYERS = 4  # what wavCSE is asked for; the transformers model has one block more, so that index 4 is a plain output
LENGTHS = (400, 5_000, 16_000, 7_000, 5_000, 719)
FIELDS = {"layer_projection_size": 8, "embedding_size": 20}
SHAPES = [(family, norm) for family in ("wavlm", "wav2vec2", "hubert") for norm in ("group", "layer")]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["-".join(shape) for shape in SHAPES], indirect=True)


@pytest.fixture(scope="module")
def shape(request, tiny_upstream, tmp_path_factory):
    """Folder of a transformers model with `NUM_LAYERS + 1` blocks, and that model."""
    upstream = tiny_upstream(*request.param, num_hidden_layers=NUM_LAYERS + 1)
    folder = tmp_path_factory.mktemp("-".join(request.param))
    upstream.save_pretrained(folder)
    return folder, upstream


@every_shape
def test_loading_changes_no_class_of_transformers(shape):
    folder, upstream = shape
    family, before = type(upstream), dict(vars(type(upstream)))
    model = WavCSEModel.from_upstream(str(folder), selected_layers=[1], **FIELDS)
    assert type(model.upstream) is family
    assert dict(vars(family)) == before
    with torch.no_grad():
        clips = [torch.zeros(length) for length in (5_000, 400)]
        padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
        mask = torch.arange(5_000) < torch.tensor([[5_000], [400]])
        assert torch.equal(model.pool_layers(clips), model.pool_layers(padded, mask))  # a list needs no mask


@pytest.fixture
def loaded(shape):
    """wavCSE on all layers of `shape`, and the transformers model to compare with."""
    folder, upstream = shape
    torch.manual_seed(0)
    return WavCSEModel.from_upstream(str(folder), selected_layers=range(NUM_LAYERS + 1), **FIELDS), upstream


def reference_layers(upstream, clip: np.ndarray) -> torch.Tensor:
    """Time means of layers 0..4 `[5, D]` of one unpadded clip, by transformers alone."""
    values = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
    with torch.no_grad():
        states = upstream(torch.from_numpy(values)[None], output_hidden_states=True).hidden_states
    return torch.stack([state[0].mean(dim=0) for state in states[: NUM_LAYERS + 1]])


def prepare(model: WavCSEModel, clips, **kwargs):
    extractor = WavCSEFeatureExtractor.from_config(model.config)
    return extractor(clips, sampling_rate=RATE, return_tensors="pt", **kwargs)


# ---- the right layers ----


@every_shape
def test_every_layer_equals_transformers(loaded, waves):
    model, upstream = loaded
    clips = waves(*LENGTHS)
    with torch.no_grad():
        pooled = model(**prepare(model, clips)).pooled_layers
    expected = torch.stack([reference_layers(upstream, clip) for clip in clips])
    assert pooled.shape == expected.shape == (len(clips), NUM_LAYERS + 1, 32)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)
    neighbours = (expected[:, 1:] - expected[:, :-1]).abs().amax(dim=(0, 2))
    assert (neighbours > 0.1).all()  # no two layers alike, so a shifted index would show


@pytest.mark.parametrize("layers", [[0], [4], [3, 1], [2, 0, 4]], ids=str)
@every_shape
def test_truncated_loading(shape, waves, layers, log):
    folder, upstream = shape
    with log.at_level(logging.INFO):
        model = WavCSEModel.from_upstream(str(folder), selected_layers=layers, **FIELDS)
    assert not [r.getMessage() for r in log.records if r.levelno >= logging.WARNING or "unexpected" in r.getMessage().lower()]
    assert len(model.upstream.encoder.layers) == max(layers)
    assert not model.training
    clip = waves(5_000)[0]
    with torch.no_grad():
        pooled = model(**prepare(model, clip)).pooled_layers[0]
    torch.testing.assert_close(pooled, reference_layers(upstream, clip)[layers], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [("wavlm", "layer"), ("wav2vec2", "layer"), ("hubert", "layer")], indirect=True, ids=str)
def test_final_norm_is_part_of_no_layer(shape, waves):
    folder, upstream = shape
    clip = waves(5_000)[0]
    values = torch.from_numpy((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7))[None]
    truncated = AutoModel.from_pretrained(folder, num_hidden_layers=NUM_LAYERS).eval()
    with torch.no_grad():
        normed = truncated(values).last_hidden_state.mean(dim=1)
        pooled = run_upstream(truncated, values, None, [NUM_LAYERS]).pooled_layers[:, 0]
    torch.testing.assert_close(pooled[0], reference_layers(upstream, clip)[NUM_LAYERS], atol=1e-5, rtol=1e-5)
    assert (pooled - normed).abs().max() > 0.1


def head_checkpoint(family: str, folder, upstream_config) -> AutoModel:
    """A checkpoint with pre-training or CTC heads around the encoder, as most published ones have."""
    config = WavCSEConfig(upstream_config(family), selected_layers=[NUM_LAYERS]).upstream_config
    torch.manual_seed(1)
    model = (AutoModelForPreTraining if family == "wav2vec2" else AutoModelForCTC).from_config(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert"])
def test_heads_of_a_checkpoint_are_left_out_quietly(family, upstream_config, tmp_path, log):
    original = head_checkpoint(family, tmp_path, upstream_config)
    model = WavCSEModel.from_upstream(str(tmp_path), selected_layers=[0, 2], **FIELDS)
    assert log.text == ""
    kept = getattr(original, family).state_dict()
    assert len(model.upstream.state_dict()) > 20
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.upstream.state_dict().items())


@pytest.mark.parametrize("shape", [("wavlm", "layer")], indirect=True, ids=str)
def test_missing_weights_are_reported(shape, tmp_path, log):
    _, upstream = shape
    upstream.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["encoder.layers.1.feed_forward.output_dense.weight"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    WavCSEModel.from_upstream(str(tmp_path), selected_layers=[2], **FIELDS)
    assert "feed_forward.output_dense.weight" in log.text


def test_layer_that_the_upstream_lacks(tiny_upstream, tmp_path):
    tiny_upstream().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="selected_layers asks for layer 5.* layers 0 to 4"):
        WavCSEModel.from_upstream(str(tmp_path), selected_layers=[0, 5])


def test_audio_settings_come_from_the_upstreams_preprocessor(tiny_upstream, tmp_path):
    tiny_upstream().save_pretrained(tmp_path)
    without = WavCSEModel.from_upstream(str(tmp_path), selected_layers=[1], **FIELDS)
    assert (without.config.sampling_rate, without.config.do_normalize) == (16_000, True)
    Wav2Vec2FeatureExtractor(sampling_rate=8_000, do_normalize=False).save_pretrained(tmp_path)
    read = WavCSEModel.from_upstream(str(tmp_path), selected_layers=[1], **FIELDS)
    assert (read.config.sampling_rate, read.config.do_normalize) == (8_000, False)
    given = WavCSEModel.from_upstream(str(tmp_path), selected_layers=[1], do_normalize=True, **FIELDS)
    assert (given.config.sampling_rate, given.config.do_normalize) == (8_000, True)


# ---- a clip's embedding is its own ----


def batches(clips, size: int):
    return [clips[i : i + size] for i in range(0, len(clips), size)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 3, 1, 0, 2, 4)], ids=["given", "shuffled"])
@every_shape
def test_embedding_does_not_depend_on_the_batch(loaded, embed, waves, batch_size, order):
    model, _ = loaded
    clips = waves(*LENGTHS)
    alone = torch.cat([embed(model, [clip]) for clip in clips])
    together = torch.cat([embed(model, batch) for batch in batches([clips[i] for i in order], batch_size)])
    torch.testing.assert_close(together, alone[list(order)], atol=1e-5, rtol=0)
    assert (alone[1] - alone[4]).abs().max() > 1e-3  # same length, different clips


@every_shape
def test_content_and_amount_of_padding_are_irrelevant(loaded, waves):
    model, _ = loaded
    batch = prepare(model, waves(2_000, 5_000))
    longer = prepare(model, waves(2_000, 5_000), padding="max_length", max_length=9_000)
    longer.input_values[longer.attention_mask == 0] = torch.nan
    with torch.no_grad():
        assert torch.equal(model(**batch).embeddings, model(**longer).embeddings)


@pytest.mark.parametrize("shape", [("wav2vec2", "group")], indirect=True, ids=str)
def test_plain_transformers_leaks_padding_into_group_norm(loaded, waves):
    """Why clips go through in groups of one length: the same model, padded and masked, gives another embedding."""
    model, upstream = loaded
    clips = waves(2_000, 16_000)
    with torch.no_grad():
        padded = upstream(**prepare(model, clips), output_hidden_states=True).hidden_states[2][0]
    leaked = padded[: count_frames(torch.tensor(2_000), upstream.config)].mean(dim=0)
    assert (leaked - reference_layers(upstream, clips[0])[2]).abs().max() > 0.01


@every_shape
def test_hidden_states_and_attentions(loaded, waves):
    model, _ = loaded
    clips, frames = waves(2_000, 5_000, 2_000), (6, 15, 6)
    with torch.no_grad():
        output = model(**prepare(model, clips), output_hidden_states=True)
        alone = [model(**prepare(model, clip), output_hidden_states=True) for clip in clips]
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, 15, 32)] * (NUM_LAYERS + 1)
    assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
    for layer, state in enumerate(output.hidden_states):
        for clip, length in enumerate(frames):
            torch.testing.assert_close(state[clip, :length], alone[clip].hidden_states[layer][0], atol=1e-5, rtol=1e-5)
            assert (state[clip, length:] == 0).all()
    means = torch.stack([state.sum(dim=1) for state in output.hidden_states], dim=1) / torch.tensor(frames)[:, None, None]
    torch.testing.assert_close(means, output.pooled_layers, atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [400, 719, 720, 1_039, 1_040, 16_000])
def test_frame_count(loaded_once, samples):
    model = loaded_once
    with torch.no_grad():
        frames = model.upstream.feature_extractor(torch.zeros(1, samples)).shape[-1]
    assert frames == count_frames(torch.tensor(samples), model.upstream.config) == (samples - 400) // 320 + 1


@pytest.fixture(scope="module")
def loaded_once(tiny_model):
    return tiny_model()


MASKS = {
    "left padding": ([0, 0, 1, 1], "padding to its right"),
    "hole": ([1, 0, 1, 1], "padding to its right"),
    "too short": ([1, 0, 0, 0], "clip 1: has 300 samples, too few for one frame"),
    "nothing": ([0, 0, 0, 0], "clip 1: has 0 samples, too few for one frame"),
}


@pytest.mark.parametrize("mask", MASKS)
def test_mask_that_is_refused(loaded_once, mask):
    quarters, message = MASKS[mask]
    attention_mask = torch.tensor([[1, 1, 1, 1], quarters]).repeat_interleave(300, dim=1)
    with pytest.raises(ValueError, match=message):
        loaded_once(torch.randn(2, 1_200), attention_mask)


def test_other_input_that_is_refused(loaded_once):
    with pytest.raises(ValueError, match="clip 0: has 399 samples"):
        loaded_once(torch.randn(1, 399))
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 700\).*input_values \(2, 800\)"):
        loaded_once(torch.randn(2, 800), torch.ones(2, 700))


# ---- frozen and trained ----

NOISY = {"layerdrop": 0.9, "mask_time_prob": 0.9, "mask_time_length": 2, "hidden_dropout": 0.5, "attention_dropout": 0.5}


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert"])
def test_frozen_upstream_is_deterministic_in_training(tiny_multi_task_model, waves, family):
    model = tiny_multi_task_model(family, upstream=NOISY)
    inputs = prepare(model, waves(2_000, 5_000))
    expected = model(**inputs).pooled_layers
    model.train()
    first, second = model(**inputs), model(**inputs)
    assert torch.equal(first.pooled_layers, expected)
    assert torch.equal(second.pooled_layers, expected)
    assert not torch.equal(first.embeddings, second.embeddings)  # our own dropout is live
    assert not any(parameter.requires_grad for parameter in model.wavcse.upstream.parameters())
    assert not any(module.training for module in model.wavcse.upstream.modules())
    assert model.eval().wavcse.downstream.training is False


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_trained_upstream_gets_gradients_everywhere(tiny_model, waves, family, norm):
    quiet = {"layerdrop": 0.0, "mask_time_prob": 0.0}
    model = tiny_model(family, norm, upstream=quiet, freeze_upstream=False).train()
    assert all(module.training for module in model.modules())
    model(**prepare(model, waves(2_000, 5_000))).embeddings.square().sum().backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(name.startswith("upstream.encoder.layers.") for name in trained) >= 3 * 16
    unused = [name for name, grad in trained.items() if grad is None]
    assert unused == []


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert"])
def test_layerdrop_hands_a_skipped_blocks_input_on(tiny_model, waves, family):
    model = tiny_model(family, upstream={"layerdrop": 0.6, "mask_time_prob": 0.0}, freeze_upstream=False).train()
    inputs = prepare(model, waves(2_000, 5_000))
    set_seed(0)
    skipped = 0
    for _ in range(20):
        output = model(**inputs, output_hidden_states=True)
        assert output.pooled_layers.shape == (2, 3, 32)
        assert len(output.hidden_states) == 4
        # the two clips differ in length, so they pass one after the other and may lose different blocks
        skipped += sum(torch.equal(a, b) for a, b in zip(output.hidden_states, output.hidden_states[1:]))
        assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert skipped > 0


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert"])
def test_gradient_checkpointing_gives_equal_gradients(tiny_model, waves, family):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(family, upstream={"layerdrop": 0.0}, freeze_upstream=False).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.upstream.encoder.layers)
        set_seed(0)  # the same dropout and SpecAugment
        output = model(**prepare(model, waves(4_000, 6_000)), output_hidden_states=True)
        (output.embeddings.square().sum() + output.hidden_states[2].square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
