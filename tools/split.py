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
from wavcse.data.manifest import AS_WRITTEN
from wavcse.data.splits import hash_fraction
from wavcse.data.tables import read_text_table
from wavcse.settings.command import DONE

COLUMN, DISJOINT_COLUMN = "split_sid", "split"
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


def split_labels(table: pd.DataFrame, label_column: str, share: float) -> pd.Series:
    """As `split_clips`, with the labels divided in place of their clips: no label is in two splits.

    Raises:
        ValueError: there are fewer than three labels.
    """
    labels = sorted(set(table[label_column]) - {""}, key=hash_fraction)
    if len(labels) < FEWEST:
        raise ValueError(f"there are {len(labels)} of {label_column}; {FEWEST} are needed, one for each split.")
    held = max(1, round(share * len(labels)))
    names = ["validation"] * held + ["test"] * held + ["train"] * (len(labels) - 2 * held)
    return table[label_column].map({"": "", **dict(zip(labels, names))})


@SPLIT.main
def main(args: SplitArguments) -> int:
    """Write the manifest with its new column; rows that are in no split are left out."""
    read = read_text_table(args.manifest, as_written=AS_WRITTEN)
    table = pd.DataFrame(read.columns).drop(index=list(read.faults))
    for column in ("file_name", args.label_column, *args.where):
        if column not in table:
            raise ValueError(f"{args.manifest}: has no column {column!r}; its columns are {', '.join(table.columns)}.")
    for column, values in args.where.items():
        table = table[table[column].isin(values if isinstance(values, list) else [values])]
    out = args.out
    here = Path(os.path.relpath(args.manifest.parent, out.parent))  # a manifest's paths are relative to its own folder
    column = DISJOINT_COLUMN if args.disjoint else COLUMN
    splits = (split_labels if args.disjoint else split_clips)(table, args.label_column, args.share)
    table = table.assign(**{column: splits, "file_name": [(here / name).as_posix() for name in table["file_name"]]})
    table = table[splits != ""]
    if table.empty:
        raise ValueError(f"{args.manifest}: no {args.label_column} has {FEWEST} clips that `where` lets through.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        table.to_csv(partial, index=False)
    counts = ", ".join(f"{count:,} {split}" for split, count in table[column].value_counts().items())
    print(f"{out}: {table[args.label_column].nunique():,} of {args.label_column}; clips: {counts}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
