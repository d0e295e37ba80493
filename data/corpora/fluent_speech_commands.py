"""Fluent Speech Commands (Lugosch et al., Interspeech 2019, arXiv:1904.03670): intent classification.

The corpus's own three lists. An intent is its action, object and location, without those that are `none`: 31 intents such
as `activate_lights_kitchen`. The lists keep the speakers apart, which is checked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from wavcse.data.corpora.corpus import Corpus, Rows, refuse_shared_speakers, some, tally
from wavcse.data.corpus_facts import FACTS

if TYPE_CHECKING:
    import pandas as pd

LISTS = {"train": "train_data.csv", "validation": "valid_data.csv", "test": "test_data.csv"}
SLOTS = ["action", "object", "location"]
COLUMNS = ["path", "speakerId", "transcription", *SLOTS]
PATH = re.compile(r"wavs/speakers/(\w+)/[\w-]+\.wav")


def _parts(root: Path, protocol: str) -> list[Path]:
    return [root / "wavs/speakers", *(root / "data" / name for name in LISTS.values())]


def _rows(root: Path, protocol: str) -> Rows:
    import pandas as pd

    listed = pd.concat([_list(root / "data" / name, split) for split, name in LISTS.items()], ignore_index=True)
    repeated = listed["file_name"][listed["file_name"].duplicated()]
    if len(repeated):
        raise ValueError(f"{root / 'data'}: the lists name clips twice, {some(repeated)}.")
    refuse_shared_speakers(listed, "split_ic", root / "data")
    there = {path.relative_to(root).as_posix() for path in (root / "wavs/speakers").glob("*/*.wav")}
    table = listed[listed["file_name"].isin(there)].reset_index(drop=True)
    lost = listed["file_name"][~listed["file_name"].isin(there)]
    problems = [f"the lists name clips that are not there, {some(lost)}"] if len(lost) else []
    found = {"speakers": table["speaker_id"].nunique(), "intents": table["intent"].nunique()}
    return Rows(table, {**tally(table["split_ic"]), **found}, problems)


def _list(path: Path, split: str) -> pd.DataFrame:
    """A list of the corpus as rows of the manifest; its first column, the number of the row, is passed over."""
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error}); the protocol needs this list.") from error
    if missing := [name for name in COLUMNS if name not in rows.columns]:
        raise ValueError(f"{path}: has no columns {missing}; its columns are {list(rows.columns)}.")
    for clip, speaker, *slots in rows[["path", "speakerId", *SLOTS]].itertuples(index=False):
        match = PATH.fullmatch(clip)
        if match is None or match[1] != speaker or not all(slots):
            raise ValueError(
                f"{path}: the row of {clip!r} does not have a path 'wavs/speakers/SPEAKER/CLIP.wav' with its speakerId, an "
                "action, an object and a location."
            )
    intents = ["_".join(slot for slot in slots if slot != "none") for slots in rows[SLOTS].itertuples(index=False)]
    table = rows[SLOTS].assign(file_name=rows["path"], intent=intents, speaker_id=rows["speakerId"], split_ic=split)
    return table[["file_name", "intent", *SLOTS, "speaker_id", "split_ic"]]


FLUENT_SPEECH_COMMANDS = Corpus(
    facts=FACTS["fluent_speech_commands"],
    layout=f"data/{{{', '.join(LISTS.values())}}} and wavs/speakers/SPEAKER/CLIP.wav",
    counts={"official": {"train": 23_132, "validation": 3_118, "test": 3_793, "speakers": 97, "intents": 31}},
    parts=_parts,
    rows=_rows,
)
