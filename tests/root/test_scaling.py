"""Scaled layers, layers side by side, no FC1: the formula, one affine map, folders, and what older folders mean."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wavcse import WavCSEConfig, WavCSEModel
from wavcse.modeling_wavcse import WavCSEDownstream

B, K, D = 5, 3, 32  # layers 0, 1 and 3 of the tiny upstream
SCALED = {"layer_scaling": "standard"}
CONCAT = {"pooling_type": "concat"}
BARE = {**CONCAT, "layer_projection_size": None}
LINEAR = [{"pooling_type": "weighted_average"}, {"pooling_type": "mean"}, CONCAT, BARE]


def layers(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0.6, 0.05, (B, K, D)).astype(np.float32))


def downstream_of(config: WavCSEConfig) -> WavCSEDownstream:
    torch.manual_seed(0)
    downstream = WavCSEDownstream(config).eval()
    if config.layer_scaling == "standard":
        generator = np.random.default_rng(1)
        downstream.layer_mean.copy_(torch.from_numpy(generator.normal(0.6, 0.1, (K, D))))
        downstream.layer_scale.copy_(torch.from_numpy(generator.uniform(0.02, 0.1, (K, D))))
    return downstream


@pytest.fixture(scope="module")
def scaled(tiny_model) -> WavCSEModel:
    """Layers of the tiny upstream, scaled, side by side, through one projection."""
    model = tiny_model(**SCALED, **BARE)
    model.downstream.load_state_dict(downstream_of(model.config).state_dict())
    return model


@pytest.mark.parametrize("fields", [{"pooling_type": "learned_norm"}, {"pooling_type": "max"}, *LINEAR], ids=str)
def test_layers_are_scaled_before_anything_else(tiny_config, fields):
    scaled, plain = (downstream_of(tiny_config(**fields, **own)) for own in (SCALED, {}))
    weights = {name: own for name, own in scaled.state_dict().items() if name not in ("layer_mean", "layer_scale")}
    plain.load_state_dict(weights)
    expected = plain((layers() - scaled.layer_mean) / scaled.layer_scale)
    assert torch.equal(scaled(layers()), expected)
    assert not torch.allclose(plain(layers()), expected, atol=0.1)


def test_a_new_model_scales_by_nothing(tiny_config):
    scaled, plain = (WavCSEDownstream(tiny_config(**own)) for own in (SCALED, {}))
    assert torch.equal(scaled.scaled(layers()), layers())
    assert set(scaled.state_dict()) - set(plain.state_dict()) == {"layer_mean", "layer_scale"}


@pytest.mark.parametrize("scaling", ["none", "standard"])
@pytest.mark.parametrize("fields", LINEAR, ids=str)
def test_linear_poolings_make_one_affine_map_of_the_layers(tiny_config, fields, scaling):
    downstream = downstream_of(tiny_config(**fields, layer_scaling=scaling))
    if fields["pooling_type"] == "weighted_average":
        torch.nn.init.uniform_(downstream.layer_pooling.weight, -1, 1)
    weight, bias = downstream.double().affine_map()
    assert weight.shape == (20, K * D)
    torch.testing.assert_close(layers().double().flatten(1) @ weight.T + bias, downstream(layers().double()))


def test_another_pooling_is_no_affine_map(tiny_config):
    with pytest.raises(ValueError, match="MaxPooling is no linear map"):
        WavCSEDownstream(tiny_config(pooling_type="max")).affine_map()


def test_sizes_follow_the_form(tiny_config):
    forms = {"concat": CONCAT, "bare": BARE, "max": {"pooling_type": "max", "layer_projection_size": None}}
    networks = {name: WavCSEDownstream(tiny_config(**fields)) for name, fields in forms.items()}
    shapes = {name: {key: tuple(own.shape) for key, own in of.named_parameters()} for name, of in networks.items()}
    assert shapes["concat"]["layer_projection.weight"] == (8, K * D)
    assert shapes["bare"] == {"embedding_projection.weight": (20, K * D), "embedding_projection.bias": (20,)}
    assert shapes["max"] == {"embedding_projection.weight": (20, D), "embedding_projection.bias": (20,)}


def test_a_saved_model_keeps_its_scaling(scaled, waves, tmp_path):
    scaled.save_pretrained(tmp_path)
    loaded = WavCSEModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.downstream.layer_mean, scaled.downstream.layer_mean)
    assert torch.equal(loaded.downstream.layer_scale, scaled.downstream.layer_scale)
    (clip,) = waves(4000)
    np.testing.assert_array_equal(loaded.encode(clip), scaled.encode(clip))
    pooled = scaled.pool_layers([torch.from_numpy((clip - clip.mean()) / clip.std())])
    expected = scaled.downstream(pooled.clone())[0].detach().numpy()
    np.testing.assert_allclose(loaded.encode(clip), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    card = (tmp_path / "README.md").read_text()
    assert "pooled over time, scaled, put side by side\nand projected." in card
    assert "| layer scaling | `standard`: by mean and deviation over the training clips |\n| layer pooling | `concat`" in card
    assert "pooled over time, scaled, put side by side\nand projected." in card


def test_without_its_scaling_a_folder_is_refused(scaled, tmp_path):
    scaled.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["downstream.layer_mean"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the weights lack downstream\.layer_mean"):
        WavCSEModel.from_pretrained(tmp_path)


def test_a_folder_that_does_not_say_it_scales_nothing(tiny_model, waves, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("layer_scaling") == "none"
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = WavCSEModel.from_pretrained(tmp_path)
    assert loaded.config.layer_scaling == "none"
    np.testing.assert_array_equal(loaded.encode(waves(4000)[0]), model.encode(waves(4000)[0]))
    assert "layer scaling" not in (tmp_path / "README.md").read_text()


def test_in_half_precision_clips_are_still_told_apart(scaled, tmp_path):
    """Beside a mean of 0.6 bfloat16 knows no difference below 0.002, a tenth of these layers' deviations."""
    scaled.save_pretrained(tmp_path)
    half = WavCSEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.downstream.layer_mean.dtype == torch.float32
    assert half.downstream.embedding_projection.weight.dtype == torch.bfloat16
    exact = scaled.downstream(layers())
    assert (half.downstream(layers()).float() - exact).norm() < 0.01 * exact.norm()
