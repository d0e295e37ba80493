"""`wavcse similar` and `wavcse compare` against the model's own numbers, and the indexes against the exact search."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from wavcse import WavCSEModel
from wavcse.data.manifest import Manifest
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.embed import EmbedSettings, embed_corpus
from wavcse.retrieval.arguments import INDEX_LIBRARIES
from wavcse.retrieval.index import INDEXES, index_of
from wavcse.retrieval.nearest import nearest_rows
from wavcse.retrieval.similar import measured_recall, similar
from wavcse.tests.helpers.door_pages import run_first_block
from wavcse_cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*SwigPy.*:DeprecationWarning")  # of faiss


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(hub):
    return WavCSEModel.from_pretrained(hub).eval()


@pytest.fixture(scope="module")
def table(toy_corpus, hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "toy.parquet"
    embed_corpus(toy_corpus, str(hub), out)
    return out


def run(capsys, *words):
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_similar_ranks_by_the_models_own_similarity(table, toy_corpus, hub, model, tmp_path, capsys):
    clips = Manifest(toy_corpus).clips
    query = clips[17].path
    code, shown, _ = run(capsys, "similar", table, query, "--model", hub, "--top", 5, "--out", tmp_path / "ranked.csv")
    assert code == 0
    ranked = pd.read_csv(tmp_path / "ranked.csv")
    assert list(ranked.columns) == ["rank", "similarity", "id", "path", "seconds"]
    own = model.similarity(model.encode(query), model.encode([clip.path for clip in clips]))[0].numpy()
    best = np.argsort(-own)[:5]
    np.testing.assert_allclose(ranked["similarity"], own[best], atol=1e-5)
    assert ranked["id"][0] == "017.flac"
    assert shown.splitlines()[1].split()[:3] == ["1", "1.0000", "017.flac"]


def test_a_normalised_cut_table_is_searched_with_its_own_settings(toy_corpus, hub, model, tmp_path, capsys):
    out = tmp_path / "cut.parquet"
    embed_corpus(toy_corpus, str(hub), out, EmbedSettings(truncate_dim=6, normalize=True, window_s=0.2))
    query = Manifest(toy_corpus).clips[3].path
    assert run(capsys, "similar", out, query, "--model", hub, "--top", 3, "--out", tmp_path / "r.csv")[0] == 0
    ranked = pd.read_csv(tmp_path / "r.csv")
    own = model.encode(query, truncate_dim=6)
    rows = pd.read_parquet(out).set_index(["id", "start_s"])["embedding"]
    assert len(rows) > 96  # longer clips have several windows
    for _, hit in ranked.iterrows():
        wanted = float(model.similarity(own, rows[hit["id"], hit["start_s"]]))
        np.testing.assert_allclose(hit["similarity"], wanted, atol=1e-5)


def test_a_table_of_another_model_is_refused(table, toy_corpus, tiny_model, tmp_path, capsys):
    tiny_model(selected_layers=[0, 2]).save_pretrained(tmp_path / "other")
    query = Manifest(toy_corpus).clips[0].path
    code, _, line = run(capsys, "similar", table, query, "--model", tmp_path / "other")
    assert code == 2
    assert re.search(r"wavcse similar: .*was made by another model than .*weights_sha256 '", line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["similar", "absent.parquet", "q.wav"], "absent.parquet: there is no such file"),
        (["similar", "{table}", "q.wav"], "q.wav: there is no such audio file"),
        (["similar", "{table}", "{table}", "--model", "/nowhere"], "cannot be loaded"),
        (["similar", "{table}", "{table}", "--model", "{hub}"], "toy.parquet: "),  # is no audio
        (["compare", "{table}", "q.wav", "--model", "{hub}"], "q.wav: there is no such audio file"),
    ],
)
def test_what_is_not_there_is_named(words, message, table, hub, capsys):
    code, _, line = run(capsys, *(word.format(table=table, hub=hub) for word in words))
    assert code == 2
    assert message in line.splitlines()[-1]
    assert "Traceback" not in line


def test_compare_prints_the_similarity_and_its_place_among_pairs(table, toy_corpus, hub, model, capsys):
    one, other = (Manifest(toy_corpus).clips[row].path for row in (0, 9))
    wanted = model.similarity(model.encode(one), model.encode(other)).item()
    code, shown, _ = run(capsys, "compare", one, other, "--model", hub)
    assert (code, shown) == (0, f"cosine similarity {wanted:.4f}\n")
    shown = run(capsys, "compare", one, other, "--model", hub, "--table", table)[1]
    stored = np.stack(pd.read_parquet(table)["embedding"])
    pairs = model.similarity(stored, stored).numpy()[np.triu_indices(96, 1)]
    assert f"{(pairs < wanted).mean():.1%} of {len(pairs)} pairs" in shown


def test_similarity_is_the_cosine_of_arrays_tensors_and_lists(model):
    a, b = np.random.default_rng(0).normal(size=(2, 3, 5))
    wanted = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(model.similarity(a, list(b)), wanted, atol=1e-6)
    assert model.similarity(a[0], b).shape == (1, 3)
    with pytest.raises(ValueError, match="5 and of 4 numbers"):
        model.similarity(a, b[:, :4])
    with pytest.raises(ValueError, match=r"have shape \[1, 3, 5\]"):
        model.similarity(a[None], b)


@pytest.mark.doors
def test_similarity_is_that_of_sentence_transformers(model):
    util = pytest.importorskip("sentence_transformers.util")
    a, b = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(model.similarity(a, b), util.cos_sim(a, b))


def test_the_page_runs(toy_corpus, hub, tmp_path, monkeypatch):
    shutil.copytree(hub, tmp_path, dirs_exist_ok=True)
    shutil.copytree(toy_corpus.parent, tmp_path / "recordings", ignore=lambda _, names: [n for n in names if n > "01"])
    (tmp_path / "recordings/000.flac").rename(tmp_path / "recordings/one.flac")
    (tmp_path / "recordings/001.flac").rename(tmp_path / "recordings/other.flac")
    monkeypatch.chdir(tmp_path)
    run_first_block("similar.md")
    ranked = pd.read_csv("ranked.csv")
    assert list(ranked["id"][:1]) == ["one.flac"]
    assert len(ranked) == 5


def test_libraries_of_indexes_are_those_of_the_help():
    assert tuple(INDEXES) == INDEX_LIBRARIES


@pytest.mark.doors
@pytest.mark.parametrize("library", INDEX_LIBRARIES)
def test_an_index_finds_what_the_exact_search_finds(library, table, hub, toy_corpus, tmp_path, capsys):
    pytest.importorskip(library)
    own = shutil.copy(table, tmp_path / "own.parquet")
    query = Manifest(toy_corpus).clips[5].path
    words = ("similar", own, query, "--model", hub, "--top", 7)
    exact = run(capsys, *words)[1]
    built = run(capsys, *words, "--index", library)[1]
    assert f"index {library}: built; recall@7 1.000 of exact search, 96 rows as queries" in built
    again = run(capsys, *words, "--index", library)[1]
    assert f"index {library}: read" in again
    assert built.splitlines()[1:] == again.splitlines()[1:] == exact.splitlines()
    stored = StoredEmbeddings(own)
    index, is_new = index_of(stored, library)
    assert not is_new
    assert measured_recall(stored, index, 7) == (1.0, 96)
    assert list(similar(stored, stored.embeddings([5])[0], 200, index)["id"][:1]) == ["005.flac"]
    positions, _ = nearest_rows(stored.blocks(), stored.embeddings([5]), 7)
    assert positions[0][0] == 5
