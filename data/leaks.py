"""The check against leaks that training, pre-training, searches and evaluation share.

It refuses audio, or a held-out speaker, that is both trained on and tested on, and one clip with two labels.

Two clips share audio where their parts [start, end) of one file overlap; without an `end` a clip goes to the end of its file.
A file is known by its content, so that copies and links under other names are found, or by its real path if it cannot be read.

Speakers are compared by the column that a task names in `disjoint_by`. Within a task its values are compared as they are
written. Between tasks a value of one manifest means another person than the same value of another, unless both rows name the
same `corpus`, or both manifests list a file in common: then the values that this file has in the two are one person.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, combinations, permutations

import numpy as np

from wavcse.data import SPLITS
from wavcse.data.inspection import ClipFacts, Inspector
from wavcse.data.manifest import Clip, Manifest

MOST_NAMED = 5  # what a message lists


@dataclass(frozen=True)
class ClipUses:
    """What one task, or one pre-training, does with clips; all arrays have one entry per clip, N in all.

    Args:
        owner: its name in messages, such as "task 'keyword'".
        clips: as the manifests list them; the same audio may be there more than once.
        splits: "train", "validation" or "test", `[N]`.
        labels: label column -> labels, `[N]`; an empty one is none.
        manifests: where the clips come from.
        sources: index in `manifests`, int64 `[N]`.
        rows: row in that manifest, int64 `[N]`.
        split_columns: of each manifest, the column that `splits` was read from.
        disjoint_by: column whose values (speakers) may not cross splits; None where they may.
        held_out: splits whose speakers are in no other one. Of a fold it is the test split alone.
    """

    owner: str
    clips: Sequence[Clip]
    splits: np.ndarray
    labels: dict[str, np.ndarray]
    manifests: Sequence[Manifest]
    sources: np.ndarray
    rows: np.ndarray
    split_columns: Sequence[str]
    disjoint_by: str | None = None
    held_out: tuple[str, ...] = ("validation", "test")

    def column(self, name: str | None) -> np.ndarray:
        """A manifest column for every clip, text `[N]`; empty where a manifest does not have it."""
        values = np.full(len(self.clips), "", dtype=object)
        for source, manifest in enumerate(self.manifests):
            if name in manifest.table.columns:
                is_here = self.sources == source
                values[is_here] = manifest.column(name)[self.rows[is_here]]
        return values

    def named(self, row: int) -> str:
        """A clip in a message: its id, and its manifest."""
        return f"{self.clips[row].clip_id} of {self.manifests[self.sources[row]].path}"

    def split_column(self, row: int) -> str:
        """The column that says the split of a clip."""
        return self.split_columns[self.sources[row]]


def refuse_leaks(uses: Sequence[ClipUses], facts: Sequence[Sequence[ClipFacts]], train_together: bool = False) -> None:
    """Refuse tasks whose results would be too good, or whose labels contradict each other.

    Args:
        facts: of every clip of every task, from an `Inspector`.
        train_together: whether the tasks train layers in common, so that one must not train on what another holds out.

    Raises:
        ValueError: within a task a clip has two labels, audio or a value of `disjoint_by` is in two splits, or a clip has no
            such value; and, of tasks that train together, one trains on audio that another validates or tests, or on a
            speaker whom another holds out by its `disjoint_by`. The message names tasks, splits, clips or speakers, and what
            to do.
    """
    files = [file_keys(own.clips, known) for own, known in zip(uses, facts)]
    stretches = [
        {split: Stretches(own.clips, keys, np.flatnonzero(own.splits == split)) for split in SPLITS}
        for own, keys in zip(uses, files)
    ]
    for own, keys, known, parts in zip(uses, files, facts, stretches):
        _refuse_speakers_in_two_splits(own)
        for first, second in combinations(SPLITS, 2):
            if shared := list(parts[first].shared_with(parts[second])):
                raise ValueError(_audio_in_two_splits(own, first, second, shared))
        refuse_two_labels(own, keys, known)
    if not train_together:
        return
    for trained, held_out in permutations(range(len(uses)), 2):
        for split in ("validation", "test"):
            if shared := list(stretches[trained]["train"].shared_with(stretches[held_out][split])):
                raise ValueError(_audio_of_another_task(uses[trained], uses[held_out], split, shared))
        if uses[held_out].disjoint_by:
            _refuse_speakers_of_another_task(uses[trained], files[trained], uses[held_out], files[held_out])


def inspected(uses: Sequence[ClipUses], inspector: Inspector) -> list[list[ClipFacts]]:
    """The facts of every clip of every task, each file looked at once; nothing is written."""
    facts = iter(inspector.inspect([clip for own in uses for clip in own.clips], save=False))
    return [[next(facts) for _ in own.clips] for own in uses]


def file_keys(clips: Sequence[Clip], facts: Sequence[ClipFacts]) -> list[str]:
    """What the file of each clip is known by: the digest of its content, or its real path where it cannot be read."""
    return [fact.digest.partition("#")[0] or clip.place[0] for clip, fact in zip(clips, facts)]


class Stretches:
    """The stretches of files that some clips cover.

    Args:
        clips: a list of clips.
        files: what the file of each is known by, see `file_keys`.
        rows: which of the clips are meant.
    """

    def __init__(self, clips: Sequence[Clip], files: Sequence[str], rows: Iterable[int]):
        self.clips, self.files, self.rows = clips, files, list(rows)
        self.by_file: dict[str, tuple[list[float], list[tuple[float, int]]]] = {}
        for row in sorted(self.rows, key=lambda row: clips[row].place[1:]):
            _, start_s, end_s = clips[row].place
            starts, farthest = self.by_file.setdefault(files[row], ([], []))
            starts.append(start_s)
            farthest.append(max([(end_s, row), *farthest[-1:]]))  # the clip that reaches farthest of all that start by then

    def overlapping(self, file: str, clip: Clip) -> int | None:
        """The row of a clip that shares audio with `clip` of this file; None if there is none."""
        starts, farthest = self.by_file.get(file, ((), ()))
        _, start_s, end_s = clip.place
        before = bisect_left(starts, end_s)
        return farthest[before - 1][1] if before and farthest[before - 1][0] > start_s else None

    def shared_with(self, others: Stretches) -> Iterator[tuple[int, int]]:
        """Rows here and there that share audio: every row of `others` that does, with one of the rows here."""
        for other in others.rows:
            row = self.overlapping(others.files[other], others.clips[other])
            if row is not None:
                yield row, other


def refuse_two_labels(uses: ClipUses, files: Sequence[str], facts: Sequence[ClipFacts]) -> None:
    """ValueError if the same part of the same audio has two labels."""
    for column, labels in uses.labels.items():
        first: dict[tuple[str, float, float], int] = {}
        for row, (clip, file, fact) in enumerate(zip(uses.clips, files, facts)):
            if not labels[row]:
                continue
            end_s = clip.start_s + fact.duration_s if clip.end_s is None else clip.end_s
            kept = first.setdefault((file, round(clip.start_s, 6), round(end_s, 6)), row)
            if labels[kept] != labels[row]:
                raise ValueError(
                    f"{uses.owner}: {uses.named(row)} is labelled {labels[row]!r} in column {column!r}, and "
                    f"{uses.named(kept)}, which is the same audio, {labels[kept]!r}. Correct one of the labels, or empty it."
                )


def _refuse_speakers_in_two_splits(uses: ClipUses) -> None:
    column = uses.disjoint_by
    if not column:
        return
    speakers = uses.column(column)
    nameless = np.flatnonzero(speakers == "")
    if len(nameless):
        raise ValueError(f"{uses.owner}: {uses.clips[nameless[0]].clip_id} has no {column!r}, which must not cross splits.")
    members = {split: set(speakers[uses.splits == split]) for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        shared = sorted(members[first] & members[second]) if {first, second} & set(uses.held_out) else []
        if shared:
            raise ValueError(
                f"{uses.owner}: {column} {_listed(shared)} occur in both {first} and {second}; "
                "a result on such a split would be too good. Split by that column."
            )


def _audio_in_two_splits(uses: ClipUses, first: str, second: str, shared: Sequence[tuple[int, int]]) -> str:
    """What is wrong where clips of two splits share audio, and what to do; `shared` are their rows."""
    one, other = shared[0]
    how, or_cut = _relation(uses.clips[one], uses.clips[other])
    return (
        f"{uses.owner}: {uses.named(one)} ({first}) and {uses.named(other)} ({second}) {how}; audio may be in one split only. "
        f"Empty {uses.split_column(other)!r} of one of the two{or_cut}.{_more(uses, uses, shared)}"
    )


def _audio_of_another_task(trained: ClipUses, held_out: ClipUses, split: str, shared: Sequence[tuple[int, int]]) -> str:
    """As `_audio_in_two_splits`, where one task trains on what another holds out."""
    one, other = shared[0]
    how, or_cut = _relation(trained.clips[one], held_out.clips[other])
    return (
        f"{trained.named(one)} is in training for {trained.owner}, {held_out.named(other)} in the {split} split of "
        f"{held_out.owner}, and the two {how}: the shared layers would see what is held out. Empty "
        f"{trained.split_column(one)!r} or {held_out.split_column(other)!r} there, or take the tasks from different "
        f"clips{or_cut}.{_more(trained, held_out, shared)}"
    )


def _refuse_speakers_of_another_task(
    trained: ClipUses, trained_files: Sequence[str], held_out: ClipUses, held_out_files: Sequence[str]
) -> None:
    """ValueError if speakers whom one task holds out train another."""
    column, known = held_out.disjoint_by, SpeakersOf(held_out, held_out_files)
    heard: dict[str, int] = {}  # speaker as `held_out` calls them -> a training clip
    train = np.flatnonzero(trained.splits == "train")
    for row, names in zip(train, known.names(trained, trained_files, train)):
        for name in names & set(known.held_out):
            heard.setdefault(name, row)
    if heard:
        name = min(heard)
        tested = known.held_out[name]
        raise ValueError(
            f"{column} {_listed(sorted(heard))} train {trained.owner} (such as {trained.named(heard[name])}) and are in the "
            f"{held_out.splits[tested]} split of {held_out.owner} (such as {held_out.named(tested)}), whose speakers are held "
            f"out (disjoint_by: {column}): the shared layers would hear them. Empty {trained.split_column(heard[name])!r} or "
            f"{held_out.split_column(tested)!r} of these speakers, take the tasks from different speakers, or "
            f"leave disjoint_by out of {held_out.owner} if its speakers may be known ones."
        )


class SpeakersOf:
    """The speakers of a task with `disjoint_by`, and who of another task's speakers they are.

    Attributes:
        held_out: speaker -> a clip of a split that holds its speakers out.
    """

    def __init__(self, uses: ClipUses, files: Sequence[str]):
        self.column = uses.disjoint_by
        speakers, corpora = uses.column(self.column), uses.column("corpus")
        rows = np.flatnonzero(np.isin(uses.splits, uses.held_out))
        self.held_out = {speakers[row]: int(row) for row in rows}
        self.of_corpus = {(corpora[row], speakers[row]) for row in rows if corpora[row]}
        self.in_file: dict[str, list[tuple[float, float, str]]] = {}  # file -> from, to, speaker
        self._add(files, uses.clips, speakers)  # by content
        for manifest in uses.manifests:  # all that it lists, also what this task does not use
            self._add([clip.place[0] for clip in manifest.clips], manifest.clips, manifest.column(self.column))
        self.farthest: dict[str, list[float]] = {}  # file -> how far any stretch reaches, up to each
        for file, known in self.in_file.items():
            known.sort()
            self.farthest[file] = list(accumulate((until for _, until, _ in known), max))

    def _add(self, files: Iterable[str], clips: Iterable[Clip], speakers: Iterable[str]) -> None:
        for file, clip, speaker in zip(files, clips, speakers):
            self.in_file.setdefault(file, []).append((*clip.place[1:], speaker))

    def heard_in(self, file: str, clip: Clip) -> set[str]:
        """The speakers of what a clip of this file covers; a file may hold several."""
        known, found = self.in_file.get(file, []), set()
        _, start_s, end_s = clip.place
        place = bisect_left(known, (end_s,))
        while place and self.farthest[file][place - 1] > start_s:  # a recording of hours has thousands of stretches
            place -= 1
            _, until, name = known[place]
            found |= {name} if until > start_s else set()
        return found

    def names(self, others: ClipUses, files: Sequence[str], rows: Iterable[int]) -> Iterator[set[str]]:
        """For clips of another task: what their speaker is called here; usually nothing, for another person."""
        is_known = any(self.column in manifest.table.columns for manifest in others.manifests)
        column = self.column if is_known else others.disjoint_by
        named, corpora, aliases = others.column(column), others.column("corpus"), self._aliases(others, column, files)
        for row in rows:
            clip = others.clips[row]
            found = self.heard_in(clip.place[0], clip) | self.heard_in(files[row], clip)
            found |= aliases.get((int(others.sources[row]), named[row]), set())
            if (corpora[row], named[row]) in self.of_corpus:
                found.add(named[row])
            yield found - {""}

    def _aliases(self, others: ClipUses, column: str | None, files: Sequence[str]) -> dict[tuple[int, str], set[str]]:
        """(manifest, speaker as it calls them) -> names here, by what both list of a file."""
        listed = [zip(others.sources.tolist(), others.column(column), files, others.clips)]
        for source, manifest in enumerate(others.manifests):
            if column in manifest.table.columns:
                names = manifest.column(column)
                listed.append((source, name, clip.place[0], clip) for clip, name in zip(manifest.clips, names))
        aliases: dict[tuple[int, str], set[str]] = {}
        for source, name, file, clip in chain(*listed):
            if name and file in self.in_file:
                aliases.setdefault((source, name), set()).update(self.heard_in(file, clip))
        return aliases


def _relation(one: Clip, other: Clip) -> tuple[str, str]:
    """How two clips that share audio belong together, and what can be done about it beside leaving one out."""
    if one.place == other.place:
        return "are the same clip", ""
    if one.place[0] == other.place[0]:
        return "overlap in the same file", ", or cut the parts so that they do not overlap"
    return "are the same audio under two names", ""


def _listed(names: Sequence[str]) -> str:
    return f"{list(names[:MOST_NAMED])}{f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''}"


def _more(ones: ClipUses, others: ClipUses, shared: Sequence[tuple[int, int]]) -> str:
    """What comes after the first pair of clips that share audio."""
    pairs = [f"{ones.clips[one].clip_id} and {others.clips[other].clip_id}" for one, other in shared[1:]]
    return f" The same holds of {_listed(pairs)}." if pairs else ""
