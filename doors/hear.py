"""HEAR 2021: a module with the four names of its common API, for `heareval` and `hear-validator`.

    hear-validator wavcse.doors.hear -m FOLDER_OR_HUB_ID

Source: https://hearbenchmark.com/hear-api.html. Audio is mono in [-1, 1] at the model's rate, `[n_sounds, n_samples]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavcse.eval.encoder import WavCSEEncoder

RATES_HZ = (16_000, 22_050, 32_000, 44_100, 48_000)  # that the benchmark resamples to


class HearModel(nn.Module):
    """A saved wavCSE model with the attributes that HEAR asks for.

    Attributes:
        sample_rate: in Hz.
        scene_embedding_size: size E of the embedding.
        timestamp_embedding_size: width D of the upstream.
    """

    def __init__(self, name: str):
        super().__init__()
        self.model = WavCSEEncoder(name).model
        config = self.model.config
        if config.sampling_rate not in RATES_HZ:
            raise ValueError(f"{name}: takes {config.sampling_rate} Hz; HEAR has {', '.join(map(str, RATES_HZ))}.")
        self.sample_rate: int = config.sampling_rate
        self.scene_embedding_size: int = config.embedding_size
        self.timestamp_embedding_size: int = self.model.upstream.config.hidden_size


def load_model(model_file_path: str = "") -> HearModel:
    """A model by its folder or Hub id (`id@revision`); its Python files are run, so name only models that you trust.

    Raises:
        ValueError: none is named, it cannot be loaded, or its rate is none of HEAR's.
    """
    if not model_file_path:
        raise ValueError("model_file_path: name the folder or the Hub id of a wavCSE model.")
    return HearModel(model_file_path)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """`[n_sounds, n_samples]` -> `[n_sounds, E]`, float32 on the device of the audio: what `encode` gives."""
    return model.model.encode(audio, show_progress_bar=False, convert_to_tensor=True).to(audio.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """The mean of the selected layers frame by frame, `[n_sounds, T, D]`, and the frames' times in ms, `[n_sounds, T]`.

    An embedding belongs to a whole clip; frame by frame there are the layers that it is made of.
    """
    clips = model.model.encode_frames(audio, show_progress_bar=False, convert_to_numpy=False)
    frames = torch.stack([clip.frames.mean(dim=1) for clip in clips])
    times = torch.stack([torch.from_numpy(clip.times_ms) for clip in clips])
    return frames.to(audio.device), times.float().to(audio.device)
