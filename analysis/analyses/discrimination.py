"""How well clips find their kind without training: triplets by cosine, and average precision over all pairs.

A triplet is an anchor, a positive with its label and a negative with another; it is right where the cosine to the positive is
the greater, and wrong where both are equal. Three conditions, always together:

    any      positive and negative by whomever
    across   both by speakers other than the anchor's, as Carlin et al. (Interspeech 2011) ask of words
    hard     the positive by another speaker, the negative by the anchor's own

A vector that knows voices only is good at *any*, at chance in *across* and below it in *hard*. Each is shown of the
vectors as they are, with the mean of the clips of the split taken off, with each speaker's mean taken off, and after a
projection that has learnt the labels of the training clips (linear discriminants), which say what can be done about it.
All stand beside triplets by labels in random order: with each speaker's mean taken off these, not 50 %, are what knowing
nothing gives.

Shapes: `N` clips, `E` size of a vector, `P` pairs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import average_precision_score

from wavcse.analysis.encoders import AnalyzedEncoder
from wavcse.analysis.figures import figure, is_below_chance, mean_of, shown_figure
from wavcse.analysis.study import Analysis, Cell, Study, encoder_cell
from wavcse.data.pca import fit_pca
from wavcse.eval.metrics import Metric, bootstrap_interval
from wavcse.eval.task import TaskData
from wavcse.reports.figures import new_axes
from wavcse.reports.page import markdown_table
from wavcse.retrieval.nearest import unit_rows
from wavcse.settings.fields import CheckedFields, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "discrimination"
CONDITIONS = ("any", "across", "hard")
WORDS = ("keyword",)  # families whose labels are words
CHANCE = 0.5
MOST_DIRECTIONS = 256  # of a projection: the cost of discriminants grows with the cube of it
PRECISION_RESAMPLES = 300
LEAST_OF_SPEAKER = 10
FORMS = {
    "raw": "as they are",
    "centred": "mean taken off",
    "by_speaker": "speaker's mean taken off",
    "projected": "learnt projection",
}


@dataclass
class DiscriminationSettings(CheckedFields):
    """Settings of `discrimination`."""

    negatives: str = option(
        "auto",
        "Label of a negative: closest by edit distance, closest by difflib as the authors, or random; auto: edit for words.",
        choices=("auto", "edit", "difflib", "random"),
    )
    per_anchor: int = option(4, "Triplets per clip and condition.", at_least=1)
    most_pairs: int = option(10_000, "Pairs of average precision; of more a draw of clips.", at_least=100)


# ---- triplets ----


class Triplets(NamedTuple):
    """Rows of anchors, positives and negatives, `[T]` each."""

    anchors: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's: how many letters have to be put in, taken out or changed."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, start=1):
        before, row[0] = row[0], place
        for column, another in enumerate(other, start=1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (letter != another))
    return row[-1]


def closest_labels(labels: Sequence[str], by: str) -> dict[str, list[list[str]]]:
    """Label -> the other labels, nearest first, those that are equally near together; all together for "random"."""
    found = {}
    for label in labels:
        others = [own for own in labels if own != label]
        if by == "edit":
            nearness = [-edit_distance(label, own) for own in others]
        elif by == "difflib":
            nearness = [difflib.SequenceMatcher(None, own, label).ratio() for own in others]
        else:
            nearness = [0.0] * len(others)
        levels = sorted(set(nearness), reverse=True)
        found[label] = [[own for own, near in zip(others, nearness) if near == level] for level in levels]
    return found


def make_triplets(
    labels: np.ndarray, speakers: np.ndarray, condition: str, closest: dict[str, list[list[str]]], per_anchor: int, seed: int
) -> Triplets:
    """Triplets of a condition, `per_anchor` for every clip that can be an anchor of it.

    Args:
        labels, speakers: text `[N]`; an empty speaker is unknown, and such clips are in no triplet but those of "any".
        closest: as of `closest_labels`; a negative has the nearest label of which a clip fits, one of the equally near ones
            by chance.
    """
    rng, rows = np.random.default_rng(seed), []
    of_label = {label: labels == label for label in np.unique(labels)}
    for anchor in range(len(labels)):
        if condition != "any" and not speakers[anchor]:
            continue
        same = of_label[labels[anchor]].copy()
        same[anchor] = False
        allowed = np.ones(len(labels), dtype=bool)
        if condition != "any":
            others = (speakers != speakers[anchor]) & (speakers != "")
            same &= others
            allowed = others if condition == "across" else speakers == speakers[anchor]
        different = _of_the_nearest(closest[labels[anchor]], of_label, allowed)
        if same.any() and different.any():
            drawn = [own[rng.integers(len(own), size=per_anchor)] for own in map(np.flatnonzero, (same, different))]
            rows += zip([anchor] * per_anchor, *drawn)
    return Triplets(*np.array(rows, dtype=np.int64).reshape(-1, 3).T)


def _of_the_nearest(levels: Sequence[Sequence[str]], of_label: dict[str, np.ndarray], allowed: np.ndarray) -> np.ndarray:
    """Which clips have a label of the nearest level that has an allowed clip, bool `[N]`."""
    found = np.zeros_like(allowed)
    for level in levels:
        for label in level:
            found |= of_label.get(label, False) & allowed
        if found.any():
            break
    return found


def is_right(vectors: np.ndarray, triplets: Triplets) -> np.ndarray:
    """Of every triplet whether the positive is nearer by cosine, bool `[T]`; a tie is wrong."""
    units = unit_rows(vectors)
    anchors = units[triplets.anchors]
    to_positive, to_negative = (np.sum(anchors * units[rows], axis=1) for rows in triplets[1:])
    return to_positive > to_negative


# ---- the forms of the vectors ----


def forms_of(vectors: np.ndarray, data: TaskData, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The vectors of some clips, `[n, E]`, in every form.

    Means are those of these clips; the projection is learnt on the training clips only.

    Two forms are not always there. Clips of a speaker without their mean point away from each other, the more so the fewer
    there are, which makes *hard* triplets right whatever the vectors hold: there have to be `LEAST_OF_SPEAKER` of each, by the
    median. And a projection for two classes has one dimension, in which nearly all cosines are equal.
    """
    own, speakers = vectors[rows].astype(np.float64), data.speakers[rows]
    found = {"raw": own, "centred": own - own.mean(axis=0)}
    counts = np.unique(speakers.astype(str), return_counts=True)[1]
    if (speakers != "").all() and not data.has_known_speakers and np.median(counts) >= LEAST_OF_SPEAKER:
        found["by_speaker"] = centred_by(own, speakers)
    train = data.table.rows("train")
    if len(set(data.table.labels[train])) > 2:
        found["projected"] = projection(vectors[train], data.table.labels[train])(own)
    return found


def centred_by(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Vectors `[N, E]` without the mean of their group."""
    found = vectors.astype(np.float64).copy()
    for group in np.unique(groups):
        found[groups == group] -= found[groups == group].mean(axis=0)
    return found


def projection(vectors: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Linear discriminants of labelled vectors, with the shrinkage of Ledoit and Wolf: vectors -> `[N, classes - 1]`.

    They are sought among the first `MOST_DIRECTIONS` principal components of the standardised vectors.
    """
    mean, scale = vectors.mean(axis=0), np.maximum(vectors.std(axis=0), 1e-8)
    known = (vectors - mean) / scale
    pca = fit_pca([known], min(MOST_DIRECTIONS, known.shape[1], len(known) - 1))
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
    model.fit(pca.project(known).astype(np.float64), labels.astype(str))
    return lambda own: model.transform(pca.project((own - mean) / scale).astype(np.float64))


# ---- average precision ----


def resampled_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of every resample `[R]`, weights `[R, P]`; pairs of equal scores count together."""
    order = np.argsort(-scores, kind="stable")
    hits, weights = labels[order].astype(weights.dtype), weights[:, order]
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # of every run of equal scores
    is_exact = weights.sum(axis=1, dtype=np.float64).max() < 2**24  # whole numbers, in float32
    dtype = np.float32 if is_exact else np.float64
    right, seen = (np.cumsum(own, axis=1, dtype=dtype)[:, last] for own in (weights * hits, weights))
    total = right[:, -1]
    gained = np.diff(right, axis=1, prepend=0)
    precision = right / np.maximum(seen, 1e-12)
    return np.where(total > 0, np.sum(gained * precision, axis=1) / np.maximum(total, 1e-12), np.nan)


PRECISION = Metric(
    "average precision",
    True,
    lambda labels, scores: float(average_precision_score(labels, scores)),
    resampled_precision,
    "percent",
)


def average_precision(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, unit: str, seed: int) -> dict[str, Any]:
    """How well cosines find pairs of one label among all pairs; its floor is the share of such pairs."""
    units = unit_rows(vectors)
    one, other = np.triu_indices(len(labels), k=1)
    same, scores = labels[one] == labels[other], np.sum(units[one] * units[other], axis=1).astype(np.float32)
    if not same.any():
        return figure(np.nan, None, len(one), len(np.unique(groups)), unit, chance=0.0)
    pairs = np.stack([groups[one], groups[other]], axis=1)
    interval = bootstrap_interval(PRECISION, same, [scores], pairs, seed, PRECISION_RESAMPLES)
    return figure(PRECISION.compute(same, scores), interval, len(one), len(np.unique(groups)), unit, chance=float(same.mean()))


# ---- one encoder on one task ----


def discriminate(study: Study, encoder: AnalyzedEncoder, task: str, settings: DiscriminationSettings) -> dict[str, Any]:
    """All vectors on the validation clips; the one that is best there, in all its forms, on the test clips."""
    data, seed = study.tasks[task], study.seed
    by = settings.negatives
    if by == "auto":
        by = "edit" if data.task.family in WORDS else "random"
    make = partial(_triplets_of, data, closest_labels(data.classes, by), settings.per_anchor, seed)
    validation, test = data.table.rows("validation"), data.table.rows("test")
    curve, made = {}, make(validation)
    for view in encoder.views:
        vectors = study.vectors(encoder, view, task)[validation]
        curve[view.name] = {c: _accuracy(vectors, t, data, validation, seed, chance=CHANCE) for c, t in made.items()}
    deciding = next((c for c in ("across", "any") if c in made), None)
    if deciding is None:
        return {"by": by, "obstacle": "no label has two clips in the validation split", "title": data.task.title}
    best = max(curve, key=lambda name: curve[name][deciding]["value"])
    forms = forms_of(study.vectors(encoder, best, task), data, test)
    tested = make(test)
    shuffled = make(test, np.random.default_rng(seed + 1).permutation(data.table.labels[test]))
    found = {
        form: {c: _beside_shuffled(own, t, shuffled.get(c), data, test, seed, _chance(form)) for c, t in tested.items()}
        for form, own in forms.items()
    }
    return {
        "by": by,
        "labels": "words" if data.task.family in WORDS else "other labels",
        "title": data.task.title,
        "language": study.languages[task],
        "learnt_from": encoder.language,
        "validation": curve,
        "chosen": best,
        "chosen_by": deciding,
        "test": found,
        "precision": _precisions(forms, data, test, settings.most_pairs, seed),
    }


def _triplets_of(
    data: TaskData,
    closest: dict[str, list[str]],
    per_anchor: int,
    seed: int,
    rows: np.ndarray,
    labels: np.ndarray | None = None,
) -> dict[str, Triplets]:
    """Condition -> triplets among some clips; conditions without any are left out."""
    labels = data.table.labels[rows] if labels is None else labels
    speakers = data.speakers[rows]
    found = {c: make_triplets(labels, speakers, c, closest, per_anchor, seed) for c in CONDITIONS}
    return {c: own for c, own in found.items() if len(own.anchors)}


def _chance(form: str) -> dict[str, float]:
    """As a floor. None where each speaker's mean is taken off: of vectors without any label *hard* triplets are above 50 %."""
    return {} if form == "by_speaker" else {"chance": CHANCE}


def _beside_shuffled(
    vectors: np.ndarray,
    triplets: Triplets,
    shuffled: Triplets | None,
    data: TaskData,
    rows: np.ndarray,
    seed: int,
    chance: dict[str, float],
) -> dict[str, Any]:
    """The accuracy of triplets, with that of triplets by labels in random order as a floor."""
    floor = {} if shuffled is None else {"shuffled": _accuracy(vectors, shuffled, data, rows, seed)}
    return _accuracy(vectors, triplets, data, rows, seed, **chance, **floor)


def _accuracy(
    vectors: np.ndarray, triplets: Triplets, data: TaskData, rows: np.ndarray, seed: int, **floor: Any
) -> dict[str, Any]:
    speakers = data.speakers[rows]
    is_known = bool((speakers != "").all()) and not data.has_known_speakers
    groups = speakers[triplets.anchors] if is_known else triplets.anchors.astype(str)
    return mean_of(is_right(vectors, triplets), groups, "speaker" if is_known else "clip", seed, **floor)


def _precisions(
    forms: dict[str, np.ndarray], data: TaskData, rows: np.ndarray, most_pairs: int, seed: int
) -> dict[str, dict[str, Any]]:
    most = int(np.sqrt(2 * most_pairs))
    places = np.arange(len(rows))
    if len(rows) > most:
        places = np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))
    labels, speakers = data.table.labels[rows[places]].astype(str), data.speakers[rows[places]].astype(str)
    is_known = bool((speakers != "").all()) and not data.has_known_speakers
    groups = speakers if is_known else places.astype(str)
    unit = "speaker" if is_known else "clip"
    return {form: average_precision(own[places], labels, groups, unit, seed) for form, own in forms.items()}


def cells(study: Study, settings: DiscriminationSettings) -> list[Cell]:
    """Every encoder on every task with classes."""
    return [
        encoder_cell(
            *(study, encoder, task, lambda e=encoder, t=task: discriminate(study, e, t, settings)),
            *([study.languages[task], encoder.language] if encoder.language else []),
        )
        for encoder, task in study.pairs()
        if study.tasks[task].task.kind == "classification"
    ]


# ---- what is shown ----


def answers(records: Sequence[dict]) -> list[str]:
    """Whether the nearest clip is of the same kind or of the same voice, and what helps; words apart from other labels."""
    told = _told(records)
    kinds = {"word": "words", "label": "other labels"}
    return [line for what, kind in kinds.items() for line in _hard([r for r in told if r["found"]["labels"] == kind], what)]


def _hard(records: Sequence[dict], what: str) -> list[str]:
    """How often the nearest clip is of the same word (or other label) where the other one is by the anchor's own voice."""
    hard = [record for record in records if "hard" in record["found"]["test"]["raw"]]
    if not hard:
        return []
    values: dict[str, list[dict]] = {}
    for record in hard:
        values.setdefault(record["about"]["encoder"], []).append(record["found"]["test"]["raw"]["hard"])
    shown = {name: " and ".join(f"{100 * one['value']:.0f}" for one in own) for name, own in values.items()}
    words = ", ".join(f"`{name}` {own} %" for name, own in shown.items())
    own = [one for found in values.values() for one in found]
    below, above = sum(is_below_chance(one, CHANCE) for one in own), sum(map(_is_above, own))
    tasks = " and ".join(dict.fromkeys(record["about"]["task"] for record in hard))
    line = (
        f"Search by cosine, vectors as they are, against a clip of the same voice (*hard* triplets, chance 50 %, {tasks}): "
        f"the same {what} is nearer in {words}; below chance in {below} of {len(own)} pairs of encoder and task, above it in "
        f"{above}."
    )
    warning = f" Where it is below, the nearest clip is the same voice, not the same {what}: do not search by it as it is."
    return [line + (warning if below else "") + _cures(hard)]


def _cures(records: Sequence[dict]) -> str:
    """What helps against the voice: before and after over the same cells, beside labels in random order."""
    words = []
    for form in ("by_speaker", "projected"):
        tests = [record["found"]["test"] for record in records if "hard" in record["found"]["test"].get(form, {})]
        if not tests:
            continue
        before, after = (_median([test[name]["hard"] for test in tests]) for name in ("raw", form))
        shuffled = [test[form]["hard"]["floor"]["shuffled"] for test in tests if "shuffled" in test[form]["hard"]["floor"]]
        beside = f"; with shuffled labels {_median(shuffled):.0f}" if shuffled else ""
        above = sum(_is_above_shuffled(test[form]["hard"]) for test in tests)
        words.append(
            f"{FORMS[form]} {before:.0f} -> {after:.0f} % (n = {len(tests)}{beside}; above these in {above} of {len(tests)})"
        )
    if not words:
        return ""
    return f" What helps, medians over the same cells: {', '.join(words)}; a probe on the vector does too (layers)."


def _median(figures: Sequence[dict]) -> float:
    return 100 * float(np.median([own["value"] for own in figures]))


def _is_above(own: dict) -> bool:
    return own["interval"] is not None and own["interval"][0] > CHANCE


def _is_above_shuffled(own: dict) -> bool:
    """Whether the whole interval lies above that of labels in random order."""
    shuffled = own["floor"].get("shuffled")
    return bool(shuffled and own["interval"] and shuffled["interval"]) and own["interval"][0] > shuffled["interval"][1]


def _told(records: Sequence[dict]) -> list[dict]:
    return [record for record in records if "test" in record["found"]]


def by_language(records: Sequence[dict]) -> list[dict[str, Any]]:
    """Encoders that say what they have learnt from, on every task that has a language: the figures of the vectors as they are.

    A line is of one task: those of one language may have words for labels, or others, which a mean would mix. Lines of one
    kind of labels are together, and in them those of one encoder, matched languages first.
    """
    lines = []
    for record in _told(records):
        found, about = record["found"], record["about"]
        if found.get("learnt_from") and found["language"]:
            languages = {"learnt_from": found["learnt_from"], "language": found["language"]}
            is_matched = found["learnt_from"] == found["language"]
            own = {**about, **languages, "labels": found["labels"], "is_matched": is_matched}
            lines.append({**own, **found["test"]["raw"]})
    encoders = list(dict.fromkeys(own["encoder"] for own in lines))
    return sorted(lines, key=lambda own: (own["labels"] != "words", encoders.index(own["encoder"]), not own["is_matched"]))


def _language_table(records: Sequence[dict]) -> list[str]:
    lines = []
    for own in by_language(records):
        match = "matched" if own["is_matched"] else "mismatched"
        about = [own[name] for name in ("labels", "encoder", "learnt_from", "language")]
        lines.append([*about, match, own["task"], *(_beside(own.get(c)) for c in CONDITIONS), _count(own)])
    columns = ["labels", "encoder", "learnt from", "language", "vocabulary", "task", *_condition_columns(), "triplets"]
    what = "By language, vectors as they are; words of a language that a model has not learnt from are new to it (mismatched):"
    return [what, markdown_table(columns, lines)] if lines else []


def _how(most_pairs: int) -> str:
    return (
        "Every clip of a split is an anchor; the vector is the one whose *across* triplets (*any*, where no speaker is "
        "known) are right most often on the validation clips, and the table is of the test clips. *any*: positive and "
        "negative by whomever; *across*: both by speakers other than the anchor's; *hard*: the positive by another "
        "speaker, the negative by the anchor's own. Ties are wrong. Intervals draw speakers (clips where these are "
        "unknown or the labels). Of words the negative is the other word with the smallest edit distance of which there "
        "is a clip that fits, unless said otherwise. In brackets: the same triplets by labels in random order, which is "
        "what knowing no label gives; * where the whole interval lies above theirs. Knowing neither label nor voice gives "
        "50 %; knowing the voice gives less in *hard*; and with each speaker's mean taken off more, as the clips of a "
        "speaker then point away from each other: such figures are to be judged by the brackets only. The means that are "
        "taken off are those of the test clips. The learnt projection: linear discriminants of the training clips. "
        "Average precision is over all pairs of test clips, beside the share of pairs of one label; where there are more "
        f"than {most_pairs:,} pairs, over those of a draw of clips."
    )


def section(records: Sequence[dict]) -> list[str]:
    """Triplets and average precision in all forms."""
    if not records:
        return []
    lines = []
    for record in _told(records):
        found, about = record["found"], record["about"]
        for form, own in found["test"].items():
            precision = found["precision"][form]
            share = f"{100 * precision['floor']['chance']:.1f}"
            lines.append(
                [
                    *(about["task"], about["encoder"], found["chosen"].removeprefix("layer "), FORMS[form]),
                    *(_beside(own.get(condition)) for condition in CONDITIONS),
                    _count(own),
                    f"{_percent(precision)}, share {share}",
                    f"{precision['n']}",
                ]
            )
    obstacles = [f"{r['about']['task']}: {r['found']['obstacle']}." for r in records if "obstacle" in r["found"]]
    columns = ["task", "encoder", "vector", "form", *_condition_columns(), "triplets", "average precision, %", "pairs"]
    pictures = [f"![{c} triplets](pictures/{NAME}_{c}.png)" for c in _drawn(records)]
    table = markdown_table(columns, lines)
    how = _how(records[0]["settings"]["most_pairs"])
    return [how, *pictures, table, *_language_table(records), *dict.fromkeys(obstacles)]


def _condition_columns() -> list[str]:
    return [f"{condition}, % (shuffled)" for condition in CONDITIONS]


def _beside(own: dict | None) -> str:
    """A figure, and that of labels in random order in brackets."""
    if own is None or "shuffled" not in own["floor"]:
        return _percent(own)
    mark = " *" if _is_above_shuffled(own) else ""
    return f"{_percent(own)}{mark} ({_percent(own['floor']['shuffled'])})"


def _count(own: dict) -> str:
    """Of each condition how many triplets, of how many speakers or clips: once where all conditions have as many."""
    counts = [f"{own[c]['n']}, {own[c]['units']} {own[c]['unit']}s" for c in CONDITIONS if c in own]
    return counts[0] if len(set(counts)) == 1 else "; ".join(counts)


def _percent(own: dict | None) -> str:
    return shown_figure(own, "percent")


def _drawn(records: Sequence[dict]) -> list[str]:
    return [c for c in CONDITIONS if any(c in record["found"]["test"]["raw"] for record in _told(records))]


def drawings(records: Sequence[dict]) -> dict[str, Callable[[Sequence[dict]], Figure]]:
    """A picture per condition."""
    return {f"{NAME}_{c}": partial(draw, condition=c) for c in _drawn(records)}


def draw(records: Sequence[dict], condition: str) -> Figure:
    """A group of bars per task: encoders as they are, and after the projection as dots; chance dashed."""
    told = [record for record in _told(records) if condition in record["found"]["test"]["raw"]]
    tasks = list(dict.fromkeys(record["about"]["task"] for record in told))
    encoders = list(dict.fromkeys(record["about"]["encoder"] for record in told))
    figure_, (axes,) = new_axes(3.5 + 1.2 * len(tasks), 4.0)
    width = 0.8 / len(encoders)
    for number, encoder in enumerate(encoders):
        own = {record["about"]["task"]: record["found"]["test"] for record in told if record["about"]["encoder"] == encoder}
        places = np.array([tasks.index(task) for task in own]) + (number - (len(encoders) - 1) / 2) * width
        values = 100 * np.array([found["raw"][condition]["value"] for found in own.values()])
        ends = np.array([found["raw"][condition]["interval"] or (np.nan, np.nan) for found in own.values()])
        bars = axes.bar(places, values, width, label=encoder, yerr=np.abs(100 * ends.T - values), ecolor="grey")
        dots = [100 * found["projected"][condition]["value"] if "projected" in found else np.nan for found in own.values()]
        axes.plot(places, dots, "o", markersize=4, color=bars[0].get_facecolor(), markeredgecolor="black")
    axes.axhline(100 * CHANCE, color="grey", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(tasks)), tasks, rotation=20)
    axes.set_ylim(0, 103)
    axes.set_ylabel(f"{condition}: triplets that are right, %")
    axes.set_title("bars: vectors as they are; dots: after a learnt projection")
    figure_.legend(fontsize=7, loc="outside right upper")
    return figure_


ANALYSIS = Analysis(
    NAME, "Discrimination: does a clip find its kind?", DiscriminationSettings, cells, answers, section, drawings
)
