"""Train a small model of spoken words (`wavcse words`)."""

from __future__ import annotations

from wavcse.words.arguments import WORDS, WordsArguments

if __name__ == "__main__":
    WORDS.answer()  # before the imports below, which take seconds

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.utils import clip_grad_norm_

from wavcse.data.files import digest_of, locked, named_errors
from wavcse.settings.command import DONE
from wavcse.training.run import OTHER_SETTINGS, Learner, Run, all_finite, new_accelerator
from wavcse.words.encoder import save_encoder
from wavcse.words.models import MODELS, WordModel
from wavcse.words.targets import DESCRIPTIONS, word_vectors
from wavcse.words.tokens import Tokens, frame_scale, read_tokens

VALIDATION_STREAM = 0  # epochs count from 1


@dataclass
class Progress:
    """How far a run is; saved with every checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float | None = None
    train_seconds: float = 0.0


def train(args: WordsArguments) -> dict:
    """Train, or continue, the run that `args` describes.

    Returns:
        What is also written to `output_dir/results/words.json`.

    Raises:
        ValueError: the manifests or word vectors do not fit, or another run is at work in `output_dir`.
        FloatingPointError: the training diverged. Of that epoch nothing is kept.
    """
    accelerator = new_accelerator(args)
    if accelerator.num_processes > 1:
        raise ValueError("wavcse words trains in one process; models this small gain nothing from more.")
    with locked(Path(args.output_dir)):
        run, tokens = set_up(args, accelerator)
        run.resume()
        progress = run.learner.progress
        with run.bar(args.num_epochs, args.kind) as bar:
            while not is_over(progress, args):
                entry = train_epoch(run, tokens)
                run.log(entry)
                bar.set_postfix({name: f"{entry[name]:.4f}" for name in ("train_loss", "validation_loss")}, refresh=False)
                bar.update()
                run.save_when_due(must=is_over(progress, args))
        return finish(run, tokens)


def set_up(args: WordsArguments, accelerator: Accelerator) -> tuple[Run, Tokens]:
    """Read the words, build model and optimiser; every mistake in the recipe shows here."""
    tokens = read_tokens(args)
    targets = word_vectors(args, tokens) if args.kind == "lee" else None
    torch.manual_seed(args.seed)
    model = MODELS[args.kind](args, tokens, targets)
    for buffer, value in zip((model.encoder.mean, model.encoder.scale), frame_scale(tokens, args), strict=True):
        buffer.copy_(value)
    model.to(accelerator.device)
    optimizer = torch.optim.Adam(model.parameters(), args.learning_rate)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, args.step_epochs, gamma=0.5)
    run = Run(args, accelerator, Learner(args, model, model, optimizer, scheduler, Progress()), "epoch")
    known = [tokens.fingerprint(), *([{word: own.tolist() for word, own in targets.items()}] if targets else [])]
    for split in ("train", "validation"):
        if not len(model.examples(tokens.rows(split), np.random.default_rng(args.seed))):
            raise ValueError(f"{args.kind}: {split} has no {model.what_it_needs}.")
    run.prepare(digest_of(known), "words, their sound or their vectors", project="wavcse-words")
    counts = {split: len(tokens.rows(split)) for split in ("train", "validation")}
    print(
        f"{counts['train']} words to learn from, {counts['validation']} to choose by, {len(set(tokens.words))} different ones."
    )
    return run, tokens


def is_over(progress: Progress, args: WordsArguments) -> bool:
    """Whether all epochs are done, or validation has waited long enough for a better one."""
    return progress.epoch >= args.num_epochs or progress.epoch - progress.best_epoch >= args.patience


def train_epoch(run: Run, tokens: Tokens) -> dict:
    """One pass over the training examples, then validation; returns the log's entry.

    All that is random follows from seed and epoch, so a continued run repeats it to the bit.

    Raises:
        FloatingPointError: a loss or weight is not finite.
    """
    learner, args = run.learner, run.args
    model, progress = learner.network, learner.progress
    epoch = progress.epoch + 1
    torch.manual_seed(int(np.random.default_rng([args.seed, epoch, 1]).integers(2**31)))
    model.train()
    rng = np.random.default_rng([args.seed, epoch])
    examples = rng.permutation(model.examples(tokens.rows("train"), rng))
    losses = [update(learner, batch) * len(batch) for batch in batches(examples, args.batch_size)]
    rate = learner.scheduler.get_last_lr()[0]
    learner.scheduler.step()
    train_loss, loss = sum(losses) / len(examples), validation_loss(model, tokens)
    if not np.isfinite([train_loss, loss]).all() or not all_finite(model.parameters()):
        raise FloatingPointError(f"{args.output_dir}: epoch {epoch} has a loss or weight that is not finite.{OTHER_SETTINGS}")
    progress.epoch = epoch
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_epoch = loss, epoch
        learner.keep_weights()
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "validation_loss": loss,
        "learning_rate": rate,
        "seconds": round(run.lap(), 3),
    }


def update(learner: Learner, examples: np.ndarray) -> float:
    """One step; returns its loss."""
    learner.optimizer.zero_grad()
    loss = learner.model.loss(examples)
    loss.backward()
    clip_grad_norm_(learner.network.parameters(), learner.args.max_grad_norm)
    learner.optimizer.step()
    return loss.item()


@torch.no_grad()
def validation_loss(model: WordModel, tokens: Tokens) -> float:
    """Mean loss of the validation examples, the same ones in every epoch, without dropout and corruption."""
    model.eval()
    examples = model.examples(tokens.rows("validation"), np.random.default_rng([model.args.seed, VALIDATION_STREAM]))
    parts = [model.loss(batch).item() * len(batch) for batch in batches(examples, model.args.batch_size)]
    return sum(parts) / len(examples)


def batches(examples: np.ndarray, size: int) -> list[np.ndarray]:
    """Examples in order, `size` at a time; the last batch may be smaller."""
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def finish(run: Run, tokens: Tokens) -> dict:
    """Save the encoder of the best epoch and write the result."""
    args, learner = run.args, run.learner
    learner.network.load_state_dict(learner.best_weights)
    targets = args.targets if args.kind == "lee" else None
    known = {
        "kind": args.kind,
        "targets": targets,
        "targets_are": DESCRIPTIONS[targets] if targets else None,
        "targets_from": args.targets_from if targets else None,
        **{name: getattr(args, name) for name in ("num_mfcc", "hidden_size", "max_frames")},
    }
    with named_errors(run.folder.path / "model"):
        save_encoder(learner.network.encoder, run.folder.path / "model", known)
    result = run.write_result(
        "words",
        {
            **known,
            "num_words": {split: len(tokens.rows(split)) for split in ("train", "validation")},
            "vocabulary": {split: len(set(tokens.words[tokens.rows(split)])) for split in ("train", "validation")},
            "without_vector": int((~learner.network.has_target).sum()) if targets else None,
            "best_epoch": learner.progress.best_epoch,
            "best_loss": learner.progress.best_loss,
            "num_epochs": learner.progress.epoch,
            "num_parameters": sum(own.numel() for own in learner.network.encoder.parameters()),
        },
    )
    named = f" ({targets}: {DESCRIPTIONS[targets]})" if targets else ""
    print(
        f"{run.folder.path / 'model'}: {args.kind}{named}, validation loss {result['best_loss']:.4f} of epoch "
        f"{result['best_epoch']}, the best of {result['num_epochs']}."
    )
    run.end()
    return result


@WORDS.main
def main(args: WordsArguments) -> int:
    """The command line."""
    train(args)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
