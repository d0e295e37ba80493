"""Common Voice (Ardila et al., LREC 2020): sentences read by volunteers, one language and release at a time.

The official lists train, dev and test, which keep speakers apart; that is checked. What speakers say of themselves is optional
and spelled in several ways over the releases: `gender` is female or male where they say one of these and empty otherwise,
`age_group` is a decade (`twenties`), `accent` is as they write it. A release is not told by its files, and each has other
numbers, so clips are not counted.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from wavcse.data.corpora.corpus import Corpus, Rows, some, tally
from wavcse.data.corpus_facts import FACTS

if TYPE_CHECKING:
    import pandas as pd

LISTS = {"train.tsv": "train", "dev.tsv": "validation", "test.tsv": "test"}
CLIPS = "clips"
GENDERS = {
    **{"female": "female", "female_feminine": "female"},  # the longer ones since version 17
    **{"male": "male", "male_masculine": "male"},
}
COLUMNS = ["client_id", "path", "sentence"]
ACCENTS = ("accents", "accent")  # the second until version 7


def _parts(root: Path, protocol: str) -> list[Path]:
    return [*(root / name for name in LISTS), root / CLIPS]


def _rows(root: Path, protocol: str) -> Rows:
    import pandas as pd

    lists = [_list(root / name, split) for name, split in LISTS.items() if (root / name).is_file()]
    if not lists:
        raise ValueError(f"{root}: has none of the lists {', '.join(LISTS)}; the protocol needs them.")
    listed = pd.concat(lists, ignore_index=True)
    repeated = listed["file_name"][listed["file_name"].duplicated()]
    if len(repeated):
        raise ValueError(f"{root}: the lists name clips twice, {some(repeated)}.")
    there = {f"{CLIPS}/{path.name}" for path in (root / CLIPS).glob("[!.]*")}
    table = listed[listed["file_name"].isin(there)].reset_index(drop=True)
    lost = listed["file_name"][~listed["file_name"].isin(there)]
    problems = [f"the lists name clips that are not there, {some(lost)}"] if len(lost) else []
    splits = table.groupby("speaker_id")["split"].nunique()
    shared = splits.index[splits > 1]
    problems += [f"speakers are in two of the lists, which keep them apart, {some(shared)}"] if len(shared) else []
    found = {"speakers": table["speaker_id"].nunique(), "languages": table["language"].nunique()}
    found["with a gender"] = int((table["gender"] != "").sum())
    return Rows(table, {**tally(table["split"]), **found}, problems)


def _list(path: Path, split: str) -> pd.DataFrame:
    """A list of the corpus as rows of the manifest; columns that its release lacks are empty."""
    import pandas as pd

    try:  # quotation marks are part of sentences
        rows = pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: cannot be read as a table with tabs ({error}); the protocol needs this list.") from error
    if missing := [name for name in COLUMNS if name not in rows.columns]:
        raise ValueError(f"{path}: has no columns {missing}; its columns are {list(rows.columns)}.")
    strange = [name for name in rows["path"] if not name or Path(name).name != name]
    if strange:
        raise ValueError(f"{path}: {strange[0]!r} in the column path is not the name of a file in {CLIPS}/.")
    return pd.DataFrame(
        {
            "file_name": f"{CLIPS}/" + rows["path"],
            "speaker_id": rows["client_id"],
            "text": rows["sentence"],
            "gender": _said(rows, "gender").map(lambda value: GENDERS.get(value, "")),
            "age_group": _said(rows, "age"),
            "accent": _said(rows, *ACCENTS),
            "language": _said(rows, "locale").map(lambda value: _language(value or path.parent.name)),
            "split": split,
        },
        dtype=object,
    )


def _said(rows: pd.DataFrame, *names: str) -> pd.Series:
    """The first of these columns that a list has, else nothing for every row."""
    import pandas as pd

    known = next((name for name in names if name in rows.columns), None)
    return rows[known].str.strip() if known else pd.Series("", rows.index, dtype=object)


def _language(locale: str) -> str:
    """`zh` of `zh-CN`: the language of a locale, in ISO 639-1 where it has a code of two letters."""
    return locale.split("-")[0].split("_")[0].lower()


COMMON_VOICE = Corpus(
    facts=FACTS["common_voice"],
    layout=f"{', '.join(LISTS)} and {CLIPS}/*.mp3, in a folder that is named by its locale, such as fr (one language per run)",
    counts={"official": {"languages": 1}},
    parts=_parts,
    rows=_rows,
)
