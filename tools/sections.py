"""The sections of the root model's card: every figure in them comes from its results (`tools/root_model.py`)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from wavcse.eval.encoder import SavedModel
from wavcse.hub.card import limits_of, training_section
from wavcse.hub_repository_wavcse import facts_of, inert
from wavcse.reports.page import fenced, markdown_table
from wavcse.tools.root_model import RootSource
from wavcse.tools.training_data import SYNTHETIC, UPSTREAM

MODEL = """\
A trained model in `config.json`, `model.safetensors` and `preprocessor_config.json`: {family} with {num_blocks} blocks
of width {upstream_size} ({upstream_millions:.1f} M parameters{origin}), layers {layers}, pooled by `{temporal_pooling}`
over time and by `{pooling_type}` across layers, one embedding of {embedding_size} numbers per clip; {millions:.1f} M
parameters in all, {megabytes:.1f} MB. Heads: {tasks}.
Weights: SHA-256 `{sha256}`."""


def root_sections(source: RootSource) -> dict[str, str]:
    """Markdown per title, in order."""
    licences = _licences(source.data)
    source = replace(source, stages=inert(source.stages), data=inert(source.data))
    notes = "\n".join(map(inert, source.notes.splitlines()))
    notes = f"<details><summary>How to read this</summary>\n\n{notes}\n\n</details>"
    return {
        "The model": _model(source),
        **licences,
        "What it is good for": f"{source.table}\n\n{notes}",
        "What it was trained on": _data(source.data),
        "How it was trained": _training(source),
        "Limits": "\n".join(f"- {limit}" for limit in _limits(source)),
    }


def _model(source: RootSource) -> str:
    weights = source.push.model / SAFE_WEIGHTS_NAME
    return MODEL.format(
        **{name: inert(value) for name, value in facts_of(source.push.config, "").items()},
        millions=SavedModel(str(source.push.model)).num_parameters() / 1e6,
        upstream_millions=upstream_parameters(weights) / 1e6,
        origin=f", of {upstream['base_model']}" if (upstream := source.data.get("upstream")) else "",
        megabytes=weights.stat().st_size / 1e6,
        sha256=source.push.sha256,
    )


def introduction(source: RootSource) -> str:
    """What the model is, in the README."""
    config, upstream = source.push.config, source.data.get("upstream")
    weights = source.push.model / SAFE_WEIGHTS_NAME
    millions = SavedModel(str(source.push.model)).num_parameters() / 1e6
    words = (
        f"The model in the root, **{source.name}**, makes {config.embedding_size:,} numbers of a clip; {millions:.1f} M "
        f"parameters, {weights.stat().st_size / 1e6:.0f} MB. "
    )
    if upstream:
        base, licence, author = (inert(upstream[name]) for name in UPSTREAM[:-1])
        blocks = config.upstream_config.num_hidden_layers
        return words + f"Its upstream is the first {blocks} blocks of {base} ({author}, {licence}), frozen."
    return words + inert(_training_from_nothing(source))


def upstream_parameters(weights: Path) -> int:
    """Numbers in the upstream's tensors of a safetensors file, of which only the shapes are read."""
    with safe_open(weights, framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if ".upstream." in f".{name}"]
    return sum(map(math.prod, shapes))


def _licences(data: Mapping[str, Any]) -> dict[str, str]:
    """Whose upstream it is, and the notice that has to go with it; nothing of a model that was trained from nothing."""
    upstream = data.get("upstream")
    if not upstream:
        return {}
    base, licence, author = (inert(upstream[name]) for name in UPSTREAM[:-1])
    words = (
        f"The upstream is taken from {base} by {author}, under {licence}; "
        "its blocks are unchanged, later ones are left out. Projections, heads and code are under Apache-2.0."
    )
    return {"Licences": f"{words}\n\n{fenced(upstream['notice'].strip())}"}


# ---- data ----


def _data(data: Mapping[str, Any]) -> str:
    """A line per corpus; hours per recipe, in the order of the recipes."""
    recipes = [Path(recipe).stem for recipe in data["recipes"]]
    corpora = defaultdict(list)
    for row in data["rows"]:
        corpora[row["title"], row["licence"], row["attribution"], row["note"]].append(row)
    lines = [
        [title, ", ".join(languages_in(rows)), licence, attribution, note, *(_shown_hours(rows, name) for name in recipes)]
        for (title, licence, attribution, note), rows in corpora.items()
    ]
    lines.append(["all", ", ".join(languages_in(data["rows"])), "", "", "", *(_shown_hours(data["rows"], r) for r in recipes)])
    columns = ["corpus", "languages", "licence", "by", "what", *(f"hours, `{name}`" for name in recipes)]
    return f"{markdown_table(columns, lines)}\n\nHours are of the recipes {', '.join(f'`{r}`' for r in data['recipes'])}."


def languages_in(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Codes of the languages of some rows of the data, sorted."""
    return sorted({row["language"] for row in rows} - {""})


def _shown_hours(rows: Iterable[Mapping[str, Any]], recipe: str) -> str:
    hours = _hours(rows, recipe)
    return f"{hours:.2f}" if hours else "–"


def _hours(rows: Iterable[Mapping[str, Any]], recipe: str) -> float:
    return sum(row["hours"].get(recipe, 0.0) for row in rows)


# ---- training ----


def _training(source: RootSource) -> str:
    if not source.stages:
        return training_section(source.push.training)
    columns = ["stage", "objective", "speech", "updates", "masked codes found", "codes in use: targets", "time"]
    stages = markdown_table(columns, [_stage(number, stage) for number, stage in enumerate(source.stages, start=1)])
    return f"Pre-training of the upstream:\n\n{stages}\n\nThen the embedding, with its heads:\n\n" + training_section(
        source.push.training
    )


def _stage(number: int, stage: Mapping[str, Any]) -> list[str]:
    settings, last = stage["config"], stage["last"]
    weight = settings["label_weight"]
    label_loss = f" + {weight:g} x {settings['label_loss']} on {len(stage['labels'])} x `{settings['label_column']}`"
    return [
        str(number),
        "BEST-RQ" + (label_loss if weight else ""),
        f"{stage['hours']:.2f} h",
        f"{stage['steps']:,} of {settings['batch_seconds']:g} s",
        f"{100 * last['masked_accuracy']:.1f} %",
        f"{last['code_perplexity']:.0f} of {settings['codebook_size']}",
        f"{stage['train_seconds'] / 60:.0f} min on {stage['device']}, {stage['num_processes']} process(es)",
    ]


# ---- limits ----


def _limits(source: RootSource) -> list[str]:
    rows = source.data["rows"]
    return [
        *_limits_of_upstream(source),
        *_one_voice(rows),
        *_only_synthetic(rows),
        *_synthetic_share(source.data),
        "All licences of the training data are in the table above. RAVDESS and nEMO, which are non-commercial, are in no "
        "training of these weights; where the table of results has them, only its probes were trained on them.",
        "An embedding holds who speaks, how and what: treat it as personal data. Do not identify people without their "
        "consent, and do not judge people by predicted emotion, gender, age or origin.",
        *limits_of(source.push),
    ]


def _limits_of_upstream(source: RootSource) -> list[str]:
    """What the upstream has heard."""
    languages = languages_in(source.data["rows"])
    heard = f"{len(languages)} languages ({', '.join(languages)}). Others may be served worse."
    if upstream := source.data.get("upstream"):
        return [
            f"What the upstream has heard is for the authors of {upstream['base_model']} to say; the table above is what was "
            f"learnt from here: {heard}"
        ]
    return [_training_from_nothing(source), f"It has heard {heard}"]


def _training_from_nothing(source: RootSource) -> str:
    stages = source.stages
    minutes, hours = sum(stage["train_seconds"] for stage in stages) / 60, max((stage["hours"] for stage in stages), default=0)
    devices = ", ".join(sorted({stage["device"].partition(":")[0] for stage in stages}))
    return (
        f"A small model, pre-trained for {minutes:.0f} minutes on {devices} with {hours:.1f} hours of speech. Published "
        "upstreams such as WavLM had far more of both; take one of them where you can."
    )


def _one_voice(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Languages of which training heard one person only, as far as it is known: their label is the voice's, too."""
    voices: dict[str, int] = defaultdict(int)
    for row in rows:
        if row["licence"] != SYNTHETIC:
            voices[row["language"]] += row["speakers"] + 2 * row["has_unnamed_speakers"]
    alone = ", ".join(sorted(language for language, count in voices.items() if language and count == 1))
    return [f"Of {alone} it has heard one human voice only: there it may take the voice for the language."] if alone else []


def _only_synthetic(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    by_kind: dict[bool, list] = {True: [], False: []}
    for row in rows:
        by_kind[row["licence"] == SYNTHETIC].append(row)
    alone = sorted(set(languages_in(by_kind[True])) - set(languages_in(by_kind[False])))
    return [f"Of {', '.join(alone)} it has heard no human voice, only synthetic ones."] if alone else []


def _synthetic_share(data: Mapping[str, Any]) -> list[str]:
    synthetic = [row for row in data["rows"] if row["licence"] == SYNTHETIC]
    recipes = [Path(recipe).stem for recipe in data["recipes"]]
    shares = {name: _hours(synthetic, name) / _hours(data["rows"], name) for name in recipes if _hours(synthetic, name)}
    shown = ", ".join(f"{100 * share:.0f} % in `{name}`" for name, share in shares.items())
    return [f"A part of the hours is synthetic speech, which no human speaks like: {shown}."] if shares else []
