"""Smaller vectors judged: what each variant stores, what is measured of it, and the command on a toy corpus."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import yaml
from sklearn.decomposition import PCA

from wavcse.data.pca import fit_pca
from wavcse.retrieval.sizes import Variant, draw, report, retrieval_precision, smaller, variants_of
from wavcse_cli import main as wavcse

PROBES = {"max_epochs": 3}


def test_sizes_that_the_embeddings_do_not_fill_are_cut_alone():
    found = variants_of(full=20, most=8, sizes=[10, 5, 30])
    float32 = [(variant.way, variant.size) for variant in found if variant.precision == "float32"]
    assert float32 == [("cut", 20), ("cut", 10), ("cut", 5), ("pca", 5)]
    assert len(found) == 3 * len(float32)
    assert [Variant("cut", 20, precision).num_bytes for precision in ("float32", "int8", "binary")] == [80, 20, 3]


def test_vectors_are_components_in_steps_or_bits():
    embeddings = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32) @ np.diag([5, 4, 3, 2, 1, 1]) + 2
    embeddings, train = embeddings.astype(np.float32), np.arange(200)
    pca, theirs = fit_pca([embeddings[train]], 6), PCA(3, svd_solver="full").fit(embeddings[train])
    whole = smaller(Variant("pca", 3, "float32"), embeddings, train, pca)
    np.testing.assert_allclose(np.abs(whole), np.abs(theirs.transform(embeddings)), atol=1e-4)
    np.testing.assert_allclose(smaller(Variant("cut", 2, "float32"), embeddings, train, pca)[train].mean(0), 0, atol=1e-5)
    steps = smaller(Variant("pca", 3, "int8"), embeddings, train, pca)
    width = np.ptp(whole[train], axis=0) / 255
    assert (np.abs(steps - whole)[train] <= 0.51 * width).all()
    bits = smaller(Variant("pca", 3, "binary"), embeddings, train, pca)
    np.testing.assert_array_equal(bits, np.where(whole > 0, 1, -1))


def test_retrieval_counts_the_labels_of_other_clips():
    vectors = np.array([[1, 0], [1, 0.1], [1, 0.3], [0, 1]], np.float32)
    labels = np.array(["a", "a", "b", "b"])
    assert retrieval_precision(vectors, labels, most=1) == 0.25 * (1 + 1 + 0 + 1)
    assert retrieval_precision(vectors, labels) == 0.75  # no clip has more than one other with its label


def test_retrieval_looks_at_as_many_clips_as_have_a_label():
    angles = np.deg2rad([0, 1, 2, 40, 41.5, 90, 180])
    vectors, labels = np.stack([np.cos(angles), np.sin(angles)], 1), np.array([0, 0, 0, 1, 1, 0, 2])
    # Three others each for label 0, of which the clip at 90 degrees is never among the nearest three; its own three hold one.
    expected = [2 / 3, 2 / 3, 2 / 3, 1, 1, 1 / 3]
    assert retrieval_precision(vectors, labels) == pytest.approx(np.mean(expected))  # label 2 has no other clip
    expected = [1, 1, 1, 1, 1, 0]
    assert retrieval_precision(vectors, labels, most=2) == pytest.approx(np.mean(expected))


def records() -> list[dict]:
    figures = {"accuracy": {"word": 0.5, "intent": 0.75}, "precision": {"word": 0.5, "intent": 0.5}, "eer": {"trials": 0.125}}
    variants = variants_of(full=20, most=8, sizes=[5])
    return [{**asdict(variant), "bytes": variant.num_bytes, "figures": figures} for variant in variants]


def test_the_report_shows_means_over_tasks(tmp_path):
    tasks = {"accuracy": ["intent", "word"], "eer": ["trials"], "precision": ["intent", "word"]}
    report({"name": "ours", "tasks": tasks, "records": records()}, tmp_path, "the command")
    shown = (tmp_path / "README.md").read_text()
    assert "| cut | 20 | float32 | 80 | 62.5 | 12.5 | 50.0 |" in shown
    assert "| pca | 5 | binary | 1 | 62.5 | 12.5 | 50.0 |" in shown
    assert "verification EER of trials; retrieval precision of intent, word." in shown
    by_task = shown.split("## Probe accuracy by task, %")[1].split("##")[0]
    assert "| bytes | intent | word |" in by_task
    assert "| cut | 20 | float32 | 80 | 75.0 | 50.0 |" in by_task
    assert "## Verification EER by task" not in shown  # the mean of one
    assert "Made by `the command`" in shown
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"sizes.svg", "sizes.png"}
    lines = [len(one.lines) for one in draw(records()).axes]
    assert lines == [6, 6, 6]  # two ways in three precisions


@pytest.mark.slow
@pytest.mark.usefixtures("quick_probes")
def test_the_command_writes_a_table_of_all_variants(toy_corpus, tiny_model, tmp_path):
    from wavcse.retrieval.sizes import main

    tiny_model().save_pretrained(tmp_path / "model")
    tasks = {"keyword": {"manifest": str(toy_corpus)}}
    recipe = {
        "model": str(tmp_path / "model"),
        "tasks": tasks,
        "sizes": [4],
        "out": str(tmp_path / "o"),
        "work": str(tmp_path),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main([str(tmp_path / "recipe.yaml")]) == 0
    found = json.loads((tmp_path / "o/sizes.json").read_text())
    shown = (tmp_path / "o/README.md").read_text()
    assert [record["bytes"] for record in found["records"]] == [80, 20, 3, 16, 4, 1, 16, 4, 1]
    for record in found["records"]:
        assert f"| {100 * record['figures']['accuracy']['keyword']:.1f} |" in shown
    assert wavcse(["sizes"]) == 2  # a program of its own, not a command
