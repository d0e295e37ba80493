"""BEST-RQ's targets: a fixed random projection of the log-mel spectrogram, and the nearest vector of a fixed random codebook.

Chiu et al. 2022, "Self-supervised learning with random-projection quantizer for speech recognition". Nothing here is trained.

Shapes: `B` clips of one length, `T` frames of the encoder (20 ms apart), `M` mel bands or cepstral coefficients.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.audio_utils import mel_filter_bank

from wavcse.audio_wavcse import SAMPLING_RATE_HZ
from wavcse.configuration_wavcse import count_frames
from wavcse.steps.encoder import FRAME_HOP, WINDOW, receptive_field

HOP = 160  # samples: a mel frame of `WINDOW` samples every 10 ms
STACK = FRAME_HOP // HOP  # mel frames in a target
# Power in a band of a waveform of unit variance is about 400 (white noise). With this floor, 46 dB lower, digital silence does
# not stretch the variance that everything else is divided by.
POWER_FLOOR = 1e-2
MIN_DEVIATION = 1e-2  # of a band over a clip, in nats: a constant one becomes zero instead of noise


def cosine_basis(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of rows, as a matrix to multiply with: `[size, coefficients]`."""
    at = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (at[:, None] + 0.5) * at) * math.sqrt(2 / size)
    basis[:, 0] /= math.sqrt(2)
    return basis.float()


class RandomProjectionQuantizer(nn.Module):
    """Waveforms -> the code of every frame of an encoder.

    Two mel frames are stacked to a target, those in the middle of what the encoder's frame sees. Each band has zero mean and
    unit variance over the clip. Bands rise and fall together, so that loud and quiet frames share few codes; with
    `num_cepstra` a cosine transform over the bands comes before that norm, and every direction counts.

    Args:
        config: of the encoder, for the geometry of its frames.
        num_mels: bands.
        num_cepstra: coefficients that are kept of the cosine transform; 0 = none is done.
        codebook_size: number of codes.
        codebook_dim: size of a code vector.
        seed: of projection (Xavier uniform) and codebook (normal, scaled to length 1).

    Attributes:
        projection: `[2 M, codebook_dim]`, codebook: `[codebook_size, codebook_dim]`; buffers, saved with the model.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        num_mels: int = 80,
        num_cepstra: int = 0,
        codebook_size: int = 8192,
        codebook_dim: int = 16,
        seed: int = 0,
    ):
        super().__init__()
        self.config = config
        self.offset = max(0, (receptive_field(config) - WINDOW - (STACK - 1) * HOP) // 2)
        filters = mel_filter_bank(WINDOW // 2 + 1, num_mels, 0.0, SAMPLING_RATE_HZ / 2, SAMPLING_RATE_HZ, mel_scale="slaney")
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32), persistent=False)  # [201, M]
        basis = cosine_basis(num_mels)[:, :num_cepstra] if num_cepstra else None
        self.register_buffer("basis", basis, persistent=False)  # [bands, M]
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        projection = torch.empty(STACK * (num_cepstra or num_mels), codebook_dim)
        nn.init.xavier_uniform_(projection, generator=generator)
        self.register_buffer("projection", projection)
        codebook = torch.randn(codebook_size, codebook_dim, generator=generator)
        self.register_buffer("codebook", F.normalize(codebook, dim=1))

    @torch.no_grad()
    def forward(self, waveforms: Tensor, mask: Tensor) -> Tensor:
        """Codes of the frames where `mask` `[B, T]` is True, in its order, int64 `[n]`, of `waveforms` `[B, samples]`."""
        with torch.autocast(waveforms.device.type, enabled=False):
            projected = self.features(waveforms.float())[mask] @ self.projection
            return (F.normalize(projected, dim=1) @ self.codebook.T).argmax(dim=1)

    def features(self, waveforms: Tensor) -> Tensor:
        """Normalised, stacked log-mel frames, `[B, samples]` -> `[B, T, 2 M]`.

        Where a target's last mel frame would lie beyond the end of the clip, the clip's last mel frame stands in for it.

        Raises:
            ValueError: the clips are too short for one mel frame or one frame of the encoder.
        """
        num_samples = waveforms.shape[1]
        num_frames = count_frames(num_samples, self.config)
        if num_frames < 1 or num_samples < self.offset + WINDOW:
            raise ValueError(f"{num_samples} samples are too short for a frame; {self.offset + WINDOW} are needed at least.")
        windows = waveforms[:, self.offset :].unfold(1, WINDOW, HOP)  # [B, mel frames, 400], a view
        power = torch.fft.rfft(windows * self.window).abs().square()
        log_mel = (power @ self.filters).clamp_min(POWER_FLOOR).log()
        features = log_mel if self.basis is None else log_mel @ self.basis
        features = features - features.mean(dim=1, keepdim=True)
        features = features / features.square().mean(dim=1, keepdim=True).sqrt().clamp_min(MIN_DEVIATION)
        wanted = torch.arange(STACK * num_frames, device=waveforms.device).clamp_max(features.shape[1] - 1)
        return features[:, wanted].unflatten(1, (num_frames, STACK)).flatten(2)
