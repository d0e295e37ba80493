"""Transfer studies: figures are those of probes on trainings that never saw a task; files, keys and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from wavcse.data.cache import build_cache
from wavcse.eval.probe import probe_outcomes
from wavcse.eval.results import predictions_path, read_results
from wavcse.search import transfer
from wavcse.search.fit import fit
from wavcse.search.table import read_table
from wavcse.search.transfer import Judge, main, read_study, run_transfer
from wavcse.tools import choice

VARIANTS = {
    "paper": {},
    "pca": {
        "untrained": True,
        "layer_scaling": "standard",
        "pooling_type": "concat",
        "layer_projection_size": None,
        "start": "pca",
        "embedding_size": 16,
        "selected_layers": [0, 1],
    },
}
GROUPS = {"words": {"leave_out": ["keyword"], "rows": ["keyword"]}, "voices": {"leave_out": ["speaker"], "rows": ["speaker"]}}


@pytest.fixture
def files(search_recipe, toy_corpus, tmp_path) -> Path:
    """A study of two variants on the toy corpus."""
    recipe = {**search_recipe, "num_epochs": 3, "save_hub": False}
    manifest = str(toy_corpus)
    tasks = {task: {"manifest": manifest} for task in ("keyword", "speaker")}
    study = {
        "recipe": str(tmp_path / "recipe.yaml"),
        "variants": VARIANTS,
        "evaluation": str(tmp_path / "eval.yaml"),
        "groups": GROUPS,
        "seeds": 2,
        "plots": [{"x": "pooling_type", "task": "keyword"}],
        "output_dir": str(tmp_path / "study"),
    }
    for name, content in (("recipe", recipe), ("eval", {"baselines": ["majority"], "tasks": tasks}), ("study", study)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.mark.slow
def test_a_row_is_judged_by_trainings_that_left_its_task_out(files, quick_probes, capsys):
    assert main([str(files / "study.yaml")]) == 0
    study = read_study(files / "study.yaml")
    results = {(own.task.name, own.encoder["name"]): own for own in read_results(study.folder / "evaluation")}
    names = {"paper", "pca", "paper.on_all", "pca.on_all", "best_layer", "best_layer_to_1", "mean_layers"}
    assert set(results) == {(row, name) for row in ("keyword", "speaker") for name in names}
    # The reference: trainings on the other task alone, as a recipe without the task gives them.
    judge = Judge(study)
    data = judge.tasks["keyword"]
    for seed in (0, 1):
        args = replace(study.variants[0].args, tasks={"speaker": study.shared.tasks["speaker"]}, seed=seed)
        downstream = transfer._fitted(read_table(args), args, untrained=False)
        layers = torch.from_numpy(judge.cache.read(judge.digests["keyword"], args.selected_layers))
        outcome = probe_outcomes(downstream(layers).detach().numpy(), data, [seed])[0]
        kept = pd.read_parquet(predictions_path(study.folder / "evaluation", "keyword", "paper"))
        assert list(kept[f"prediction_{seed}"]) == [data.classes[place] for place in outcome.runs[0]]
    facts = json.loads((study.folder / "study.json").read_text())
    figures = [results[row, "paper"].metrics["accuracy"].value for row in ("keyword", "speaker")]
    assert facts["beside_best"]["paper"]["mean"] == pytest.approx(np.mean(figures))
    # A variant stands beside the best layer of as many blocks as it runs.
    bests = {"paper": "best_layer", "pca": "best_layer_to_1", "pca.on_all": "best_layer_to_1", "mean_layers": "best_layer"}
    for name, best in bests.items():
        figures = [results[row, best].metrics["accuracy"].value for row in ("keyword", "speaker")]
        own = facts["beside_best"][name]
        assert (own["best"], own["mean_of_best"]) == (best, pytest.approx(np.mean(figures)))
    for row in ("keyword", "speaker"):
        layers = judge.cache.read(judge.digests[row], [0, 1])
        reference = probe_outcomes(layers.reshape(len(layers), -1), judge.tasks[row], [0], 2)[0]
        assert results[row, "best_layer_to_1"].probe.candidate == reference.probe.candidate
    assert len(results["keyword", "paper"].probe.runs) == 2
    assert len(results["keyword", "pca"].probe.runs) == 1  # nothing is drawn
    text = capsys.readouterr().out
    assert "trained on all tasks of the recipe" in text
    assert "| paper |" in text
    # The choice of the root model reads validation figures of the same study.
    paths = {"toy": str(files / "study.yaml")}, {"toy": study.shared.upstream}
    options = ["--studies", json.dumps(paths[0]), "--upstreams", json.dumps(paths[1]), "--out", str(files / "choice")]
    assert choice.main(options) == 0
    paper, pca = json.loads((files / "choice" / "choice.json").read_text())["candidates"]
    assert (paper["is_trained"], pca["is_trained"], pca["size"]) == (True, False, 16)
    assert paper["validation"] == pytest.approx(facts["variants"]["paper"]["mean_validation"])
    assert (paper["blocks"], pca["blocks"]) == (3, 1)
    assert paper["audio_s_per_s"] > 0 < pca["audio_s_per_s"]


def test_a_fit_of_a_study_is_that_of_a_search(files):
    study = read_study(files / "study.yaml")
    args = study.settings(study.variants[0], study.groups[0])[0]
    table = read_table(args)
    downstream = transfer._fitted(table, args, untrained=False)
    weights = fit(table, args)["layer_weights"]
    found = getattr(downstream.layer_pooling, "layer_weights", None)
    assert weights == (None if found is None else pytest.approx(found.tolist()))


@pytest.mark.slow
def test_what_is_judged_is_not_trained_again(files, quick_probes, monkeypatch):
    study = read_study(files / "study.yaml")
    run_transfer(study, show_progress=False)
    before = {path: path.stat().st_mtime_ns for path in study.folder.glob("evaluation/results/*.json")}
    monkeypatch.setattr(transfer, "_fitted", lambda *_: pytest.fail("trained again"))
    run_transfer(study, show_progress=False)
    assert {path: path.stat().st_mtime_ns for path in study.folder.glob("evaluation/results/*.json")} == before
    other = yaml.safe_load((files / "study.yaml").read_text())
    other["overrides"] = {"num_epochs": 2}  # trains again: other settings
    (files / "study.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        run_transfer(read_study(files / "study.yaml"), show_progress=False)


def test_without_cached_clips_it_is_refused(files, toy_corpus, upstream_folder, tmp_path):
    table = pd.read_csv(toy_corpus)
    table["file_name"] = [str(toy_corpus.parent / name) for name in table["file_name"]]
    table[table["keyword"] != "word2"].to_csv(tmp_path / "some.csv", index=False)
    build_cache([tmp_path / "some.csv"], str(upstream_folder), tmp_path / "caches")
    study = yaml.safe_load((files / "study.yaml").read_text())
    (files / "study.yaml").write_text(yaml.safe_dump({**study, "overrides": {"cache_dir": str(tmp_path / "caches")}}))
    with pytest.raises(ValueError, match=r"task 'keyword': 16 of 48 clips are not in the feature cache"):
        Judge(read_study(files / "study.yaml"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": {"a": {"leave_out": ["colour"], "rows": ["keyword"]}}}, "leave_out names ['colour']"),
        ({"groups": {"a": {"leave_out": ["keyword"], "rows": ["colour"]}}}, "rows names ['colour']"),
        ({"groups": {"a": {"leave_out": ["keyword"]}}}, "rows must list tasks"),
        ({"groups": {**GROUPS, "again": GROUPS["words"]}}, "are rows of several groups"),
        ({"groups": {"a": {"leave_out": ["keyword", "speaker"], "rows": ["keyword"]}}}, "nothing is left to train on"),
        ({"variants": {"best_layer": {}}}, "best_layer"),
        ({"variants": {"best_layer_to_1": {"selected_layers": [0, 1]}}}, "variants.best_layer_to_1"),
        ({"variants": {"a": {}, "a.on_all": {}}}, "variants.a.on_all"),
        ({"variants": {"a": {"tasks": {}}}}, "tasks"),
        ({"variants": {"a": {"cache_dir": "other"}}}, "cache_dir"),  # all variants read one
        ({"variants": {}}, "variants missing"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_what_is_refused(files, changes, words):
    study = yaml.safe_load((files / "study.yaml").read_text())
    (files / "study.yaml").write_text(yaml.safe_dump({**study, **changes}))
    with pytest.raises(ValueError) as refused:
        read_study(files / "study.yaml")
    assert words in str(refused.value)


@pytest.mark.slow
def test_what_leaves_the_same_out_is_trained_once(files, quick_probes, monkeypatch):
    """A row of no group is judged by the trainings on all tasks, which all rows are judged by once more."""
    study = yaml.safe_load((files / "study.yaml").read_text())
    (files / "study.yaml").write_text(yaml.safe_dump({**study, "groups": {"words": GROUPS["words"]}, "seeds": 1}))
    trained = []
    monkeypatch.setattr(transfer, "_fitted", lambda table, args, untrained: trained.append((untrained, len(args.tasks))))
    monkeypatch.setattr(transfer, "_embeddings", lambda downstream, layers: layers.mean(axis=1))
    run_transfer(read_study(files / "study.yaml"), show_progress=False)
    assert trained == [(False, 1), (True, 1), (False, 2), (True, 2)]
