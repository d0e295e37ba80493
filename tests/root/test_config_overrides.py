"""Overridden, assigned and damaged configurations: held to the rules of new ones, and to what trained weights depend on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from wavcse import WavCSEConfig, WavCSEForMultiTask, WavCSEModel
from wavcse.configuration_wavcse import WAVLM_LARGE

KEYWORD = ["yes", "no", "stop"]  # of the fixture's head


@pytest.fixture(scope="module")
def trained(tiny_multi_task_model) -> WavCSEForMultiTask:
    return tiny_multi_task_model(upstream={"conv_dim": [16, 16], "conv_kernel": [400, 3], "conv_stride": [160, 2]})


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """`trained`, saved: tasks keyword (3 classes) and emotion (2 classes), layers 0, 1 and 3."""
    folder = tmp_path_factory.mktemp("saved")
    trained.save_pretrained(folder)
    return folder


# ---- overrides ----


@pytest.mark.parametrize(
    "auto_class", [AutoModel, WavCSEModel, WavCSEForMultiTask], ids=lambda auto_class: auto_class.__name__
)
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"selected_layers": [0, 1]},
            r"selected_layers is \[0, 1\], but the weights of .* were trained with \[0, 1, 3\]: every",
        ),
        ({"selected_layers": [0, 9]}, "asks for layer 9, but the upstream .* has layers 0 to 3"),
        ({"temporal_pooling": "mean_std"}, "temporal_pooling is 'mean_std', but the weights"),
        ({"pooling_type": "nope"}, "pooling_type is 'nope'; allowed: 'weighted_average', "),
        ({"pooling_type": "max"}, "pooling_type is 'max', but the weights .* trained with 'learned_norm'"),
        ({"pooling_kwargs": {"p": 2.0}}, "pooling_kwargs is .*2.0.* trained with .*16.0"),
        ({"embedding_size": 10, "ignore_mismatched_sizes": True}, "embedding_size is 10, but .* with 20: the weights have"),
        ({"layer_projection_size": 4}, "layer_projection_size is 4, but"),
        ({"layer_scaling": "standard"}, "layer_scaling is .* trained with 'none': .* layers scaled in this way"),
        ({"sampling_rate": 8000}, "sampling_rate is 8000, but .* trained on speech at that rate"),
        ({"do_normalize": False}, "do_normalize is False, but"),
        ({"upstream_config": {"hidden_act": "relu"}}, "upstream_config.hidden_act is 'relu', but .* trained with 'gelu'"),
        ({"num_hidden_layers": 2}, "num_hidden_layers follows from other fields"),
        ({"window_s": "long"}, "window_s is 'long'"),
        ({"tasks": {"x": {"label": ["a", "b"]}}}, r"tasks\['x'\]\['label'\] is unknown; a task has kind, labels, loss_weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_overridden_says_why(folder, auto_class, override, message):
    with pytest.raises(ValueError, match=message):
        auto_class.from_pretrained(folder, **override)


def test_what_may_be_overridden(folder, trained, waves, embed):
    changes = {"layer_dropout": 0.0, "window_s": 30, "freeze_upstream": False, "upstream_config": {"layerdrop": 0.0}}
    model = WavCSEModel.from_pretrained(folder, **changes)
    assert (model.config.layer_dropout, model.config.window_s, model.config.upstream_config.layerdrop) == (0.0, 30.0, 0.0)
    assert model.upstream.encoder.layers[0].attention.q_proj.weight.requires_grad
    clips = waves(3_000)
    assert torch.equal(embed(model, clips), embed(trained, clips))


@pytest.mark.parametrize("auto_class", [AutoConfig, WavCSEConfig], ids=lambda auto_class: auto_class.__name__)
def test_an_overridden_configuration_is_validated_and_complete(folder, auto_class):
    config = auto_class.from_pretrained(folder, tasks={"x": {"labels": ["a", "b"]}}, selected_layers=[2], pooling_type="mean")
    assert config.tasks == {"x": {"kind": "classification", "labels": ["a", "b"], "loss_weight": 1.0}}
    assert (config.selected_layers, config.num_hidden_layers, config.pooling_kwargs) == ([2], 2, {})
    with pytest.raises(ValueError, match="embedding_size is -3"):
        auto_class.from_pretrained(folder, embedding_size=-3)


def test_assigned_fields_are_validated_when_used(folder, tmp_path):
    config = WavCSEConfig.from_pretrained(folder)
    config.tasks = {"x": {"labels": ["a", "b"]}}
    assert WavCSEForMultiTask.from_pretrained(folder, config=config).config.tasks["x"]["loss_weight"] == 1.0
    assert list(WavCSEForMultiTask(config).heads.tasks) == ["x"]
    config.pooling_kwargs = {"p": "large"}
    for use in (
        lambda: WavCSEModel(config),
        lambda: WavCSEModel.from_pretrained(folder, config=config),
        lambda: config.save_pretrained(tmp_path),
    ):
        with pytest.raises(ValueError, match=r"pooling_kwargs\['p'\] is 'large'"):
            use()
    config.pooling_kwargs = {"p": 3.0}
    with pytest.raises(ValueError, match="pooling_kwargs is .* but the weights"):
        WavCSEModel.from_pretrained(folder, config=config)


# ---- heads ----


def test_a_head_is_added(folder, trained, log):
    model = WavCSEForMultiTask.from_pretrained(folder, tasks={**trained.config.tasks, "x": {"labels": ["a", "b"]}})
    assert list(model.heads.tasks) == ["keyword", "emotion", "x"]
    for name in ("keyword", "emotion"):
        assert torch.equal(model.heads.tasks[name].weight, trained.heads.tasks[name].weight)
    assert model.heads.tasks["x"].weight.shape == (2, 20)
    assert "heads.tasks.x.weight" in log.text
    assert "MISSING" in log.text  # transformers' own report


def test_heads_are_replaced(folder, trained, waves, embed):
    model = WavCSEForMultiTask.from_pretrained(folder, tasks={"x": {"labels": ["a", "b", "c"]}})
    assert list(model.heads.tasks) == ["x"]
    clips = waves(3_000)
    assert torch.equal(embed(model, clips), embed(trained, clips))


@pytest.mark.parametrize("labels", [["yes", "no", "go"], ["no", "yes", "stop"], [*KEYWORD, "go"], ["yes", "no"]])
def test_a_head_never_serves_other_labels(folder, trained, labels, log):
    tasks = {**trained.config.tasks, "keyword": {"labels": labels}}
    with pytest.raises(
        ValueError, match=r"tasks\['keyword'\]\['labels'\] differ .* \(yes, no, stop\).*ignore_mismatched_sizes"
    ):
        WavCSEForMultiTask.from_pretrained(folder, tasks=tasks)
    model = WavCSEForMultiTask.from_pretrained(folder, tasks=tasks, ignore_mismatched_sizes=True)
    head = model.heads.tasks["keyword"]
    assert head.weight.shape == (len(labels), 20)
    rows = min(len(labels), 3)
    assert not (head.weight[:rows] == trained.heads.tasks["keyword"].weight[:rows]).any()
    assert 0 < head.weight.abs().max() <= 20**-0.5  # initialised, as a new head is
    assert torch.equal(model.heads.tasks["emotion"].weight, trained.heads.tasks["emotion"].weight)
    assert "heads.tasks.keyword starts from scratch" in log.text


def test_labels_of_a_model_without_heads_may_change(folder, tmp_path):
    WavCSEModel.from_pretrained(folder).save_pretrained(tmp_path)
    model = WavCSEForMultiTask.from_pretrained(tmp_path, tasks={"keyword": {"labels": ["a", "b"]}})
    assert model.heads.tasks["keyword"].weight.shape == (2, 20)


# ---- damaged files ----


def test_weights_of_another_configuration(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    fields = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "embedding_size": 21}))
    with pytest.raises(ValueError, match="config.json asks for other sizes than the weights have"):
        WavCSEModel.from_pretrained(tmp_path)
    upstream = {**fields["upstream_config"], "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "upstream_config": upstream, "selected_layers": [0, 1, 4]}))
    with pytest.raises(ValueError, match=r"the weights lack upstream\.encoder\.layers\.3\..* embeddings would be random"):
        WavCSEModel.from_pretrained(tmp_path)


def test_another_kind_of_model_is_no_wavcse_model(upstream_folder):
    with pytest.raises(ValueError, match="of type 'wavlm', not a saved wavCSE model.*from_upstream"):
        WavCSEModel.from_pretrained(upstream_folder)


NONSENSE = ["x", None, -1, 0.5, float("nan"), float("inf"), 10**30, [], ["x"], {}, {"x": None}, True]
UPSTREAM = [
    *("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "num_conv_pos_embeddings"),
    *("num_conv_pos_embedding_groups", "conv_dim", "conv_kernel", "conv_stride", "num_buckets", "max_bucket_distance"),
    *("hidden_act", "feat_extract_norm", "feat_extract_activation", "do_stable_layer_norm", "layer_norm_eps", "layerdrop"),
    *("hidden_dropout", "mask_time_prob", "mask_time_length", "apply_spec_augment", "conv_bias", "model_type"),
]
OWN = [
    *("selected_layers", "temporal_pooling", "layer_projection_size", "pooling_type", "pooling_kwargs", "embedding_size"),
    *("layer_dropout", "embedding_dropout", "tasks", "freeze_upstream", "sampling_rate", "do_normalize", "window_s"),
    *("max_duration_s", "precision", "upstream_config"),
]
VALID = [  # what of NONSENSE a field may hold
    *(("tasks", value) for value in (None, {})),
    *(("pooling_kwargs", value) for value in (None, {})),
    *((field, value) for field in ("do_normalize", "freeze_upstream", "do_stable_layer_norm") for value in (True,)),
    *((field, value) for field in ("apply_spec_augment", "conv_bias") for value in (True,)),
    *((field, 0.5) for field in ("layer_dropout", "embedding_dropout", "window_s", "max_duration_s")),
    *((field, 0.5) for field in ("layer_norm_eps", "layerdrop", "hidden_dropout", "mask_time_prob")),
    *((field, None) for field in ("upstream_config", "layer_projection_size")),
    *((field, 10**30) for field in ("window_s", "max_duration_s")),
]


@pytest.mark.parametrize("where", ["own", "upstream"])
def test_every_wrong_value_is_named(folder, where):
    fields = json.loads((folder / "config.json").read_text())
    for name in OWN if where == "own" else UPSTREAM:
        for value in NONSENSE:
            if (name, value) in VALID:
                continue
            changed = {name: value}
            if where == "upstream":
                changed = {"upstream_config": {**fields["upstream_config"], name: value}}
            with pytest.raises(ValueError, match=name):
                assert not WavCSEConfig.from_dict({**fields, **changed}), f"{name} = {value!r} was accepted"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, r"hidden_size is 32; it must be a multiple of num_attention_heads \(5\)"),
        ({"num_conv_pos_embedding_groups": 5}, "multiple of num_conv_pos_embedding_groups"),
        ({"conv_kernel": [400, 3, 3]}, "conv_kernel|unequal length"),
        (
            {"num_buckets": 320, "max_bucket_distance": 80},
            "max_bucket_distance is 80; it must be above a quarter of num_buckets",
        ),
        ({"hidden_size": 2**20, "intermediate_size": 2**20}, "would have .* parameters, more than 3e\\+09"),
        ({"conv_kernel": [2**20, 2**20], "conv_dim": [2**20, 2**20]}, "would have .* parameters"),
    ],
)
def test_nonsense_of_several_fields(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        WavCSEConfig.from_pretrained(folder, upstream_config=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float99"}, "float99"),
        ({"dtype": float("nan")}, "dtype is nan; it must be the name of a floating-point type"),
        ({"dtype": 2**63}, "dtype is 9223372036854775808"),
        ({"dtype": "int8"}, r"dtype is torch\.int8|dtype is 'int8'"),
        ({"upstream_config": {**WAVLM_LARGE, "dtype": 5}}, "dtype"),
        ({"architectures": 5}, "architectures"),
        ({"auto_map": "x"}, "auto_map is 'x'; it must be a mapping"),
        ({"output_hidden_states": "no"}, "output_hidden_states is 'no'; it must be true or false"),
        ({"pooled_size": 5}, "pooled_size"),
        ({"tasks": {"x": 5}}, r"tasks\['x'\] is 5; it must be a mapping"),
        ({"tasks": {"x": {"labels": "abc"}}}, r"tasks\['x'\]\['labels'\] is 'abc'; it must be a list of names"),
        ({"tasks": {"x": {"labels": [None, "a"]}}}, r"\['labels'\] is \[None, 'a'\]; it must be a list of names"),
        ({"tasks": {"x": {"labels": ["a", "b"], "loss_weight": float("nan")}}}, r"\['loss_weight'\] is nan"),
        ({"tasks": {"x": {"labels": ["a", "b"], "kind": []}}}, r"\['kind'\] is \[\]"),
        ({"pooling_kwargs": {"p": float("nan")}}, r"pooling_kwargs\['p'\] is nan"),
        ({"pooling_kwargs": {"learnable": "no"}}, r"pooling_kwargs\['learnable'\] is 'no'; it must be true or false"),
        ({"selected_layers": [0, True]}, r"selected_layers is \[0, True\]"),
    ],
)
def test_nested_and_inherited_fields(folder, changes, message):
    fields = json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        WavCSEConfig.from_dict({**fields, **changes})


@pytest.mark.parametrize("content", ["[]", "5", '"x"', "[1]"])
def test_a_file_that_holds_no_fields(content, tmp_path):
    with pytest.raises(ValueError, match="the configuration is .*; it must be a mapping"):
        WavCSEConfig.from_dict(json.loads(content))


def test_whisper_fields_are_checked_too():
    whisper = {
        "model_type": "whisper",
        "d_model": 16,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
    }
    assert WavCSEConfig(whisper, selected_layers=[2]).num_hidden_layers == 2
    for changes, message in [
        ({"encoder_attention_heads": 3}, "multiple of num_attention_heads"),
        ({"d_model": 0}, "hidden_size|d_model"),
        ({"max_source_positions": 10**12}, "max_source_positions"),
        ({"activation_function": "nope"}, "activation_function is 'nope'"),
    ]:
        with pytest.raises(ValueError, match=message):
            WavCSEConfig({**whisper, **changes}, selected_layers=[2])
