"""report.md, report.html and the pictures: what they say, that they are whole, that pictures show the figures of the files."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.stats import norm

from wavcse.eval.report import colors_of, draw_overview, drawings_of, main, write_report
from wavcse.eval.results import read_results
from wavcse.eval.table import Row, encoders_of, rows_of
from wavcse.reports.page import opening
from wavcse.tests.helpers.evaluation_folder import make_folder

PICTURES = {
    "figures",
    "keyword__confusion",
    "keyword__map",
    "verification__det",
    "gender__confusion",
    "gender__map",
    "age__scatter",
    "valence__scatter",
    "activation__scatter",
    "dominance__scatter",
}


class Page(HTMLParser):
    """Tags with their attributes, and rows of the tables."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, real_pictures_in_module) -> Path:
    return make_folder(tmp_path_factory.mktemp("evaluation"), corpora={"gender": "timit"})


@pytest.fixture(scope="module")
def table(folder) -> str:
    return write_report(folder)


@pytest.fixture
def rows(folder) -> dict[str, Row]:
    return {row.name: row for row in rows_of(read_results(folder))}


def test_sections_in_order(folder, table):
    text = (folder / "report.md").read_text(encoding="utf-8")
    headings = re.findall(r"^##? (.*)$", text, flags=re.MULTILINE)
    assert headings[1:] == ["Results", "What was evaluated", "Tasks", "Configuration", "Versions", "Times"]
    assert table.strip() in text
    assert (folder / "results.md").read_text(encoding="utf-8") == table


def test_it_opens_with_its_picture_and_the_answer(folder, table):
    title, picture, answer, heading, *_ = (folder / "report.md").read_text(encoding="utf-8").split("\n\n")
    assert title == "# Evaluation of speech embeddings"
    assert picture.endswith("](pictures/figures.png)")
    lines = [line.split(" | ") for line in table.splitlines()[2:9]]
    columns = ["wavcse", "best_layer", "mfcc", "majority"]
    wins = {name: sum(line[3 + place].startswith("**") for line in lines) for place, name in enumerate(columns)}
    words = ", ".join(f"`{name}` {count}" for name, count in sorted(wins.items(), key=lambda own: -own[1]) if count)
    tied = sum("†" in line[3] for line in lines)
    counts = {"the best": wins["wavcse"], "not distinguishable from the best": tied, "behind it": 7 - wins["wavcse"] - tied}
    model = ", ".join(f"{what} in {count}" for what, count in counts.items() if count)
    assert answer == f"4 encoders on 7 tasks; rows that each is the best of: {words}. `wavcse` is {model}."
    assert heading == "## Results"


def test_an_opening_of_six_sentences_is_refused():
    assert opening("A", None, ["One."] * 5) == ["# A", "One. One. One. One. One."]
    assert opening("A", ("B", "b.png"), ["One."]) == ["# A", "![B](b.png)", "One."]
    with pytest.raises(ValueError, match="A: 6 sentences before the first table; 5 at most"):
        opening("A", None, ["One."] * 6)


def test_the_page_needs_nothing_but_itself(folder, table):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == len(PICTURES)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not [tag for tag, attributes in page.tags if tag in ("script", "link", "iframe") or "href" in attributes]
    assert "url(" not in text
    assert "@import" not in text


def test_tables_of_the_page_are_those_of_the_records(folder, table):
    rows = Page((folder / "report.html").read_text(encoding="utf-8")).rows
    for record in read_results(folder):
        own = record.metrics.get("macro_f1")
        if own:
            shown = "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in (own.value, *own.interval)))
            assert any(row[0] == record.encoder["name"] and shown in row for row in rows)
    assert ["python", "3.11.7"] in rows
    assert ["train", "240", "24"] in [row[:3] for row in rows]


def test_licence_and_split_of_the_corpus_are_said(folder, rows, table):
    text = (folder / "report.md").read_text(encoding="utf-8")
    gender, keyword = rows["gender"].task.benchmark, rows["keyword"].task.benchmark
    assert f"split: {gender['split']} ({gender['split_source']})" in text
    assert f"licence: {gender['licence']}" in text
    assert f"The paper's corpus, which this is not: {keyword['title']}" in text
    assert f"The paper's corpus, which this is not: {gender['title']}" in text  # age stands in for the same corpus
    assert text.count(f"The paper's corpus, which this is not: {gender['title']}") == 1


def test_pictures_are_there_and_linked(folder, table):
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(pictures/(.*?)\.png\)", text)) == PICTURES
    assert {path.stem for path in (folder / "pictures").iterdir()} == PICTURES
    for name in PICTURES:
        pixels = imread(folder / "pictures" / f"{name}.png")
        assert min(pixels.shape[:2]) > 400
        assert 0.01 < (pixels[:, :, :3].min(axis=2) < 0.9).mean() < 0.9  # neither empty nor full
        assert ElementTree.parse(folder / "pictures" / f"{name}.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
def test_the_command_makes_the_same_bytes_again(folder, table, capsys):
    written = [path for path in folder.rglob("*") if path.parent.name == "pictures" or path.parent == folder]
    before = {path: path.read_bytes() for path in written if path.is_file()}
    assert len(before) == 3 + 2 * len(PICTURES)
    for path in before:
        path.unlink()
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == table
    assert {path: path.read_bytes() for path in before} == before


# -- what the pictures show


def figure_of(row: Row, kind: str):
    encoders = encoders_of(list(row.records.values()))
    return drawings_of(row)[f"{row.name}__{kind}"][1](colors_of(encoders))


def test_the_circle_of_a_det_curve_is_its_equal_error_rate(rows):
    row = rows["verification"]
    (axes,) = figure_of(row, "det").axes
    circles = [line for line in axes.lines if line.get_marker() == "o"]
    curves = {line.get_label(): line for line in axes.lines if "EER" in str(line.get_label())}
    assert len(circles) == len(curves) == len(row.records)
    for circle, (name, record) in zip(circles, row.records.items()):
        errors = record.metrics["eer"].value
        assert circle.get_xdata() == pytest.approx(norm.ppf([errors]))
        assert circle.get_ydata() == pytest.approx(norm.ppf([errors]))
        curve = curves[f"{name}, EER {100 * errors:.1f} %"]
        points = np.arange(len(curve.get_xdata()))
        between = np.linspace(0, points[-1], 20_000)  # along the line as it is drawn
        x, y = (norm.cdf(np.interp(between, points, own)) for own in curve.get_data())
        assert np.min(np.hypot(x - errors, y - errors)) < 0.01  # the curve passes there
    assert norm.cdf(axes.get_xlim()) == pytest.approx([0.001, 0.9])


def test_bars_are_the_figures_and_their_intervals(rows):
    names = encoders_of([record for row in rows.values() for record in row.records.values()])
    figure = draw_overview(list(rows.values()), colors_of(names))
    for row, axes in zip(rows.values(), figure.axes):
        scale = 100 if row.unit == "percent" else 1
        widths = [bar.get_width() for bar in axes.patches]
        assert widths == pytest.approx([scale * row.figure(name).value for name in row.records])
        lines = axes.containers[-1].errorbar.lines[2][0].get_segments()
        ends = [[point[0] for point in segment] for segment in lines]
        assert ends == pytest.approx(scale * np.array([row.figure(name).interval for name in row.records]))
        bold = [label.get_text().split()[0] for label in axes.get_yticklabels() if label.get_fontweight() == "bold"]
        assert bold == row.best
        has_line = any(line.get_label() == "paper" for line in axes.lines)
        assert has_line == (row.name == "gender")


def test_confusion_matrices_are_of_the_first_and_the_best(rows):
    row = rows["keyword"]
    first, *others = [axes for axes in figure_of(row, "confusion").axes if axes.images]
    assert others == []  # the first is the best
    counts = np.array(row.records["wavcse"].figures["confusion"]["counts"])
    np.testing.assert_allclose(first.images[0].get_array(), counts / counts.sum(axis=1, keepdims=True))
    assert [int(text.get_text()) for text in first.texts] == counts.ravel().tolist()
    assert "wavcse" in first.get_title()
    worse = Row({name: row.records[name] for name in ("majority", "mfcc", "wavcse")})
    titles = [axes.get_title() for axes in figure_of(worse, "confusion").axes if axes.images]
    assert [title.split("\n")[0] for title in titles] == ["majority", "wavcse"]


def test_scatter_shows_the_clips_and_the_figures_of_all_of_them(rows):
    row = rows["age"]
    axes = figure_of(row, "scatter").axes[0]
    data = row.records["wavcse"].figures["scatter"]
    np.testing.assert_allclose(axes.collections[0].get_offsets(), np.array([data["true"], data["predicted"]]).T)
    assert f"MAE {row.figure('wavcse').value:.2f} years" in axes.get_title()
    assert axes.get_xlabel() == "true, years"


def test_map_has_a_colour_per_label(rows):
    row = rows["keyword"]
    (axes,) = figure_of(row, "map").axes
    labels = row.records["wavcse"].figures["map"]["label"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == sorted(set(labels))
    assert [len(own.get_offsets()) for own in axes.collections] == [labels.count(label) for label in sorted(set(labels))]
    assert len({tuple(own.get_facecolor()[0]) for own in axes.collections}) == len(set(labels))


def test_many_classes_stay_legible(rows):
    """No numbers in the cells and no legend, but the matrix and the map."""
    row = rows["keyword"]
    names = [f"speaker{i:02d}" for i in range(50)]
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 100))
    figures = {
        "confusion": {"labels": names, "counts": (10 * np.eye(50, dtype=int)).tolist()},
        "map": {"x": x.tolist(), "y": y.tolist(), "label": names * 2},
    }
    many = Row({"wavcse": replace(row.records["wavcse"], figures=figures)})
    matrix = figure_of(many, "confusion").axes[0]
    assert (len(matrix.texts), len(matrix.get_xticklabels())) == (0, 50)
    assert figure_of(many, "map").axes[0].get_legend() is None


def test_an_empty_folder_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
