"""`WavCSEConfig`: the paper's defaults, parameter counts, refusal of what is out of range, round trips."""

import copy
import re

import pytest
import torch
from transformers import AutoConfig, Wav2Vec2Config, WavLMConfig

from wavcse import WavCSEConfig, WavCSEForMultiTask, WavCSEModel
from wavcse.configuration_wavcse import LAYER_POOLINGS, WAVLM_LARGE
from wavcse.upstream_wavcse import build_on_meta

TASKS = {"keyword": {"labels": ["yes", "no"]}}


def test_defaults_are_the_papers():
    config = WavCSEConfig()
    assert config.selected_layers == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17]
    assert config.upstream_config.model_type == "wavlm"
    assert (config.layer_projection_size, config.embedding_size) == (512, 2000)
    assert (config.pooling_type, config.pooling_kwargs) == ("learned_norm", {"p": 16.0, "learnable": False})
    assert (config.layer_dropout, config.embedding_dropout) == (0.4, 0.6)
    assert (config.temporal_pooling, config.freeze_upstream, config.do_normalize) == ("mean", True, True)
    assert (config.sampling_rate, config.min_samples) == (16_000, 400)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (2000, 17, 16)


@pytest.mark.parametrize(("last_layer", "millions"), [(17, 227.275800), (18, 239.872560), (24, 315.453120)])
def test_parameter_counts_of_the_upstream(last_layer, millions):
    upstream = build_on_meta(WavCSEConfig(selected_layers=[last_layer]).upstream_config)
    allocated = [name for name, parameter in upstream.named_parameters() if not parameter.is_meta]
    assert allocated in ([], ["masked_spec_embed"])  # transformers allocates that one vector whatever the device
    assert sum(parameter.numel() for parameter in upstream.parameters()) == round(millions * 1e6)


def test_parameter_count_of_the_whole_model():
    with torch.device("meta"):
        model = WavCSEModel(WavCSEConfig())
    added = sum(parameter.numel() for parameter in model.downstream.parameters())
    assert added == (1024 * 512 + 512) + (512 * 2000 + 2000)  # FC1, FC2; learned_norm with fixed p has none
    assert sum(parameter.numel() for parameter in model.parameters()) == 227_275_800 + added


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"selected_layers": []}, "selected_layers"),
        ({"selected_layers": [-1, 2]}, "selected_layers"),
        ({"selected_layers": [0, 1.5]}, "selected_layers"),
        ({"selected_layers": [3, 3]}, "selected_layers"),
        ({"selected_layers": [25]}, r"selected_layers.*layer 25.*0 to 24"),
        ({"upstream_config": {"model_type": "bert"}}, r"upstream_config\.model_type"),
        ({"upstream_config": {}}, r"upstream_config\.model_type"),
        ({"upstream_config": {**WAVLM_LARGE, "add_adapter": True}}, r"upstream_config\.add_adapter"),
        ({"temporal_pooling": "attentive"}, "temporal_pooling"),
        ({"layer_projection_size": 0}, "layer_projection_size"),
        ({"layer_projection_size": True}, "layer_projection_size"),
        ({"embedding_size": 2000.0}, "embedding_size"),
        ({"embedding_size": -5}, "embedding_size"),
        ({"pooling_type": "median"}, r"pooling_type.*'learned_norm'"),
        ({"pooling_kwargs": {"q": 2}}, r"pooling_kwargs.*'q'.*allowed: p, learnable"),
        ({"pooling_kwargs": {"p": 0.5}}, r"pooling_kwargs\['p'\]"),
        ({"pooling_kwargs": {"p": 65}}, r"pooling_kwargs\['p'\]"),
        ({"pooling_type": "mixed", "pooling_kwargs": {"max_weight": 1.1}}, r"pooling_kwargs\['max_weight'\]"),
        ({"pooling_type": "log_sum_exp", "pooling_kwargs": {"r": 0, "learnable": True}}, r"pooling_kwargs\['r'\]"),
        ({"layer_dropout": 1.0}, "layer_dropout"),
        ({"embedding_dropout": -0.1}, "embedding_dropout"),
        ({"tasks": {"keyword": {"labels": ["yes"]}}}, r"tasks\['keyword'\]\['labels'\]"),
        ({"tasks": {"keyword": {"labels": ["yes", "yes"]}}}, r"tasks\['keyword'\]\['labels'\]"),
        ({"tasks": {"keyword": {"kind": "guess", "labels": ["a", "b"]}}}, r"tasks\['keyword'\]\['kind'\]"),
        ({"tasks": {"keyword": {"labels": ["a", "b"], "loss_weight": -1}}}, r"tasks\['keyword'\]\['loss_weight'\]"),
        ({"sampling_rate": 0}, "sampling_rate"),
        ({"max_duration_s": 0}, "max_duration_s"),
        ({"max_duration_s": float("nan")}, "max_duration_s"),
    ],
)
def test_field_out_of_range_is_named(fields, named):
    with pytest.raises(ValueError, match=named):
        WavCSEConfig(**fields)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (1, "the name 1 is not text; put it in quotes"),
        (True, "the name True is not text"),
        (None, "the name None is not text"),
        ("", "the name '' must serve"),
        ("a.b", "the name 'a.b' must serve in weights, files and columns"),
        ("a/b", "the name 'a/b' must serve"),
        ("..\\up", "without dots and slashes"),
        ("keyword ", "no blank at either end"),
        ("key\nword", "printable"),
        ("k" * 101, "1 to 100"),
        ("type", "the name 'type' is taken by torch's ModuleDict"),
        ("keys", "the name 'keys' is taken"),
        ("training", "the name 'training' is taken"),
        ("_modules", "the name '_modules' is taken"),
    ],
)
def test_a_task_name_that_cannot_name_a_head_is_refused_with_the_reason(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WavCSEConfig(tasks={name: {"labels": ["yes", "no"]}})


def test_task_names_in_any_script_and_with_blanks_inside_serve(tiny_config):
    names = ["keyword spotting", "Schlüsselwörter", "शब्द", "emotion: valence", "on", "1"]
    model = WavCSEForMultiTask(tiny_config(tasks={name: {"labels": ["a", "b"]} for name in names}))
    assert list(model.heads.tasks) == names


@pytest.mark.parametrize("pooling_type", LAYER_POOLINGS)
@pytest.mark.parametrize("way", ["dict", "file", "auto"])
def test_round_trip(tiny_config, tmp_path, pooling_type, way):
    config = tiny_config("hubert", "group", pooling_type=pooling_type, selected_layers=[2, 0], tasks=TASKS, max_duration_s=7.5)
    if way == "dict":
        again = WavCSEConfig.from_dict(config.to_dict())
    else:
        config.save_pretrained(tmp_path)
        again = (WavCSEConfig if way == "file" else AutoConfig).from_pretrained(tmp_path)
    assert type(again) is WavCSEConfig
    assert type(again.upstream_config) is type(config.upstream_config)
    assert (again.selected_layers, again.num_hidden_layers) == ([2, 0], 2)
    assert again.tasks == {"keyword": {"kind": "classification", "labels": ["yes", "no"], "loss_weight": 1.0}}
    ours, theirs = config.to_dict(), again.to_dict()
    for written_by_saving in ("transformers_version", "_name_or_path"):
        ours.pop(written_by_saving, None), theirs.pop(written_by_saving, None)
    assert theirs == ours


@pytest.mark.parametrize("given", [WavLMConfig(num_hidden_layers=12), dict(WAVLM_LARGE)], ids=["object", "dict"])
def test_users_upstream_config_is_left_alone(given):
    before = copy.deepcopy(given)
    config = WavCSEConfig(given, selected_layers=[0, 3])
    assert config.upstream_config.num_hidden_layers == 3
    assert (given if isinstance(given, dict) else given.to_dict()) == (
        before if isinstance(before, dict) else before.to_dict()
    )


def test_receptive_field_follows_the_stem():
    stem = Wav2Vec2Config(conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2))
    assert WavCSEConfig(stem, selected_layers=[0]).min_samples == 10 + (3 - 1) * 5


def test_hidden_size_is_derived():
    assert WavCSEConfig(embedding_size=7, hidden_size=99).hidden_size == 7
