"""PEFT's adapters (LoRA) on the upstream of a wavCSE model: the modules on which they are trained, family by family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.settings.libraries import optional_library

if TYPE_CHECKING:
    from peft import LoraConfig

FEED_FORWARD = ("intermediate_dense", "output_dense")
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
# transformers' WavLM hands the weights of its attention's projections to PyTorch and never calls the modules, so that adapters
# on them would neither change the output nor get a gradient.
TARGETS = {
    "wavlm": FEED_FORWARD,
    "whisper": (*ATTENTION, "fc1", "fc2"),
    "sew-d": ("query_proj", "key_proj", "value_proj", "dense"),
    "wav2vec2-bert": ("linear_q", "linear_k", "linear_v", "linear_out", *FEED_FORWARD),
    "moonshine": ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
}
TRAINED_WHOLE = ("downstream", "heads")  # small beside the upstream, and new for a new task


def lora_targets(config: WavCSEConfig) -> list[str]:
    """Names of the upstream's linear layers on which an adapter is trained."""
    return list(TARGETS.get(config.upstream_config.model_type, (*ATTENTION, *FEED_FORWARD)))


def lora_config(config: WavCSEConfig, r: int = 8, **fields: Any) -> LoraConfig:
    """A `peft.LoraConfig` that trains: adapters of rank `r` on `lora_targets`, downstream part and heads as a whole.

    Args:
        fields: of `LoraConfig`, such as `lora_alpha` or `lora_dropout`; given ones win.

    Raises:
        ImportError: PEFT is not installed.
    """
    peft = optional_library("peft", "peft")
    return peft.LoraConfig(
        **{"r": r, "target_modules": lora_targets(config), "modules_to_save": list(TRAINED_WHOLE), **fields}
    )
