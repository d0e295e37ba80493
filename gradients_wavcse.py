"""A warning for parameters that are to be trained and get no gradient, such as adapters that the encoder never calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

STEPS_WITH_LAYERDROP = 20  # by then every block has taken part: 0.5 ** 20 is one in a million
RAW_WEIGHTS = ("q_proj", "k_proj", "v_proj", "out_proj")  # of WavLM's attention
NAMES_SHOWN = 4


class GradientWatch:
    """Looks at the first training step of a model, once, and costs nothing afterwards."""

    def __init__(self):
        self.done = False
        self.handles: list | None = None
        self.waiting: dict[str, None] = {}  # names of parameters without a gradient so far, in the model's order
        self.got_gradients = False
        self.steps = 0

    def __reduce__(self) -> tuple:
        return GradientWatch, ()  # a copy of the model is trained on its own

    def __call__(self, model: PreTrainedModel, output: Tensor) -> None:
        """To be called with every result of a forward pass in training mode, until `done`.

        Args:
            model: a `WavCSEModel`; its parameters that require gradients are watched.
            output: what the loss will be computed from.
        """
        if torch.compiler.is_compiling():
            return
        if self.handles is None:
            # SpecAugment's vector has a gradient only where it masked something.
            watched = {name: p for name, p in model.named_parameters() if p.requires_grad and "masked_spec_embed" not in name}
            self.waiting = dict.fromkeys(watched)
            if watched and output.requires_grad:
                self.handles = [p.register_post_accumulate_grad_hook(self._seen(name)) for name, p in watched.items()]
                return
        elif not self.got_gradients:
            return  # another pass before the first backward one
        self.steps += 1
        layerdrop = getattr(model.upstream.config, "layerdrop", 0.0) if model.upstream.training else 0.0
        if self.waiting and self.got_gradients and layerdrop and self.steps < STEPS_WITH_LAYERDROP:
            return
        self.done = True
        for handle in self.handles or []:
            handle.remove()
        if self.waiting:
            logger.warning(_warning(list(self.waiting), model.config.upstream_config.model_type))

    def _seen(self, name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            self.got_gradients = True
            self.waiting.pop(name, None)

        return hook


def _warning(names: list[str], family: str) -> str:
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    text = f"{len(names)} parameters that require gradients got none in the first training step and are not trained: {shown}."
    if family == "wavlm" and any(part in RAW_WEIGHTS for name in names for part in name.split(".")):
        text += (
            f" transformers' WavLM hands the plain weights of {', '.join(RAW_WEIGHTS)} to PyTorch's attention and never calls "
            "these modules, so adapters (LoRA) on them have no effect. Choose intermediate_dense and output_dense."
        )
    return text
