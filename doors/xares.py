"""X-ARES: an encoder as its runner takes it, `encoder: wavcse.doors.xares.WavCSEXaresEncoder`.

Source: https://github.com/jimbozhang/xares, `xares/audio_encoder_checker.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.eval.encoder import WavCSEEncoder


class WavCSEXaresEncoder(nn.Module):
    """A saved wavCSE model; X-ARES asks for a name that ends in "Encoder".

    Args:
        model: folder or Hub id (`id@revision`); its Python files are run, so name only models that you trust.
        frames: give the selected layers' mean frame by frame, for tasks with labels in time; else the embedding as one frame.

    Attributes:
        sampling_rate: in Hz.
        output_dim: E, or with `frames` the upstream's width.
        hop_size_in_ms: distance of the frames.
    """

    def __init__(self, model: str, frames: bool = False):
        super().__init__()
        self.model, self.frames = WavCSEEncoder(model).model, frames
        config: WavCSEConfig = self.model.config
        self.sampling_rate: int = config.sampling_rate
        self.output_dim: int = self.model.upstream.config.hidden_size if frames else config.embedding_size
        first, second = config.frame_times_ms(2)
        self.hop_size_in_ms: float = float(second - first)

    def forward(self, audio: Tensor) -> Tensor:
        """`[B, samples]` -> `[B, 1, E]`, or with `frames` `[B, T, D]`; float32 on the device of the audio."""
        if not self.frames:
            return self.model.encode(audio, show_progress_bar=False, convert_to_tensor=True)[:, None].to(audio.device)
        clips = self.model.encode_frames(audio, show_progress_bar=False, convert_to_numpy=False)
        return torch.stack([clip.frames.mean(dim=1) for clip in clips]).to(audio.device)
