"""Embed a speech file, or compare two: `python examples/embed_a_file.py FILE [FILE] [--model DIR]`.

Needs torch, transformers, soundfile and soxr, not the package `wavcse`: the code comes with the model. The model is the one in
the root of this repository unless another is named; no network is needed for it.
"""

import argparse
from pathlib import Path

import torch
from transformers import pipeline

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "model.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="one or two speech files (wav, flac, ogg, opus, mp3)")
    parser.add_argument("--model", default=str(ROOT), help="Hub id or folder (default: the root of this repository)")
    args = parser.parse_args()
    if len(args.files) > 2:
        parser.error("give one file, or two to compare")
    if args.model == str(ROOT) and not (ROOT / WEIGHTS).is_file():
        parser.error(f"{WEIGHTS} is missing in the root of this repository: check it out, or name a model with --model")

    embed = pipeline("feature-extraction", model=args.model, trust_remote_code=True)
    embeddings = [embed(file, return_tensors=True) for file in args.files]  # each [1, E]

    for file, embedding in zip(args.files, embeddings):
        numbers = " ".join(f"{number:+.4f}" for number in embedding[0, :8])
        print(f"{file}: shape {tuple(embedding.shape)}, {numbers} ...")
    if len(embeddings) == 2:
        print(f"cosine similarity: {torch.cosine_similarity(*embeddings).item():.4f}")


if __name__ == "__main__":
    main()
