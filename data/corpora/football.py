"""Football Keywords Dataset, FKD (Rostami, Karimi and Akhaee, Speech Communication 2022, arXiv:2012.15695): Persian keywords.

The corpus's own division into Train and Test, 300 test clips of each of 18 keywords. It has no validation part: a tenth of
the training clips, by the sha1 of their names, is taken for it. No description of the corpus says how a file names its
speaker, so the manifest has none; by the authors a part of the test clips comes from speakers of the training part.
"""

from __future__ import annotations

from pathlib import Path

from wavcse.data.corpora.corpus import Corpus, Rows, some, tally, text_table
from wavcse.data.corpus_facts import FACTS
from wavcse.data.splits import split_by_hash

AUDIO = {".wav", ".ogg", ".oga", ".opus", ".flac", ".mp3"}
OTHERS = {"unknown", "silence"}  # test folders that are not keywords: 18 classes in the paper
VALIDATION_SHARE = 0.1


def _parts(root: Path, protocol: str) -> list[Path]:
    return [_part(root, "Train"), _part(root, "Test")]


def _part(root: Path, name: str) -> Path:
    return root / name.lower() if (root / name.lower()).is_dir() else root / name


def _rows(root: Path, protocol: str) -> Rows:
    rows = [
        (path.relative_to(root).as_posix(), _keyword(path.parent.name), _split(path, part))
        for part in ("Train", "Test")
        for path in sorted(_part(root, part).glob("[!.]*/[!.]*"))
        if path.suffix.lower() in AUDIO and _keyword(path.parent.name) not in OTHERS
    ]
    table = text_table(rows, ["file_name", "keyword", "split_ks"])
    words = {split: set(table["keyword"][table["split_ks"] == split]) for split in ("train", "test")}
    one_sided = sorted(words["train"] ^ words["test"])
    problems = [f"keywords that are only in Train or only in Test, {some(one_sided)}"] if one_sided else []
    return Rows(table, {**tally(table["split_ks"]), "keywords": table["keyword"].nunique()}, problems)


def _keyword(folder: str) -> str:
    """`Free kick`, `free-kick` and `FREE_KICK` are one keyword."""
    return folder.strip().lower().replace(" ", "_").replace("-", "_")


def _split(path: Path, part: str) -> str:
    return "test" if part == "Test" else split_by_hash(f"{_keyword(path.parent.name)}/{path.stem}", VALIDATION_SHARE)


FOOTBALL = Corpus(
    facts=FACTS["football"],
    layout="Train/KEYWORD/* and Test/KEYWORD/* (ogg or wav; 18 keywords)",
    counts={"official": {"test": 5_400, "keywords": 18}},
    parts=_parts,
    rows=_rows,
)
