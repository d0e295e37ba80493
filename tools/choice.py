"""Which upstream, how many of its blocks, which size: candidates for the model in the root, by their quality and their speed.

Quality comes from transfer studies (`wavcse search transfer`): the mean validation accuracy of probes on embeddings of
trainings that left a task's group out, and the validation error of speaker verification. No test figure is read. Speed is
measured here, with one thread, candidates in turn, in processor time, which other processes disturb least.
"""

from __future__ import annotations

from wavcse.tools.arguments import CHOICE, ChoiceArguments

if __name__ == "__main__":
    CHOICE.answer()  # before the imports below, which take seconds

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from wavcse.data.files import json_text, make_folder, read_json, write_atomically
from wavcse.eval.results import read_results
from wavcse.modeling_wavcse import WavCSEModel
from wavcse.reports.page import made_by, markdown_table, opening, write_page
from wavcse.search.transfer import TransferStudy, read_study
from wavcse.settings.command import DONE
from wavcse.settings.processes import one_thread, processor_name
from wavcse.studies.speed import noise_clips
from wavcse.training.run import versions

ROUNDS = 5  # beside one to warm up
REAL_TIME = 100  # times, on one core: slower models are not taken
MEGABYTES = 60


@dataclass(frozen=True)
class Candidate:
    """A variant of a study, as a model.

    Attributes:
        blocks: of the upstream that are kept.
        size: of the embedding.
        is_trained: on the tasks of its study's recipe, or fitted without labels.
        validation: mean accuracy over classifications, 0 to 1, their group's tasks left out of training.
        validation_eer: of speaker verification by PLDA, 0 to 1.
        megabytes: of all weights, float32.
    """

    upstream: str
    name: str
    blocks: int
    size: int
    is_trained: bool
    validation: float
    validation_eer: float | None
    megabytes: float


def candidates_of(name: str, study: TransferStudy, folder: str) -> list[Candidate]:
    """The variants of a study that are judged.

    Args:
        name: of the upstream, for the table.
        folder: of the upstream, to count its weights.

    Raises:
        ValueError: the study has no results yet.
    """
    facts = read_json(study.folder / "study.json")
    records = {(own.encoder["name"], own.task.kind): own for own in read_results(study.folder / "evaluation")}
    found = []
    for variant in study.variants:
        own, args = facts["variants"].get(variant.name), variant.args
        if own is None or own["mean_validation"] is None:
            continue
        verification = records.get((variant.name, "verification"))
        model = _model(folder, args.selected_layers, vars(args))
        found.append(
            Candidate(
                upstream=name,
                name=variant.name,
                blocks=max(args.selected_layers),
                size=args.embedding_size,
                is_trained=not own["untrained"],
                validation=own["mean_validation"],
                validation_eer=verification and verification.probe.validation_eer,
                megabytes=round(4e-6 * sum(weight.numel() for weight in model.state_dict().values()), 1),
            )
        )
    return found


def _model(folder: str, layers: Sequence[int], fields: Mapping | None = None) -> WavCSEModel:
    shape = ("pooling_type", "pooling_kwargs", "layer_scaling", "layer_projection_size", "embedding_size")
    own = {field: fields[field] for field in shape} if fields else {}
    return WavCSEModel.from_upstream(folder, selected_layers=list(layers), temporal_pooling="mean_std", **own).eval()


def measured_speeds(upstreams: Mapping[str, str], blocks: Sequence[tuple[str, int]]) -> dict[tuple[str, int], float]:
    """Seconds of audio per second of processor time of (upstream, blocks): noise of 1 to 10 s, median over rounds."""
    models = {key: _model(upstreams[key[0]], range(key[1] + 1)) for key in blocks}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in models}
    with one_thread(), torch.inference_mode():
        for _ in range(1 + ROUNDS):
            for key, model in models.items():
                clips = noise_clips(model.config.sampling_rate)
                started = time.process_time()
                model.encode(clips)
                seconds[key].append(time.process_time() - started)
    audio_s = sum(map(len, clips)) / model.config.sampling_rate
    return {key: audio_s / statistics.median(own[1:]) for key, own in seconds.items()}


def choice_facts(candidates: Sequence[Candidate], speeds: Mapping[tuple[str, int], float]) -> dict:
    """What choice.json says; `best`: of the candidates that are fast and small enough, the one with the highest validation."""
    rows = [{**asdict(own), "audio_s_per_s": round(speeds[own.upstream, own.blocks], 1)} for own in candidates]
    for row in rows:
        row["is_eligible"] = row["audio_s_per_s"] >= REAL_TIME and row["megabytes"] <= MEGABYTES
    eligible = [row for row in rows if row["is_eligible"]]
    best = max(eligible, key=lambda row: row["validation"], default=None)
    return {
        "candidates": rows,
        "best": best and {"upstream": best["upstream"], "name": best["name"]},
        "limits": {"audio_s_per_s": REAL_TIME, "megabytes": MEGABYTES},
        "processor": processor_name(),
        "versions": versions(),
    }


def choice_text(facts: Mapping) -> str:
    """choice.md."""
    lines, best = [], facts["best"]
    for row in facts["candidates"]:
        is_best = best == {"upstream": row["upstream"], "name": row["name"]}
        eer = "–" if row["validation_eer"] is None else f"{100 * row['validation_eer']:.1f}"
        cells = [row["upstream"], row["name"], row["blocks"], row["size"], "yes" if row["is_trained"] else "no"]
        cells += [f"{100 * row['validation']:.1f}", eer, f"{row['audio_s_per_s']:.0f}", f"{row['megabytes']:.0f}"]
        lines.append([*cells, "chosen" if is_best else "" if row["is_eligible"] else "too slow or too large"])
    columns = ["upstream", "variant", "blocks", "size", "trained", "validation accuracy, %", "validation EER, %"]
    columns += ["audio-s per CPU second", "MB", ""]
    limits = facts["limits"]
    words = "no candidate is fast and small enough" if best is None else f"`{best['name']}` on {best['upstream']}"
    answer = [
        f"Chosen: {words}.",
        f"Asked for: {limits['audio_s_per_s']} times real time on one core, {limits['megabytes']} MB at most.",
    ]
    notes = (
        "Accuracy: mean over the classifications of the study, linear probes on validation clips; what is trained was "
        "trained without the tasks of a row's group. EER: speaker verification by PLDA, all pairs of validation clips. "
        f"Speed: `encode` of clips of 1 to 10 s, float32, one thread, in processor time, on {facts['processor']}."
    )
    made = made_by("python -m wavcse.tools.choice", "the results of the transfer studies and choice.json")
    head = opening("Candidates for the model in the root", None, answer)
    return "\n\n".join([*head, markdown_table(columns, lines), notes, made, ""])


@CHOICE.main
def main(args: ChoiceArguments) -> int:
    """The command line; returns 0."""
    studies = {name: read_study(path) for name, path in args.studies.items()}
    candidates = [own for name, study in studies.items() for own in candidates_of(name, study, args.upstreams[name])]
    speeds = measured_speeds(args.upstreams, sorted({(own.upstream, own.blocks) for own in candidates}))
    facts = choice_facts(candidates, speeds)
    make_folder(args.output_dir)
    write_atomically(args.output_dir / "choice.json", json_text(facts, indent=1) + "\n")
    page = write_page(args.output_dir / "choice.md", "Candidates for the model in the root", choice_text(facts))
    print(page.read_text(encoding="utf-8"))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
