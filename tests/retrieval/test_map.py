"""`wavcse map`: the points against independent computations, and a page that needs nothing else."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from wavcse.data.embedding_table import write_table
from wavcse.data.pca import fit_pca
from wavcse.retrieval.arguments import METHODS
from wavcse.retrieval.projection import METHODS as PROJECTIONS
from wavcse.retrieval.projection import points_of
from wavcse.tests.helpers.door_pages import run_first_block
from wavcse_cli import main

NASTY = "</script><script>alert(1)</script>"
DOM = """
const element = () => new Proxy(() => {}, { get: (_, name) => name === Symbol.toPrimitive ? () => 0 : name in kept ? kept[name]
  : element(), set: (_, name, value) => { kept[name] = value; return true; }, apply: () => element() });
const kept = {value: "", textContent: DATA, clientWidth: 800, clientHeight: 600, hidden: true};
const document = {getElementById: element, createElement: element}, window = {};
class Option {}
"""


@pytest.fixture
def table(tmp_path):
    """Three groups of 20 rows around far points of 8 numbers; the group is in the manifest beside the table."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.eye(8)[:3] * 5, 20, axis=0)
    names = [f"{NASTY} {i}.wav" for i in range(60)]
    rows = pd.DataFrame({"id": names, "path": names, "seconds": np.arange(60.0)})
    embeddings = (groups + generator.normal(size=(60, 8))).astype(np.float32)
    write_table(tmp_path / "t.parquet", rows, embeddings, {"embedding_size": 8})
    labels = pd.DataFrame({"file_name": names, "group": np.repeat(["a", "b", NASTY], 20)})
    (tmp_path / "corpus").mkdir()
    labels.to_csv(tmp_path / "corpus/metadata.csv", index=False)
    return tmp_path / "t.parquet", embeddings


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_pca_by_blocks_is_scikit_learns():
    vectors = np.random.default_rng(0).normal(size=(70, 6)) @ np.diag([9, 5, 3, 2, 1, 0.5]) + 1000
    mine, theirs = fit_pca([vectors[:9], vectors[9:10], vectors[10:]], 4), PCA(4).fit(vectors)
    np.testing.assert_allclose(mine.mean, theirs.mean_)
    np.testing.assert_allclose(mine.variances, theirs.explained_variance_)
    np.testing.assert_allclose(mine.variances / mine.total_variance, theirs.explained_variance_ratio_)
    signs = np.sign((mine.components * theirs.components_).sum(1))
    np.testing.assert_allclose(mine.components, signs[:, None] * theirs.components_, atol=1e-9)
    np.testing.assert_allclose(mine.project(vectors), theirs.transform(vectors) * signs, atol=1e-4)
    assert all(component[np.abs(component).argmax()] > 0 for component in mine.components)


@pytest.mark.parametrize(("blocks", "count", "message"), [([np.ones((1, 3))], 1, "1 vectors"), ([np.eye(3)], 4, "4 compo")])
def test_components_that_are_not_there_are_refused(blocks, count, message):
    with pytest.raises(ValueError, match=message):
        fit_pca(blocks, count)


def test_the_page_holds_the_points_and_all_columns(table, tmp_path, capsys):
    path, embeddings = table
    out = tmp_path / "pages/map.html"
    out.parent.mkdir()
    words = ["map", str(path), "--manifest", str(tmp_path / "corpus/metadata.csv"), "--color", "group", "--out", str(out)]
    assert main(words) == 0
    page = out.read_text()
    data = data_of(page)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    wanted = PCA(2).fit_transform(units)
    for found, own in zip((data["x"], data["y"]), wanted.T):
        np.testing.assert_allclose(np.abs(found), np.abs(own), atol=1e-4)
    assert list(data["columns"]) == ["id", "seconds", "group"]
    assert data["columns"]["group"][-1] == NASTY
    assert data["color"] == "group"
    assert data["links"][3].startswith("../corpus/%3C/script%3E")
    assert page.count("<script") == 2
    assert not re.search(r"https?:|@import|src=", page)


def test_a_sample_of_the_rows_is_drawn_without_audio(table, tmp_path):
    assert main(["map", str(table[0]), "--points", "10", "--out", str(tmp_path / "map.html")]) == 0
    data = data_of((tmp_path / "map.html").read_text())
    assert len(data["x"]) == len(data["columns"]["id"]) == 10
    assert data["links"] is None
    assert data["color"] == "seconds"
    assert data["columns"]["seconds"] == sorted(data["columns"]["seconds"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--color", "speaker"], "color is 'speaker'; the columns are id, path, seconds"),
        (["--audio", "none"], "no such folder"),
    ],
)
def test_what_is_not_there_is_named(table, words, message, tmp_path, capsys):
    assert main(["map", str(table[0]), "--out", str(tmp_path / "map.html"), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_script_runs(table, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here")
    assert main(["map", str(table[0]), "--out", str(tmp_path / "map.html")]) == 0
    page = (tmp_path / "map.html").read_text()
    script = page.rsplit("<script>", 1)[1].partition("</script>")[0]
    program = (
        DOM.replace("DATA", json.dumps(json.dumps(data_of(page)))) + script + "\nconsole.log(shown.length, place(0).length);"
    )
    done = subprocess.run([node, "-"], input=program, capture_output=True, text=True)
    assert done.stdout == "60 2\n", done.stderr


def test_methods_are_those_of_the_help():
    assert tuple(PROJECTIONS) == METHODS


@pytest.mark.doors
@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_neighbours_in_the_map_are_of_one_group(method, table):
    pytest.importorskip({"tsne": "sklearn", "umap": "umap"}[method])
    points = points_of(table[1], method)
    np.testing.assert_array_equal(points, points_of(table[1], method))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(60)
    assert (distances.argmin(1) // 20 == np.arange(60) // 20).mean() > 0.95


def test_the_page_of_the_door_runs(toy_corpus, tiny_model, tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "recordings").mkdir()
    for name in ("000", "001", "002", "003"):
        shutil.copy(toy_corpus.parent / f"{name}.flac", tmp_path / "recordings")
    monkeypatch.chdir(tmp_path)
    run_first_block("map.md")
    assert data_of((tmp_path / "map.html").read_text())["links"][2] == "recordings/002.flac"
