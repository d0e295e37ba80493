"""What stands under the comparison table: how to read it, what intervals are of, what was chosen, where models come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wavcse.eval.rows import Row
from wavcse.eval.significance import Comparison

FEW_SPEAKERS = 10  # below this a bootstrap over speakers is known to be too narrow
TIED = "†"
UNTESTED = "?"
READING = (
    "Primary metric of each task [95 % bootstrap interval]; ↑ higher is better, ↓ lower is better; the best of a row in bold."
)
FROZEN = (
    "Embeddings are frozen; what is trained on them (a linear layer, PLDA) and every choice (learning rate, epoch, layer, LDA "
    "size) sees the training and validation splits only."
)
FINETUNED = "fine-tuned"  # `probe.kind` of a record whose encoder was trained on the task, and did not stay as it was


def notes_of(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    """The notes, one sentence or two each, without bullets."""
    notes = [_reading(rows), *_mark_notes(comparisons), *_papers_notes(rows), *_interval_notes(rows), *_seed_notes(rows)]
    notes += [f"{', '.join(titles)}: {words.rstrip('.')}." for words, titles in _titles_by(rows, _rule_words).items()]
    notes += _layer_notes(rows) + _lda_notes(rows)
    notes += [f"`{name}`: {origin}." for name, origin in origins(rows).items()]
    for row in rows:
        skipped = max(record["skipped_clips"] for record in row.records.values())
        notes += [f"{row.title}: {skipped} clips were left out, see skipped.csv."] if skipped else []
        notes += [f"{row.title}: the encoders were tested on different clips; do not compare them."] if row.is_mixed else []
    said = dict.fromkeys(record["note"] for row in rows for record in row.records.values() if record["note"])
    return [*notes, *(f"Note: {note}" for note in said)]


def _reading(rows: Sequence[Row]) -> str:
    """How to read the table, and whether encoders stayed as they were or were trained on the task."""
    kinds = [(name, record["probe"]["kind"]) for row in rows for name, record in row.records.items()]
    tuned = ", ".join(dict.fromkeys(f"`{name}`" for name, kind in kinds if kind == FINETUNED))
    words = (
        f"{tuned}: the whole encoder was fine-tuned on the training split, under the mean over its frames and one linear "
        "layer; the validation split chose the step."
    )
    is_frozen = any(kind != FINETUNED for _, kind in kinds)
    return " ".join([READING, *([FROZEN] if is_frozen else []), *([words] if tuned else [])])


def origins(rows: Sequence[Row]) -> dict[str, str]:
    """Encoder -> where it comes from: model, revision, hash of its weights, size."""
    return {name: _origin(record["encoder"]) for row in rows for name, record in row.records.items()}


def _origin(encoder: Mapping) -> str:
    parts = [encoder["model"]] if "model" in encoder else []
    parts += [f"layer {encoder['layer']}"] if "layer" in encoder else []
    parts += [f"layers {encoder['layers']}"] if "layers" in encoder else []
    parts += [f"pooled over time by {encoder['temporal_pooling']}"] if "temporal_pooling" in encoder else []
    parts += [f"revision {encoder['revision']}"] if "revision" in encoder else []
    parts += [f"weights sha256 {encoder['weights_sha256'][:12]}"] if "weights_sha256" in encoder else []
    parts.append(f"{encoder['embedding_size']} dimensions" if encoder["embedding_size"] else "the same answer to every clip")
    return ", ".join(parts)


def _titles_by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[str]]:
    """Key -> titles of the rows that have it, in order; rows with an empty one are left out."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if key(row):
            groups.setdefault(key(row), []).append(row.title)
    return groups


def _mark_notes(comparisons: Sequence[Comparison]) -> list[str]:
    tested = [own for own in comparisons if not own.obstacle]
    notes = []
    if tested:
        notes.append(
            f"{TIED} not distinguishable from the best: the 95 % interval of the difference, by paired bootstrap, holds zero, "
            f"or there are too few speakers for one. {len(tested)} differences were looked at, without a correction for their "
            "number or for the best having been found on the same clips: of encoders that are as good, one in twenty or more "
            "goes unmarked."
        )
    if len(tested) < len(comparisons):
        obstacles = ", ".join(sorted({own.obstacle for own in comparisons if own.obstacle}))
        notes.append(f"{UNTESTED} not tested against the best ({obstacles}).")
    return notes


def _papers_notes(rows: Sequence[Row]) -> list[str]:
    published = [row for row in rows if row.published]
    if not published:
        return []
    notes = ["The paper's figures stand only where the test data is the paper's corpus."]
    for row in published:
        protocols = ", ".join(row.task["protocols"]) or "unnamed"
        split = f"; split: {row.published['split_source']}" if row.is_split_as_published else ""
        data = f"{row.published['title']}, protocol {protocols}{split}"
        notes.append(f"{row.title}: {data}; figures: {row.published['origin']}.")
    return notes


def _interval_notes(rows: Sequence[Row]) -> list[str]:
    units = _titles_by(rows, lambda row: row.first["interval"]["unit"])
    notes = [f"Intervals resample {unit}s: {', '.join(titles)}." for unit, titles in units.items()]
    for row in rows:
        interval = row.first["interval"]
        if interval["units"] < 2:
            notes.append(f"{row.title}: one test {interval['unit']} only, so there is no interval.")
        elif interval["unit"] != "clip" and interval["units"] < FEW_SPEAKERS:
            notes.append(f"{row.title}: only {interval['units']} test speakers, so the interval is too narrow.")
    return notes


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    numbers = [len(r["probe"]["runs"]) for row in rows for r in row.records.values() if "runs" in r["probe"]]
    is_probed = any(r["probe"]["kind"] != FINETUNED for row in rows for r in row.records.values())
    words = "probe seeds" if is_probed else "seeds"
    return [f"Figures are means over {max(numbers)} {words}."] if numbers and max(numbers) > 1 else []


def _rule_words(row: Row) -> str:
    """Whether speakers of the test split may be in the training split, and why; empty where they may not."""
    words = "" if row.task["disjoint_by"] else "test speakers are not held out of training"
    return ": ".join(part for part in (words, row.task["note"]) if part)


def _layer_notes(rows: Sequence[Row]) -> list[str]:
    """Which layers an encoder of several candidates was read from."""
    chosen: dict[str, list[str]] = {}
    for row in rows:
        for name, record in row.records.items():
            if "candidate" in record["probe"]:
                chosen.setdefault(name, []).append(f"{row.title} {record['probe']['candidate']}")
    return [f"`{name}`, layers that validation chose: {', '.join(words)}." for name, words in chosen.items()]


def _lda_notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    for row in rows:
        sizes = {name: record["probe"]["lda_size"] for name, record in row.records.items() if "lda_size" in record["probe"]}
        words = ", ".join(f"`{name}` {size}" for name, size in sizes.items())
        notes += [f"{row.title}: PLDA, after an LDA to the size that validation chose: {words}."] if sizes else []
    return notes
