"""Generates what the repository says of the weights in its root: README, card and figures (see `tools/arguments.py`)."""

from __future__ import annotations

from wavcse.tools.arguments import UPDATE, ReadmeArguments

if __name__ == "__main__":
    UPDATE.answer()  # before the imports below, which take seconds

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wavcse.data.files import write_atomically
from wavcse.eval.table import Row, metric_words, rows_of, shown, shown_interval, size_words
from wavcse.hub.figures import figures_of, write_eval_results
from wavcse.hub.source import CARD, results_of
from wavcse.hub_repository_wavcse import GENERATED, card_header, inert
from wavcse.reports.page import markdown_table
from wavcse.settings.command import DONE
from wavcse.tools.root_model import RootSource, read_root
from wavcse.tools.sections import introduction, languages_in, root_sections

README = "README.md"
FIGURES = Path(".eval_results")
BEGIN, END = "<!-- the model in the root: begin -->", "<!-- the model in the root: end -->"
TASKS = ("keyword", "speaker", "emotion")  # what the paper trains on: one row of the short table each
BASELINES = ("mfcc", "majority")


def render(readme: str, source: RootSource) -> str:
    """`readme` with today's header, and between its marks what the model is, with today's short table.

    Raises:
        ValueError: it has not exactly one pair of marks, in order.
    """
    _, is_header, body = readme.removeprefix("---\n").partition("\n---\n")
    text = body.lstrip("\n") if is_header and readme.startswith("---\n") else readme
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(
            f"{README} needs one line {BEGIN!r} and after it one line {END!r}; between them the table is written."
        )
    return f"---\n{header(source)}\n---\n\n{before}{BEGIN}\n\n{introduction(source)}\n\n{short_table(source)}\n\n{END}{after}"


def header(source: RootSource) -> str:
    """The YAML of README.md, a line per field: as of every card, without figures, which `.eval_results/` holds."""
    fields: Mapping[str, Any] = yaml.safe_load(card_header(source.push.config, {"tags": [source.name]}))
    upstream = source.data.get("upstream")
    fields |= {"language": languages_in(source.data["rows"]), **({"base_model": upstream["base_model"]} if upstream else {})}
    return yaml.safe_dump(fields, default_flow_style=None, width=200, allow_unicode=True).strip()


def short_table(source: RootSource) -> str:
    """The model beside `BASELINES`: of each of `TASKS` the row with the most test clips, and where the others are."""
    rows = rows_of(inert(source.push.records))
    own = source.push.own[0].encoder["name"]
    columns = [own, *(name for name in BASELINES if any(name in row.records for row in rows))]
    named = [[row for row in rows if row.task.task == task] for task in TASKS]
    chosen = [max(group, key=lambda row: row.first.counts.clips["test"]) for group in named if group]
    lines = [[row.title, _metric(row), size_words(row), *(_cell(row, name) for name in columns)] for row in chosen]
    table = markdown_table(["task", "metric", "test split", *(f"`{name}`" for name in columns)], lines)
    place = (results_of(source.name) / CARD).as_posix()
    words = (
        f"Linear probes on frozen embeddings [95 % interval]; of each kind of task the one with the most test clips. All "
        f"{len(rows)} tasks and {len({name for row in rows for name in row.records})} encoders, training data, licences and "
        f"limits: [{place}]({place})."
    )
    return f"{table}\n\n{words}"


def _metric(row: Row) -> str:
    return metric_words(row.primary, row.first.metrics[row.primary])


def _cell(row: Row, encoder: str) -> str:
    if encoder not in row.records:
        return "–"
    figure = row.figure(encoder)
    return shown(figure.value, row.unit) + shown_interval(figure.interval, row.unit)


def card(source: RootSource) -> str:
    """The text of the model's card.md."""
    sections = [f"## {title}\n\n{body}" for title, body in root_sections(source).items()]
    return "\n\n".join([GENERATED, f"# {source.name}", *sections]) + "\n"


def rendered(source: RootSource, root: Path) -> dict[Path, str]:
    """Path below `root` -> text, of all files that this module writes."""
    readme = render((root / README).read_text(encoding="utf-8"), source)
    with tempfile.TemporaryDirectory() as place:
        write_eval_results(Path(place), figures_of(source.push.own))
        figures = {FIGURES / path.name: path.read_text(encoding="utf-8") for path in sorted((Path(place) / FIGURES).iterdir())}
    return {Path(README): readme, results_of(source.name) / CARD: card(source), **figures}


def update(root: Path, check: bool = False, name: str | None = None) -> None:
    """Write the generated files of `root`; with `check` only compare, and raise ValueError if one of them is out of date.

    Args:
        name: of the model; if not given, what README.md says.
    """
    source = read_root(root, name)
    wanted, own = rendered(source, root), root / results_of(source.name) / CARD
    found = {path.relative_to(root): path for path in (root / README, own, *(root / FIGURES).glob("*.yaml"))}
    stale = [name for name in sorted({*wanted, *found}) if wanted.get(name) != _text(root / name)]
    if check and stale:
        raise ValueError(f"{stale[0]} is not what the result files give; run `python -m wavcse.tools.readme`.")
    for name in stale:
        if name in wanted:
            (root / name).parent.mkdir(exist_ok=True)
            write_atomically(root / name, wanted[name])
        else:
            (root / name).unlink()


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


@UPDATE.main
def main(args: ReadmeArguments) -> int:
    """The command line."""
    if args.show:
        print(short_table(read_root(args.root)))
    else:
        update(args.root, args.check)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
