"""Which parts of an encoder, and of what reads it, stay as they are, and until when.

What is frozen gets no gradient and is in eval mode: it has no dropout, and a batch norm in it keeps its figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavcse.settings.fields import CheckedFields, option

if TYPE_CHECKING:  # this module has settings, and `--help` needs no PyTorch
    from torch import nn
    from transformers import PreTrainedModel


@dataclass
class Freeze(CheckedFields):
    """What stays as it is; Vaessen and van Leeuwen fine-tune wav2vec 2.0 with `{stem: true, encoder_until: 3000}`."""

    stem: bool = option(True, "Leave the convolutions on the waveform or spectrogram as they are.")
    encoder_until: int = option(0, "Steps at the beginning in which heads alone learn.", at_least=0)
    blocks: int = option(0, "So many of the lowest blocks stay as they are, with all that comes before them.", at_least=0)
    ari: bool = option(False, "Leave the weights of the blocks as they are.")
    auxiliary: bool = option(False, "Leave the hidden layers of tasks that are not learnt as they are.")


class Freezing:
    """Freezes and frees the parts of an encoder.

    Args:
        encoder: a WavLM, wav2vec2 or HuBERT, or Whisper's encoder. What has no gradient at this time (Whisper's positions, a
            final norm that nothing reads) is never given one.
        parts: outside of the encoder, what is frozen in every step.

    Raises:
        ValueError: the encoder has fewer blocks than are to be frozen.
    """

    def __init__(self, encoder: PreTrainedModel, freeze: Freeze, parts: Sequence[nn.Module] = ()):
        from wavcse.packed_encoder_wavcse import blocks_of
        from wavcse.upstream_wavcse import unread_part

        self.encoder, self.freeze, self.step = encoder, freeze, 0
        self.parts = [module for part in parts for module in part.modules()]
        blocks, final = blocks_of(encoder), unread_part(encoder)
        if freeze.blocks > len(blocks):
            raise ValueError(f"freeze: blocks is {freeze.blocks}; the encoder has {len(blocks)}.")
        above = [*blocks[freeze.blocks :], *([final] if final is not None else [])]
        self.above = {module for part in above for module in part.modules()}
        self.trained = [weight for weight in encoder.parameters() if weight.requires_grad]

    def at(self, step: int) -> None:
        """Freeze what is frozen in this step (from 0), and give gradients to the rest."""
        self.step = step
        for weight in self.trained:
            weight.requires_grad_(True)
        for module in self._frozen():
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)
        self.hold()

    def hold(self) -> None:
        """Put what is frozen into eval mode; to be called whenever the network was put into training mode."""
        for module in self._frozen():
            module.training = False

    def _frozen(self) -> Iterator[nn.Module]:
        yield from self.parts
        if self.step < self.freeze.encoder_until:
            yield from self.encoder.modules()
        elif self.freeze.blocks:
            yield from (module for module in self.encoder.modules() if module not in self.above)
        elif self.freeze.stem:
            for part in stem_of(self.encoder):
                yield from part.modules()


def stem_of(encoder: PreTrainedModel) -> list[nn.Module]:
    """The convolutions on what an encoder hears."""
    return [encoder.conv1, encoder.conv2] if encoder.config.model_type == "whisper" else [encoder.feature_extractor]
