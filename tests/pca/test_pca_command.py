"""`wavcse pca`: the embedding of the saved model, from audio, is scikit-learn's projection of the training clips' layers."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from wavcse import WavCSEModel
from wavcse.data.features import open_cache
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest
from wavcse.pca.__main__ import main

SIZE = 6


@pytest.fixture(scope="module")
def corpus(toy_corpus):
    """The toy corpus with one column `split`: half of its clips are for training."""
    table = pd.read_csv(toy_corpus, dtype=str, keep_default_na=False)
    path = toy_corpus.with_name("halves.csv")
    table.assign(split=["train" if row % 2 else "test" for row in range(len(table))]).to_csv(path, index=False)
    return path


def options(recipe, manifest, out, *more) -> list[str]:
    places = ["--cache", recipe["cache_dir"], "--upstream", recipe["upstream"], "--out", str(out)]
    return ["--manifest", str(manifest), *places, "--embedding_size", str(SIZE), *more]


def layers_of(recipe, manifest, layers, rows) -> np.ndarray:
    cache, clips = open_cache(recipe["cache_dir"]), [Manifest(manifest).clips[row] for row in rows]
    digests = [fact.digest for fact in Inspector().inspect(clips)]
    return cache.read(digests, layers).reshape(len(rows), -1).astype(np.float64)


@pytest.fixture(scope="module")
def made(search_recipe, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("pca")
    assert main(options(search_recipe, corpus, out, "--selected_layers", "3", "1")) == 0
    return out


def test_embeddings_from_audio_are_scikit_learns_projection(search_recipe, corpus, made):
    model = WavCSEModel.from_pretrained(made / "hub")
    assert (model.config.selected_layers, model.config.layer_scaling, model.config.tasks) == ([3, 1], "standard", {})
    train = layers_of(search_recipe, corpus, [3, 1], range(1, 96, 2))
    scaler, rows = StandardScaler().fit(train), [0, 7, 50]
    theirs = PCA(SIZE).fit(scaler.transform(train))
    expected = theirs.transform(scaler.transform(layers_of(search_recipe, corpus, [3, 1], rows)))
    embeddings = model.encode([Manifest(corpus).clips[row].load(16_000) for row in rows])
    signs = np.sign((embeddings * expected).sum(axis=0))
    np.testing.assert_allclose(embeddings, expected * signs, atol=2e-3 * np.abs(expected).max())

    result = json.loads((made / "results/pca.json").read_text())
    assert (result["num_clips"], result["rank"], result["numbers"]) == (48, 47, 64)
    np.testing.assert_allclose(result["explained"], theirs.explained_variance_ratio_, rtol=1e-4)


def test_report_and_card_say_what_the_result_file_says(made):
    result = json.loads((made / "results/pca.json").read_text())
    share = f"{sum(result['explained']):.1%}"
    for path in (made / "pca.md", made / "hub/README.md"):
        text = path.read_text()
        assert f"the first {SIZE} of 47 principal components of 48 clips: {share} of the variance" in text
        assert f"| {SIZE} | {share} |" in text
    assert "pictures/explained_variance.png" in (made / "pca.md").read_text()
    assert {path.name for path in (made / "pictures").iterdir()} == {"explained_variance.png", "explained_variance.svg"}
    assert (made / "pca.html").read_text().startswith("<!doctype html>")


def test_without_a_split_all_clips_count_and_whitened_ones_vary_alike(search_recipe, toy_corpus, tmp_path, capsys):
    assert main(options(search_recipe, toy_corpus, tmp_path, "--pca_whiten", "1")) == 0
    assert f"{SIZE} of 95 principal components of 96 clips" in capsys.readouterr().out
    model = WavCSEModel.from_pretrained(tmp_path / "hub")
    assert model.config.selected_layers == [0, 1, 2, 3]
    embeddings = model.encode([clip.load(16_000) for clip in Manifest(toy_corpus).clips])
    np.testing.assert_allclose(np.cov(embeddings.T), np.eye(SIZE), atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--embedding_size", "48"], "embedding_size is 48, but the layers of the 48 training clips vary in 47 directions"),
        (["--selected_layers", "1", "4"], "selected_layers is [1, 4]; the cache has layers 0 to 3"),
        (["--split_column", "split_sid", "--manifest", "NONE_TRAIN"], "no clip of"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(search_recipe, corpus, tmp_path, capsys, changes, message):
    table = pd.read_csv(corpus, dtype=str, keep_default_na=False)
    table.assign(split_sid="").to_csv(corpus.with_name("untrained.csv"), index=False)
    words = [str(corpus.with_name("untrained.csv")) if word == "NONE_TRAIN" else word for word in changes]
    assert main(options(search_recipe, corpus, tmp_path, *words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()
