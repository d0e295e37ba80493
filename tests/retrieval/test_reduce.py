"""`wavcse reduce`: the new model's vectors are scikit-learn's components of the old one's, at every door."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from transformers import AutoModel

from wavcse import WavCSEForMultiTask, WavCSEModel
from wavcse.data.manifest import Manifest
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.embed import EmbedSettings, embed_corpus
from wavcse.tests.helpers.door_pages import run_first_block
from wavcse_cli import main


@pytest.fixture(scope="module")
def hub(tiny_multi_task_model, tmp_path_factory):
    """A model with heads, whose 20 numbers per embedding vary in 8 directions, the width before the last layer."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_multi_task_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table(toy_corpus, hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "toy.parquet"
    embed_corpus(toy_corpus, str(hub), out)
    return out


def numbers(table):
    return np.stack(pd.read_parquet(table)["embedding"]).astype(np.float64)


@pytest.mark.parametrize("whiten", [False, True])
def test_embeddings_are_the_components_of_the_tables(whiten, table, hub, toy_corpus, tmp_path, capsys):
    out = tmp_path / "small"
    words = ["reduce", str(table), "--model", str(hub), "--size", "3", "--out", str(out), *["--whiten"] * whiten]
    assert main(words) == 0
    theirs = PCA(3, whiten=whiten, svd_solver="full").fit(numbers(table))
    assert f"hold {theirs.explained_variance_ratio_.sum():.2%} of the variance" in capsys.readouterr().out
    model = AutoModel.from_pretrained(out, trust_remote_code=True)
    assert model.config.embedding_size == model.config.hidden_size == 3
    found = model.encode([clip.path for clip in Manifest(toy_corpus).clips])
    wanted = theirs.transform(numbers(table))
    signs = np.sign((found * wanted).sum(0))
    np.testing.assert_allclose(found, wanted * signs, atol=2e-4 * np.abs(wanted).max())
    assert "first 3 principal components of 20 numbers" in (out / "README.md").read_text()


@pytest.mark.parametrize("whiten", [False, True])
def test_heads_say_the_same_where_all_directions_are_kept(whiten, table, hub, waves, tmp_path):
    out = tmp_path / "small"
    assert main(["reduce", str(table), "--model", str(hub), "--size", "8", "--out", str(out), *["--whiten"] * whiten]) == 0
    before, after = (WavCSEForMultiTask.from_pretrained(folder).eval() for folder in (hub, out))
    clips = torch.tensor(np.stack(waves(5000, 5000)))
    with torch.no_grad():
        for task, logits in before(clips).logits.items():
            torch.testing.assert_close(after(clips).logits[task], logits, atol=1e-4, rtol=1e-3)


def test_a_table_that_does_not_fit_is_refused(table, hub, toy_corpus, tiny_model, tmp_path, capsys):
    def message(*words):
        assert main(["reduce", *map(str, words), "--out", str(tmp_path / "small")]) == 2
        return capsys.readouterr().err

    tiny_model(selected_layers=[0, 2]).save_pretrained(tmp_path / "other")
    assert "was made by another model than" in message(table, "--model", tmp_path / "other", "--size", 3)
    assert "vary in 8 directions only" in message(table, "--model", hub, "--size", 9)
    assert "size is 20; it must be below 20" in message(table, "--model", hub, "--size", 20)
    embed_corpus(toy_corpus, str(hub), tmp_path / "unit.parquet", EmbedSettings(normalize=True))
    assert "holds normalised or cut embeddings" in message(tmp_path / "unit.parquet", "--model", hub, "--size", 3)
    tiny_model().save_pretrained(tmp_path / "small")
    assert "holds a model already" in message(table, "--model", hub, "--size", 3)


def test_a_model_without_heads_is_reduced_too(toy_corpus, tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    embed_corpus(toy_corpus, str(tmp_path / "model"), tmp_path / "t.parquet")
    words = [str(tmp_path / "t.parquet"), "--model", str(tmp_path / "model"), "--size", "2", "--out", str(tmp_path / "small")]
    assert main(["reduce", *words]) == 0
    assert WavCSEModel.from_pretrained(tmp_path / "small").encode(np.zeros(4000, np.float32)).shape == (2,)


def test_the_page_runs(toy_corpus, hub, tmp_path, monkeypatch):
    shutil.copytree(hub, tmp_path / "model")
    (tmp_path / "recordings").mkdir()
    for clip in Manifest(toy_corpus).clips[:6]:
        shutil.copy(clip.path, tmp_path / "recordings")
    monkeypatch.chdir(tmp_path)
    run_first_block("small_vectors.md")
    assert numbers("small.parquet").shape == (6, 2)
    assert StoredEmbeddings("small.parquet").ranges().shape == (2, 2)
