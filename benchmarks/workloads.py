"""What the benchmarks embed and how much arithmetic that takes; what they train on.

Lengths are fixed, audio is seeded noise: what is in a clip does not change its cost. The audio of a workload is small, so that
the slowest rival fits into minutes; a workload of mixed lengths keeps the mean and, where time allows, the longest clip of a
batch of 32 drawn from its corpus, on which the cost of padding depends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.configuration_utils import PretrainedConfig

from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.packed_encoder_wavcse import FFT_FROM_KERNEL, FFT_SIZE

SAMPLING_RATE = 16_000
# The paper's tasks: classes, clips of its training and validation sets, and their mean length.
CLASSES = {"keyword": 12, "speaker": 1251, "emotion": 4}
PAPER_TRAIN = {"keyword": 51_088, "speaker": 138_361, "emotion": 4_425}
PAPER_VALIDATION = {"keyword": 6_798, "speaker": 6_904, "emotion": 553}
CLIP_SECONDS = {"keyword": 1.0, "speaker": 8.2, "emotion": 4.5}  # of Speech Commands, VoxCeleb1 and IEMOCAP


@dataclass(frozen=True)
class Workload:
    """Clips that are embedded in one go.

    `rounds` bounds the rounds of workloads that are too long for five in a run of minutes; `--all_rounds` lifts it.
    """

    name: str
    title: str
    clip_seconds: tuple[float, ...]
    rounds: int | None = None

    @property
    def audio_s(self) -> float:
        """Seconds of audio."""
        return sum(self.clip_seconds)

    @property
    def padded_s(self) -> float:
        """Seconds of audio and padding when all clips make one batch."""
        return len(self.clip_seconds) * max(self.clip_seconds)

    def repeated(self, times: int) -> Workload:
        """The same with every clip several times, for devices that need more at once."""
        return Workload(self.name, self.title, self.clip_seconds * times, self.rounds)

    def scaled(self, factor: float) -> Workload:
        """The same with shorter clips."""
        return Workload(self.name, self.title, tuple(seconds * factor for seconds in self.clip_seconds), self.rounds)


WORKLOADS = (
    Workload("mixed", "mixed, uniform 1-15 s", (2.4, 14.6, 7.0)),
    Workload("gsc", "GSC-like, 1 s", (1.0,) * 16),
    Workload("8s", "one clip of 8 s", (8.0,)),
    Workload("30s", "one clip of 30 s", (30.0,), rounds=2),
    Workload("iemocap", "IEMOCAP-like", (2.8, 9.4, 1.3), rounds=2),
    Workload("voxceleb", "VoxCeleb-like", (5.4, 4.4, 14.8), rounds=2),
)
# In the order of what they need, for one process that goes through them (see memory.py).
MEMORY_WORKLOADS = (
    Workload("1s", "1 x 1 s", (1.0,)),
    Workload("8s", "1 x 8 s", (8.0,)),
    Workload("30s", "1 x 30 s", (30.0,)),
    Workload("8x10s", "8 x 10 s", (10.0,) * 8),
    Workload("60s", "1 x 60 s", (60.0,)),
    Workload("600s", "1 x 10 min", (600.0,)),
)


def waveforms(workload: Workload, seed: int = 0) -> list[Tensor]:
    """Seeded noise with zero mean and unit variance, `[samples]` per clip."""
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randn(round(seconds * SAMPLING_RATE), generator=generator) for seconds in workload.clip_seconds]
    return [(clip - clip.mean()) / clip.std(correction=0) for clip in clips]


def count_flop(config: PretrainedConfig, num_samples: int, num_blocks: int, packed: bool) -> dict[str, float]:
    """Floating point operations of one clip without padding, a multiply-add being two, by part.

    Counted are the matrix products: of the convolutional stem and its projection ("stem"), of the positional convolution
    ("position"), of the blocks' linear layers ("linear") and of queries with keys and weights with values ("attention").

    Args:
        config: of the upstream.
        num_samples: length of the clip.
        num_blocks: transformer blocks that run.
        packed: as `packed_encoder_wavcse` does it: the positional convolution by FFT, and the last block's outer feed-forward
            layer applied to the mean, which leaves nothing of it to count.
    """
    width, inner = config.hidden_size, config.intermediate_size
    stem, frames, channels = 0.0, num_samples, 1
    for kernel, stride, out_channels in zip(config.conv_kernel, config.conv_stride, config.conv_dim):
        frames = (frames - kernel) // stride + 1
        stem += 2 * frames * kernel * channels * out_channels
        channels = out_channels
    linear = num_blocks * 2 * frames * (4 * width**2 + 2 * width * inner)
    return {
        "stem": stem + 2 * frames * channels * width,
        "position": frames * _position_flop_per_frame(config, packed),
        "linear": linear - (2 * frames * width * inner if packed else 0),
        "attention": num_blocks * 4 * frames**2 * width,
    }


def _position_flop_per_frame(config: PretrainedConfig, by_fft: bool) -> float:
    width, kernel = config.hidden_size, config.num_conv_pos_embeddings
    per_group = width // config.num_conv_pos_embedding_groups
    if not by_fft or not FFT_FROM_KERNEL <= kernel <= FFT_SIZE // 2:
        return 2 * kernel * per_group * width
    products = (FFT_SIZE // 2 + 1) * width * per_group * 8  # complex multiply-adds
    transforms = 2 * width * 2.5 * FFT_SIZE * math.log2(FFT_SIZE)  # there and back, of real numbers
    return (products + transforms) / (FFT_SIZE - kernel + 1)


def total_flop(config: PretrainedConfig, clips: Sequence[Tensor], num_blocks: int, packed: bool) -> dict[str, float]:
    """`count_flop` summed over clips."""
    counts = [count_flop(config, len(clip), num_blocks, packed) for clip in clips]
    return {part: sum(count[part] for count in counts) for part in counts[0]}


def paper_audio_s() -> float:
    """Seconds of audio in an epoch of the paper's corpora, validation included."""
    return sum(CLIP_SECONDS[task] * (PAPER_TRAIN[task] + PAPER_VALIDATION[task]) for task in CLASSES)


def draw_labels(num_clips: int, shares: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Task of `CLASSES` -> seeded class indices `[N]`; every clip has a label of one task, drawn in proportion to `shares`."""
    generator = np.random.default_rng(0)
    total = sum(shares.values())
    task_of = generator.choice(len(CLASSES), num_clips, p=[shares[task] / total for task in CLASSES])
    return {
        task: np.where(task_of == i, generator.integers(count, size=num_clips), IGNORED_LABEL)
        for i, (task, count) in enumerate(CLASSES.items())
    }
