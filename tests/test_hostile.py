"""Names, notes, labels and titles that would act if a report, a page or a card let them: everything shows them and no more."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from wavcse.data.files import read_json, write_json
from wavcse.eval.report import write_report
from wavcse.eval.results import Result, read_results
from wavcse.hub.card import limits_of, training_section
from wavcse.hub_repository_wavcse import inert, model_card
from wavcse.pretraining.study import LAYOUT
from wavcse.reports.figures import new_axes, save_figure, without_formulas
from wavcse.reports.page import fenced, html_page, markdown_table
from wavcse.search.hparams_report import hparams_markdown
from wavcse.search.pooling_report import poolings_markdown
from wavcse.search.report import layers_markdown
from wavcse.studies.report import study_text
from wavcse.tests.helpers.evaluation_folder import make_folder
from wavcse.tests.helpers.published_run import training_result
from wavcse.tools.sections import root_sections

RESULTS = Path(__file__).parents[1] / "results"
# Each would act in another place: in HTML, in an attribute, as a link or picture, in a cell, in a fence, in a header of YAML.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[click](javascript:alert(1))",
    "[click](java&#115;cript:alert(1))",
    "![x](https://evil.example/x.png)",
    "[a]: javascript:alert(1)",
    "a | b \\| <b>c</b>",
    "x\n\n# Heading\n\n<iframe src=javascript:alert(1)>",
    "`</code><svg/onload=alert(1)>",
    "x\n```\n<script>alert(1)</script>\n```",
    "x\n---\nlicense: mit\n---\n<script>alert(1)</script>",
    "<details/open/ontoggle=alert(1)>",
    "$\\frac{$ $x$",
)
ALL = " ".join(HOSTILE)
TAGS = set("html head meta title style body h1 h2 h3 h4 p a img span strong em code pre ul ol li br hr".split())
TAGS |= set("table thead tbody tr th td blockquote".split())


class Page(HTMLParser):
    """What a browser would make of a page: its tags, attributes and text."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.text += data


def assert_harmless(page: str) -> Page:
    found = Page(page)
    assert found.tags <= TAGS, found.tags - TAGS
    for name, value in found.attributes:
        assert not name.startswith("on")
        assert name not in ("style", "srcdoc", "formaction")
        compact = re.sub(r"[\x00-\x20]", "", value or "").lower()
        assert name in ("alt", "title") or "javascript:" not in compact  # those two are shown as text
        if name == "src":
            assert compact.startswith("data:image/")
        if name == "href":
            assert compact.startswith(("http:", "https:", "mailto:", "#")) or ":" not in compact
    return found


def assert_harmless_markdown(text: str, folder: Path) -> Page:
    """In the Markdown itself no tag but our own is left outside code; and as a page it is harmless."""
    outside = re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    tags = re.findall(r"<(?!!--|/?details>|/?summary>)[a-zA-Z/!][^>]*", re.sub(r"`[^`\n]*`", "", outside))
    assert not tags
    assert "](javascript:" not in outside
    assert not re.search(r"^\s*\[[^\]]*\]:", outside, flags=re.MULTILINE)
    return assert_harmless(html_page("x", text, folder))


def spoilt(value, harmless: tuple[str, ...] = ()):
    """A structure of results with every text made hostile, except those that programs read."""
    if isinstance(value, dict):
        return {key: own if key in harmless else spoilt(own, harmless) for key, own in value.items()}
    if isinstance(value, list):
        return [spoilt(own, harmless) for own in value]
    return f"{value} {ALL}" if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_shows_hostile_markdown_and_does_nothing_with_it(text, tmp_path):
    """Even of a text that no report has looked at, as of a Markdown file that somebody changed."""
    (tmp_path / "picture.png").write_bytes(b"a picture")
    page = assert_harmless(html_page(text, f"# Title\n\n{text}\n\n![ours](picture.png)\n\n[ours](report.md)", tmp_path))
    sources = [value for name, value in page.attributes if name == "src"]
    assert sources == ["data:image/png;base64,YSBwaWN0dXJl"]
    assert ("href", "report.md") in page.attributes


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java\tscript:alert(1)",
        "&#106;avascript:alert(1)",
        "javascript&colon;alert(1)",
        "data:text/html,x",
        "vbscript:x",
        " javascript:x",
    ],
)
def test_links_of_unknown_kinds_are_none(link, tmp_path):
    page = assert_harmless(html_page("x", f"[a]({link}) [b][ref] <{link}>\n\n[ref]: {link}\n", tmp_path))
    assert "href" not in dict(page.attributes)


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "secret.txt", "nothing.png", "https://evil.example/x.png", ""]
)
def test_only_pictures_below_the_report_are_put_into_it(path, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "secret.txt").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for source in (path, "link.png"):
        page = assert_harmless(html_page("x", f"![its title]({source})", folder))
        assert "img" not in page.tags
        assert "its title" in page.text


@pytest.mark.parametrize("text", HOSTILE)
def test_inert_text_is_one_line_of_text(text, tmp_path):
    made = inert(text)
    assert "\n" not in made
    assert inert(made) == made
    shown = assert_harmless_markdown(
        f"- Note: {made}\n- **{made}**\n\n{markdown_table(['a', made], [[made, 'last']])}", tmp_path
    )
    assert not {"a", "img"} & shown.tags
    assert [line.count("last") for line in markdown_table(["a"], [[made, "last"]]).splitlines()] == [0, 0, 1]


def test_harmless_text_is_left_as_it_is():
    for text in ("Łódź & co. [1] (see above), a > b, 5 %, `code`, snake_case, *stars*, $5", "x" * 1000, ""):
        assert inert(text) is text or inert(text) == text
    assert inert({"a": [1, None, ("<b>", 2.5)]}) == {"a": [1, None, ("&lt;b>", 2.5)]}


@pytest.mark.parametrize("cell", ["a|b", "a\\|b", "a\\\\|b", "a\nb|c"])
def test_a_cell_is_one_cell(cell, tmp_path):
    page = Page(html_page("x", markdown_table(["first", "second"], [[cell, "last"]]), tmp_path))
    assert page.text.split()[-1] == "last"
    rows = re.findall(
        r"<tr>(.*?)</tr>", html_page("x", markdown_table(["first", "second"], [[cell, "last"]]), tmp_path), re.DOTALL
    )
    assert [row.count("<td") + row.count("<th") for row in rows] == [2, 2]


@pytest.mark.parametrize("text", [*HOSTILE, "```", "a\n````\nb"])
def test_a_fence_holds_its_text(text, tmp_path):
    page = assert_harmless(html_page("x", f"before\n\n{fenced(text, 'yaml')}\n\nafter", tmp_path))
    assert text.strip() in page.text
    assert page.text.rstrip().endswith("after")


def test_an_evaluation_of_hostile_names_is_reported(tmp_path):
    """Titles, classes, corpora, protocols, notes, paths and versions of every record."""
    make_folder(tmp_path, noise={"wavcse": 0.15, "mfcc": 0.5})
    for path in (tmp_path / "results").iterdir():
        record = read_json(path)
        task = record["task"]
        task["title"], task["corpus"], task["note"] = f"{task['title']} {ALL}", ALL, ALL
        task["protocols"] = list(HOSTILE)
        record = json.loads(json.dumps(record).replace('"down"', json.dumps(ALL)))
        record["note"] = ALL
        record["manifests"] = [{**own, "path": f"{ALL}/metadata.csv"} for own in record["manifests"]]
        record["versions"] = {**record["versions"], ALL: ALL}
        record["encoder"]["model"] = ALL
        write_json(path, record)
    for path in (tmp_path / "predictions").glob("keyword__*"):
        pd.read_parquet(path).replace("down", ALL).to_parquet(path)
    write_report(tmp_path)
    page = assert_harmless((tmp_path / "report.html").read_text())
    assert "<script>alert(1)</script>" in page.text
    assert "img" in page.tags
    for name in ("report.md", "results.md"):
        assert_harmless_markdown((tmp_path / name).read_text(), tmp_path)
    for drawing in (tmp_path / "pictures").glob("*.svg"):
        assert "<script" not in drawing.read_text()


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "<b>", "a b"])
def test_a_record_that_names_files_elsewhere_is_refused(name, tmp_path):
    make_folder(tmp_path, noise={"wavcse": 0.15})
    record = read_results(tmp_path)[0].to_json()
    for what in ("task", "encoder"):
        with pytest.raises(ValueError, match=f"the {what}'s name must be of letters"):
            Result.from_json({**record, what: {**record[what], "name": name}})


@pytest.mark.parametrize(
    ("file", "markdown"), [("layers", layers_markdown), ("poolings", poolings_markdown), ("hparams", hparams_markdown)]
)
def test_searches_with_hostile_tasks_and_notes_are_reported(file, markdown, tmp_path):
    text = (RESULTS / "real_phase1" / file / "results" / f"{file}.json").read_text()
    report = json.loads(text)
    task = next(iter(report["tasks"]))
    report = json.loads(text.replace(f'"{task}"', json.dumps(f"{task} {ALL}")))
    report["note"] = ALL
    page = assert_harmless_markdown(markdown(report), tmp_path)
    assert "<script>alert(1)</script>" in page.text


def test_a_study_with_hostile_words_is_reported(tmp_path):
    facts = json.loads((RESULTS / "tiny_lasr" / "study.json").read_text())
    facts = {"temporal_pooling": "mean", **facts, "study": ALL, "recipe": ALL, "overrides": {ALL: ALL}}
    facts["rows"] = {name: {**row, "title": ALL} for name, row in facts["rows"].items()}
    assert_harmless_markdown(study_text(inert(facts), LAYOUT), tmp_path)


def test_a_card_of_hostile_names_is_one_card(tiny_config, tmp_path):
    labels = {"labels": ["a", "b"], "kind": "classification", "loss_weight": 1.0}
    config = tiny_config(tasks={"keyword": labels})
    config.tasks = {ALL: labels}  # however it got there
    training = training_result(Path("metadata.csv"))
    training = json.loads(json.dumps(training).replace('"keyword"', json.dumps(ALL)))
    training |= {"note": ALL, "device": ALL, "warnings": [ALL], "versions": {ALL: ALL}}
    training["config"] |= {"note": ALL, "upstream": ALL}
    training["tasks"][ALL]["protocol"] = ALL
    source = SimpleNamespace(training=training, own=[])
    sections = {
        "Bias, risks and limits": "\n".join(f"- {limit}" for limit in limits_of(source)),
        "Training details": training_section(training),
    }
    metadata = {"language": ["en"], "datasets": list(HOSTILE), "model_name": ALL, "tags": [ALL]}
    card = model_card(config, {f"{ALL}.py": "0" * 64}, ALL, metadata, sections)
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    assert yaml.safe_load(header)["datasets"] == list(HOSTILE)
    assert not re.search(r"^---", body, flags=re.MULTILINE)
    page = assert_harmless_markdown(body.replace("<!-- Generated", "").replace("-->", ""), tmp_path)
    assert "<script>alert(1)</script>" in page.text
    assert [line for line in body.splitlines() if line.startswith("# ")] == ["# wavCSE speech embeddings"]


def test_the_sections_of_the_roots_card_are_inert(tmp_path):
    from wavcse.tools.root_model import read_root

    source = read_root(Path(__file__).parents[1])
    rows = [spoilt(row, ("licence", "language")) for row in source.data["rows"]]
    stages = [{**stage, "device": ALL, "config": {**stage["config"], "label_column": ALL}} for stage in source.stages]
    notes = "\n".join(f"- {text}" for text in " ".join(HOSTILE).split("\n"))
    sections = root_sections(replace(source, data={**source.data, "rows": rows}, stages=stages, notes=notes))
    for title in ("What it was trained on", "How it was trained", "Limits", "What it is good for"):
        assert_harmless_markdown(sections[title].replace("<details>", "").replace("</details>", ""), tmp_path)


def test_a_label_with_dollar_signs_is_drawn_as_it_is(tmp_path):
    figure, (axes,) = new_axes(3, 2)
    axes.set(title=HOSTILE[-1])
    with pytest.raises(ValueError, match="frac"):
        save_figure(figure, tmp_path / "formula")
    axes.set(title=without_formulas(HOSTILE[-1]), xlabel=without_formulas("US$ and A$"))
    save_figure(figure, tmp_path / "text")
    assert (tmp_path / "text.svg").stat().st_size > 1000
    assert "<!-- US$ and A$ -->" in (tmp_path / "text.svg").read_text()
