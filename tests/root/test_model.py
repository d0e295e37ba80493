"""`WavCSEModel` and `WavCSEForMultiTask`: outputs, saving and loading, the multi-task loss."""

import json
import logging
import math

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEForMultiTask, WavCSEModel, WavCSEModelOutput
from wavcse.configuration_wavcse import LAYER_POOLINGS
from wavcse.modeling_wavcse import combine_losses, cross_entropy_per_task

B, K, D, E, T, N = 2, 3, 32, 20, 12, 3  # clips, selected layers, widths, frames of 4000 samples, blocks


@pytest.fixture
def inputs(waves):
    return WavCSEFeatureExtractor()(waves(4_000, 4_000), sampling_rate=16_000, return_tensors="pt")


# ---- outputs ----


def test_output(tiny_model, inputs):
    output = tiny_model()(**inputs)
    assert isinstance(output, WavCSEModelOutput)
    assert list(output) == ["embeddings", "pooled_layers"]
    assert output.embeddings.shape == (B, E)
    assert output.pooled_layers.shape == (B, K, D)


def test_embedding_is_the_papers_network(tiny_model, inputs):
    """FC1, learned norm with p = 16, FC2; no activation and no dropout, worked from the weights."""
    model = tiny_model()
    output = model(**inputs)
    weights = {name: tensor.double() for name, tensor in model.downstream.state_dict().items()}
    projected = output.pooled_layers.double() @ weights["layer_projection.weight"].T + weights["layer_projection.bias"]
    pooled = (projected.abs() ** 16).mean(dim=1) ** (1 / 16)
    expected = pooled @ weights["embedding_projection.weight"].T + weights["embedding_projection.bias"]
    torch.testing.assert_close(output.embeddings.double(), expected, atol=1e-5, rtol=1e-5)


def test_layers_of_any_set_are_pooled_in_one_pass(tiny_model, inputs):
    model = tiny_model(selected_layers=[2, 0, 3]).eval()
    with torch.no_grad():
        output, layers = model(**inputs), model.pool_layers(**inputs, layers=range(N + 1))
        assert layers.shape == (B, N + 1, D)
        assert torch.equal(layers[:, [2, 0, 3]], output.pooled_layers)
        assert torch.equal(model.pool_layers(**inputs), output.pooled_layers)  # the selected ones
        again = model(pooled_layers=layers[:, [2, 0, 3]])
    assert torch.equal(again.embeddings, output.embeddings)
    assert torch.equal(again.pooled_layers, output.pooled_layers)


def test_neither_or_both_of_waveforms_and_pooled_layers_are_refused(tiny_model):
    model = tiny_model()
    for given in ({}, {"input_values": torch.zeros(1, 4000), "pooled_layers": torch.zeros(1, 3, 32)}):
        with pytest.raises(ValueError, match="input_values or pooled_layers, one of the two"):
            model(**given)


@pytest.mark.parametrize("way", ["argument", "config"])
def test_tuple_with_the_embedding_first(tiny_model, inputs, way):
    model = tiny_model()
    expected = model(**inputs)
    if way == "config":
        model.config.return_dict = False
    output = model(**inputs) if way == "config" else model(**inputs, return_dict=False)
    assert type(output) is tuple
    assert len(output) == 2
    assert torch.equal(output[0], expected.embeddings)


@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert"])
def test_hidden_states_and_attentions(tiny_model, inputs, family):
    model = tiny_model(family)
    if family != "wavlm":
        model.set_attn_implementation("eager")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(B, T, D)] * (N + 1)
    assert [tuple(map_.shape) for map_ in output.attentions] == [(B, 4, T, T)] * N
    for map_ in output.attentions:
        torch.testing.assert_close(map_.sum(dim=-1), torch.ones(B, 4, T))


def test_gradients_can_be_read_off_hidden_states(tiny_model, inputs):
    output = tiny_model(freeze_upstream=False)(**inputs, output_hidden_states=True)
    for state in output.hidden_states:
        state.retain_grad()
    output.embeddings.square().sum().backward()
    assert all(state.grad.abs().sum() > 0 for state in output.hidden_states)


def test_ragged_attentions_are_zero_in_the_padding(tiny_model, waves):
    ragged = WavCSEFeatureExtractor()(waves(4_000, 2_000), sampling_rate=16_000, return_tensors="pt")
    maps = tiny_model()(**ragged, output_attentions=True).attentions
    assert [tuple(map_.shape) for map_ in maps] == [(B, 4, T, T)] * N
    assert (maps[0][1, :, 6:] == 0).all()
    assert (maps[0][1, :, :, 6:] == 0).all()
    torch.testing.assert_close(maps[0][1, :, :6].sum(dim=-1), torch.ones(4, 6))


def test_multi_task_output(tiny_multi_task_model, tiny_model, inputs):
    model = tiny_multi_task_model()
    output = model(**inputs)
    assert list(output) == ["logits", "embeddings", "pooled_layers"]
    assert {task: tuple(logits.shape) for task, logits in output.logits.items()} == {"keyword": (B, 3), "emotion": (B, 2)}
    assert torch.equal(output.embeddings, model.wavcse(**inputs).embeddings)
    head = model.heads.tasks["keyword"]
    torch.testing.assert_close(output.logits["keyword"], output.embeddings @ head.weight.T + head.bias)
    assert len(model(**inputs, return_dict=False)) == 3


@pytest.mark.parametrize("pooling_type", LAYER_POOLINGS)
@pytest.mark.parametrize("layers", [[0], [2], [3, 0]], ids=str)
def test_every_pooling_trains(tiny_multi_task_model, inputs, pooling_type, layers):
    model = tiny_multi_task_model(pooling_type=pooling_type, selected_layers=layers).train()
    labels = {"keyword": torch.tensor([0, 2]), "emotion": torch.tensor([1, -100])}
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("wavcse.upstream") for name in trained)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())


def test_a_batch_of_bf16(tiny_model, inputs):
    exact = tiny_model()(**inputs).embeddings
    model = tiny_model().to(torch.bfloat16)
    embeddings = model(**inputs).embeddings  # float32 clips, as the feature extractor gives them
    assert embeddings.dtype == torch.bfloat16
    assert torch.cosine_similarity(embeddings.float(), exact).min() > 0.99


# ---- the multi-task loss ----

LOGITS = {"keyword": torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]), "emotion": torch.zeros(3, 4)}
KEYWORD_LOSSES = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1)), math.log(2)]  # of labels 0, 0, 1


@pytest.mark.parametrize(
    ("keyword", "emotion", "weights", "expected"),
    [
        # each task is averaged over its own clips, then weighted by 1/T
        ([0, 0, 1], [0, 1, 2], (1, 1), (sum(KEYWORD_LOSSES) / 3 + math.log(4)) / 2),
        ([0, -100, -100], [-100, 1, 2], (1, 1), (KEYWORD_LOSSES[0] + math.log(4)) / 2),
        # a task without a clip in the batch adds nothing, and T stays 2
        ([0, 0, -100], [-100, -100, -100], (1, 1), sum(KEYWORD_LOSSES[:2]) / 2 / 2),
        ([0, 0, 1], [0, 0, 0], (3, 0.5), (3 * sum(KEYWORD_LOSSES) / 3 + 0.5 * math.log(4)) / 2),
        ([-100, -100, -100], [-100, -100, -100], (1, 1), 0.0),
    ],
)
def test_multi_task_loss(keyword, emotion, weights, expected):
    labels = {"keyword": torch.tensor(keyword), "emotion": torch.tensor(emotion)}
    loss = combine_losses(cross_entropy_per_task(LOGITS, labels), dict(zip(LOGITS, weights)))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_losses_of_the_parts_of_a_batch_add_up():
    """What several processes do: each divides its sum by the number of labelled clips in the whole batch."""
    labels = {"keyword": torch.tensor([0, -100, 1]), "emotion": torch.tensor([-100, 3, -100])}
    whole = cross_entropy_per_task(LOGITS, labels)
    for task, num_labelled in (("keyword", 2), ("emotion", 1)):
        parts = [
            cross_entropy_per_task({task: LOGITS[task][part]}, {task: labels[task][part]}, {task: num_labelled})[task]
            for part in (slice(0, 1), slice(1, 3))
        ]
        torch.testing.assert_close(sum(parts), whole[task])


def test_loss_of_the_model(tiny_multi_task_model, inputs):
    model = tiny_multi_task_model()
    labels = {"keyword": torch.tensor([0, 2]), "emotion": torch.tensor([-100, 1])}
    output = model(**inputs, labels=labels)
    keyword = -output.logits["keyword"].log_softmax(dim=1)[[0, 1], [0, 2]].mean()
    emotion = -output.logits["emotion"].log_softmax(dim=1)[1, 1]
    torch.testing.assert_close(output.loss, (1.0 * keyword + 0.5 * emotion) / 2)  # loss weights of the configuration
    assert model(**inputs).loss is None


# ---- saving and loading ----


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_multi_task_model"])
@pytest.mark.parametrize(("family", "norm"), [("wavlm", "layer"), ("hubert", "group")])
def test_round_trip_is_bit_equal(request, inputs, tmp_path, log, kind, family, norm):
    model = request.getfixturevalue(kind)(family, norm, pooling_type="self_attention")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert log.text == ""
    assert not again.training
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(**inputs).embeddings, again(**inputs).embeddings)
    assert not any(parameter.requires_grad for parameter in again.base_model.upstream.parameters())


def test_embedding_model_from_a_multi_task_checkpoint(tiny_multi_task_model, inputs, tmp_path, log):
    trained = tiny_multi_task_model()
    trained.save_pretrained(tmp_path)
    with log.at_level(logging.INFO):
        model = WavCSEModel.from_pretrained(tmp_path)
    assert [record for record in log.records if record.levelno >= logging.WARNING] == []
    assert torch.equal(model(**inputs).embeddings, trained(**inputs).embeddings)
    assert model.config.tasks == trained.config.tasks


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_multi_task_model"])
def test_freezing_holds_after_loading(request, tmp_path, kind):
    for freeze_upstream, frozen in ((True, "upstream."), (False, "upstream.encoder.layer_norm.")):
        model = request.getfixturevalue(kind)(freeze_upstream=freeze_upstream)
        model.save_pretrained(tmp_path)
        for either in (model, type(model).from_pretrained(tmp_path)):
            for name, parameter in either.base_model.named_parameters():
                assert parameter.requires_grad != name.startswith(frozen), name


def test_loaded_weights_are_aligned(tiny_model, tmp_path):
    """Weights mapped from a file start anywhere, which changes the order of sums in CPU kernels: not the last bits here."""
    tiny_model().save_pretrained(tmp_path)
    model = WavCSEModel.from_pretrained(tmp_path)
    assert {parameter.data_ptr() % 64 for parameter in model.parameters()} == {0}
    model.upstream.save_pretrained(tmp_path / "upstream")
    on_upstream = WavCSEModel.from_upstream(str(tmp_path / "upstream"), selected_layers=[1])
    assert {parameter.data_ptr() % 64 for parameter in on_upstream.parameters()} == {0}


def test_heads_are_loaded(tiny_multi_task_model, inputs, tmp_path):
    trained = tiny_multi_task_model()
    trained.save_pretrained(tmp_path)
    again = WavCSEForMultiTask.from_pretrained(tmp_path)
    for task, logits in trained(**inputs).logits.items():
        assert torch.equal(again(**inputs).logits[task], logits)


def test_multi_task_model_from_an_embedding_checkpoint_reports_new_heads(tiny_model, inputs, tmp_path, log):
    model = tiny_model(tasks={"keyword": {"labels": ["yes", "no"]}})
    model.save_pretrained(tmp_path)
    with_heads = WavCSEForMultiTask.from_pretrained(tmp_path)
    assert "heads.tasks.keyword.weight" in log.text
    assert torch.equal(with_heads(**inputs).embeddings, model(**inputs).embeddings)


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_multi_task_model"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_model_is_saved_in_float32(request, tmp_path, kind, dtype):
    model = request.getfixturevalue(kind)().to(dtype)
    model.save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert model.dtype == dtype  # saving changes the file, not the model
    again = type(model).from_pretrained(tmp_path)
    assert again.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.float())


def test_registered_with_the_auto_classes(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is WavCSEConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is WavCSEModel
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is WavCSEFeatureExtractor


def test_initialisation_is_pytorchs_default(tiny_multi_task_model):
    """U(-1/sqrt(in), 1/sqrt(in)) for weights and biases, as the authors trained; the poolings as documented."""
    model = tiny_multi_task_model(pooling_type="weighted_average", layer_projection_size=64, embedding_size=256)
    for layer in (model.wavcse.downstream.embedding_projection, *model.heads.tasks.values()):
        bound = layer.in_features**-0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.bias.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert torch.equal(model.wavcse.downstream.layer_pooling.layer_weights, torch.full((3,), 1 / 3))


def test_same_seed_same_weights(tiny_model):
    first, second = tiny_model().state_dict(), tiny_model().state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_task_without_labels_adds_nothing():
    labels = {"keyword": torch.tensor([0, 0, 1])}
    losses = cross_entropy_per_task(LOGITS, labels)
    assert losses["keyword"].item() == pytest.approx(sum(KEYWORD_LOSSES) / 3, rel=1e-6)
    assert losses["emotion"].item() == 0.0
