"""Lists of verification trials, made from a manifest: pairs of clips of one speaker, and of two.

    wavcse trials MANIFEST --split test --same gender --across session

All pairs of a split, or as many as are asked for, drawn from all that qualify with equal probability: the same ones for the
same manifest and seed. `data/synthetic` and `data/corpora` make the lists of their corpora with the same function.

Shapes: `N` clips, `P` pairs.
"""

from __future__ import annotations

from wavcse.data.arguments import TRIALS, TrialsArguments

if __name__ == "__main__":
    TRIALS.answer()  # before the imports below, which take a second

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wavcse.data.files import write_atomically
from wavcse.settings.command import DONE

if TYPE_CHECKING:  # loaded where tables are made: corpora are named in helps, which wait for nothing large
    import pandas as pd

ALL_PAIRS = 20_000_000  # up to so many pairs are listed before some are drawn, 320 MB; of more they are drawn one by one
BLOCK = 1_000_000  # pairs that are drawn at a time


def make_pairs(
    speakers: np.ndarray,
    same: Sequence[np.ndarray] = (),
    across: Sequence[np.ndarray] = (),
    positives: int | None = None,
    negatives: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of clips of one speaker and of two, each pair once, in the order of the clips.

    Args:
        speakers: of every clip, `[N]`.
        same: values `[N]` in which the clips of two speakers must agree (gender).
        across: values `[N]` in which the clips of one speaker must differ (session, book, video).
        positives, negatives: how many of each to draw; None = all.

    Returns:
        Positive and negative pairs, rows `[P, 2]` each, the first row below the second.

    Raises:
        ValueError: there are fewer pairs than asked for, or none.
    """
    rng = np.random.default_rng(seed)
    own = _codes(speakers)
    found = _pairs_within(own)
    for values in across:
        codes = _codes(values)
        found = found[codes[found[:, 0]] != codes[found[:, 1]]]
    shared = _joint_codes(same) if len(same) else np.zeros(len(own), dtype=np.int64)
    return _drawn(found, positives, "of one speaker", rng), _negatives(own, shared, negatives, rng)


def _codes(values: np.ndarray | pd.Index) -> np.ndarray:
    import pandas as pd

    return pd.factorize(values)[0]


def _joint_codes(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of the combinations that rows of several columns hold."""
    import pandas as pd

    return _codes(pd.MultiIndex.from_arrays(columns))


def _pairs_within(codes: np.ndarray) -> np.ndarray:
    """All pairs of rows with one code, `[P, 2]`, in order."""
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
    pairs = [np.stack(np.triu_indices(len(group), k=1), axis=1) for group in groups]
    return _sorted(np.concatenate([group[own] for group, own in zip(groups, pairs)]))


def _sorted(pairs: np.ndarray) -> np.ndarray:
    return pairs[np.lexsort([pairs[:, 1], pairs[:, 0]])]


def _drawn(pairs: np.ndarray, count: int | None, kind: str, rng: np.random.Generator) -> np.ndarray:
    _check_count(len(pairs), count, kind)
    if count is None:
        return pairs
    return pairs[np.sort(rng.choice(len(pairs), count, replace=False))]


def _check_count(found: int, count: int | None, kind: str) -> None:
    if not found or found < (count or 0):
        raise ValueError(f"there are {found:,} pairs {kind} that qualify" + (f", fewer than the {count:,}." if found else "."))


def _negatives(speakers: np.ndarray, shared: np.ndarray, count: int | None, rng: np.random.Generator) -> np.ndarray:
    """Pairs of two speakers that share a value."""
    total = _num_pairs(shared) - _num_pairs(_joint_codes([speakers, shared]))
    _check_count(total, count, "of two speakers")
    if count is None or total <= ALL_PAIRS:
        pairs = _pairs_within(shared)
        return _drawn(pairs[speakers[pairs[:, 0]] != speakers[pairs[:, 1]]], count, "of two speakers", rng)
    num_clips, keys = len(speakers), np.empty(0, dtype=np.int64)
    while len(keys) < count:  # few of many: what is drawn twice or does not qualify is drawn again
        first, second = np.sort(rng.integers(num_clips, size=(2, BLOCK)), axis=0)
        is_pair = (speakers[first] != speakers[second]) & (shared[first] == shared[second])
        keys = np.concatenate([keys, (first * num_clips + second)[is_pair]])
        keys = keys[np.sort(np.unique(keys, return_index=True)[1])]  # each pair once, in the order of the draws
    return _sorted(np.stack(np.divmod(keys[:count], num_clips), axis=1))


def _num_pairs(codes: np.ndarray) -> int:
    sizes = np.bincount(codes)
    return int((sizes * (sizes - 1) // 2).sum())


def trials_table(names: Sequence[str], pairs: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
    """A list of trials with the columns `label`, `enrolment`, `test`, as text; positive ones come first.

    Args:
        names: of the clips, `[N]`.
        pairs: from `make_pairs`.
    """
    import pandas as pd

    names = np.array(names, dtype=object)
    rows = np.concatenate(pairs)
    labels = np.repeat(["1", "0"], [len(own) for own in pairs]).astype(object)
    return pd.DataFrame({"label": labels, "enrolment": names[rows[:, 0]], "test": names[rows[:, 1]]})


def csv_text(table: pd.DataFrame) -> str:
    """The list as its file holds it."""
    return table.to_csv(index=False, lineterminator="\n")


# ---- the command ----


def trials_of(args: TrialsArguments) -> pd.DataFrame:
    """The list of trials that the options ask for.

    Raises:
        ValueError: the manifest lacks a column, a clip of the split has no value in one that is compared, or there are too few
            pairs.
    """
    from wavcse.data.manifest import Manifest  # which loads PyTorch; other users of this module need no manifest

    manifest = Manifest(args.manifest)
    splits = manifest.split(_split_column(args, manifest.table.columns))
    rows = np.flatnonzero((splits == args.split) & (manifest.column(args.speaker_column) != ""))
    if not len(rows):
        raise ValueError(f"{args.manifest}: no clip of the split {args.split!r} has a {args.speaker_column!r}.")
    clips = [manifest.clips[row] for row in rows]
    faulty = next((clip for clip in clips if clip.fault), None)
    if faulty:
        raise ValueError(f"{args.manifest}: {faulty.clip_id}: {faulty.fault}. Mend the row, or empty its split.")
    values: Mapping[str, np.ndarray] = {
        name: manifest.column(name)[rows] for name in (args.speaker_column, *args.same, *args.across)
    }
    for name, own in values.items():
        if (lacking := np.flatnonzero(own == "")).size:
            raise ValueError(
                f"{args.manifest}: {len(lacking)} clips of the split {args.split!r} have no {name!r} to compare; "
                f"the first: {clips[lacking[0]].clip_id}."
            )
    try:
        pairs = make_pairs(
            values[args.speaker_column],
            [values[name] for name in args.same],
            [values[name] for name in args.across],
            args.positives,
            args.negatives,
            args.seed,
        )
    except ValueError as error:
        raise ValueError(f"{args.manifest}, split {args.split!r}: {error}") from error
    return trials_table([clip.clip_id for clip in clips], pairs)


def _split_column(args: TrialsArguments, columns: Sequence[str]) -> str:
    if args.split_column:
        return args.split_column
    return next((name for name in ("split_sv", "split") if name in columns), "split")


@TRIALS.main
def main(args: TrialsArguments) -> int:
    """Make the list, write it beside the manifest, and say how many trials it has."""
    manifest = Path(args.manifest)
    out = Path(args.out) if args.out else manifest.with_name(f"{manifest.stem}_trials.csv")
    if out.resolve().parent != manifest.resolve().parent:
        raise ValueError(f"{out}: must lie beside {manifest}, as its trials name the manifest's files.")
    table = trials_of(args)
    write_atomically(out, csv_text(table))
    positives = int((table["label"] == "1").sum())
    print(f"{out}: {len(table):,} trials, {positives:,} of one speaker and {len(table) - positives:,} of two")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
