"""Splits for a corpus that has none: the clips of every speaker divided, so that they can be told apart, or the speakers."""

from __future__ import annotations

from wavcse.tools.arguments import SPLIT, SplitArguments

if __name__ == "__main__":
    SPLIT.answer()  # before the imports below, which take seconds

import os
import sys
from pathlib import Path

import pandas as pd

from wavcse.data.files import replacing
from wavcse.data.manifest import AS_WRITTEN, Manifest
from wavcse.data.splits import folds, hash_fraction
from wavcse.data.tables import read_text_table
from wavcse.settings.command import DONE

COLUMN, DISJOINT_COLUMN, FOLD_COLUMN = "split_sid", "split", "split_fold{}"
FEWEST = 3  # clips of a speaker: one for each split


def split_clips(table: pd.DataFrame, label_column: str, share: float) -> pd.Series:
    """The split of every clip, text; empty for clips without a label, and of labels with fewer than three clips.

    Of a label's clips, in an order by the hash of their names, the first `share` (at least one) validate, as many test, and
    the rest trains: clips that come to a corpus later move few others.

    Args:
        table: with `file_name`, perhaps `start` and `end`, and the labels.
        share: of the clips of each label, in (0, 0.34).
    """
    parts = [table[name] for name in ("file_name", "start", "end") if name in table]
    names = pd.concat(parts, axis=1).agg("#".join, axis=1)
    order = names.map(hash_fraction)
    splits = pd.Series("", index=table.index)
    for label, rows in order.groupby(table[label_column]):
        if label == "" or len(rows) < FEWEST:
            continue
        held, ordered = max(1, round(share * len(rows))), rows.sort_values().index
        splits[ordered] = "train"
        splits[ordered[:held]] = "validation"
        splits[ordered[held : 2 * held]] = "test"
    return splits


def split_labels(table: pd.DataFrame, label_column: str, share: float, most: int = 0) -> pd.Series:
    """As `split_clips`, with the labels divided in place of their clips: no label is in two splits.

    Args:
        most: labels with more clips than this train; 0 = there are none.

    Raises:
        ValueError: there are fewer than three labels to divide.
    """
    counts = table.loc[table[label_column] != "", label_column].value_counts()
    frequent = [label for label, count in counts.items() if 0 < most < count]
    labels = sorted(set(counts.index) - set(frequent), key=hash_fraction)
    if len(labels) < FEWEST:
        raise ValueError(f"there are {len(labels)} of {label_column}; {FEWEST} are needed, one for each split.")
    held = max(1, round(share * len(labels)))
    names = ["validation"] * held + ["test"] * held + ["train"] * (len(labels) - 2 * held)
    return table[label_column].map({"": "", **dict.fromkeys(frequent, "train"), **dict(zip(labels, names))})


def split_folds(path: Path, label_column: str, count: int) -> dict[str, pd.Series]:
    """Column -> the split of every clip of a manifest: each column tests other labels, as `folds:` of a fine-tuning does.

    Raises:
        ValueError: as `data.splits.folds`.
    """
    manifest = Manifest(path)
    divided = folds([manifest], label_column, count)
    return {FOLD_COLUMN.format(number): pd.Series(fold.splits(manifest)) for number, fold in enumerate(divided, start=1)}


def _columns(args: SplitArguments, table: pd.DataFrame) -> dict[str, pd.Series]:
    """The new columns."""
    if args.folds:
        return {
            name: own.reindex(table.index) for name, own in split_folds(args.manifest, args.label_column, args.folds).items()
        }
    if args.disjoint:
        return {DISJOINT_COLUMN: split_labels(table, args.label_column, args.share, args.most)}
    return {COLUMN: split_clips(table, args.label_column, args.share)}


@SPLIT.main
def main(args: SplitArguments) -> int:
    """Write the manifest with its new columns; rows that are in no split are left out."""
    read = read_text_table(args.manifest, as_written=AS_WRITTEN)
    table = pd.DataFrame(read.columns).drop(index=list(read.faults))
    for column in ("file_name", args.label_column, *args.where):
        if column not in table:
            raise ValueError(f"{args.manifest}: has no column {column!r}; its columns are {', '.join(table.columns)}.")
    for column, values in args.where.items():
        table = table[table[column].isin(values if isinstance(values, list) else [values])]
    out = args.out
    here = Path(os.path.relpath(args.manifest.parent, out.parent))  # a manifest's paths are relative to its own folder
    columns = _columns(args, table)
    table = table.assign(**columns, file_name=[(here / name).as_posix() for name in table["file_name"]])
    table = table[(table[[*columns]] != "").any(axis=1)]
    if table.empty:
        raise ValueError(f"{args.manifest}: no {args.label_column} has {FEWEST} clips that `where` lets through.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        table.to_csv(partial, index=False)
    counts = "; ".join(_counts(table[column]) for column in columns)
    print(f"{out}: {table[args.label_column].nunique():,} of {args.label_column}; clips: {counts}")
    return DONE


def _counts(splits: pd.Series) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in splits.value_counts().items())


if __name__ == "__main__":
    sys.exit(main())
