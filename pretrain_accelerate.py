"""Pre-train a small speech encoder on unlabelled and labelled speech: BEST-RQ, made label-aware as in LASR.

    accelerate launch pretrain_accelerate.py conf/pretrain_quick.yaml --out runs/mine

The run folder receives the resolved configuration, a JSON-lines log, checkpoints, and `upstream/`, a transformers encoder that
`WavCSEModel.from_upstream` takes. A killed run goes on where it was when the same command is given again, and ends with the
same weights to the bit.
"""

from __future__ import annotations

from wavcse.pretraining.arguments import PRETRAIN, PretrainArguments

if __name__ == "__main__":
    PRETRAIN.answer()  # before the imports below, which take seconds

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from wavcse.data.files import locked
from wavcse.data.inspection import Inspector
from wavcse.pretraining.clips import PretrainingClips, load_clips, with_label_faults
from wavcse.pretraining.network import Figures, PretrainNetwork, label_weight_at, total_loss
from wavcse.settings.command import DONE
from wavcse.steps.audio_store import build_store
from wavcse.steps.batches import BatchLoader
from wavcse.steps.encoder import encoder_config, new_encoder, save_upstream
from wavcse.steps.loop import new_learner, refuse_divergence, update
from wavcse.training.checkpoint import TENSOR_FILE, read_tensors
from wavcse.training.run import Run, new_accelerator


def pretrain(args: PretrainArguments) -> dict:
    """Pre-train, or continue, the run that `args` describes.

    Returns:
        The result that is also written to `output_dir/results/pretraining.json` when the last step is done: the last line of
        the log, the data and the settings. Empty if the run stopped early (`stop_after_s`).

    Raises:
        ValueError: the recipe or the manifests do not fit, or another run is at work in `output_dir`; nothing has been
            computed or overwritten then.
        FloatingPointError: the training diverged, or too many steps in a row were not finite. Nothing of that is kept.
    """
    accelerator = new_accelerator(args)
    with locked(Path(args.output_dir), holds=accelerator.is_main_process):
        run, loader, labels = set_up(args, accelerator)
        run.resume()
        figures, progress = new_figures(run), run.learner.progress
        with run.bar(args.max_steps) as bar:
            for batches in loader.updates(progress.step):
                update(accelerator, run.learner, batches, figures, total_loss)
                bar.update()
                is_last = progress.step == args.max_steps
                if progress.step % args.log_every and not is_last:
                    continue
                log_figures(run, figures, run.lap(), bar)
                figures, should_stop = new_figures(run), run.is_time_over(args.stop_after_s)
                run.save_when_due(must=should_stop or is_last)
                if should_stop:
                    break
        return finish(run, loader, labels) if progress.step >= args.max_steps else {}


def set_up(args: PretrainArguments, accelerator: Accelerator) -> tuple[Run, BatchLoader, list[str]]:
    """Read the data, build network and optimiser; every mistake in the recipe shows here. Also the labels, by index."""
    network = initial_network(args)
    with accelerator.main_process_first():  # it reads every file; the others find what it has noted
        inspector, held_out = Inspector(args.audio_dir), (args.exclude_speakers_of, args.exclude_split_columns)
        clips = load_clips(args.clip_sources(), args.label_column, *held_out, inspector)
        if accelerator.is_main_process:
            inspector.save()
        is_main = accelerator.is_main_process
        store = build_store(args.audio_dir, [clip.path for clip in clips.clips], show_progress=is_main, repair=is_main)
    targets = with_label_faults(clips, args.missing_label_rate, args.noisy_label_rate, args.seed)
    loader = BatchLoader(
        args, clips.clips, targets, store, network.encoder.config, accelerator.process_index, accelerator.num_processes
    )
    learner = new_learner(args, network.to(accelerator.device))
    learner.model, learner.optimizer = accelerator.prepare(network, learner.optimizer)
    run = Run(args, accelerator, learner, "step")
    fingerprint = data_fingerprint(clips.names, targets.tolist(), start_folder(args.init_from))
    run.prepare(fingerprint, project="wavcse-pretrain")
    if accelerator.is_main_process:
        print(description(loader, clips, network))
    return run, loader, clips.labels


def initial_network(args: PretrainArguments) -> PretrainNetwork:
    """The network that training starts from: random (of the recipe's seed), or what `init_from` holds.

    Raises:
        ValueError: `encoder` or `init_from` do not fit.
    """
    start = start_folder(args.init_from)
    config = encoder_config(args.encoder, str(start / "upstream") if start else args.init_from)
    torch.manual_seed(args.seed)
    network = PretrainNetwork(args, new_encoder(config, None if start else args.init_from, args.fast_parts))
    if start:
        load_network(network, start)
    return network


def start_folder(init_from: str | None) -> Path | None:
    """`init_from` if it is the folder of a finished pre-training run, whose head goes on too."""
    is_run = init_from is not None and (Path(init_from) / "checkpoints" / "last" / TENSOR_FILE).exists()
    return Path(init_from) if is_run else None


def load_network(network: PretrainNetwork, folder: Path) -> None:
    """Encoder, head and quantiser of another run; its optimiser and its label loss stay behind.

    Raises:
        ValueError: its shapes are others.
    """
    tensors = read_tensors(folder / "checkpoints" / "last")
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"init_from: the network of {folder} has other shapes ({' '.join(str(error).split())}).") from error
    wrong = [name for name in (*missing, *unexpected) if not name.startswith("label_loss.")]
    if wrong:
        raise ValueError(f"init_from: the network of {folder} is another one ({', '.join(wrong[:3])}).")


def data_fingerprint(names: list[str], targets: list[int], start: Path | None = None) -> str:
    """Changes when a clip or a label does, or the network of the run that this one starts from."""
    known: list = [names, targets]
    if start is not None:
        with open(start / "checkpoints" / "last" / TENSOR_FILE, "rb") as file:
            known.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def description(loader: BatchLoader, clips: PretrainingClips, network: PretrainNetwork) -> str:
    """What is trained on what, in a line."""
    millions, left_out = network.encoder.num_parameters() / 1e6, clips.left_out
    unusable = loader.reader.unusable
    return (
        f"{len(loader.targets)} clips, {loader.hours:.2f} h, {len(clips.labels)} labels; left out: "
        f"{left_out['where']} by `where`, {left_out['held_out']} held out, "
        f"{loader.planner.num_too_short - len(unusable)} too short, {len(unusable)} unusable"
        f"{f' (the first: {unusable[min(unusable)]})' if unusable else ''}; encoder of {millions:.1f} M parameters"
    )


def new_figures(run: Run) -> Figures:
    """An empty account."""
    return Figures(run.args.codebook_size, run.accelerator.device)


def log_figures(run: Run, figures: Figures, seconds: float, bar: tqdm) -> None:
    """Write a line to the log, the tracker and the progress bar; FloatingPointError if the training has diverged."""
    progress = run.learner.progress
    entry = {"step": progress.step, **figures.entry(run.accelerator, label_weight_at(run.args, progress.step - 1))}
    refuse_divergence(run.accelerator, run.learner, entry)
    if progress.step == run.args.max_steps and not figures.batches:
        raise FloatingPointError("every update since the last line of the log had a loss or gradient that is not finite.")
    entry |= {"learning_rate": run.learner.scheduler.get_last_lr()[0], "skipped_steps": progress.skipped}
    entry |= {"seconds": round(seconds, 3), "audio_s_per_s": round(figures.audio_s / max(seconds, 1e-9), 1)}
    run.log(entry, {name: value for name, value in entry.items() if name != "step"})
    shown = ("masked_loss", "masked_accuracy", "code_perplexity", "label_loss", "audio_s_per_s")
    bar.set_postfix({name: f"{entry[name]:.3g}" for name in shown if name in entry})


def finish(run: Run, loader: BatchLoader, labels: list[str]) -> dict:
    """Write the upstream and the result."""
    result = {}
    if run.is_main:
        last, encoder = run.folder.keep_log_until(run.args.max_steps, by="step")[-1], run.learner.network.encoder
        save_upstream(encoder, run.folder.path / "upstream")
        result = run.write_result(
            "pretraining",
            {
                "last": last,
                "warnings": warnings_of(last, run.args),
                "steps": run.learner.progress.step,
                "skipped_steps": run.learner.progress.skipped,
                "hours": round(float(loader.hours), 3),
                "clips": len(loader.targets),
                "labels": labels,
                "num_parameters": encoder.num_parameters(),
            },
        )
        for words in result["warnings"]:
            print(f"warning: {words}")
    run.end()
    return result


def warnings_of(last: Mapping[str, Any], args: PretrainArguments) -> list[str]:
    """What is wrong with a run whose figures are all finite, by the last line of its log; empty if nothing is."""
    chance = math.log(args.codebook_size)
    if last["masked_loss"] < chance:
        return []
    return [
        f"the loss of the masked frames ends at {last['masked_loss']:.2f} nats (accuracy {last['masked_accuracy']:.2%}); "
        f"guessing among {args.codebook_size} codes has {chance:.2f}. The encoder has learnt nothing: try a smaller "
        f"learning_rate ({args.learning_rate:g} here) or more steps."
    ]


@PRETRAIN.main
def main(args: PretrainArguments) -> int:
    """The command line."""
    pretrain(args)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
