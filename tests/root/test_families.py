"""Every upstream family on a tiny checkpoint of its own: what `docs/upstreams.md` says of it is what the code does."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    SeamlessM4TFeatureExtractor,
)

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEModel, upstream_wavcse
from wavcse.configuration_wavcse import MODULE_FAMILIES, UPSTREAM_FAMILIES
from wavcse.data.cache import build_cache, config_of_all_layers
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest
from wavcse.packed_encoder_wavcse import blocks_of, unsupported_part, windows_of
from wavcse.search.costs import cost_of
from wavcse.tests.helpers.tiny_families import ROWS, SIZES, error, feature_extractor, inputs_of, module_inputs, module_layers
from wavcse.wav2vec2_bert_wavcse import filterbank_of_clip, log_mel_energies

PAGE = Path(__file__).parents[2] / "docs" / "upstreams.md"
BERTS = [{**SIZES, "position_embeddings_type": name} for name in ("relative", "rotary")]  # its other position embeddings
OF_MODULES = [row for row, (model_type, _) in ROWS.items() if model_type in MODULE_FAMILIES]
# What one family shows for all in the default tests, and the others in the slow ones.
SLOW_BUT = {
    name: [pytest.param(row, marks=[] if row == name else pytest.mark.slow) for row in OF_MODULES] for name in OF_MODULES
}
LENGTHS = (9_000, 16_001, 400, 9_000)  # 400 stands for the shortest clip of a family


def page_table() -> dict[str, list[str]]:
    """First column -> the other cells of the page's first table, and its column titles under ""."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| family"))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {"": rows[0][1:], **{row[0]: row[1:] for row in rows[2:]}}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Factory: a saved tiny checkpoint of a row, its weights spread so that layers differ."""
    made = {}

    def make(row: str) -> str:
        model_type, fields = ROWS[row]
        if row not in made:
            torch.manual_seed(0)
            model = AutoModel.from_config(AutoConfig.for_model(model_type, **fields)).eval()
            with torch.no_grad():
                for parameter in model.encoder.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            made[row] = str(tmp_path_factory.mktemp("checkpoint"))
            model.save_pretrained(made[row])
            feature_extractor(model_type).save_pretrained(made[row])
        return made[row]

    return make


@pytest.fixture(scope="module")
def model_of(folder_of):
    """Factory: the wavCSE model of a row; the one without changed fields is made once, and no test changes it."""
    made = {}

    def make(row: str, **fields) -> WavCSEModel:
        if fields:
            return load(row, **fields)
        if row not in made:
            made[row] = load(row)
        return made[row]

    def load(row: str, **fields) -> WavCSEModel:
        fields = {"selected_layers": [0, 1, 2, 3], "layer_projection_size": 8, "embedding_size": 20, **fields}
        if row.startswith("Whisper"):
            fields["context"] = row.rpartition(" ")[2].strip("`")
        return WavCSEModel.from_upstream(folder_of(row), **fields)

    return make


def pooled(model, clips, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of(model, clips), **kwargs).pooled_layers


def test_the_page_has_a_row_for_every_family_and_shape():
    assert list(page_table()) == ["", *ROWS]
    assert {model_type for model_type, _ in ROWS.values()} == set(UPSTREAM_FAMILIES)


def frames_of(model_type: str, length: int) -> int:
    """Frames of a clip of so many samples, by each family's own arithmetic."""
    if model_type == "whisper":
        return -(-length // 320)
    if model_type == "moonshine":
        return ((((length - 127) // 64 + 1) - 7) // 3 + 1 - 3) // 2 + 1
    if model_type == "wav2vec2-bert":
        return ((length - 400) // 160 + 1) // 2
    frames = (length - 400) // 320 + 1
    return frames // 2 if model_type in ("sew", "sew-d") else frames


def clips_of(model, waves, lengths=LENGTHS) -> list[np.ndarray]:
    return waves(*(model.config.min_samples if length == 400 else length for length in lengths))


@pytest.mark.parametrize("row", OF_MODULES)
def test_the_shortest_clip_has_a_frame(row, model_of, waves):
    model, model_type = model_of(row), ROWS[row][0]
    shortest = model.config.min_samples
    assert (frames_of(model_type, shortest - 1), frames_of(model_type, shortest)) == (0, 1)
    with pytest.raises(ValueError, match=f"needs at least {shortest} for one frame"):
        model.encode(waves(shortest - 1))


@pytest.mark.parametrize("row", ROWS)
def test_what_the_page_says_is_what_the_code_does(row, model_of, waves):
    model = model_of(row)
    clips = clips_of(model, waves)
    facts = dict(zip(page_table()[""], page_table()[row], strict=True))
    assert facts["`model_type`"] == f"`{ROWS[row][0]}`"
    is_packed = unsupported_part(model.upstream) is None
    assert facts["packed"] == ("yes" if is_packed else "no")
    together = pooled(model, clips)
    assert (model.run_upstream.packed is not None) == is_packed
    assert error(torch.cat([pooled(model, [clip]) for clip in clips]), together) <= 2e-6  # alone = in a batch
    if is_packed:
        assert facts["precisions"] == "float32, bfloat16, int8"
        for precision, tolerance in (("bfloat16", 0.05), ("int8", 0.1)):
            assert 0 < error(pooled(model, clips, precision=precision), together) < tolerance
    else:
        assert facts["precisions"] == "float32"
        with pytest.raises(ValueError, match="precision='int8' is not available for this"):
            model_of(row, precision="int8")


@pytest.mark.parametrize("row", ROWS)
def test_frames_maps_and_gradients_are_those_that_the_page_says(row, model_of, waves):
    facts = dict(zip(page_table()[""], page_table()[row], strict=True))
    model = model_of(row, freeze_upstream=False)
    clips = clips_of(model, waves)
    assert (facts["frames"], facts["gradients"]) == ("yes", "yes")
    with torch.no_grad():
        output = model(**inputs_of(model, clips), output_hidden_states=True)
    frames = [frames_of(ROWS[row][0], len(clip)) for clip in clips]
    assert output.last_hidden_state.shape == (4, max(frames), 32)
    means = [
        torch.stack([state[clip, :count].mean(dim=0) for state in output.hidden_states]) for clip, count in enumerate(frames)
    ]
    assert error(torch.stack(means), pooled(model, clips)) <= 1e-5  # exact: packed against the modules' frames
    model(**inputs_of(model, clips)).embeddings.square().sum().backward()
    missing = [name for name, weight in model.upstream.named_parameters() if weight.requires_grad and weight.grad is None]
    assert missing in ([], ["masked_spec_embed"])
    if facts["attention maps"] != "yes":
        model.upstream.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs_of(model, clips[:1]), output_attentions=True).attentions
    assert len(maps) == 3
    np.testing.assert_allclose(maps[0].sum(dim=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if ROWS[row][0] in ("unispeech-sat", "data2vec-audio")] + SLOW_BUT["Wav2Vec2-BERT"]
)
def test_saved_and_loaded_it_is_the_same_model(row, model_of, folder_of, waves, tmp_path):
    model = model_of(row)
    clips = clips_of(model, waves)
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(WavCSEModel.from_pretrained(tmp_path).encode(clips), model.encode(clips))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(clips), model.encode(clips))
    sizes = {"layer_projection_size": 8, "embedding_size": 20}
    for layer, source in ((0, tmp_path), (1, folder_of(row))):  # of the saved wavCSE model, of the checkpoint
        shallow = WavCSEModel.from_upstream(str(source), selected_layers=[layer], **sizes)
        assert len(blocks_of(shallow.upstream)) == shallow.config.num_hidden_layers == layer
        assert error(pooled(shallow, clips), pooled(model, clips)[:, layer : layer + 1]) <= 2e-6


@pytest.mark.parametrize("row", ["UniSpeech-SAT, base", "data2vec-audio"])
def test_long_clips_go_in_windows(row, model_of, waves):
    (clip,) = waves(70_000)
    model, halves = model_of(row), model_of(row, window_s=2.5)
    assert 1e-4 < error(pooled(halves, [clip])[:, 1:], pooled(model, [clip])[:, 1:]) < 0.5


# ---- families that run by their transformers modules alone ----


@pytest.mark.parametrize("row", OF_MODULES)
def test_layers_are_those_of_the_transformers_module_on_the_clip_alone(row, model_of, folder_of, waves):
    model, model_type = model_of(row), ROWS[row][0]
    module, clips = AutoModel.from_pretrained(folder_of(row)).eval(), clips_of(model, waves)
    expected = [module_layers(module, model_type, module_inputs(model_type, clip)) for clip in clips]
    assert [len(layers[0]) for layers in expected] == [frames_of(model_type, len(clip)) for clip in clips]
    assert error(pooled(model, clips), torch.stack([layers.mean(dim=1) for layers in expected])) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("fields", BERTS, ids=[fields["position_embeddings_type"] for fields in BERTS])
def test_the_other_positions_of_wav2vec2_bert(fields, waves, tmp_path):
    torch.manual_seed(0)
    module = AutoModel.from_config(AutoConfig.for_model("wav2vec2-bert", **fields)).eval()
    module.save_pretrained(tmp_path / "checkpoint")  # without a preprocessor: waveforms are taken as they are
    sizes = {"selected_layers": [0, 1, 2, 3], "layer_projection_size": 8, "embedding_size": 20}
    model, clips = WavCSEModel.from_upstream(str(tmp_path / "checkpoint"), **sizes), waves(9_000, 16_001)
    assert not model.config.do_normalize
    expected = [module_layers(module, "wav2vec2-bert", module_inputs("wav2vec2-bert", clip)).mean(dim=1) for clip in clips]
    assert error(pooled(model, clips), torch.stack(expected)) <= 1e-5
    model.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(WavCSEModel.from_pretrained(tmp_path / "saved").encode(clips), model.encode(clips))


@pytest.mark.parametrize("row", SLOW_BUT["Moonshine"])
def test_a_long_clip_goes_in_windows_each_as_a_clip_of_its_own(row, model_of, folder_of, waves, monkeypatch):
    model, model_type = model_of(row, window_s=2.0), ROWS[row][0]
    clips = waves(70_000, 9_000)
    field, hop = model.config.min_samples, {"sew": 640, "sew-d": 640, "moonshine": 384}.get(model_type, 320)
    assert model.config.window_frames == 32_000 // hop
    module, whole = AutoModel.from_pretrained(folder_of(row)).eval(), module_inputs(model_type, clips[0])
    kept, windows = [], windows_of(frames_of(model_type, 70_000), 32_000 // hop)
    assert len(windows) == 3
    for start, end, keep_start, keep_end in windows:
        samples = slice(start * hop, None if (start, end) == windows[-1][:2] else (end - 1) * hop + field)
        cut = whole[:, start:end] if model_type == "wav2vec2-bert" else whole[:, samples]
        kept.append(module_layers(module, model_type, cut)[:, keep_start - start : keep_end - start])
    found = pooled(model, clips)
    assert error(found[0], torch.cat(kept, dim=1).mean(dim=1)) <= 1e-5
    assert error(found[1:], pooled(model, clips[1:])) <= 2e-6
    with torch.no_grad():
        states = model(**inputs_of(model, clips), output_hidden_states=True).hidden_states
    assert error(torch.stack([state[0].mean(dim=0) for state in states]), found[0]) <= 1e-5
    waveforms = WavCSEFeatureExtractor.from_config(model.config).prepare(clips)
    with torch.no_grad():
        frames = model.run_upstream.frames(model.upstream, waveforms, range(4), window_frames=model.config.window_frames)
    assert error(torch.stack([own.mean(dim=0) for own in frames]), found) <= 1e-5
    with pytest.raises(ValueError, match="more frames than go through together .* cut the clip"):
        model(**inputs_of(model, clips), output_attentions=True)
    passes = []
    monkeypatch.setattr(upstream_wavcse, "MODULE_FRAMES", 1)  # as for long windows, of which one at a time is enough
    model.upstream.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    assert error(pooled(model, clips), found) <= 2e-6
    assert passes == [1] * 4


@pytest.mark.parametrize("length", [560, 720, 16_001, 50_000])
def test_the_filterbank_is_that_of_transformers(length, waves, monkeypatch):
    extractor, (clip,) = SeamlessM4TFeatureExtractor(), waves(length)
    waveform, config = torch.from_numpy(clip), AutoConfig.for_model("wav2vec2-bert")
    energies = extractor._extract_fbank_features(clip)
    np.testing.assert_allclose(log_mel_energies(waveform, 80), energies, rtol=0, atol=2e-6)
    with_mask = extractor(clip, sampling_rate=16_000, return_tensors="np")
    expected = with_mask["input_features"][0][with_mask["attention_mask"][0] == 1]
    found = filterbank_of_clip(waveform, config)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)  # in standard deviations
    monkeypatch.setattr("wavcse.wav2vec2_bert_wavcse.MEL_FRAMES_PER_BLOCK", 7)
    np.testing.assert_allclose(filterbank_of_clip(waveform, config), found, rtol=0, atol=1e-6)
    assert torch.equal(filterbank_of_clip(torch.zeros(length), config), torch.zeros_like(found))


@pytest.mark.parametrize("row", SLOW_BUT["Moonshine"])
def test_a_checkpoint_with_a_head_gives_its_encoder(row, waves, tmp_path):
    """Under the head's prefix, and as PyTorch named the parts of a weight norm when these checkpoints were made."""
    torch.manual_seed(0)
    model_type, fields = ROWS[row]
    config = AutoConfig.for_model(model_type, **{"vocab_size": 20, **fields})
    kind = AutoModelForSpeechSeq2Seq if model_type == "moonshine" else AutoModelForCTC
    whole = kind.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for new, old in (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v")):
        weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    model = WavCSEModel.from_upstream(str(tmp_path), selected_layers=[1, 2], layer_projection_size=8, embedding_size=20)
    base, clips = whole.model if model_type == "moonshine" else whole.base_model, waves(9_000)
    inputs = WavCSEFeatureExtractor.from_config(model.config).prepare(clips)[0]
    inputs = module_inputs(model_type, clips[0]) if model_type == "wav2vec2-bert" else inputs[None]
    expected = module_layers(base, model_type, inputs)[1:3].mean(dim=1)
    assert error(pooled(model, clips)[0], expected) <= 1e-5


@pytest.mark.parametrize("row", SLOW_BUT["SEW-D"])
def test_its_cost_is_counted(row, model_of):
    model = model_of(row)
    cost = cost_of(model.config.upstream_config.to_dict(), [0, 3])
    assert (cost["blocks"], cost["parameters"]) == (3, sum(weight.numel() for weight in model.upstream.parameters()))
    assert cost["gflop_per_audio_s"] > 0


def test_all_layers_of_an_encoder_are_cached_whatever_its_decoder_has(folder_of, model_of, toy_corpus, tmp_path):
    """Moonshine has its decoder's sizes under the names that other families have for the encoder's."""
    folder = folder_of("Moonshine")
    config = config_of_all_layers(folder)
    assert (config.selected_layers, config.num_attention_heads, config.do_normalize) == ([0, 1, 2, 3], 4, False)
    cache, report = build_cache([toy_corpus], folder, tmp_path, workers=1)
    assert (report.added, report.skipped) == (96, [])
    model, clip = model_of("Moonshine"), Manifest(toy_corpus).clips[7]
    (fact,) = Inspector(cache.folder.parent).inspect([clip], save=False)
    cached = torch.from_numpy(cache.read([fact.digest], [0, 1, 2, 3]))
    assert error(cached, pooled(model, [clip.load(16_000)])) <= 1e-5


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("sew", {"squeeze_factor": 0}, "squeeze_factor is 0"),
        ("sew", {"conv_kernel": [10, 3]}, "conv_kernel|convolutional layers"),
        ("sew", {"num_conv_pos_embedding_groups": 5}, "multiple of num_conv_pos_embedding_groups"),
        ("sew-d", {"position_buckets": 10**12}, "position_buckets"),
        ("sew-d", {"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd is 'batch_norm'"),
        ("sew-d", {"max_position_embeddings": 2**20, "hidden_size": 2**12}, "would have .* parameters"),
        ("wav2vec2-bert", {"feature_projection_input_dim": 161}, "feature_projection_input_dim is 161; it must be even"),
        ("wav2vec2-bert", {"conv_depthwise_kernel_size": 30}, "conv_depthwise_kernel_size is 30; it must be odd"),
        ("wav2vec2-bert", {"position_embeddings_type": "absolute"}, "position_embeddings_type"),
        ("wav2vec2-bert", {"add_adapter": True}, "add_adapter is True"),
        ("wav2vec2-bert", {"intermediate_size": 2**20, "hidden_size": 2**12}, "would have .* parameters"),
        ("moonshine", {"encoder_num_key_value_heads": 2}, r"encoder_num_key_value_heads is 2; .* must be .* \(4\)"),
        ("moonshine", {"encoder_num_attention_heads": 5, "encoder_num_key_value_heads": 5}, "multiple of num_attention_heads"),
        ("moonshine", {"encoder_hidden_act": "nope"}, "encoder_hidden_act is 'nope'"),
        ("moonshine", {"hidden_size": 2**20}, "would have .* parameters"),
    ],
)
def test_a_wrong_field_is_named(model_type, changes, message):
    fields = next(fields for kind, fields in ROWS.values() if kind == model_type)
    assert WavCSEConfig({"model_type": model_type, **fields}, selected_layers=[3]).num_hidden_layers == 3
    with pytest.raises(ValueError, match=message):
        WavCSEConfig({"model_type": model_type, **fields, **changes}, selected_layers=[3])


@pytest.mark.parametrize("row", OF_MODULES)
def test_what_a_family_does_not_have_is_refused(row, model_of):
    model_type = ROWS[row][0]
    with pytest.raises(ValueError, match=f"context is 'window'; .* A {model_type} upstream sees every clip at its own length"):
        model_of(row, context="window")
    with pytest.raises(ValueError, match=r"layer 4, but the upstream .* has layers 0 to 3"):
        model_of(row, selected_layers=[4])


def test_another_filterbank_is_refused(folder_of, tmp_path):
    model = AutoModel.from_pretrained(folder_of("Wav2Vec2-BERT"))
    model.save_pretrained(tmp_path)
    SeamlessM4TFeatureExtractor(num_mel_bins=40, stride=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"num_mel_bins and stride \(16000, 40, 4\); .* 80 bins .* stride 2"):
        WavCSEModel.from_upstream(str(tmp_path), selected_layers=[1])
