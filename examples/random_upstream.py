"""Write a small, untrained WavLM in the transformers format: an upstream for trying things out offline.

    python examples/random_upstream.py --out runs/real_speech/upstream
    python examples/random_upstream.py --out runs/tiny/untrained --recipe conf/pretrain_tiny.yaml

Its first two convolutions start as a filterbank (mel bands, each in four phases; then their magnitudes and how these change),
everything above is random. So its layers are random functions of a spectrogram: a floor for trained upstreams, not a result.
"""

import argparse
import math

import torch
from torch import nn
from transformers import WavLMConfig, WavLMModel

from wavcse.pretrain_accelerate import initial_network
from wavcse.pretraining.arguments import PRETRAIN
from wavcse.steps.encoder import PHASES, save_upstream, start_as_filterbank


def small_config(width: int, num_blocks: int, stem_width: int) -> WavLMConfig:
    """The large model's shape (layer norm in the stem and before each block), scaled down, with a stem of two convolutions."""
    return WavLMConfig(
        hidden_size=width,
        num_hidden_layers=num_blocks,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        conv_dim=[stem_width] * 2,
        conv_kernel=[400, 3],  # windows of 25 ms every 10 ms, then three of them every 20 ms
        conv_stride=[160, 2],
        num_feat_extract_layers=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
    )


@torch.no_grad()
def start_as_magnitudes(conv: nn.Conv1d) -> None:
    """Sum the rectified phases of each band over three windows, take their change, and fill up with random mixtures."""
    channels, inputs, _ = conv.weight.shape
    bands = inputs // PHASES
    weights = torch.randn(channels, bands, 3) / math.sqrt(bands * 3)
    weights[:bands] = torch.eye(bands)[:, :, None] / 3
    weights[bands : 2 * bands] = torch.eye(bands)[:, :, None] * torch.tensor([-1.0, 0.0, 1.0])
    conv.weight.copy_(weights.repeat_interleave(PHASES, dim=1) / PHASES)


@torch.no_grad()
def widen(model: WavLMModel) -> None:
    """Draw the weights of projection and blocks with variance 1 / inputs; with the usual 0.02 small blocks do little."""
    for module in (*model.feature_projection.modules(), *model.encoder.layers.modules()):
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, 1 / math.sqrt(module.in_features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--width", type=int, default=192, help="hidden size (default 192)")
    parser.add_argument("--num_blocks", type=int, default=6, help="transformer blocks (default 6)")
    parser.add_argument("--stem_width", type=int, default=256, help="channels, a multiple of 8 (default 256)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    parser.add_argument("--recipe", help="instead, what pretrain_accelerate.py with this recipe (and its seed) starts from")
    args = parser.parse_args()
    model = untrained(args) if args.recipe is None else initial_network(PRETRAIN.parse([args.recipe])).encoder
    save_upstream(model, args.out)
    print(f"{args.out}: untrained WavLM, {model.num_parameters() / 1e6:.1f} M parameters")


def untrained(args: argparse.Namespace) -> WavLMModel:
    """A WavLM of the shape that the options give."""
    torch.manual_seed(args.seed)
    model = WavLMModel(small_config(args.width, args.num_blocks, args.stem_width))
    first, second = (layer.conv for layer in model.feature_extractor.conv_layers)
    start_as_filterbank(first)
    start_as_magnitudes(second)
    widen(model)
    return model


if __name__ == "__main__":
    main()
