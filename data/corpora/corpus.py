"""What an adapter of a corpus gives, and the one way from it to a checked manifest."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavcse.data.corpus_facts import PARTIAL, CorpusFacts
from wavcse.data.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 3  # how many names a message lists


@dataclass(frozen=True)
class Rows:
    """What an adapter read from a corpus.

    Args:
        table: one row per clip; `file_name` relative to the root with `/`, the other columns as in a manifest (text, empty =
            none).
        found: numbers of clips (speakers, folders) under the names of `Corpus.counts`.
        problems: one sentence for each part that the lists name and the disk lacks, or that has no place in the layout.
        trials: columns `label` (1 = same speaker, 0 = different), `enrolment` and `test`: a `file_name` of the table, or for
            `enrolment` a value of its column `enrolment_id`. None where the corpus has no verification trials.
    """

    table: pd.DataFrame
    found: Mapping[str, int]
    problems: Sequence[str]
    trials: pd.DataFrame | None = None


@dataclass(frozen=True)
class HubClip:
    """Where a row of a Hub copy belongs in the official layout: the audio file, and its line in a list, if it has one.

    `others`: further lists -> its line there.
    """

    file_name: str
    list_name: str = ""
    line: str = ""
    others: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """One corpus in its official layout.

    Args:
        facts: its name, title, source and licence, and what its protocols mean.
        layout: what lies below the root, in one line.
        counts: protocol -> what `Rows.found` is for the whole corpus.
        parts: (root, protocol) -> files and folders that must be there.
        rows: (root, protocol) -> the clips; ValueError for a list that cannot be read as the corpus's own.
        from_hub: (row of a Hub copy, its split, protocol) -> its place; ValueError if the row does not say it. None where
            no copy with audio is known on the Hub.
    """

    facts: CorpusFacts
    layout: str
    counts: Mapping[str, Mapping[str, int]]
    parts: Callable[[Path, str], Sequence[Path]]
    rows: Callable[[Path, str], Rows]
    from_hub: Callable[[Mapping[str, Any], str, str], HubClip] | None = None

    def protocol(self, name: str | None) -> str:
        """The protocol of that name, or the first one; ValueError if there is no such protocol."""
        protocols = self.facts.protocols
        if name and name not in protocols:
            raise ValueError(f"{self.facts.name}: there is no protocol {name!r}; there are {', '.join(protocols)}.")
        return name or next(iter(protocols))


@dataclass(frozen=True)
class Written:
    """A manifest that was written: its number of clips, what was found of the corpus, what it lacks, the list of trials."""

    clips: int
    found: Mapping[str, int]
    problems: Sequence[str]
    trials: Path | None = None


def write_manifest(
    corpus: Corpus, root: str | Path, out: str | Path, protocol: str | None = None, allow_partial: bool = False
) -> Written:
    """Read a corpus below `root` and write its manifest `out` (CSV; the columns `corpus` and `protocol` name both).

    Verification trials are written beside it, `M.csv` -> `M_trials.csv`, with paths that are relative like the manifest's.

    Args:
        protocol: one of the corpus's protocols; `None` = the first.
        allow_partial: write what is there of an incomplete corpus; its protocol is then called `P-partial`, so that no result
            on it passes for one on the whole corpus.

    Raises:
        ValueError: the corpus is not there or not complete (the message names source, layout and what is missing), one of its
            lists is malformed, or an argument is wrong.
        OSError: the manifest cannot be written.
    """
    root, out, protocol = Path(root), Path(out), corpus.protocol(protocol)
    expected, name = corpus.counts[protocol], corpus.facts.name
    if out.suffix.lower() != ".csv":
        raise ValueError(f"{out}: the manifest is written as CSV; give a name that ends in .csv.")
    parts = corpus.parts(root, protocol)
    absent = [f"{part} is not there" for part in parts if not part.exists()]
    if len(absent) == len(parts):
        raise ValueError(_where_from(corpus, root))
    if absent and not allow_partial:
        raise ValueError(f"{_incomplete(absent)} {_where_from(corpus, root)}")
    rows = corpus.rows(root, protocol)
    problems = [*absent, *rows.problems, *_differences(rows.found, expected)]
    if problems and not allow_partial:
        raise ValueError(f"{name}, protocol {protocol}: {_incomplete(problems)}")
    if rows.table.empty:
        raise ValueError(f"{name}, protocol {protocol}: no clip was found below {root}.")
    constants = {"corpus": name, "protocol": f"{protocol}{PARTIAL if problems else ''}"}
    trials = _write(rows, constants, root, out)
    return Written(len(rows.table), {**dict.fromkeys(expected, 0), **rows.found}, problems, trials)


def read_lines(path: Path) -> list[str]:
    """The lines of a list of the corpus, without line ends and without blank ones; ValueError if there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); the protocol needs this list.") from error
    return [line.rstrip() for line in lines if line.strip()]


def some(names: Iterable[str]) -> str:
    """How many names there are, and the first few of them: `5: a, b, c, ...`."""
    names = list(names)
    return f"{len(names):,}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


def text_table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> pd.DataFrame:
    """A table of text, as `Rows.table`."""
    import pandas as pd  # not above: the list of corpora serves helps and tasks, which need no pandas

    return pd.DataFrame(rows, columns=columns, dtype=object)


def matching_text(pattern: re.Pattern, row: Mapping[str, Any]) -> re.Match:
    """The match of the first text of a row that `pattern` finds; the name of the audio is the last one looked at.

    Raises:
        ValueError: there is none.
    """
    audio_name = Path((row.get("audio") or {}).get("path") or "").name
    texts = [value for value in row.values() if isinstance(value, str)] + [audio_name]
    match = next(filter(None, map(pattern.search, texts)), None)
    if match is None:
        raise ValueError(f"no column names the clip as the corpus does; its columns are {list(row)}")
    return match


def tally(values: pd.Series) -> dict[str, int]:
    """How often each value occurs, without the empty one."""
    return {str(value): int(count) for value, count in values[values != ""].value_counts(sort=False).items()}


def refuse_shared_speakers(table: pd.DataFrame, split_column: str, source: Path) -> None:
    """ValueError if a speaker has clips in two splits of a corpus that promises disjoint ones; `source` says where."""
    used = table[table[split_column] != ""]
    splits = used.groupby("speaker_id")[split_column].nunique()
    if (shared := splits.index[splits > 1]).size:
        raise ValueError(f"{source}: speakers are in two splits, {some(shared)}; the corpus keeps them apart.")


def _differences(found: Mapping[str, int], expected: Mapping[str, int]) -> list[str]:
    return [
        f"{name}: {found.get(name, 0):,} instead of {count:,}"
        for name, count in expected.items()
        if found.get(name, 0) != count
    ]


def _incomplete(problems: Sequence[str]) -> str:
    return f"The corpus is not complete. {'; '.join(problems)}. Add what is missing, or go on without it: --allow_partial."


def _where_from(corpus: Corpus, root: Path) -> str:
    hub = ", or write a Hub copy there with --hub_id" if corpus.from_hub else ""
    return (
        f"{corpus.facts.title} is expected below {root} as {corpus.layout}. It comes from {corpus.facts.source} (licence: "
        f"{corpus.facts.licence}). Unpack it there{hub}."
    )


def _write(rows: Rows, constants: Mapping[str, str], root: Path, out: Path) -> Path | None:
    """Write trials and manifest; returns the path of the trials, if there are any."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = Path(os.path.relpath(root.resolve(), out.parent.resolve())).as_posix()
    paths = {name: posixpath.normpath(posixpath.join(prefix, name)) for name in rows.table["file_name"]}
    beside = None
    if rows.trials is not None:
        beside = out.with_name(f"{out.stem}_trials.csv")
        sides = {side: [paths.get(name, name) for name in rows.trials[side]] for side in ("enrolment", "test")}
        _write_csv(rows.trials[["label"]].assign(**sides), beside)
    _write_csv(rows.table.assign(file_name=rows.table["file_name"].map(paths), **constants), out)
    return beside


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_atomically(path, table.to_csv(index=False, lineterminator="\n"))
