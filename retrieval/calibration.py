"""What a similarity says of two clips, measured on labelled pairs: `wavcse calibrate`.

Its options and help are in `retrieval/arguments.py`.
"""

from __future__ import annotations

from wavcse.retrieval.arguments import CALIBRATE, CalibrateArguments

if __name__ == "__main__":
    CALIBRATE.answer()  # before the imports below, which take seconds

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wavcse.data.files import read_result, write_json
from wavcse.data.manifest import Manifest
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.retrieval.map import labelled
from wavcse.retrieval.nearest import unit_rows
from wavcse.retrieval.query import WINDOWS
from wavcse.settings.command import DONE
from wavcse.settings.libraries import optional_library

STEPS = 100  # of Newton's method, which takes about ten
TOLERANCE = 1e-9
KIND = "a calibration"
BUT = (*WINDOWS, "normalize")  # of what a vector depends on: changes no cosine


@dataclass(frozen=True)
class Calibration:
    """A logistic curve from the cosine similarity of two clips to the odds that they agree in a label.

    Attributes:
        label: the column, such as `speaker_id`.
        offset, slope: log-likelihood ratio = offset + slope * similarity (natural logarithm).
        eer: equal error rate of the similarity, on pairs that were not fitted.
        cllr: cost of the log-likelihood ratio there, in bits (Brummer and du Preez 2006); 1 says nothing, 0 all.
        same, different: how many of those pairs agree and differ.
        made_with: what the vectors depend on, as the table says.
    """

    label: str
    offset: float
    slope: float
    eer: float
    cllr: float
    same: int
    different: int
    made_with: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """ValueError if the file is none that `wavcse calibrate` has made, or damaged."""
        fields = list(cls.__dataclass_fields__)
        record = read_result(Path(path), fields, KIND, "Make it with `wavcse calibrate`.")
        return cls(**{name: record[name] for name in fields})

    def log_ratio(self, similarities: np.ndarray) -> np.ndarray:
        """Natural logarithm of how much likelier a similarity is between clips that agree."""
        return self.offset + self.slope * np.asarray(similarities, np.float64)

    def probability(self, similarity: float) -> float:
        """That two clips agree, where agreeing and differing were equally likely before they were heard."""
        return float(0.5 * (1 + np.tanh(0.5 * self.log_ratio(similarity))))  # the logistic function, without overflow


def logistic_fit(similarities: np.ndarray, is_same: np.ndarray) -> tuple[float, float]:
    """Offset and slope of the log-likelihood ratio, by logistic regression in which both kinds of pairs weigh the same.

    The targets are Platt's (1999), (n + 1) / (n + 2) and 1 / (n + 2), so that the slope is finite even where no pair is
    mistaken. Newton's method with halved steps.
    """
    counts = np.array([np.sum(~is_same), np.sum(is_same)])
    targets = np.where(is_same, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    weights = 0.5 / counts[is_same.astype(int)]
    inputs = np.stack([np.ones(len(similarities)), similarities.astype(np.float64)], axis=1)  # [pairs, 2]

    def loss(curve: np.ndarray) -> float:
        ratio = inputs @ curve
        return float(weights @ (np.logaddexp(0, ratio) - targets * ratio))

    curve = np.zeros(2)
    for _ in range(STEPS):
        share = 0.5 * (1 + np.tanh(0.5 * (inputs @ curve)))
        gradient = inputs.T @ (weights * (share - targets))
        step = np.linalg.lstsq((inputs * (weights * share * (1 - share))[:, None]).T @ inputs, gradient, rcond=None)[0]
        length = 1.0
        while length > TOLERANCE and loss(curve - length * step) > loss(curve):
            length /= 2
        curve = curve - length * step
        if np.abs(length * step).max() < TOLERANCE * max(1.0, np.abs(curve).max()):
            break
    return float(curve[0]), float(curve[1])


def cllr(log_ratios: np.ndarray, is_same: np.ndarray) -> float:
    """Cost of log-likelihood ratios in bits: 1 of ratios that say nothing, 0 of perfect ones."""
    costs = [np.logaddexp(0, -log_ratios[is_same]).mean(), np.logaddexp(0, log_ratios[~is_same]).mean()]
    return float(np.mean(costs) / np.log(2))


def labelled_pairs(units: np.ndarray, labels: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of all pairs of rows, and whether their labels agree; pairs within one clip (its windows) are left out.

    Args:
        units: `[n, E]`, of length 1.
        labels, clips: `[n]`: of each row its label, and the clip that it is of.
    """
    one, other = np.triu_indices(len(units), 1)
    is_pair = clips[one] != clips[other]
    one, other = one[is_pair], other[is_pair]
    return (units @ units.T)[one, other], labels[one] == labels[other]


def calibrate(table: StoredEmbeddings, manifest: Manifest | None, label: str, most: int = 2000, seed: int = 0) -> Calibration:
    """Fit on the clips of one half of a label's values, measure on those of the other.

    Args:
        manifest: has the label's column, if the table has not.
        most: clips that are drawn.

    Raises:
        ValueError: there is no such column, or a half has no pairs that agree or none that differ.
        ImportError: scikit-learn is not installed.
    """
    verification = optional_library("wavcse.eval.metrics.verification", "eval")
    generator = np.random.default_rng(seed)
    columns = labelled(table.rows(np.arange(len(table))), manifest)
    if label not in columns:
        raise ValueError(f"label is {label!r}; the columns are {', '.join(columns)}.")
    labels = columns[label].astype(str).to_numpy(object)
    is_labelled = columns[label].notna().to_numpy() & (labels != "")
    rows = np.sort(generator.permutation(np.flatnonzero(is_labelled))[:most])
    labels, clips = labels[rows], columns["id"].to_numpy(object)[rows]
    units = unit_rows(table.embeddings(rows))
    values = generator.permutation(np.unique(labels))
    is_fitted = np.isin(labels, values[: len(values) // 2])
    (fitted, fitted_same), (held, held_same) = (
        labelled_pairs(units[half], labels[half], clips[half]) for half in (is_fitted, ~is_fitted)
    )
    for kinds in (fitted_same, held_same):
        if kinds.all() or not kinds.any():
            raise ValueError(
                f"{label}: half of its {len(values)} values has no pairs of clips that agree, or none that differ; four "
                "values of two clips each are the least."
            )
    offset, slope = logistic_fit(fitted, fitted_same)
    ratios = offset + slope * held.astype(np.float64)
    same = int(held_same.sum())
    made_with = {name: value for name, value in table.metadata.items() if name not in BUT}
    figures = (verification.eer(held_same.astype(int), held), cllr(ratios, held_same), same, len(held) - same)
    return Calibration(label, offset, slope, *figures, made_with)


@CALIBRATE.main
def main(args: CalibrateArguments) -> int:
    """The command line."""
    manifest = Manifest(args.manifest) if args.manifest is not None else None
    found = calibrate(StoredEmbeddings(args.table), manifest, args.label, args.clips, args.seed)
    write_json(Path(args.out), asdict(found), indent=2)
    print(f"{args.out}: {found.label}, log-likelihood ratio {found.offset:.3f} + {found.slope:.3f} * similarity")
    print(f"held-out pairs: {found.same} agree, {found.different} differ; EER {found.eer:.2%}, Cllr {found.cllr:.3f} bits")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
