"""The searches: planted layers are found, noise is called noise, a killed search goes on, workers change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from wavcse import WavCSEConfig
from wavcse.benchmarks import bench_search, measure, search_report
from wavcse.benchmarks.measure import Measured
from wavcse.benchmarks.rerun import UpstreamRates
from wavcse.benchmarks.search_ways import PARTS, Way
from wavcse.data.composite import CompositeSet
from wavcse.data.files import read_json
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.search import runner
from wavcse.search import store as store_module
from wavcse.search import table as table_module
from wavcse.search.costs import cost_of
from wavcse.search.fit import fit, fit_together, shape_of
from wavcse.search.layers import main, search_layers
from wavcse.search.phase1 import steps_of
from wavcse.search.phase1_config import Phase1
from wavcse.search.program import recipe_text
from wavcse.search.runner import Fit, FitError, fit_all, run_plans
from wavcse.search.stability import against_chance, choose, consensus_order, consensus_set, removal_ranks, stability
from wavcse.search.steps import do_step
from wavcse.search.store import FitStore
from wavcse.search.table import SearchTable, read_table, shared, table_for
from wavcse.tests.helpers.killed import run_killed, started
from wavcse.tests.helpers.processes import FORKSERVER, Child
from wavcse.train_accelerate import train
from wavcse.training.arguments import TRAIN, RunArguments

L, D, NUM_CLIPS = 9, 16, 600
UPSTREAM = {
    "model_type": "wavlm",
    "hidden_size": D,
    "num_hidden_layers": L - 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
CLASSES = {"keyword": ["a", "b", "c"], "speaker": ["d", "e", "f", "g"]}


def arguments(**changes) -> RunArguments:
    sizes = {"layer_projection_size": 16, "embedding_size": 24, "layer_dropout": 0.0, "embedding_dropout": 0.0}
    tasks = {task: {"manifest": "planted.csv", "label_column": task} for task in CLASSES}
    fields = {"tasks": tasks, "batch_size": 100, "num_epochs": 6, "learning_rate": 2e-2, **sizes}
    return RunArguments(**{**fields, **changes}, save_hub=False)


def planted(carriers: dict[str, list[int]], shuffled: bool = False, strength: float = 2.0) -> SearchTable:
    """Noise of unit variance in all layers; for each task, a vector per class in the layers that carry its labels."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((NUM_CLIPS, L, D))
    labels = {}
    for task, classes in CLASSES.items():
        labels[task] = generator.integers(len(classes), size=NUM_CLIPS)
        signal_of = strength * generator.standard_normal((len(classes), D))[labels[task]]
        for layer in carriers[task]:
            features[:, layer] = signal_of + 0.5 * features[:, layer]
        if shuffled:
            generator.shuffle(labels[task])
    split = generator.permutation(NUM_CLIPS) % 3
    targets = {
        name: {task: np.where(split == i, own, IGNORED_LABEL) for task, own in labels.items()}
        for i, name in enumerate(("train", "validation", "test"))
    }
    features = torch.from_numpy(features.astype(np.float32))
    return SearchTable(features, CompositeSet([], CLASSES, targets), UPSTREAM, "planted")


@pytest.mark.slow
def test_planted_layers_are_kept_until_last_with_every_seed(tmp_path):
    table = planted({"keyword": [2], "speaker": [5]})
    report = search_layers(table, arguments(), tmp_path, seeds=2, rivals=["top_single", "random"], sizes=[1, 2, 9])
    for rounds in report["trials"]["recursion"].values():
        assert [len(trial["layers"]) for trial in rounds] == list(range(L, 0, -1))
        assert rounds[-2]["layers"] == [2, 5]
    assert report["sets"]["2"] == [2, 5]
    best = {point["size"]: point["validation"]["mean"] for point in report["curves"]["consensus"]}
    assert best[2] > best[1] + 0.2  # each carries one task only
    assert (report["choice"]["best"], report["choice"]["smallest"]) == (2, 2)
    assert all(verdict["is_above"] for verdict in report["chance"].values())
    assert all(own[1]["layers"] == [2, 5] for own in report["trials"]["top_single"].values())
    assert report["stability"]["layers"]["2"]["min"] >= L - 1
    assert report["over_rivals"]["random"]["mean"] > 0


@pytest.mark.slow
def test_a_redundant_pair_outlives_noise_and_one_of_it_suffices(tmp_path):
    report = search_layers(
        planted({"keyword": [3, 6], "speaker": [3, 6]}), arguments(), tmp_path, seeds=2, rivals=[], sizes=[1]
    )
    for rounds in report["trials"]["recursion"].values():
        assert rounds[-2]["layers"] == [3, 6]
    (single,) = report["sets"]["1"]
    assert single in (3, 6)
    assert report["curves"]["consensus"][0]["validation"]["mean"] > 0.9


@pytest.mark.slow
def test_labels_that_mean_nothing_are_called_so(tmp_path):
    table = planted({"keyword": [2], "speaker": [5]}, shuffled=True)
    report = search_layers(table, arguments(num_epochs=3), tmp_path, seeds=2, rivals=["random"], sizes=[1, 4, 9])
    assert not any(verdict["is_above"] for verdict in report["chance"].values())
    assert (
        "**The best set is not above chance on the test clips, 200 (keyword), 200 (speaker)"
        in (tmp_path / "layers.md").read_text()
    )


@pytest.mark.slow
@pytest.mark.usefixtures("real_pictures")
def test_the_files_of_a_search_agree_with_each_other(tmp_path):
    table = planted({"keyword": [2], "speaker": [5]})
    args = arguments(num_epochs=2, selected_layers=[0])
    report = search_layers(table, args, tmp_path, seeds=2, rivals=["all", "top_weights", "greedy"], sizes=[1, 2, 9])
    assert json.loads((tmp_path / "results/layers.json").read_text()) == report
    text = (tmp_path / "layers.md").read_text()
    for point in report["curves"]["consensus"]:
        assert f"{100 * point['validation']['mean']:.2f} ± {100 * point['validation']['deviation']:.2f}" in text
    for name in ("first_round", "weights", "accuracy", "cost"):
        assert (tmp_path / "pictures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (tmp_path / "pictures" / f"{name}.svg").read_text()[:2000]
    for name, size in (("recipe", report["choice"]["best"]), ("recipe_smallest", report["choice"]["smallest"])):
        recipe = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
        assert recipe["selected_layers"] == report["sets"][str(size)]
        assert recipe["num_epochs"] == 2
    greedy = report["trials"]["greedy"]["0"]
    sizes = [1, 2, 9] if report["choice"]["best"] in (1, 2, 9) else [1, 2, 9, report["choice"]["best"]]
    assert [len(trial["layers"]) for trial in greedy] == sizes
    assert set(greedy[0]["layers"]) < set(greedy[1]["layers"])
    assert [cost["blocks"] for cost in report["costs"]] == [max(report["sets"][str(size)]) for size in range(1, 10)]


# -- fits, store and workers


def same_figures(a: dict, b: dict) -> bool:
    return {name: a[name] for name in a if name != "seconds"} == {name: b[name] for name in b if name != "seconds"}


@pytest.mark.parametrize("way", ["forked", pytest.param("as users have it", marks=pytest.mark.slow)])
def test_workers_change_nothing_and_an_error_names_its_fit(tmp_path, monkeypatch, way):
    if way == "forked":  # to start two afresh takes twenty seconds
        monkeypatch.setattr(runner, "get_context", lambda method: FORKSERVER)
    table, args = planted({"keyword": [2], "speaker": [5]}), arguments(num_epochs=2, layer_dropout=0.3, selected_layers=[2, 5])
    fits = [Fit(replace(args, seed=seed), f"seed {seed}") for seed in range(3)]
    one = fit_all(fits, table, FitStore(tmp_path / "one"), show_progress=False)
    store = FitStore(tmp_path / "two")
    bad = Fit(replace(args, selected_layers=[L]), "the impossible fit")
    with pytest.raises(FitError, match="the impossible fit: ValueError: selected_layers asks for layer 9"):
        fit_all([*fits, bad], table, store, workers=2, show_progress=False)
    two = [store.get(store.key(fit.args, table.fingerprint)) for fit in fits]
    assert all(same_figures(a, b) for a, b in zip(one, two))
    assert not list((tmp_path / "two").glob("*.f32"))


def test_a_fit_is_done_once_whoever_wants_it(tmp_path, monkeypatch):
    table, args = planted({"keyword": [2], "speaker": [5]}), arguments(num_epochs=1, selected_layers=[2])
    counted = []
    do_fit = runner.fit_together
    monkeypatch.setattr(runner, "fit_together", lambda table, many: (counted.extend(many), do_fit(table, many))[1])

    def plan(seeds):
        first = yield [Fit(replace(args, seed=seed), f"seed {seed}") for seed in seeds]
        second = yield []
        return len(first), second

    plans = lambda: {"a": plan([0, 1]), "b": plan([1, 2, 1])}  # noqa: E731
    assert run_plans(plans(), table, FitStore(tmp_path), show_progress=False) == {"a": (2, []), "b": (3, [])}
    assert sorted(args.seed for args in counted) == [0, 1, 2]
    run_plans(plans(), table, FitStore(tmp_path), show_progress=False)
    assert len(counted) == 3


def test_what_plans_return_is_in_their_order_whichever_ends_first(tmp_path):
    """After a kill the fits of the second seed may be stored and those of the first not; figures are paired by their place."""
    table, args = planted({"keyword": [2], "speaker": [5]}), arguments(num_epochs=1, selected_layers=[2])

    def plan(seed):
        (result,) = yield [Fit(replace(args, seed=seed), f"seed {seed}")]
        return result["validation"]

    store = FitStore(tmp_path)
    run_plans({1: plan(1)}, table, store, show_progress=False)
    assert list(run_plans({0: plan(0), 1: plan(1)}, table, store, show_progress=False)) == [0, 1]


def test_a_stored_fit_is_addressed_by_what_changes_it(tmp_path):
    store, args = FitStore(tmp_path), arguments()
    key = store.key(args, "data")
    assert key == store.key(replace(args, output_dir="elsewhere", cache_dir="there", note="!"), "data")
    assert key == store.key(replace(args, pooling_kwargs={"p": 16.0}), "data")  # learned_norm's default
    changes = [{"seed": 1}, {"num_epochs": 3}, {"selected_layers": [1]}, {"pooling_kwargs": {"p": 4.0}}, {"l1": 0.5}]
    tasks = arguments().tasks
    changes += [{"tasks": {**tasks, "speaker": {**tasks["speaker"], "loss_weight": 2.0}}}]
    keys = {store.key(replace(args, **change), "data") for change in changes} | {store.key(args, "other data")}
    assert len(keys) == len(changes) + 1
    assert key not in keys


def test_fits_together_give_what_each_gives_alone():
    table = planted({"keyword": [2], "speaker": [5]})
    args = arguments(num_epochs=3, pooling_type="weighted_average", selected_layers=[2, 4, 5])
    many = [args, replace(args, seed=1, learning_rate=3e-3, l2=1e-3), replace(args, seed=2, selected_layers=[0, 1, 5])]
    assert len({shape_of(own) for own in many}) == 1
    assert shape_of(replace(args, selected_layers=[1])) != shape_of(args) != shape_of(replace(args, batch_size=50))
    for own, together in zip(many, fit_together(table, many)):
        alone = fit(table, own)
        assert together["curve"] == pytest.approx(alone["curve"], abs=0.011)  # a clip or two on the edge
        assert together["layer_weights"] == pytest.approx(alone["layer_weights"], abs=1e-3)
        assert together["settings"] == alone["settings"]
        assert (alone["together"], together["together"]) == (1, 3)


def test_on_a_gpu_fits_of_one_shape_go_together(tmp_path, monkeypatch):
    table, args = planted({"keyword": [2], "speaker": [5]}), arguments(num_epochs=1, selected_layers=[2, 5])
    fits = [Fit(replace(args, seed=seed), f"{seed}") for seed in range(3)] + [Fit(replace(args, batch_size=50), "other")]
    store = FitStore(tmp_path)
    queue = {store.key(fit.args, table.fingerprint): fit for fit in fits}
    done = runner._do_together(table, store, queue)
    assert list(done) == list(queue)[:3]
    assert [store.get(key)["together"] for key in done] == [3, 3, 3]


# -- from a recipe and its cache


@pytest.mark.parametrize("pooling_type", ["weighted_average", "learned_norm"])
def test_a_fit_is_a_run_of_the_training_script_to_the_bit(search_recipe, tmp_path, pooling_type):
    args = RunArguments(**search_recipe, pooling_type=pooling_type, output_dir=str(tmp_path / "run"), save_hub=False)
    trained, fitted = train(args), fit(read_table(args), args)
    assert fitted["best_epoch"] == trained["best_epoch"]
    for split in ("validation", "test"):
        accuracy = {task: figures["accuracy"][split] for task, figures in trained["tasks"].items()}
        assert fitted[split]["accuracy"] == accuracy
        assert fitted[split]["is_correct"]["keyword"].count("1") / 12 == accuracy["keyword"]
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert fitted["curve"] == [entry["validation"]["mean_accuracy"] for entry in log]


def test_a_table_in_a_file_is_the_table_in_memory(search_recipe, tmp_path):
    args = RunArguments(**search_recipe)
    with table_for(args, tmp_path / "fits", workers=2) as mapped, shared(mapped, tmp_path / "fits") as reopen:
        in_memory, again = read_table(args), reopen()
        assert torch.equal(mapped.features, in_memory.features)
        assert torch.equal(again.features, in_memory.features)
        assert mapped.fingerprint == in_memory.fingerprint == again.fingerprint
        (file,) = (tmp_path / "fits").iterdir()
        assert file.stat().st_size == 4 * in_memory.features.numel()
        mapped.features[0, 0, 0] = 7.0
        assert again.features[0, 0, 0] == 7.0  # one copy in memory
    assert not list((tmp_path / "fits").iterdir())


def test_what_a_killed_search_left_in_the_way_is_removed(search_recipe, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive = (tmp_path / f"features-0123-{pid}.f32" for pid in (process.pid, os.getpid()))
    for path in (dead, alive):
        path.touch()
    with table_for(RunArguments(**search_recipe), tmp_path, workers=2):
        assert not dead.exists()
        assert alive.exists()


def figures_of(folder: Path) -> dict:
    """The report without times."""
    text = (folder / "results/layers.json").read_text()
    return json.loads(text, object_hook=lambda fields: {name: v for name, v in fields.items() if name != "seconds"})


@pytest.mark.slow
def test_a_killed_search_goes_on_and_fits_nothing_twice(search_config, tmp_path, capsys):
    options = ["--seeds", "2", "--rivals", "top_single", "--workers", "1"]
    assert main([str(search_config), "--output_dir", str(tmp_path / "whole"), *options]) == 0
    assert "## Stability" in capsys.readouterr().out
    slow = (
        "import sys, time; from wavcse.search import layers, runner; do = runner.fit_together\n"
        "runner.fit_together = lambda *a: (time.sleep(0.2), do(*a))[1]\nlayers.main(sys.argv[1:])"
    )
    fits = tmp_path / "killed/fits"
    child = Child("-c", slow, search_config, "--output_dir", tmp_path / "killed", *options)
    child.kill_when(lambda: len(list(fits.glob("*.json"))) >= 4)
    before = {path: path.stat().st_mtime_ns for path in fits.glob("*.json")}
    assert 4 <= len(before) < len(list((tmp_path / "whole/fits").iterdir()))
    assert main([str(search_config), "--output_dir", str(tmp_path / "killed"), *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert figures_of(tmp_path / "killed") == figures_of(tmp_path / "whole")
    names = [sorted(path.name for path in (tmp_path / run / "fits").iterdir()) for run in ("killed", "whole")]
    assert names[0] == names[1]


def test_the_recipe_that_a_search_leaves_trains_as_it_stands(search_config, tmp_path):
    options = ["--seeds", "1", "--rivals", "--workers", "1", "--num_epochs", "1", "--measure_speed"]
    assert main([str(search_config), "--output_dir", str(tmp_path / "out"), *options]) == 0
    report = figures_of(tmp_path / "out")
    assert report["settings"]["num_epochs"] == 1
    assert all(cost["audio_s_per_s"] > 0 for cost in report["costs"])
    args = TRAIN.parse([str(tmp_path / "out/recipe.yaml")])
    assert args.selected_layers == report["sets"][str(report["choice"]["best"])]
    assert args.pooling_type == "learned_norm"
    assert train(args)["best_epoch"] == 1
    assert (tmp_path / "out/final/hub/model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "0", "2"], "sizes is [0, 2]; the cache has 4 layers"),
        (["--sizes", "5"], "sizes is [5]"),
        (["--seeds", "0"], "seeds is 0"),
        (["--workers", "0"], "workers is 0"),
        (["--num_epochs", "0"], "num_epochs is 0"),
        (["--embedding_size", "0"], "embedding_size is 0"),
        (["--cache_dir", "nowhere"], "nowhere: holds no feature cache"),
    ],
)
def test_bad_options_are_refused_in_one_line(search_config, tmp_path, capsys, options, message):
    assert main([str(search_config), "--output_dir", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/fits/*"))


# -- arithmetic of the report, by hand


def test_consensus_and_stability_by_hand():
    orders = [[0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 1, 0]]  # removed first ... last
    recursions = [[{"layers": order[i:]} for i in range(4)] for order in orders]
    ranks = [removal_ranks(rounds) for rounds in recursions]
    assert ranks[1] == {1: 1, 0: 2, 2: 3, 3: 4}
    order = consensus_order(ranks)  # mean ranks 7/3, 2, 8/3, 3
    assert order == [1, 0, 2, 3]
    assert consensus_set(order, 2) == [2, 3]
    found = stability(ranks, order)
    assert found["kendall_tau"] == {"mean": pytest.approx((2 / 3 - 1 - 2 / 3) / 3), "min": -1.0, "max": pytest.approx(2 / 3)}
    assert found["agreement"] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert found["removals"][0] == pytest.approx({0: 1 / 3, 1: 1 / 3, 3: 1 / 3})
    assert found["layers"][3] == {"mean": 3.0, "min": 1, "max": 4}
    assert stability(ranks[:1], order)["kendall_tau"] is None
    assert consensus_order([{0: 1, 1: 2}, {0: 2, 1: 1}]) == [1, 0]  # a tie: the more expensive layer goes


def point(size: int, *values: float) -> dict:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    figures = {"mean": float(np.mean(values)), "deviation": deviation, "values": list(values)}
    return {"size": size, "validation": {**figures, "tasks": {"keyword": figures, "speaker": figures}}}


def test_the_smallest_set_within_one_standard_error_by_hand():
    points = [point(1, 0.5, 0.5), point(2, 0.77, 0.77), point(3, 0.8, 0.76), point(4, 0.76, 0.84)]
    choice = choose(points, {"keyword": 100, "speaker": 400})
    # best: 0.80 of 4 layers; variances 0, 0, 0.0008, 0.0032: pooled 0.001, of two seeds 0.0005
    error = pytest.approx(np.sqrt(0.0005))
    assert choice == {"best": 4, "smallest": 3, "within": [3, 4], "standard_error": error, "basis": "seeds"}
    choice = choose([point(1, 0.75), point(2, 0.8)], {"keyword": 100, "speaker": 400})
    assert choice["standard_error"] == pytest.approx(np.sqrt(0.16 / 100 + 0.16 / 400) / 2)
    assert (choice["best"], choice["smallest"], choice["basis"]) == (2, 2, "validation clips")


def test_chance_is_judged_by_the_wilson_interval():
    test = {"keyword": {"mean": 0.3}, "speaker": {"mean": 0.3}}
    verdicts = against_chance(test, {"keyword": 0.25, "speaker": 0.18}, {"keyword": 200, "speaker": 200})
    z = 2.2414027276  # 97.5 %, two sides: 5 % shared by two tasks
    centre, half = (0.3 + z**2 / 400) / (1 + z**2 / 200), z * np.sqrt(0.21 / 200 + z**2 / 160000) / (1 + z**2 / 200)
    assert verdicts["keyword"]["interval"] == pytest.approx([centre - half, centre + half], rel=1e-6)
    assert [verdicts[task]["is_above"] for task in test] == [False, True]


@pytest.mark.parametrize(("last", "parameters", "gflop"), [(17, 227.3e6, 28.6), (24, 315.5e6, 38.0)])
def test_costs_of_wavlm_large(last, parameters, gflop):
    cost = cost_of({**WavCSEConfig().to_dict()["upstream_config"], "num_hidden_layers": 24}, [0, last])
    assert cost["blocks"] == last
    assert cost["parameters"] == pytest.approx(parameters, rel=1e-3)
    assert cost["gflop_per_audio_s"] == pytest.approx(gflop, rel=0.02)


# -- benchmark


def test_the_benchmark_counts_the_products_of_a_step():
    config = WavCSEConfig(selected_layers=list(range(25)))
    plain = 2 * (25 * 2 * 1024 * 512 + 3 * 2000 * (512 + 12 + 1251 + 4))
    assert search_report.flop_per_clip(True, 25, config) == plain
    share = 138_361 / 193_874  # of the clips that have a speaker label and go through the largest head
    ours = 2 * (3 * 1024 * 512 + 6000 * (512 + 1251 * share))
    assert search_report.flop_per_clip(False, 25, config) == pytest.approx(ours, rel=0.01)
    assert search_report.flop_per_clip(False, 1, config) == search_report.flop_per_clip(False, 25, config)
    per_clip = {("train", 1): 1.0, ("train", 25): 25.0, ("evaluate", 1): 0.0, ("evaluate", 25): 0.0}
    assert search_report.whole_recursion(per_clip, [25, 1]) == pytest.approx(100 * 193_874 * 25 * 13)


@pytest.mark.slow
def test_the_benchmark_runs(capsys, monkeypatch):
    for name in ("gemm_rate", "read_rate"):
        monkeypatch.setattr(measure, name, lambda *_: 1e11)  # they take seconds
    rates = UpstreamRates("a-file.json", 0.5, 2.0, "HF", {"float32": 3.0, "bfloat16": 9.0})
    monkeypatch.setattr(bench_search, "newest_rates", lambda *_: rates)
    bench_search.main("--tiny --clips 100 --batch_size 32 --layers 4 1 --rounds 1 --workers 0".split())
    page = capsys.readouterr().out
    rows = [line for line in page.splitlines() if line.startswith("| (")]
    assert [row[2:5] for row in rows] == 2 * ["(a)", "(b)", "(c)", "(d)", "(c)", "(d)"]  # speeds, then the upstream again
    assert "Extrapolated, never run" in page
    assert "a-file.json" in page


# -- mistakes


def test_labels_that_changed_are_trained_on_again_by_the_step_and_a_kill_is_continued(search_recipe, toy_corpus, tmp_path):
    table = pd.read_csv(toy_corpus, dtype=str, keep_default_na=False)
    table["file_name"] = [str(toy_corpus.parent / name) for name in table["file_name"]]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    tasks = {name: {**task, "manifest": str(tmp_path / "manifest.csv")} for name, task in search_recipe["tasks"].items()}
    recipe = RunArguments(**{**search_recipe, "tasks": tasks, "output_dir": str(tmp_path / "run"), "save_hub": False})
    config = Phase1(tmp_path / "c.yaml", recipe, {}, {}, [], {}, {}, {})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text(recipe_text(recipe, []))
    steps, log = tmp_path / "steps", tmp_path / "run/training/log.jsonl"

    def train_step() -> str:
        step = steps_of(config)[-1]
        do_step(replace(step, outputs=step.outputs[:1]), steps)
        return log.read_text()

    first = train_step()
    is_train = table["split_ks"] == "train"
    table.loc[is_train, "keyword"] = np.roll(table.loc[is_train, "keyword"], 1)
    table.to_csv(tmp_path / "manifest.csv", index=False)
    second = train_step()
    assert len(second.splitlines()) == len(first.splitlines()) == 3
    assert json.loads(second.splitlines()[0])["train_loss"] != json.loads(first.splitlines()[0])["train_loss"]
    record = read_json(steps / "training.json")
    (steps / "training.json").write_text(json.dumps({**record, "is_done": False}))
    assert train_step() == second  # seconds too: no epoch was done again


def test_a_fit_that_diverges_names_its_settings():
    table = planted({"keyword": [2], "speaker": [5]})
    with pytest.raises(FloatingPointError, match=r"diverged in epoch \d+: .*selected_layers \[2, 5\].*learning_rate 1e\+30"):
        fit(table, arguments(learning_rate=1e30, selected_layers=[2, 5]))


def test_a_trial_that_diverges_is_pruned_and_the_study_goes_on(tmp_path):
    study_module = pytest.importorskip("wavcse.search.study")
    table = planted({"keyword": [2], "speaker": [5]})
    table.features[0, 2] = float("inf")
    objective = study_module.StudyObjective(arguments(num_epochs=2, selected_layers=[2, 5]), 1, tmp_path / "study.db", "s")
    study = study_module.open_study(objective)
    with pytest.raises(FitError, match="the recipe's own trial, which the others are measured against: the training diverged"):
        study_module.run_trial(study, 0, table, FitStore(tmp_path / "fits"), objective)
    table.features[0, 2] = 0.0
    study_module.run_trial(study, 1, table, FitStore(tmp_path / "fits"), objective)
    diverged, other = study_module.finished(study)
    assert (diverged.state.name, diverged.value, diverged.intermediate_values) == ("PRUNED", 0.0, {0: 0.0})
    assert "the training diverged in epoch 1: " in diverged.user_attrs["diverged"]
    assert other.state.name == "COMPLETE"


def test_a_fit_that_diverges_beside_others_stops_none_of_them(tmp_path):
    """Together, as on a GPU, and one by one with a store: the sound fits are what they are alone."""
    table = planted({"keyword": [2], "speaker": [5]})
    many = [arguments(num_epochs=2, selected_layers=[2, 5], learning_rate=rate) for rate in (1e-2, 1e30, 1e-3)]
    first, diverged, last = fit_together(table, many)
    for result, args in ((first, many[0]), (last, many[2])):
        alone = fit(table, args)
        assert result["validation"]["accuracy"] == pytest.approx(alone["validation"]["accuracy"], abs=0.02)
    assert "training diverged in epoch 1" in diverged["diverged"]
    assert (diverged["curve"], "validation" in diverged) == ([], False)
    store = FitStore(tmp_path)
    results = fit_all([Fit(args, str(args.learning_rate)) for args in many], table, store, show_progress=False)
    assert ["diverged" in result for result in results] == [False, True, False]
    assert "diverged" in store.get(store.key(many[1], table.fingerprint))  # and is not done again


@pytest.mark.slow
def test_sets_of_layers_that_diverge_are_reported_and_never_chosen(tmp_path, monkeypatch):
    """With seed 1 layer 3 explodes, in the recursion and in the rivals; with seed 2 so does the set of layers 2 and 5."""
    table, do_fit = planted({"keyword": [2], "speaker": [5]}), runner.fit_together

    def some_diverge(table, many):
        results = []
        for args, result in zip(many, do_fit(table, many)):
            is_lost = (args.seed == 1 and 3 in args.selected_layers) or (args.seed == 2 and args.selected_layers == [2, 5])
            lost = {"settings": result["settings"], "diverged": "the training diverged in epoch 1: x.", "seconds": 0.0}
            results.append(lost if is_lost else result)
        return results

    monkeypatch.setattr(runner, "fit_together", some_diverge)
    report = search_layers(
        table,
        arguments(num_epochs=2, learning_rate=1e-2),
        tmp_path,
        seeds=3,
        rivals=["all", "greedy", "top_single"],
        sizes=[1, 2],
        show_progress=False,
    )
    assert list(report["trials"]["recursion"]) == ["0", "2"]
    assert report["seeds"] == [0, 1, 2]
    assert "all" not in report["over_rivals"]  # no pair for seed 1
    chosen = report["sets"][str(report["choice"]["best"])]
    assert 3 not in chosen
    assert chosen != [2, 5]
    lost = {(own["strategy"], own["seed"]) for own in report["diverged"]}
    assert {("recursion", 1), ("all", 1)} <= lost
    assert ("greedy", 1) not in lost  # it took others
    text = (tmp_path / "layers.md").read_text()
    assert "**Diverged, and so out of every choice:** " in text
    assert "recursion, each seed's own sets, seed 1, {0-8}" in text
    assert len(list((tmp_path / "pictures").iterdir())) == 8


def test_a_stored_fit_is_of_one_version_and_one_pytorch(tmp_path, monkeypatch):
    store, args = FitStore(tmp_path), arguments()
    keys = [store.key(args, "data")]
    monkeypatch.setattr(store_module, "FIT_VERSION", store_module.FIT_VERSION + 1)
    keys.append(store.key(args, "data"))
    monkeypatch.setattr(torch, "__version__", "0.1")
    keys.append(store.key(args, "data"))
    assert len(set(keys)) == 3


def test_a_fit_that_fails_ends_the_program_with_one_line(search_config, tmp_path, capsys):
    options = ["--seeds", "1", "--workers", "1", "--learning_rate", "1e30", "--rivals", "all", "--sizes", "1"]
    assert main([str(search_config), "--output_dir", str(tmp_path / "out"), *options]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("wavcse search layers: ")
    assert "too many fits diverged to choose layers; the first: the training diverged in epoch 1: " in line
    assert "learning_rate 1e+30" in line


@pytest.mark.parametrize("lack", ["memory", "disk"])
def test_a_table_without_room_is_refused_before_a_file_is_made(search_recipe, tmp_path, monkeypatch, lack):
    args = RunArguments(**search_recipe)
    table = read_table(args)
    if lack == "memory":
        monkeypatch.setattr(table_module, "free_memory", lambda device: 1000)
    else:
        monkeypatch.setattr(table_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    where = {"memory": "in memory", "disk": f"in {tmp_path}"}[lack]
    with pytest.raises(ValueError, match=f"96 clips x 4 layers need .* are free {where}"), table_for(args, tmp_path, 2):
        pass
    with pytest.raises(ValueError, match=f"are free {where}"), shared(table, tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layers", ["4 2", "2 1", "5 1", "4 0"])
def test_the_benchmark_refuses_sizes_that_the_recursion_cannot_be_read_from(capsys, layers):
    with pytest.raises(SystemExit, match="2"):
        bench_search.main(["--tiny", "--layers", *layers.split()])
    assert "it must go from 4 to 1" in capsys.readouterr().err


def test_the_benchmark_holds_a_way_to_products_and_bandwidth():
    config = WavCSEConfig(selected_layers=list(range(25)))
    flop, read = search_report.flop_per_clip(False, 25, config), search_report.bytes_per_clip(False, 25, config)
    assert read == 2 * 4 * 25 * 1024
    way = Way("e", "(e)", "float32", False, 2, dict.fromkeys([(part, 25) for part in PARTS]))
    seconds = {("e", part, 25): [2.0, 1.0] for part in PARTS}
    measured = Measured({"float32": [flop, 4 * flop], "bytes": [read / 3, read]}, seconds)
    assert search_report.bounds(way, 25, measured, config, 0) == pytest.approx((0.5, 1.5))  # of two processes
    assert search_report.bounds(way, 25, measured, config, 1) == pytest.approx((0.125, 0.5))
    (row,) = search_report.summarise([way], [25], measured, config, None)
    assert row["by_layers"][0]["share_of_bound"] == pytest.approx((1.5 / 2 + 0.5 / 1) / 2)
    assert row["by_layers"][0]["share_of_bandwidth_bound"] == row["by_layers"][0]["share_of_bound"]
    slow = Measured({**measured.rates, "float32": [flop / 8, flop / 8]}, seconds)  # 4 s of products
    (row,) = search_report.summarise([way], [25], slow, config, None)
    assert row["by_layers"][0]["share_of_bound"] == pytest.approx((4 / 2 + 4 / 1) / 2)
    assert row["by_layers"][0]["share_of_bandwidth_bound"] == pytest.approx((1.5 / 2 + 0.5 / 1) / 2)


@pytest.mark.kill
def test_a_search_killed_ten_times_at_random_moments_is_the_undisturbed_one(search_config, tmp_path):
    options = ["--seeds", "2", "--workers", "1", "--num_epochs", "3"]

    def check(folder):
        assert figures_of(folder) == figures_of(tmp_path / "undisturbed")
        names = [sorted(path.name for path in (place / "fits").iterdir()) for place in (tmp_path / "undisturbed", folder)]
        assert names[0] == names[1]
        assert (folder / "recipe.yaml").read_text().replace(folder.name, "") == (
            tmp_path / "undisturbed/recipe.yaml"
        ).read_text().replace("undisturbed", "")

    start = lambda folder: started(main, [str(search_config), "--output_dir", str(folder), *options])  # noqa: E731
    print(run_killed(start, tmp_path, check))
