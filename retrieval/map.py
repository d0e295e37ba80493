"""A table of embeddings as one web page: `wavcse map`, whose options and help are in `retrieval/arguments.py`."""

from __future__ import annotations

from wavcse.retrieval.arguments import MAP, MapArguments

if __name__ == "__main__":
    MAP.answer()  # before the imports below, which take seconds

import html
import os
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from wavcse.data.files import json_text, write_atomically
from wavcse.data.manifest import Manifest
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.retrieval.projection import points_of
from wavcse.settings.command import DONE

PAGE = Path(__file__).with_name("map_page.html")
NAMES_A_CLIP = ("file_name", "start", "end")  # columns of a manifest that the table has under other names


def labelled(rows: pd.DataFrame, manifest: Manifest | None) -> pd.DataFrame:
    """Rows of a table, with the columns that a manifest has for their clips; empty where it does not list one."""
    if manifest is None:
        return rows
    labels = manifest.table.drop(columns=[name for name in (*NAMES_A_CLIP, *rows.columns) if name in manifest.table])
    labels.index = [clip.clip_id for clip in manifest.clips]
    return pd.concat([rows.reset_index(drop=True), labels.reindex(rows["id"]).fillna("").reset_index(drop=True)], axis=1)


def links_to(paths: pd.Series, audio: Path, page: Path) -> list[str]:
    """Links from a page to audio files whose paths are relative to the folder `audio`."""
    folder = os.path.relpath(audio.resolve(), page.resolve().parent)
    return [quote(Path(folder, path).as_posix()) for path in paths]


def page_of(title: str, points: np.ndarray, columns: pd.DataFrame, color: str, links: list[str] | None) -> str:
    """The page: points `[N, 2]`, what is known of each, and a script that draws them. It asks for no other file but audio.

    Args:
        color: the column that colours the points at first.
        links: to the audio of each; `None` = nothing can be played.
    """
    data = {
        "x": np.round(points[:, 0].astype(float), 4).tolist(),
        "y": np.round(points[:, 1].astype(float), 4).tolist(),
        "columns": {name: columns[name].tolist() for name in columns},
        "color": color,
        "links": links,
    }
    text = json_text(data, ensure_ascii=False).replace("<", "\\u003c")  # nothing in it ends the script or begins another
    page = PAGE.read_text(encoding="utf-8").replace("__TITLE__", html.escape(title))
    return page.replace("__DATA__", text)


@MAP.main
def main(args: MapArguments) -> int:
    """The command line."""
    table = StoredEmbeddings(args.table)
    manifest = Manifest(args.manifest) if args.manifest is not None else None
    positions = np.random.default_rng(args.seed).permutation(len(table))[: args.points]
    positions.sort()
    columns = labelled(table.rows(positions), manifest)
    color = args.color or next(iter(columns.columns.drop(["id", "path"], errors="ignore")), "id")
    if color not in columns:
        raise ValueError(f"color is {color!r}; the columns are {', '.join(columns)}.")
    out = Path(args.out)
    audio = args.audio or (manifest.path.parent if manifest is not None else None)
    links = links_to(columns["path"], Path(audio), out) if audio is not None else None
    points = points_of(table.embeddings(positions), args.method, args.seed)
    title = f"{Path(args.table).stem}: {args.method} of {len(points)} embeddings"
    write_atomically(out, page_of(title, points, columns.drop(columns="path"), color, links))
    print(f"{out}: {len(points)} of {len(table)} rows by {args.method}, coloured by {color}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
