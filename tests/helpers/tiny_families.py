"""A tiny checkpoint of every upstream family, and what transformers' own modules make of a clip."""

from __future__ import annotations

import numpy as np
import torch
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from wavcse import WavCSEFeatureExtractor

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
# Encoders of two convolutions, with frames of 20 ms.
SMALLEST = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8],
    "conv_kernel": [400, 2],
    "conv_stride": [160, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}
TRAINED = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [32, 32],
    "conv_kernel": [400, 3],
    "conv_stride": [160, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
STEM = {**SIZES, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_layers": 1}
WHISPER |= {"decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1}
WHISPER |= {"eos_token_id": 2, "decoder_start_token_id": 1, "max_source_positions": 100}
SEW = {**STEM, "conv_dim": [16] * 13}
MOONSHINE = {"hidden_size": 32, "intermediate_size": 64, "encoder_num_hidden_layers": 3, "encoder_num_attention_heads": 4}
MOONSHINE |= {"decoder_num_hidden_layers": 5, "decoder_num_attention_heads": 2, "vocab_size": 20}
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
    "SEW": ("sew", SEW),
    "SEW-D": ("sew-d", SEW),
    "Wav2Vec2-BERT": ("wav2vec2-bert", SIZES),
    "Moonshine": ("moonshine", MOONSHINE),
}


def feature_extractor(model_type: str):
    if model_type == "whisper":
        return WhisperFeatureExtractor(chunk_length=2)
    if model_type == "wav2vec2-bert":
        return SeamlessM4TFeatureExtractor()
    return Wav2Vec2FeatureExtractor(do_normalize=model_type != "moonshine")


def inputs_of(model, clips) -> dict:
    extractor = WavCSEFeatureExtractor.from_config(model.config)
    return dict(extractor(clips, sampling_rate=16_000, return_tensors="pt"))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().amax(dim=-1) / expected.abs().amax(dim=-1)).max().item()


def module_layers(module, model_type: str, inputs: torch.Tensor) -> torch.Tensor:
    """Layers of one clip as transformers gives them, `[L, T, D]`; the last one of Moonshine before its final norm."""
    encoder, unnormalised = getattr(module, "encoder", module) if model_type == "moonshine" else module, []
    if model_type == "moonshine":
        encoder.layer_norm.register_forward_pre_hook(lambda _, given: unnormalised.append(given[0]))
    with torch.no_grad():
        states = list(encoder(inputs, output_hidden_states=True).hidden_states)
    states[-1:] = unnormalised[-1:] or states[-1:]
    return torch.cat(states)


def module_inputs(model_type: str, clip: np.ndarray) -> torch.Tensor:
    """What a transformers module takes of a clip alone, without the frame that a feature extractor adds.

    transformers sums the mean of a mel bin in float32; here it is summed in float64.
    """
    extractor = feature_extractor(model_type)
    if model_type != "wav2vec2-bert":
        return extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_values"]
    mels = extractor._extract_fbank_features(clip).astype(np.float64)
    mels = (mels - mels.mean(axis=0)) / np.sqrt(mels.var(axis=0, ddof=1) + 1e-7)
    return torch.from_numpy(mels[: len(mels) // 2 * 2].reshape(1, -1, 160)).float()
