"""What do the fast parts of an encoder save of a training step? Ours against transformers' own modules, with the same weights.

    python benchmarks/bench_encoder_step.py [--rounds 5]

A forward and a backward pass in float32 by one thread over a batch whose clips have one length, and over one of as many
lengths as clips: by transformers' modules length by length, by the fast parts length by length, and by the fast parts in one
pass (docs/training.md, section 3). The rounds are interleaved. Results go to benchmarks/results/encoder-step-cpu.json, with a
Markdown table made from it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from wavcse.benchmarks.measure import PairedRatio, interleaved, machine_facts
from wavcse.benchmarks.report import table, write_results
from wavcse.benchmarks.small import UPSTREAM
from wavcse.benchmarks.workloads import SAMPLING_RATE
from wavcse.configuration_wavcse import count_frames
from wavcse.steps.batches import Group, encode_groups
from wavcse.steps.encoder import encoder_config, new_encoder

RESULT = Path(__file__).parent / "results" / "encoder-step-cpu.json"
CLIPS, SHORTEST_S, LONGEST_S = 8, 2.0, 4.0
PLAIN, FAST, PACKED = "transformers", "fast parts, length by length", "fast parts, one pass"
SIZES = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768, "conv_dim": [128] * 7}
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
ENCODERS = {
    "wavcse-tiny": UPSTREAM,
    **{f"{family}, large shape": {"model_type": family, **SIZES} for family in ("wavlm", "wav2vec2")},
    **{f"{family}, base shape": {"model_type": family, **SIZES, **BASE} for family in ("wavlm", "wav2vec2")},
}
QUICK = {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 32}


def groups_of(config: PretrainedConfig, num_lengths: int, scale: float) -> list[Group]:
    """`CLIPS` clips of noise of so many lengths, without masks."""
    groups = []
    for seconds in torch.linspace(SHORTEST_S, LONGEST_S, num_lengths + 2)[1:-1].tolist():
        waveforms = torch.randn(CLIPS // num_lengths, round(scale * seconds * SAMPLING_RATE))
        groups.append(
            Group(waveforms, torch.zeros(len(waveforms), count_frames(waveforms.shape[1], config), dtype=torch.bool))
        )
    return groups


def step(encoder: PreTrainedModel, batches: Sequence[Sequence[Group]]) -> None:
    """Forward over every batch, then backward."""
    frames = [output for groups in batches for output in encode_groups(encoder, groups)[0]]
    encoder.zero_grad()
    torch.stack([output.square().mean() for output in frames]).sum().backward()


def measure(title: str, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Both batches of one encoder: seconds of every way, round by round."""
    fields = {**ENCODERS[title], **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), 0.0)}
    config = encoder_config({**fields, **(QUICK if quick else {})}, None)
    plain, fast = (new_encoder(config, fast_parts=fast_parts).train() for fast_parts in (False, True))
    fast.load_state_dict(plain.state_dict())
    found = []
    for num_lengths in (1, CLIPS):
        groups = groups_of(config, num_lengths, 1 / 8 if quick else 1.0)
        alone = [[group] for group in groups]
        ways = {PLAIN: partial(step, plain, alone), FAST: partial(step, fast, alone), PACKED: partial(step, fast, [groups])}
        for run in ways.values():
            run()  # the first pass allocates
        found.append({"encoder": title, "lengths": num_lengths, "seconds": interleaved(ways, rounds, torch.device("cpu"))})
    return found


def markdown_of(report: dict[str, Any]) -> str:
    """The page of a result file."""
    machine = report["machine"]
    rows = []
    for row in report["rows"]:
        seconds = row["seconds"]
        medians = [f"{1000 * statistics.median(own):.0f}" for own in seconds.values()]
        ratio = PairedRatio.of(seconds[PLAIN], seconds[PACKED])
        spread = "" if ratio.spread is None else f", spread {100 * ratio.spread:.0f} %"
        rows.append([row["encoder"], f"{CLIPS} clips, {row['lengths']} length(s)", *medians, f"{ratio.ratio:.2f}x{spread}"])
    columns = ["encoder", "batch", *(f"{way}, ms" for way in (PLAIN, FAST, PACKED)), "one pass over transformers"]
    return (
        f"# A training step of an encoder\n\n{machine['processor']}, one thread, float32, PyTorch {machine['torch']}, "
        f"transformers {machine['transformers']}; clips of {SHORTEST_S:g} to {LONGEST_S:g} s; medians of {report['rounds']} "
        f"interleaved rounds, the ratio paired. By `python benchmarks/bench_encoder_step.py`.\n\n{table(columns, rows)}\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way (default 5)")
    parser.add_argument(
        "--out", type=Path, default=RESULT, help="JSON to write (default benchmarks/results/encoder-step-cpu.json)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny encoders and clips: for tests")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [row for title in ENCODERS for row in measure(title, args.rounds, args.quick)]
    report = {"machine": machine_facts(torch.device("cpu")), "rounds": args.rounds, "rows": rows}
    print(write_results(report, args.out, markdown_of))


if __name__ == "__main__":
    main()
