"""How much each layer of an upstream knows of speakers, before and after a training: the EER of its mean over time.

    python -m wavcse.eval.layers --models '{"before": "ID", "after": "RUN/upstream"}' --manifest M.csv --trials T.csv --out DIR

writes DIR/layers.json and DIR/pictures/layers.svg and .png, Figure 1 of Vaessen and van Leeuwen (Interspeech 2023). Trials are
scored by the cosine between layer means as they are. A killed run continues with the embeddings that it has.

Shapes: `N` clips, `L` layers, `D` width, `T` trials. Layer 0 is the input of the first block, layer i the output of block i.
"""

from __future__ import annotations

from wavcse.eval.arguments import LAYER_CURVES, LayerCurvesArguments

if __name__ == "__main__":
    LAYER_CURVES.answer()  # before the imports below, which take seconds

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wavcse.data.corpus_pass import write_skipped
from wavcse.data.files import locked, make_folder, sha256_of, shown_path, write_json
from wavcse.data.manifest import Manifest
from wavcse.eval.baselines import build_encoders
from wavcse.eval.embeddings import embed_clips
from wavcse.eval.encoder import Encoder, candidates_of, encoder_record
from wavcse.eval.metrics import CONFIDENCE, METRICS, NUM_RESAMPLES, bootstrap_interval
from wavcse.eval.task import Trials, read_trials, rows_by_name
from wavcse.eval.verification import CosineBackend, score_trials
from wavcse.reports.figures import draw_all, new_axes
from wavcse.settings.command import DONE, SOME_SKIPPED
from wavcse.settings.fields import usable_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "layers"


def layer_curves(args: LayerCurvesArguments, show_progress: bool = True) -> dict[str, Any]:
    """The curves of all models, as layers.json holds them.

    Returns:
        `models`: name -> `encoder` and `layers`, a list of `layer`, `eer` (0 to 1) and `interval` (95 %, over speakers, or
        None); `trials`: path, hash and counts; `skipped`: number of clips that could not be used.

    Raises:
        ValueError: a model, the manifest or the trials cannot be read, or too few trials are left without the clips that could
            not be used.
    """
    folder, device = make_folder(args.output_dir), torch.device(usable_device(args.device))
    with locked(folder):
        manifest = Manifest(args.manifest)
        speakers = manifest.column(args.speaker_column)
        trials = read_trials(args.trials, rows_by_name(manifest))
        rows = trials.rows
        clips, trials = [manifest.clips[row] for row in rows], trials.subset(rows)
        encoders = [_encoder(name, model, device) for name, model in args.models.items()]
        how = {"batch_seconds": args.batch_seconds, "workers": args.workers, "device": device, "first_s": args.first_s}
        embedded = embed_clips(encoders, clips, show_progress=show_progress, store_dir=folder / "embeddings", **how)
        write_skipped(folder / "skipped.csv", embedded.skipped)
        kept = np.flatnonzero(embedded.embedded)
        trials, speakers = trials.subset(kept), speakers[rows][kept]
        if len(set(trials.labels)) < 2:
            raise ValueError(f"{args.trials}: without the clips in {folder}/skipped.csv trials of both kinds are not left.")
        curves = {}
        for encoder in encoders:
            layers = np.split(embedded.tables[encoder.name][kept], candidates_of(encoder), axis=1)
            curves[encoder.name] = {
                "encoder": encoder_record(encoder),
                "layers": [{"layer": number, **_figure(own, trials, speakers)} for number, own in enumerate(layers)],
            }
        record = {
            "models": curves,
            "trials": _described(args, trials),
            "interval": {"confidence": CONFIDENCE, "resamples": NUM_RESAMPLES, "speakers": len(set(speakers))},
            "first_s": args.first_s,
            "skipped": len(embedded.skipped),
        }
        write_json(folder / "layers.json", record, indent=2)
        draw_all({PICTURE: draw}, record, folder / "pictures")
    return record


def _encoder(name: str, model: str, device: torch.device) -> Encoder:
    """All layers of a model, each a candidate."""
    encoder = build_encoders(model, None, ["best_layer"], device)[-1]
    encoder.name = name
    return encoder


def _figure(vectors: np.ndarray, trials: Trials, speakers: np.ndarray) -> dict[str, Any]:
    """EER of the vectors `[N, D]` of one layer, and its interval."""
    scores = score_trials(CosineBackend(), trials, vectors)
    sides = np.stack(trials.speakers(speakers), axis=1)
    interval = bootstrap_interval(METRICS["eer"], trials.labels, [scores], sides)
    return {"eer": METRICS["eer"].compute(trials.labels, scores), "interval": interval and list(interval)}


def _described(args: LayerCurvesArguments, trials: Trials) -> dict[str, Any]:
    same = int(trials.labels.sum())
    counts = {"same": same, "different": len(trials.labels) - same}
    return {"path": shown_path(args.trials), "sha256": sha256_of(Path(args.trials)), **counts}


def draw(record: Mapping[str, Any]) -> Figure:
    """A line per model: EER in % over the layers, with its interval."""
    figure, (axes,) = new_axes(6.4, 4.0)
    for name, curve in record["models"].items():
        layers = [own["layer"] for own in curve["layers"]]
        (line,) = axes.plot(layers, [100 * own["eer"] for own in curve["layers"]], marker="o", markersize=3, label=name)
        ends = [own["interval"] or (np.nan, np.nan) for own in curve["layers"]]
        low, high = 100 * np.array(ends, dtype=np.float64).T
        axes.fill_between(layers, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("layer (0: input of the first block)")
    axes.set_ylabel("EER of the layer's mean, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


@LAYER_CURVES.main
def main(args: LayerCurvesArguments) -> int:
    """Print the best layer of every model; returns 0, or 3 if some clips had to be skipped."""
    record = layer_curves(args)
    for name, curve in record["models"].items():
        best = min(curve["layers"], key=lambda own: own["eer"])
        last = curve["layers"][-1]
        print(f"{name}: EER {best['eer']:.2%} at layer {best['layer']}, {last['eer']:.2%} at the last, {last['layer']}")
    print(f"{args.output_dir}/layers.json, {args.output_dir}/pictures/{PICTURE}.png")
    if not record["skipped"]:
        return DONE
    print(f"{record['skipped']} clips were skipped, see {args.output_dir}/skipped.csv")
    return SOME_SKIPPED


if __name__ == "__main__":
    sys.exit(main())
