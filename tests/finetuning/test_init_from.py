"""Every upstream that a training on several tasks can start from: what it starts as, learns, and leaves for transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCTC,
    HubertConfig,
    Wav2Vec2Config,
    WavLMConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from wavcse import WavCSEModel
from wavcse.finetuned_wavcse import FinetunedWavCSE
from wavcse.finetuning.arguments import MultiTaskArguments
from wavcse.finetuning.multi_task import finetune_tasks
from wavcse.steps.encoder import save_upstream
from wavcse.upstream_wavcse import build_upstream

CONVOLUTIONAL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16, 16],
    "conv_kernel": [400, 3],
    "conv_stride": [160, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
CONFIGS = {
    "wavlm": WavLMConfig(**CONVOLUTIONAL, **LARGE),
    "wav2vec2": Wav2Vec2Config(**CONVOLUTIONAL),
    "hubert": HubertConfig(**CONVOLUTIONAL, **LARGE),
    "whisper": WhisperConfig(**WHISPER, num_mel_bins=40, max_source_positions=100),  # 2 s: every clip is shorter
}
KINDS = [*(pytest.param(name, marks=pytest.mark.slow) for name in (*CONFIGS, "wavcse of wavlm")), "wavcse of whisper"]


def start_of(kind: str, folder: Path) -> Path:
    """A checkpoint of the kind, as users have it: a transformers folder, or a wavCSE model."""
    torch.manual_seed(0)
    upstream = build_upstream(CONFIGS[kind.split()[-1]])
    if upstream.config.model_type == "whisper":  # small random weights give frames that are all alike
        with torch.no_grad():
            for weight in upstream.parameters():
                weight.mul_(3) if weight.dim() > 1 and weight.requires_grad else None
    save_upstream(upstream, folder / "upstream")
    if not kind.startswith("wavcse"):
        return folder / "upstream"
    WavCSEModel.from_upstream(str(folder / "upstream"), selected_layers=[1, 2], embedding_size=12).save_pretrained(
        folder / "wavcse"
    )
    return folder / "wavcse"


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The encoder's weights in a folder, under its own names."""
    tensors = load_file(folder / "model.safetensors")
    return {name.removeprefix("upstream."): tensor for name, tensor in tensors.items() if not name.startswith("downstream.")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_upstream_is_trained_and_left_for_transformers(kind, tasks_recipe, tmp_path):
    pytest.importorskip("jiwer")
    start = start_of(kind, tmp_path)
    recipe = {name: value for name, value in tasks_recipe.items() if name != "encoder"}
    tasks = recipe["tasks"]
    if kind.startswith("wavcse"):
        tasks = {**tasks, "voice": {**tasks["voice"], "tap": "embedding"}}
    out = tmp_path / "out"
    args = {**recipe, "tasks": tasks, "init_from": str(start), "max_steps": 2, "validate_every": 1, "embedding_of": "voice"}
    finetune_tasks(MultiTaskArguments(**args, output_dir=str(out)), show_progress=False)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(entry[f"{task}.train_loss"]) for entry in entries for task in ("speech", "voice"))
    before, after = tensors_of(start), tensors_of(out / "upstream")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "layers.0." in name or "layers.1." in name} - changed <= {
        name for name in before if name.endswith(("k_proj.bias", "gru_rel_pos_const"))
    }
    _compare_folders(kind.split()[-1], out)


def _compare_folders(family: str, out: Path) -> None:
    """`hub/`, `upstream/` and `ctc/` of a run hold one encoder, and transformers loads the latter two."""
    model = FinetunedWavCSE.from_pretrained(out / "hub").eval()
    waveform = np.random.default_rng(0).standard_normal(16_000, dtype=np.float32) * 0.1
    normalised = torch.from_numpy((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7))
    with torch.no_grad():
        if family == "whisper":
            output = model([torch.from_numpy(waveform)])
            encoder = WhisperEncoder.from_pretrained(out / "upstream").eval()
            assert all(torch.equal(own, encoder.state_dict()[name]) for name, own in model.upstream.state_dict().items())
            assert WhisperFeatureExtractor.from_pretrained(out / "upstream").feature_size == 40
            assert not (out / "ctc").exists()
            layer = WavCSEModel.from_upstream(str(out / "upstream"), selected_layers=[2]).eval()
            expected = layer.pool_layers([torch.from_numpy(waveform)])[:, -1]
            torch.testing.assert_close(model.pool_layers([torch.from_numpy(waveform)])[:, -1], expected, atol=1e-5, rtol=0)
            return
        output = model([normalised])
        frames = AutoModel.from_pretrained(out / "upstream").eval()(normalised[None]).last_hidden_state
        expected = model.readouts["speech"].head(frames)
        torch.testing.assert_close(output.logits["speech"], expected, atol=1e-4, rtol=0)
        ctc = AutoModelForCTC.from_pretrained(out / "ctc").eval()(normalised[None]).logits
        torch.testing.assert_close(ctc, expected, atol=1e-4, rtol=0)
