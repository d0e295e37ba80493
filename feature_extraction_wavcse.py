"""`WavCSEFeatureExtractor`: waveforms -> `input_values` and `attention_mask`; refuses what the model cannot serve."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging

from .audio_wavcse import as_clips, check_duration, has_own_rate, load_waveform
from .audio_wavcse import scale_quiet as scaled_if_quiet
from .configuration_wavcse import WavCSEConfig

# For transformers' loader of remote code, as in `configuration_wavcse.py`.
if TYPE_CHECKING:
    from .audio_streams_wavcse import Stream  # noqa: F401
    from .coattention_wavcse import Fusion  # noqa: F401
    from .ecapa_wavcse import EcapaTdnn  # noqa: F401
    from .encoding_wavcse import read_clips  # noqa: F401
    from .endpoint_wavcse import EndpointHandler  # noqa: F401
    from .finetuned_wavcse import FinetunedWavCSE  # noqa: F401
    from .gradients_wavcse import GradientWatch  # noqa: F401
    from .hub_repository_wavcse import complete_repository  # noqa: F401
    from .kernels_wavcse import float32_library  # noqa: F401
    from .labels_wavcse import predictions  # noqa: F401
    from .modeling_wavcse import WavCSEModel  # noqa: F401
    from .packed_encoder_wavcse import PackedUpstream  # noqa: F401
    from .packed_layers_wavcse import FloatLinear  # noqa: F401
    from .pipeline_wavcse import WavCSEFeatureExtractionPipeline  # noqa: F401
    from .pooling_wavcse import LayerPooling  # noqa: F401
    from .sentence_transformers_wavcse import WavCSETransformer  # noqa: F401
    from .upstream_wavcse import UpstreamRunner  # noqa: F401
    from .wav2vec2_bert_wavcse import filterbank_of_clip  # noqa: F401
    from .whisper_wavcse import pool_layers  # noqa: F401


logger = logging.get_logger(__name__)

INT16_SCALE = 2**15  # a decoder gives 16-bit PCM as whole multiples of this in [-1, 1)
VARIANCE_FLOOR = 1e-7  # as in transformers' Wav2Vec2FeatureExtractor; keeps silence finite (all zeros)


class WavCSEFeatureExtractor(SequenceFeatureExtractor):
    """Prepare waveforms for `WavCSEModel`: check, normalise per clip, pad, mask.

    Args:
        feature_size: channels of a clip, always 1.
        sampling_rate: rate in Hz that clips must have.
        padding_value: value of the padding (the mask hides it from the model).
        do_normalize: zero mean and unit variance per clip, over its real samples only.
        return_attention_mask: the model needs the mask to tell clips from padding, so it is on.
        min_samples: shortest clip in samples (the receptive field of the upstream, 400 = 25 ms at 16 kHz).
        max_duration_s: longest clip in seconds.
    """

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012 (transformers reads this class attribute)

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        do_normalize: bool = True,
        return_attention_mask: bool = True,
        min_samples: int = 400,
        max_duration_s: float = 7200.0,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.do_normalize = do_normalize
        self.return_attention_mask = return_attention_mask
        self.min_samples = min_samples
        self.max_duration_s = max_duration_s

    @classmethod
    def from_config(cls, config: WavCSEConfig) -> WavCSEFeatureExtractor:
        """The feature extractor that belongs to a model configuration."""
        return cls(
            sampling_rate=config.sampling_rate,
            do_normalize=config.do_normalize,
            min_samples=config.min_samples,
            max_duration_s=config.max_duration_s,
        )

    def __call__(
        self,
        raw_speech: Any,
        padding: bool | str | None = None,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
        device: str | torch.device | None = None,
        scale_quiet: bool = False,
        **kwargs,
    ) -> BatchFeature:
        """Turn one clip, or a list of clips, into model input.

        Args:
            raw_speech: one clip or several, as `WavCSEModel.encode` takes them. Arrays (`[samples]` or `[B, samples]`; floats
                in [-1, 1], or int16/int32 PCM) are at the model's rate; files, mappings and decoders come with their own
                rate and are resampled.
            padding, max_length, truncation, pad_to_multiple_of, return_attention_mask, return_tensors:
                as in every transformers feature extractor, but padding to the longest clip is the default where tensors or
                arrays of the whole batch are asked for (`return_tensors`).
            sampling_rate: rate of the arrays in Hz. Pass it: a wrong rate is then an error, not a wrong embedding.
            device: where the tensors shall be (with `return_tensors="pt"`). A GPU receives 16-bit samples, where the clips
                are 16-bit, and pads and normalises them itself.
            scale_quiet: bring clips below -60 dB of full scale to the level of usual speech, -20 dB, before normalisation.

        Returns:
            `BatchFeature` with `input_values` (float32 of shape `[B, samples]`) and `attention_mask` (int32, 1 = audio).

        Raises:
            ValueError: wrong sampling rate, or a clip cannot be read, is a stereo array, empty, too short, too long, of an
                unsupported dtype, or holds samples that are not audio. The message names the clip by its path or position.
        """
        padding = return_tensors is not None if padding is None else padding
        given, _ = as_clips(raw_speech)
        given = list(given) or [np.zeros(0)]
        if not all(map(has_own_rate, given)):
            self._check_sampling_rate(sampling_rate)
        most = max_length if truncation else None
        clips = [self.load(clip, i, most) for i, clip in enumerate(given)]
        if scale_quiet:
            clips = [scaled_if_quiet(clip) for clip in clips]
        is_plain = padding in (True, "longest") and max_length is None and pad_to_multiple_of is None
        if return_tensors == "pt" and is_plain and return_attention_mask is not False and not _is_cpu(device):
            clips = [clip.astype(np.float32, copy=False) for clip in clips]
            return BatchFeature(send(clips, self.do_normalize, torch.device(device)))
        if self.do_normalize:
            clips = [normalize(clip) for clip in clips]
        batch = self.pad(
            BatchFeature({"input_values": clips}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
        )
        batch = batch if return_tensors is None else batch.convert_to_tensors(return_tensors)
        return batch if _is_cpu(device) else batch.to(device)

    def load(self, clip: Any, position: int = 0, max_length: int | None = None) -> np.ndarray:
        """One clip in any form as a checked waveform, float32 `[samples]` at the model's rate.

        Args:
            clip: what `load_waveform` takes.
            position: by which messages name a clip that has no path.
            max_length: keep so many samples of a longer clip.

        Raises:
            ValueError: it cannot be read, is too short, or too long.
        """
        name = str(clip) if isinstance(clip, str | os.PathLike) else f"clip {position}"
        waveform = load_waveform(clip, self.sampling_rate, name, self.max_duration_s if max_length is None else None)
        waveform = waveform[:max_length]
        self.check(waveform, name)
        return waveform

    def prepare(
        self, waveforms: Sequence[np.ndarray], device: str | torch.device | None = None, scale_quiet: bool = False
    ) -> list[Tensor]:
        """Clips that are checked already, such as `load_waveform` gives, as the model takes them without padding.

        Args:
            waveforms: float32 `[samples]` each.
            device, scale_quiet: as in `__call__`.

        Returns:
            Normalised float32 tensors `[samples]` on the device.
        """
        if scale_quiet:
            waveforms = [scaled_if_quiet(waveform) for waveform in waveforms]
        if not _is_cpu(device):
            values = send(waveforms, self.do_normalize, torch.device(device))["input_values"]
            return [row[: len(waveform)] for row, waveform in zip(values, waveforms)]
        return [torch.tensor(normalize(waveform) if self.do_normalize else waveform) for waveform in waveforms]

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            logger.warning_once(
                f"No `sampling_rate` was given: the clips are taken to be at {self.sampling_rate} Hz. Pass "
                f"`sampling_rate=...` to {type(self).__name__} so that a mismatch becomes an error."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"The clips are at {sampling_rate} Hz, but the model was trained at {self.sampling_rate} Hz. Resample them "
                f"(`soxr.resample(clip, {sampling_rate}, {self.sampling_rate})`), or give the pipeline "
                '`{"array": clip, "sampling_rate": rate}`, which resamples by itself.'
            )

    def check(self, waveform: np.ndarray, name: str) -> None:
        """ValueError, calling the clip `name`, if `[samples]` is too short or too long for the model."""
        if waveform.size < self.min_samples:
            raise ValueError(
                f"{name}: has {waveform.size} samples ({1000 * waveform.size / self.sampling_rate:.1f} ms); the upstream "
                f"needs at least {self.min_samples} for one frame. Pad the clip with zeros or drop it. (If this is one "
                "multi-channel clip, average its channels: a 2-D array is read as a batch of clips.)"
            )
        check_duration(waveform.size / self.sampling_rate, self.max_duration_s, name)


def _is_cpu(device: str | torch.device | None) -> bool:
    return device is None or torch.device(device).type == "cpu"


def normalize(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over `[samples]`, in float32; silence stays zero. transformers' arithmetic, to the bit."""
    return ((waveform - waveform.mean()) / np.sqrt(waveform.var() + VARIANCE_FLOOR)).astype(np.float32)


def normalized(waveforms: Tensor, mask: Tensor | None = None) -> Tensor:
    """As `normalize`, by PyTorch and for rows `[B, samples]`; zeros where the mask `[B, samples]` is not set."""
    lengths = waveforms.shape[1] if mask is None else mask.sum(dim=1, keepdim=True)
    centred = waveforms - waveforms.sum(dim=1, keepdim=True) / lengths
    if mask is not None:
        centred = centred * mask
    return centred / (centred.square().sum(dim=1, keepdim=True) / lengths + VARIANCE_FLOOR).sqrt()


# ---- clips on their way to a GPU ----
#
# A fast GPU embeds more audio per second than one processor core normalises; and most speech is 16-bit, half of float32's
# bytes. So samples travel as 16-bit ones in pinned memory, and are padded and normalised there.


def send(clips: Sequence[np.ndarray], do_normalize: bool, device: torch.device) -> dict[str, Tensor]:
    """`input_values` `[B, samples]` (float32) and `attention_mask` (int32) on the device, clips padded with zeros.

    Args:
        clips: float32 waveforms `[samples]`.
        do_normalize: bring every clip to zero mean and unit variance.
    """
    whole = [as_int16(clip) for clip in clips]
    is_int16 = all(samples is not None for samples in whole)
    samples = [torch.from_numpy(clip) for clip in (whole if is_int16 else clips)]
    longest = max(map(len, samples))
    padded = torch.zeros(len(samples), longest, dtype=samples[0].dtype, pin_memory=device.type == "cuda")
    for row, clip in zip(padded, samples):
        row[: len(clip)] = clip
    values = padded.to(device, non_blocking=True).float()
    lengths = torch.tensor([len(clip) for clip in samples], device=device)[:, None]
    mask = torch.arange(longest, device=device) < lengths
    if is_int16:
        values /= INT16_SCALE
    if do_normalize:
        values = normalized(values, mask)
    return {"input_values": values, "attention_mask": mask.int()}


def as_int16(clip: np.ndarray) -> np.ndarray | None:
    """The clip's samples as 16-bit PCM, or `None` where that would change one of them."""
    scaled = clip * np.float32(INT16_SCALE)
    rounded = np.rint(scaled)
    is_exact = np.array_equal(rounded, scaled) and -INT16_SCALE <= rounded.min() and rounded.max() < INT16_SCALE
    return rounded.astype(np.int16) if is_exact else None
