"""Whatever field of a family's configuration is changed: the model gives what transformers' module gives, or refuses it."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor

from wavcse import WavCSEModel
from wavcse.configuration_wavcse import ARCHITECTURE, UPSTREAM_FAMILIES
from wavcse.tests.helpers.tiny_families import ROWS, error, feature_extractor, inputs_of, module_inputs, module_layers
from wavcse.upstream_wavcse import unread_part

FIELDS_OF = dict(reversed(ROWS.values()))  # of the first row of a family
CONFIGS = {model_type: AutoConfig.for_model(model_type, **fields) for model_type, fields in FIELDS_OF.items()}
LAYERS = [0, 1, 2]  # of three blocks: behind the last one some modules have a norm that is in no layer
# Other values of the fields that an encoder is made of; all of them fit some family, and none fits all.
OTHER_VALUES = {
    "num_hidden_layers": (4,),
    "hidden_size": (48,),
    "num_attention_heads": (2, 8),
    "intermediate_size": (48,),
    "hidden_act": ("relu", "gelu_new"),
    "layer_norm_eps": (0.1,),
    "do_stable_layer_norm": (True,),
    "feat_extract_norm": ("layer",),
    "feat_extract_activation": ("relu",),
    "feat_proj_layer_norm": (False,),
    "conv_dim": ([16] * 6 + [24], [16] * 12 + [24]),
    "conv_kernel": ((10, 3, 3, 3, 3, 2, 3),),
    "conv_stride": ((5, 2, 2, 2, 2, 2, 1),),
    "conv_bias": (True,),
    "conv_pos_batch_norm": (True,),
    "num_conv_pos_embeddings": (3, 15, 65, 128),
    "num_conv_pos_embedding_groups": (2,),
    "conv_pos_kernel_size": (3, 4),
    "num_buckets": (8,),
    "max_bucket_distance": (100,),
    "adapter_attn_dim": (8,),
    "encoder_ffn_dim": (48,),
    "num_mel_bins": (40, 128),
    "max_source_positions": (120,),
    "activation_function": ("relu",),
    "scale_embedding": (True,),
    "squeeze_factor": (3,),
    "feature_layer_norm_eps": (0.1,),
    "max_position_embeddings": (20,),
    "position_buckets": (8,),
    "share_att_key": (False,),
    "relative_attention": (False,),
    "pos_att_type": (["p2c"], ["c2p"]),
    "norm_rel_ebd": ("none",),
    "feature_projection_input_dim": (80,),
    "position_embeddings_type": ("rotary", "relative", None),
    "rotary_embedding_base": (100,),
    "left_max_position_embeddings": (5,),
    "right_max_position_embeddings": (3,),
    "conv_depthwise_kernel_size": (15,),
    "encoder_hidden_act": ("relu",),
    "encoder_num_attention_heads": (2,),
    "encoder_num_key_value_heads": (2,),
    "attention_bias": (True,),
    "pad_head_dim_to_multiple_of": (16,),
    "rope_parameters": ({"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},),
}
# Of all fields of all families, those that say what a file is rather than what its encoder does.
NOT_VARIED = {"architectures", "dtype", "id2label", "label2id", "model_type", "transformers_version", "torch_dtype"}


def test_every_field_that_an_encoder_is_made_of_has_another_value():
    assert set(OTHER_VALUES) == set(ARCHITECTURE)
    assert set(CONFIGS) == set(UPSTREAM_FAMILIES)


def remaining_fields() -> dict:
    """Every other field of any family, with another value of its type."""
    found = {}
    for config in CONFIGS.values():
        for name, value in config.to_dict().items():
            if isinstance(value, bool | int | float) and name not in NOT_VARIED | set(OTHER_VALUES):
                found[name] = (not value) if isinstance(value, bool) else value + (1 if isinstance(value, int) else 0.25)
    return found


def module_of(model_type: str, fields: dict) -> torch.nn.Module | None:
    """transformers' module with spread random weights, or `None` where transformers refuses the fields."""
    torch.manual_seed(0)
    try:
        module = AutoModel.from_config(AutoConfig.for_model(model_type, **{**FIELDS_OF[model_type], **fields})).eval()
        module.config.validate()
    except Exception:  # of many kinds
        return None
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def expected_layers(module, clip: np.ndarray) -> torch.Tensor:
    """The first layers by the module's own `forward`, averaged over the frames of the clip alone, `[K, D]`."""
    model_type = module.config.model_type
    module.config.return_dict = True  # for this call: the model has read the saved one
    if model_type != "whisper":
        return module_layers(module, model_type, module_inputs(model_type, clip))[: len(LAYERS)].mean(dim=1)
    samples, bins = 320 * module.config.max_source_positions, module.config.num_mel_bins
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=samples / 16_000)
    features = extractor(clip, sampling_rate=16_000, return_tensors="pt", max_length=samples)["input_features"]
    with torch.no_grad():
        states = module.encoder(features, output_hidden_states=True).hidden_states[: len(LAYERS)]
    return torch.cat(states)[:, : -(-len(clip) // 320)].mean(dim=1)


def difference(model_type: str, fields: dict, clip: np.ndarray, tmp_path) -> float | None:
    """Of the model from transformers' module, relative; `None` where either refuses the fields, the model naming one."""
    module = module_of(model_type, fields)
    if module is None:
        return None
    module.save_pretrained(tmp_path)
    feature_extractor(model_type).save_pretrained(tmp_path)
    own = {"selected_layers": LAYERS, "layer_projection_size": 8, "embedding_size": 20}
    own |= {"context": "window"} if model_type == "whisper" else {}
    try:
        model, refusal = WavCSEModel.from_upstream(str(tmp_path), **own), ""
    except ValueError as raised:
        model, refusal = None, str(raised)
    if model is None:
        assert any(name in refusal for name in fields), refusal
        return None
    with torch.no_grad():
        pooled = model(**inputs_of(model, [clip])).pooled_layers[0]
        states = model(**inputs_of(model, [clip]), output_hidden_states=True).hidden_states
    expected = expected_layers(module, clip)
    by_modules = torch.stack([state[0].mean(dim=0) for state in states])
    return max(error(pooled, expected), error(by_modules, expected))


@pytest.fixture
def clip(waves) -> np.ndarray:
    return waves(7_001)[0]


# What was once read as another family's field, or not read at all.
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("data2vec-audio", {"do_stable_layer_norm": True}),
        ("wavlm", {"squeeze_factor": 3}),
        ("sew", {"return_dict": False}),
        ("whisper", {"conv_dim": [16] * 7}),
    ],
)
def test_a_stray_field_changes_what_it_changes_in_transformers(model_type, fields, clip, tmp_path):
    assert difference(model_type, fields, clip, tmp_path) <= 1e-5


def test_the_norm_behind_the_last_block_is_that_of_the_large_shape_alone():
    assert unread_part(module_of("data2vec-audio", {"do_stable_layer_norm": True})) is None
    large = module_of("hubert", {"do_stable_layer_norm": True})
    assert unread_part(large) is large.encoder.layer_norm


@pytest.mark.slow
@pytest.mark.parametrize("model_type", UPSTREAM_FAMILIES)
def test_a_field_that_encoders_are_made_of_is_obeyed_or_refused(model_type, clip, tmp_path):
    compared = 0
    for name, values in OTHER_VALUES.items():
        for number, value in enumerate(values):
            found = difference(model_type, {name: value}, clip, tmp_path / f"{name}-{number}")
            assert found is None or found <= 1e-5, (model_type, name, value, found)
            compared += found is not None
    assert compared >= 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("model_type", UPSTREAM_FAMILIES)
def test_any_fields_together_are_obeyed_or_refused(model_type, seed, clip, tmp_path):
    """Few of those that encoders are made of, and many others at once, which are to change nothing or the same in both."""
    generator, others = np.random.default_rng(seed), remaining_fields()
    compared = 0
    for attempt in range(4):
        names = [
            *generator.choice(sorted(OTHER_VALUES), 2, replace=False),
            *generator.choice(sorted(others), 8, replace=False),
        ]
        values = {name: OTHER_VALUES[name][-1] if name in OTHER_VALUES else others[name] for name in map(str, names)}
        found = difference(model_type, values, clip, tmp_path / str(attempt))
        assert found is None or found <= 1e-5, (model_type, values, found)
        compared += found is not None
    assert compared
