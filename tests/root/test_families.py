"""Every upstream family on a tiny checkpoint of its own: what `docs/upstreams.md` says of it is what the code does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from wavcse import WavCSEFeatureExtractor, WavCSEModel
from wavcse.configuration_wavcse import UPSTREAM_FAMILIES
from wavcse.packed_encoder_wavcse import unsupported_part

PAGE = Path(__file__).parents[2] / "docs" / "upstreams.md"
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
STEM = {**SIZES, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_layers": 1}
WHISPER |= {"decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1}
WHISPER |= {"eos_token_id": 2, "decoder_start_token_id": 1, "max_source_positions": 100}
ROWS = {  # the first column of the page's table -> model type and fields of a tiny one
    "WavLM, base": ("wavlm", STEM),
    "WavLM, large": ("wavlm", {**STEM, **LARGE}),
    "wav2vec 2.0, base": ("wav2vec2", STEM),
    "wav2vec 2.0, large; XLS-R, MMS": ("wav2vec2", {**STEM, **LARGE}),
    "MMS with attention adapters": ("wav2vec2", {**STEM, **LARGE, "adapter_attn_dim": 8}),
    "HuBERT, base": ("hubert", STEM),
    "HuBERT, large": ("hubert", {**STEM, **LARGE}),
    "UniSpeech-SAT, base": ("unispeech-sat", STEM),
    "UniSpeech-SAT, large": ("unispeech-sat", {**STEM, **LARGE}),
    "data2vec-audio": ("data2vec-audio", {**STEM, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}),
    "Whisper, `context: clip`": ("whisper", WHISPER),
    "Whisper, `context: window`": ("whisper", WHISPER),
}
LENGTHS = (9_000, 16_001, 400, 9_000)


def page_table() -> dict[str, list[str]]:
    """First column -> the other cells of the page's first table, and its column titles under ""."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| family"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:] if line.startswith("|")]
    assert not lines[start + len(rows)].startswith("|")
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
            is_whisper = model_type == "whisper"
            extractor = WhisperFeatureExtractor(chunk_length=2) if is_whisper else Wav2Vec2FeatureExtractor(do_normalize=True)
            extractor.save_pretrained(made[row])
        return made[row]

    return make


@pytest.fixture
def model_of(folder_of):
    def make(row: str, **fields) -> WavCSEModel:
        fields = {"selected_layers": [0, 1, 2, 3], "layer_projection_size": 8, "embedding_size": 20, **fields}
        if row.startswith("Whisper"):
            fields["context"] = row.rpartition(" ")[2].strip("`")
        return WavCSEModel.from_upstream(folder_of(row), **fields)

    return make


def inputs_of(model, clips) -> dict:
    extractor = WavCSEFeatureExtractor.from_config(model.config)
    return dict(extractor(clips, sampling_rate=16_000, return_tensors="pt"))


def pooled(model, clips, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of(model, clips), **kwargs).pooled_layers


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().amax(dim=-1) / expected.abs().amax(dim=-1)).max().item()


def test_the_page_has_a_row_for_every_family_and_shape():
    assert list(page_table()) == ["", *ROWS]
    assert {model_type for model_type, _ in ROWS.values()} == set(UPSTREAM_FAMILIES)


@pytest.mark.parametrize("row", ROWS)
def test_what_the_page_says_is_what_the_code_does(row, model_of, waves):
    model, clips = model_of(row), waves(*LENGTHS)
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
    model, clips = model_of(row, freeze_upstream=False), waves(*LENGTHS)
    assert (facts["frames"], facts["gradients"]) == ("yes", "yes")
    with torch.no_grad():
        output = model(**inputs_of(model, clips), output_hidden_states=True)
    frames = [-(-length // 320) if row.startswith("Whisper") else (length - 400) // 320 + 1 for length in LENGTHS]
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


@pytest.mark.parametrize("row", [row for row in ROWS if ROWS[row][0] in ("unispeech-sat", "data2vec-audio")])
def test_saved_and_loaded_it_is_the_same_model(row, model_of, waves, tmp_path):
    model, clips = model_of(row), waves(*LENGTHS)
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(WavCSEModel.from_pretrained(tmp_path).encode(clips), model.encode(clips))
    shallow = model_of(row, selected_layers=[1])
    assert len(shallow.upstream.encoder.layers) == 1
    assert error(pooled(shallow, clips), pooled(model, clips)[:, 1:2]) <= 2e-6


@pytest.mark.parametrize("row", ["UniSpeech-SAT, base", "data2vec-audio"])
def test_long_clips_go_in_windows(row, model_of, waves):
    (clip,) = waves(70_000)
    model, halves = model_of(row), model_of(row, window_s=2.5)
    assert 1e-4 < error(pooled(halves, [clip])[:, 1:], pooled(model, [clip])[:, 1:]) < 0.5
