"""Training: exact, repeatable, resumable, the same over one and two processes, and refused where the recipe is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from wavcse import WavCSEFeatureExtractor, WavCSEForMultiTask, WavCSEModel
from wavcse.data.cache import build_cache
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Manifest
from wavcse.tests.helpers.killed import launched, run_killed
from wavcse.tests.helpers.processes import Child, run_in_two_processes, run_python
from wavcse.train_accelerate import main, train
from wavcse.training.arguments import TRAIN, RunArguments
from wavcse.training.features import epoch_order
from wavcse.training.heads import MultiTaskNetwork, model_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cache_dir(toy_corpus, upstream_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("caches")
    build_cache([toy_corpus], str(upstream_folder), out)
    return out


@pytest.fixture(scope="module")
def recipe(toy_corpus, upstream_folder, cache_dir):
    """Fields of a small run: keywords and speakers of the toy corpus, four epochs of several batches."""
    return {
        "tasks": {
            "keyword": {
                "manifest": str(toy_corpus),
                "label_column": "keyword",
                "split_column": "split_ks",
                "disjoint_by": "speaker_id",
            },
            "speaker": {"manifest": str(toy_corpus), "label_column": "speaker_id", "split_column": "split_sid"},
        },
        "cache_dir": str(cache_dir),
        "upstream": str(upstream_folder),
        "selected_layers": [0, 1, 3],
        "layer_projection_size": 24,
        "embedding_size": 40,
        "batch_size": 16,
        "num_epochs": 4,
        "checkpoint_every_s": 0.0,
    }


def run(recipe, folder, **changes):
    return train(RunArguments(**{**recipe, "output_dir": str(folder), **changes}))


def log_of(folder, *volatile):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in ("seconds", "clips_per_s")} for entry in entries]


def assert_same_run(first, second):
    assert log_of(first) == log_of(second)
    tensors = [load_file(folder / "checkpoints/last/tensors.safetensors") for folder in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.fixture(scope="module")
def other_upstream(tiny_upstream, upstream_folder, tmp_path_factory):
    """The shape of `upstream_folder` with other weights."""
    folder = shutil.copytree(upstream_folder, tmp_path_factory.mktemp("other") / "upstream")
    upstream = tiny_upstream(num_hidden_layers=3)
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.mul_(1.5)
    upstream.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return folder, run(recipe, folder)


def test_both_tasks_are_learnt(recipe, tmp_path):
    result = run(recipe, tmp_path / "run", num_epochs=60, layer_dropout=0.0, embedding_dropout=0.0, scheduler_patience=10)
    assert result["tasks"]["keyword"]["accuracy"]["test"] > 0.8  # chance 1/3
    assert result["tasks"]["speaker"]["accuracy"]["test"] > 0.4  # chance 1/4
    assert result["tasks"]["keyword"]["num_clips"] == {"train": 24, "validation": 12, "test": 12}


def test_the_result_names_the_protocol_of_the_manifests(recipe, toy_corpus, tmp_path):
    table = pd.read_csv(toy_corpus, dtype=str, keep_default_na=False)
    absolute = [str(toy_corpus.parent / name) for name in table["file_name"]]
    table.assign(file_name=absolute, protocol="wavcse-paper").to_csv(tmp_path / "named.csv", index=False)
    tasks = {name: {**task, "manifest": str(tmp_path / "named.csv")} for name, task in recipe["tasks"].items()}
    result = run(recipe, tmp_path / "run", tasks=tasks, num_epochs=1, save_hub=False)
    assert [task["protocol"] for task in result["tasks"].values()] == ["wavcse-paper"] * 2


def test_same_seed_same_figures_to_the_bit(recipe, undisturbed, tmp_path):
    folder, result = undisturbed
    again = run(recipe, tmp_path / "again")
    assert_same_run(folder, tmp_path / "again")
    assert again["tasks"] == result["tasks"]
    run(recipe, tmp_path / "other", seed=1)
    assert log_of(tmp_path / "other") != log_of(folder)


def test_stopped_and_continued_is_not_stopped(recipe, undisturbed, tmp_path):
    run(recipe, tmp_path / "run", num_epochs=2)
    assert len(log_of(tmp_path / "run")) == 2
    run(recipe, tmp_path / "run")
    assert_same_run(undisturbed[0], tmp_path / "run")


def test_killed_in_the_middle_and_continued_is_not_stopped(recipe, undisturbed, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(folder)}))
    slow = (
        "import sys, time; from wavcse import train_accelerate as t\n"
        "step = t.train_step; t.train_step = lambda *a: (time.sleep(0.1), step(*a))[1]\nt.main(sys.argv[1:])"
    )
    log = folder / "log.jsonl"
    Child("-c", slow, tmp_path / "recipe.yaml").kill_when(lambda: log.exists() and len(log.read_text().splitlines()) >= 2)
    assert 2 <= len(log_of(folder)) < 4
    run(recipe, folder)
    assert_same_run(undisturbed[0], folder)


def test_a_line_that_a_kill_cut_off_is_dropped(recipe, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"epoch": 5, "train_lo')
    run(recipe, folder)
    assert_same_run(undisturbed[0], folder)


def test_one_and_two_processes_have_the_same_loss_curve(recipe, tmp_path):
    changes = {"layer_dropout": 0.0, "embedding_dropout": 0.0}  # each process draws its own dropout
    run(recipe, tmp_path / "one", **changes)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    command = (ROOT / "train_accelerate.py", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "two")
    for done in run_in_two_processes(*command):
        assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / name / "results/phase1.json").read_text()) for name in ("one", "two")]
    assert [result["num_processes"] for result in results] == [1, 2]
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two):
        assert b["train_loss"] == pytest.approx(a["train_loss"], abs=1e-4)
        assert b["validation"]["loss"] == pytest.approx(a["validation"]["loss"], abs=1e-4)


def test_accelerate_launch_runs_the_script(recipe, undisturbed, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(ROOT / "train_accelerate.py")]
    done = subprocess.run(
        [*launch, str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run"), "--num_epochs", "1"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert log_of(tmp_path / "run") == log_of(undisturbed[0])[:1]
    assert "accuracy of epoch 1, the best on validation of 1" in done.stdout


def test_features_from_disk_and_from_memory_give_the_same_run(recipe, undisturbed, tmp_path):
    run(recipe, tmp_path / "disk", features_in="disk")
    assert_same_run(undisturbed[0], tmp_path / "disk")


def test_the_hub_folder_is_the_trained_network_on_its_upstream(recipe, undisturbed, toy_corpus):
    folder, result = undisturbed
    model = WavCSEForMultiTask.from_pretrained(folder / "hub").eval()
    assert model.config.tasks["keyword"]["labels"] == ["word0", "word1", "word2"]
    feature_extractor = WavCSEFeatureExtractor.from_pretrained(folder / "hub")
    manifest = Manifest(toy_corpus)
    test_rows = np.flatnonzero(manifest.split("split_ks") == "test")
    clips = [manifest.clips[row].load(16_000) for row in test_rows]
    with torch.no_grad():
        logits = model(**feature_extractor(clips, sampling_rate=16_000, return_tensors="pt")).logits["keyword"]
    predicted = [model.config.tasks["keyword"]["labels"][i] for i in logits.argmax(dim=1)]
    accuracy = np.mean(np.array(predicted) == manifest.column("keyword")[test_rows])
    assert accuracy == pytest.approx(result["tasks"]["keyword"]["accuracy"]["test"])


def test_the_first_step_is_the_hand_written_one(recipe, undisturbed, cache_dir):
    """One AdamW step on the paper's loss, written out, gives the weights after an epoch of one batch."""
    from wavcse.data.composite import load_composite
    from wavcse.data.features import open_cache
    from wavcse.training.features import cached_digests

    args = RunArguments(
        **{**recipe, "batch_size": 1000, "num_epochs": 1, "layer_dropout": 0.0, "embedding_dropout": 0.0, "save_hub": False},
        output_dir=str(undisturbed[0].parent / "step"),
    )
    train(args)
    trained = load_file(undisturbed[0].parent / "step/checkpoints/last/tensors.safetensors")

    cache, composite = open_cache(cache_dir), load_composite(args.task_sources())
    torch.manual_seed(args.seed)
    network = MultiTaskNetwork(model_config(args, cache.key.upstream_config, composite.classes))
    rows = composite.rows("train")
    features = torch.from_numpy(cache.read(cached_digests(cache, composite), args.selected_layers))[rows]
    logits = network(features)
    loss = 0.0
    for task, targets in composite.targets["train"].items():
        labels = torch.from_numpy(targets)[rows]
        log_probabilities = logits[task].log_softmax(dim=1)[labels >= 0]
        loss = loss - log_probabilities[torch.arange(len(log_probabilities)), labels[labels >= 0]].mean() / 2
    for parameter in network.parameters():
        loss = loss + 1e-7 * parameter.abs().sum() + 1e-5 * parameter.pow(2).sum()
    loss.backward()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2.5e-3, weight_decay=5e-8)
    optimizer.step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(trained[f"model.{name}"], parameter.detach(), atol=2e-5, rtol=0)


def test_the_model_pools_over_time_as_the_cache_did(recipe, toy_corpus, upstream_folder, tmp_path):
    """From the cache of means and standard deviations to the Hub folder, whose embedding comes from the audio again."""
    cache, _ = build_cache([toy_corpus], str(upstream_folder), tmp_path / "cache", temporal_pooling="mean_std")
    run(recipe, tmp_path / "run", cache_dir=str(tmp_path / "cache"), num_epochs=1)
    model = WavCSEModel.from_pretrained(tmp_path / "run/hub")
    assert model.config.temporal_pooling == "mean_std"
    assert model.downstream.layer_projection.weight.shape == (24, 64)
    clip = Manifest(toy_corpus).clips[0]
    (fact,) = Inspector(tmp_path / "cache").inspect([clip], save=False)
    with torch.no_grad():
        expected = model.downstream(torch.from_numpy(cache.read([fact.digest], [0, 1, 3])))[0].numpy()
    np.testing.assert_allclose(model.encode(clip.load(16_000)), expected, atol=1e-4 * np.abs(expected).max())


def test_the_checkpoint_is_chosen_by_the_mean_of_the_validation_accuracies(undisturbed):
    folder, result = undisturbed
    means = [entry["validation"]["mean_accuracy"] for entry in log_of(folder)]
    assert result["best_epoch"] == 1 + int(np.argmax(means))
    assert result["mean_accuracy"]["validation"] == pytest.approx(max(means))
    accuracy = [task["accuracy"]["test"] for task in result["tasks"].values()]
    assert result["mean_accuracy"]["test"] == pytest.approx(sum(accuracy) / 2)


def test_the_run_folder_holds_no_pickle_and_no_absolute_secret(undisturbed):
    names = {path.name for path in undisturbed[0].rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth"))]
    assert {"config.yaml", "log.jsonl", "phase1.json", "model.safetensors", "README.md"} <= names


def test_a_tracker_receives_the_figures(recipe, tmp_path):
    run(recipe, tmp_path / "run", num_epochs=1, report_to="tensorboard", save_hub=False)
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_bfloat16_stays_close_to_float32(recipe, undisturbed, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "run"), "num_epochs": 1}))
    done = run_python(ROOT / "train_accelerate.py", tmp_path / "recipe.yaml", "--mixed_precision", "bf16")
    assert done.returncode == 0, done.stderr
    exact, half = log_of(undisturbed[0])[0]["validation"]["loss"], log_of(tmp_path / "run")[0]["validation"]["loss"]
    assert exact != half
    assert half == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(("num_clips", "drop_last", "expected"), [(10, True, 8), (10, False, 10), (3, True, 3), (8, True, 8)])
def test_an_epoch_shuffles_every_clip_once_and_differs_from_the_next(num_clips, drop_last, expected):
    order = epoch_order(num_clips, seed=0, epoch=1, batch_size=4, drop_last=drop_last).tolist()
    assert len(order) == len(set(order)) == expected
    assert order == epoch_order(num_clips, 0, 1, 4, drop_last).tolist()
    if num_clips == 10:
        assert order != epoch_order(num_clips, 0, 2, 4, drop_last).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"l1": -1.0}, "l1 is -1.0"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; allowed: no, bf16"),
        ({"upstream": None}, "upstream is not given"),
        ({"tasks": "{not json"}, "tasks is '{not json'; a mapping is needed"),
        ({"tasks": {"keyword": {"label_column": "keyword"}}}, "tasks.keyword: 'manifest' is missing"),
        ({"tasks": {"keyword": {"manifest": "m", "label_column": "k", "labels": "x"}}}, r"unknown fields \['labels'\]"),
        ({"selected_layers": [0, 9]}, "selected_layers asks for layer 9, but the upstream .* has layers 0 to 3"),
        ({"pooling_type": "median"}, "pooling_type is 'median'; allowed: 'weighted_average'"),
        ({"cache_dir": "nowhere"}, "nowhere: holds no feature cache"),
        ({"upstream": "OTHER"}, "is not the one that made the cache .*: it gives other numbers for"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(recipe, other_upstream, tmp_path, changes, message):
    if changes.get("upstream") == "OTHER":
        changes = {"upstream": str(other_upstream)}
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_another_recipe_in_the_same_folder_is_refused_and_keeps_the_run(recipe, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run with other settings \(learning_rate\)"):
        run(recipe, folder, learning_rate=1e-3)
    assert_same_run(undisturbed[0], folder)
    run(recipe, folder, learning_rate=1e-3, overwrite_output_dir=True, num_epochs=1)
    assert len(log_of(folder)) == 1


def test_a_run_is_not_continued_on_other_labels(recipe, undisturbed, toy_corpus, tmp_path, capsys):
    table = pd.read_csv(toy_corpus, dtype=str, keep_default_na=False)
    table["file_name"] = [str(toy_corpus.parent / name) for name in table["file_name"]]
    manifest, folder = tmp_path / "manifest.csv", tmp_path / "run"
    tasks = {name: {**task, "manifest": str(manifest)} for name, task in recipe["tasks"].items()}
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({**recipe, "tasks": tasks, "output_dir": str(folder), "save_hub": False})
    )
    table.to_csv(manifest, index=False)
    assert main([str(tmp_path / "recipe.yaml"), "--num_epochs", "2"]) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    is_train = table["split_ks"] == "train"
    labels = table["keyword"].copy()
    labels[is_train] = np.roll(labels[is_train], 1)
    table.assign(keyword=labels).to_csv(manifest, index=False)
    capsys.readouterr()
    for num_epochs in ("2", "4"):  # finished, half-finished
        assert main([str(tmp_path / "recipe.yaml"), "--num_epochs", num_epochs]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "the clips or labels of keyword, speaker" in line
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    table.to_csv(manifest, index=False)
    assert main([str(tmp_path / "recipe.yaml")]) == 0
    assert_same_run(undisturbed[0], folder)


def test_a_run_that_does_not_name_its_data_is_continued_only_without_a_checkpoint(recipe, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    (folder / "data.json").unlink()
    with pytest.raises(ValueError, match="have changed since this run"):
        run(recipe, folder)
    shutil.rmtree(folder / "checkpoints")
    run(recipe, folder)
    assert_same_run(undisturbed[0], folder)


def test_clips_that_are_not_cached_are_counted(recipe, toy_corpus, tmp_path):
    corpus = shutil.copytree(toy_corpus.parent, tmp_path / "corpus")
    for name in ("000.flac", "032.flac"):
        shutil.copyfile(corpus / "095.flac", corpus / name)
        with open(corpus / name, "ab") as file:
            file.write(b"\0")
    tasks = {"speaker": {**recipe["tasks"]["speaker"], "manifest": str(corpus / "metadata.csv")}}
    with pytest.raises(ValueError, match="2 of 48 clips are not in the feature cache"):
        run(recipe, tmp_path / "run", tasks=tasks)


def test_command_line_overrides_the_recipe_and_explains_mistakes(recipe, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    args = TRAIN.parse([str(path), "--num_epochs", "7", "--selected_layers", "2", "1", "--drop_last", "false"])
    assert (args.num_epochs, args.selected_layers, args.drop_last) == (7, [2, 1], False)
    assert args.tasks == recipe["tasks"]
    assert args.learning_rate == 2.5e-3
    path.write_text(yaml.safe_dump({**recipe, "learning_rat": 1}))
    assert main([str(path)]) == 2
    assert "unknown fields ['learning_rat']" in capsys.readouterr().err
    assert main(["none.yaml"]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.kill
def test_killed_ten_times_under_accelerate_launch_is_not_stopped(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "num_epochs": 40}))
    slow = (
        "import sys, time; from wavcse import train_accelerate as t\n"
        "step = t.train_step; t.train_step = lambda *a: (time.sleep(0.05), step(*a))[1]\nsys.exit(t.main(sys.argv[1:]))"
    )
    (tmp_path / "train.py").write_text(slow)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(tmp_path / "train.py"), str(tmp_path / "recipe.yaml")]

    def check(folder):
        assert_same_run(tmp_path / "undisturbed", folder)
        weights = [load_file(place / "hub/model.safetensors") for place in (tmp_path / "undisturbed", folder)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert not list(folder.rglob("*.partial"))

    print(run_killed(lambda folder: launched([*launch, "--output_dir", str(folder)]), tmp_path, check))
