"""report.md, report.html and pictures/ of a study, from its records; no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wavcse.analysis.study import Analysis, Study
from wavcse.eval.results import read_results
from wavcse.eval.table import compare, markdown_table, rows_of
from wavcse.hub_repository_wavcse import with_texts
from wavcse.reports import page
from wavcse.reports.figures import draw_all
from wavcse.words.targets import DESCRIPTIONS

TITLE = "What the embeddings hold"
MOST_LINES = 10  # on top


def write_report(study: Study, found: Mapping[str, tuple[Analysis, Sequence[dict]]], left_out: Sequence[str]) -> str:
    """Write the report of a study; returns the answers on top, one a line.

    Args:
        found: analysis -> it and its records.
        left_out: what was asked for and could not be done, with the reason, one sentence each; they end the answers.
    """
    drawings = {name: draw for own, records in found.values() for name, draw in own.drawings(records).items()}
    for own, records in found.values():
        draw_all(own.drawings(records), list(records), study.folder / "pictures")
    inert = {name: (own, with_texts(list(records), page.inert)) for name, (own, records) in found.items()}
    answers = lines_on_top([*(own.answers(records) for own, records in inert.values()), left_out])
    first = next(iter(drawings), None)
    picture = (found[next(iter(found))][0].title, f"pictures/{first}.png") if first else None
    parts = page.opening(TITLE, picture, [_size(study)])
    parts += ["\n".join(f"- {line}" for line in answers)]
    for own, records in inert.values():
        if not records:
            continue
        parts += [f"## {own.title}", *own.section(records)]
        if own.name == "layers":
            parts += _comparison(study)
    parts += ["## What was analysed", *_facts(study)]
    parts.append(page.made_by("wavcse analyze CONFIG", "records/, results/ and predictions/ of its folder"))
    page.write_page(study.folder / "report.md", TITLE, "\n\n".join(part for part in parts if part) + "\n")
    return "\n".join(answers)


def lines_on_top(groups: Sequence[Sequence[str]], most: int = MOST_LINES) -> list[str]:
    """The lines of all groups; while there are more than `most`, the shortest neighbours of a group become one line."""
    groups = [list(group) for group in groups]
    while sum(map(len, groups)) > most:
        joints = [(len(own[i]) + len(own[i + 1]), place, i) for place, own in enumerate(groups) for i in range(len(own) - 1)]
        if not joints:
            break
        _, place, i = min(joints)
        groups[place][i : i + 2] = [" ".join(groups[place][i : i + 2])]
    return [line for group in groups for line in group]


def _size(study: Study) -> str:
    words = f"{len(study.encoders)} encoders on {len(study.tasks)} tasks"
    skipped = len(study.embedded.skipped)
    return f"{words}{f'; {skipped} clips could not be used (skipped.csv)' if skipped else ''}. {study.note}".strip()


def _comparison(study: Study) -> list[str]:
    """The table of `wavcse eval` for the chosen vectors: encoders side by side, and which can be told apart."""
    names = {own.name for own in study.encoders}
    rows = {data.task.row_name(target) for data in study.tasks.values() for target in data.task.targets}
    records = [own for own in read_results(study.folder) if own.encoder["name"] in names and own.task.name in rows]
    comparisons = compare(rows_of(records), study.folder)
    return ["### Encoders side by side, each at its chosen vector", markdown_table(records, comparisons).strip()]


def _facts(study: Study) -> list[str]:
    encoders = []
    for own in study.encoders:
        origin = f"{page.inert(own.model)}{', random weights' if own.is_untrained else ''}"
        origin += f", learnt to name `{own.targets}`: {DESCRIPTIONS[own.targets]}" if own.targets else ""
        sizes = {str(own.size(view)) for view in own.views}
        encoders.append([f"`{own.name}`", origin, str(len(own.views)), ", ".join(sorted(sizes))])
    tasks = []
    for name, data in study.tasks.items():
        counts = [len(data.table.rows(split)) for split in ("train", "validation", "test")]
        tasks.append(
            [name, page.inert(data.task.title), study.languages[name], *map(str, counts), str(len(data.classes) or "")]
        )
    columns = ["task", "title", "language", "train", "validation", "test", "classes"]
    return [
        page.markdown_table(["encoder", "model", "vectors", "their sizes"], encoders),
        page.markdown_table(columns, tasks),
    ]
