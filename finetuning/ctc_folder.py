"""A fine-tuned encoder with its CTC head as a transformers folder, for `pipeline("automatic-speech-recognition")`."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import (
    MODEL_FOR_CTC_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.finetuning.text import BLANK, END, SPACE, START, UNKNOWN


def has_ctc_class(config: PretrainedConfig) -> bool:
    """Whether transformers has a model for CTC with such an encoder; for Whisper it has none."""
    return type(config) in MODEL_FOR_CTC_MAPPING


def save_ctc(
    folder: str | Path, encoder: PreTrainedModel, head: nn.Linear, vocabulary: Sequence[str], do_normalize: bool = True
) -> None:
    """Write `AutoModelForCTC` and `AutoProcessor` of an encoder and the linear layer on its last frames.

    Args:
        encoder: a WavLM, wav2vec2 or HuBERT.
        head: width of a frame -> `[V]`; a head on another layer than the last would give other logits.
        vocabulary: as `finetuning.text` has it.
        do_normalize: whether waveforms are brought to mean 0 and variance 1, as in training.

    Raises:
        ValueError: transformers has no CTC model of this family.
    """
    if not has_ctc_class(encoder.config):
        raise ValueError(f"transformers has no CTC model with a {encoder.config.model_type} encoder.")
    config = copy.deepcopy(encoder.config)
    config.vocab_size = len(vocabulary)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = map(vocabulary.index, (BLANK, START, END))
    model = MODEL_FOR_CTC_MAPPING[type(config)](config)
    model.base_model.load_state_dict(encoder.state_dict())
    model.lm_head.load_state_dict(head.state_dict())
    model.save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=SAMPLING_RATE_HZ, do_normalize=do_normalize, return_attention_mask=True)
    Wav2Vec2Processor(extractor, _tokenizer(vocabulary)).save_pretrained(folder)


def _tokenizer(vocabulary: Sequence[str]) -> Wav2Vec2CTCTokenizer:
    """transformers' own, which in a pipeline takes repetitions and blanks out."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "vocab.json"
        file.write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            file, bos_token=START, eos_token=END, unk_token=UNKNOWN, pad_token=BLANK, word_delimiter_token=SPACE
        )
