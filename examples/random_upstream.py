"""Write a small WavLM with random weights in the transformers format: an upstream for trying things out offline.

    python examples/random_upstream.py --out runs/quickstart/upstream

Its features are random projections of the speech, so every figure on top of it is a lower bound, not a result.
"""

import argparse

import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel


def small_config(width: int, num_blocks: int, stem_width: int) -> WavLMConfig:
    """The large model's shape (layer norm in the stem and before each block), scaled down."""
    return WavLMConfig(
        hidden_size=width,
        num_hidden_layers=num_blocks,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        conv_dim=[stem_width] * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--width", type=int, default=192, help="hidden size (default 192)")
    parser.add_argument("--num_blocks", type=int, default=6, help="transformer blocks (default 6)")
    parser.add_argument("--stem_width", type=int, default=128, help="channels of the convolutions (default 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = WavLMModel(small_config(args.width, args.num_blocks, args.stem_width))
    model.save_pretrained(args.out)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(args.out)
    print(f"{args.out}: WavLM with random weights, {model.num_parameters() / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
