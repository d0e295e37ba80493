"""Searching hyper-parameters: the optimum is found on validation alone, a killed search goes on, workers share a study."""

from __future__ import annotations

import errno
import json
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml

import wavcse_cli
from wavcse.search import runner, study
from wavcse.search.__main__ import PROGRAMS
from wavcse.search.fit import settings_of
from wavcse.search.hparams import main, search_hparams
from wavcse.search.runner import FitError
from wavcse.search.store import FitStore
from wavcse.search.study import (
    StudyObjective,
    database_errors,
    finished,
    open_study,
    requeue_lost,
    search_space,
    set_damaged_database_aside,
)
from wavcse.search.table import read_table
from wavcse.tests.helpers.processes import FORKSERVER, Child
from wavcse.train_accelerate import train
from wavcse.training.arguments import TRAIN, RunArguments

GRID = ["--batch_sizes", "8", "16", "--learning_rates", "2.5e-3", "1e-2"]


def planted_fit(table, many, after_epoch=None) -> list[dict]:
    """In place of training: validation is best at l2 = 1e-3, no dropout before the heads, batch size 16; test is its opposite.

    The curve rises to its value, so that a pruner can see early what a setting is worth.
    """
    results = []
    for args in many:
        loss = 0.1 * (math.log10(args.l2) + 3) ** 2 + args.embedding_dropout + 0.1 * abs(math.log2(args.batch_size / 16))
        value = 1 / (1 + loss) + 0.001 * args.seed
        curve = [value * epoch / args.num_epochs for epoch in range(1, args.num_epochs + 1)]
        for epoch, accuracy in enumerate(curve, start=1):
            if after_epoch is not None:
                after_epoch(epoch, [accuracy])
        figures = {
            split: {"accuracy": {"keyword": own, "speaker": own}, "mean_accuracy": own}
            for split, own in (("validation", value), ("test", 1 - value))
        }
        results.append({"settings": settings_of(args), "curve": curve, **figures})
    return results


@pytest.fixture
def planted(monkeypatch):
    for module in (runner, study):
        monkeypatch.setattr(module, "fit_together", planted_fit)


@pytest.mark.slow
def test_the_optimum_is_found_and_the_test_clips_have_no_say(planted, search_recipe, tmp_path):
    args = RunArguments(**search_recipe)
    report = search_hparams(read_table(args), args, tmp_path, trials=30, seeds=2, batch_sizes=[8, 16, 32], show_progress=False)
    assert report["settings"]["batch_size"] == 16
    assert [own["batch_size"] for own in report["grid"]] == [size for size in (8, 16, 32) for _ in range(3)]
    best, recipe = report["best"], report["recipe"]
    assert recipe["params"] == {name: getattr(args, name) for name in report["ranges"]}
    assert recipe["validation"]["mean"] == pytest.approx(1 / (1 + 0.1 * 4 + 0.6) + 0.0005)
    assert best["validation"]["mean"] > recipe["validation"]["mean"] + 0.2  # of 0.5 that can be gained
    assert best["test"]["mean"] < recipe["test"]["mean"]
    complete = [trial for trial in report["trials"] if trial["state"] == "complete"]
    assert best["validation"]["mean"] == pytest.approx(max(trial["value"] for trial in complete))
    assert report["gain"]["validation"]["mean"] == pytest.approx(best["validation"]["mean"] - recipe["validation"]["mean"])
    pruned = [trial for trial in report["trials"] if trial["state"] == "pruned"]
    assert len(pruned) + len(complete) == len(report["trials"]) == 30
    assert pruned
    assert max(trial["reached"] for trial in pruned) < best["validation"]["mean"]
    assert all(trial["steps"] < 2 * args.num_epochs for trial in pruned)


def test_importance_goes_to_what_decides(search_recipe):
    space, own = search_space(RunArguments(**search_recipe)), optuna.create_study(direction="maximize")
    generator = np.random.default_rng(0)
    for _ in range(40):
        params = {
            name: at.to_external_repr(
                np.exp(generator.uniform(*np.log([at.low, at.high]))) if at.log else generator.random() * at.high
            )
            for name, at in space.items()
        }
        value = math.log10(params["l2"]) + params["layer_dropout"]  # a range of 6 beside one of 0.8
        own.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
    shares = study.importances(own.trials, seed=0)
    assert next(iter(shares)) == "l2"
    assert shares["l2"] > 0.7
    assert sum(shares.values()) == pytest.approx(1)
    assert study.importances([], seed=0) is None


@pytest.mark.slow
def test_a_continued_search_does_what_a_long_one_does(planted, search_recipe, tmp_path, monkeypatch):
    fitted = []

    def counting(table, many, after_epoch=None):
        results = planted_fit(table, many, after_epoch)
        fitted.extend(json.dumps(result["settings"], sort_keys=True) for result in results)
        return results

    for module in (runner, study):
        monkeypatch.setattr(module, "fit_together", counting)
    args = RunArguments(**search_recipe)
    table = read_table(args)
    long = search_hparams(table, args, tmp_path / "long", trials=12, seeds=2, show_progress=False)
    count = len(fitted)
    assert len(set(fitted)) == count  # the recipe is a point of the grid too
    for trials in (5, 12, 12):
        parts = search_hparams(table, args, tmp_path / "parts", trials=trials, seeds=2, show_progress=False)
    assert parts == long
    assert len(fitted) == 2 * count
    again = search_hparams(table, args, tmp_path / "parts", trials=5, seeds=2, show_progress=False)
    assert again["trials"] == long["trials"][:5]
    other = search_hparams(table, args, tmp_path / "parts", trials=1, seeds=1, show_progress=False)
    assert len(other["trials"]) == 1  # another number of seeds is another study in the same file


def test_only_trials_whose_process_is_gone_are_queued_again(search_recipe, tmp_path):
    args = RunArguments(**search_recipe)
    own = open_study(StudyObjective(args, 1, tmp_path / "hparams.sqlite", "a"))
    space = search_space(args)
    lost, running, empty = own.ask(space), own.ask(space), own.ask()
    process = study.psutil.Process()
    running.set_user_attr("process", [process.pid, process.create_time()])
    lost.set_user_attr("process", [process.pid, process.create_time() - 1])  # the number of a process is used again
    assert requeue_lost(own, args) == 2
    states = {trial.number: trial.state.name for trial in own.trials}
    assert states == {lost.number: "FAIL", running.number: "RUNNING", empty.number: "FAIL", 3: "WAITING"}
    assert own.ask(space).params == lost.params == {name: getattr(args, name) for name in space}


def test_the_recipe_is_found_wherever_a_kill_left_it_and_is_never_pruned(planted, search_recipe, tmp_path):
    """A kill with several workers: others finished, the recipe's own trial, far the worst, did not."""
    args = RunArguments(**{**search_recipe, "l1": 0.0, "l2": 1e2, "embedding_dropout": 0.9})
    grid = {"batch_sizes": [16], "learning_rates": [args.learning_rate]}
    table, store, path = read_table(args), FitStore(tmp_path / "fits"), tmp_path / "hparams.sqlite"
    objective = StudyObjective(args, 1, path, f"{store.key(args, table.fingerprint)}-1")
    own, space = open_study(objective), search_space(args)
    lost = own.ask(space)
    good = {name: getattr(args, name) for name in space} | {"l1": 1e-7, "embedding_dropout": 0.1}
    for l2 in np.logspace(-1, 1, 6):
        own.enqueue_trial({**good, "l2": float(l2)})
        study.run_trial(own, 0, table, store, objective)
    report = search_hparams(table, args, tmp_path, trials=4, seeds=1, **grid, show_progress=False)
    first = report["trials"][0]
    assert first["params"] == report["recipe"]["params"] == lost.params
    assert (first["params"]["l1"], first["params"]["l2"], first["state"]) == (space["l1"].low, args.l2, "complete")
    assert first["value"] == report["recipe"]["validation"]["mean"] < report["best"]["validation"]["mean"]
    assert len(report["trials"]) == 4
    assert report["importances"] is None or set(report["importances"]) == set(space)
    assert "The recipe has 0 for `l1`;" in (tmp_path / "hparams.md").read_text()


def figures_of(folder: Path) -> dict:
    return json.loads((folder / "results/hparams.json").read_text())


def num_trials(path: Path, *states: str) -> int:
    """How many trials of a study's database are in one of the states."""
    if not path.exists():
        return 0
    query = f"select count(*) from trials where state in ({', '.join('?' * len(states))})"
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        try:
            return connection.execute(query, states).fetchone()[0]
        except sqlite3.OperationalError:  # the table is not there yet
            return 0


STOP_IN_THE_FOURTH_TRIAL = """
import sys, time
from pathlib import Path
from wavcse.search import hparams, study
from wavcse.tests.search.test_hparams import num_trials
storage, *arguments = sys.argv[1:]
do = study.fit_together
def fit_together(*given):
    if num_trials(Path(storage), "COMPLETE", "PRUNED") == 3:
        time.sleep(600)
    return do(*given)
study.fit_together = fit_together
hparams.main(arguments)
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_and_loses_no_trial(search_config, tmp_path, capsys):
    options = ["--seeds", "2", "--trials", "7", "--workers", "1", *GRID]
    assert main([str(search_config), "--output_dir", str(tmp_path / "whole"), *options]) == 0
    assert "## The best trials" in capsys.readouterr().out
    killed = tmp_path / "killed"
    database = killed / "hparams.sqlite"
    child = Child("-c", STOP_IN_THE_FOURTH_TRIAL, database, search_config, "--output_dir", killed, *options)
    child.kill_when(lambda: num_trials(database, "COMPLETE", "PRUNED") == 3 and num_trials(database, "RUNNING") == 1, 0.05)
    fits = {path: path.stat().st_mtime_ns for path in (killed / "fits").glob("*.json")}
    storage = f"sqlite:///{killed / 'hparams.sqlite'}"
    (name,) = optuna.get_all_study_names(storage)
    before = finished(optuna.load_study(study_name=name, storage=storage))
    assert main([str(search_config), "--output_dir", str(killed), *options]) == 0
    after = optuna.load_study(study_name=name, storage=storage)
    assert finished(after)[: len(before)] == before
    assert [trial.state.name for trial in after.trials].count("FAIL") == 1
    assert {path: path.stat().st_mtime_ns for path in fits} == fits
    assert figures_of(killed) == figures_of(tmp_path / "whole")


@pytest.mark.usefixtures("real_pictures")
def test_values_are_those_of_the_fits_and_the_recipe_trains(search_config, tmp_path):
    out = tmp_path / "out"
    options = ["--trials", "5", "--seeds", "2", "--workers", "1", *GRID, "--num_epochs", "2", "--layer_dropout", "0"]
    assert main([str(search_config), "--output_dir", str(out), *options]) == 0
    report, args = figures_of(out), TRAIN.parse([str(out / "recipe.yaml")])
    store, table = FitStore(out / "fits"), read_table(args)
    for split in ("validation", "test"):
        fits = [store.get(store.key(study.replace(args, seed=seed), table.fingerprint)) for seed in (0, 1)]
        assert report["best"][split]["mean"] == pytest.approx(np.mean([fit[split]["mean_accuracy"] for fit in fits]))
    best = report["trials"][report["best"]["number"]]
    assert best["value"] == pytest.approx(report["best"]["validation"]["mean"])
    point = max(report["grid"], key=lambda own: own["validation"]["mean"])
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert {name: written[name] for name in best["params"]} == best["params"]
    assert (written["batch_size"], written["learning_rate"]) == (point["batch_size"], point["learning_rate"])
    assert train(args)["mean_accuracy"]["validation"] == report["best"]["validation"]["values"][0]
    text = (out / "hparams.md").read_text()
    for name in ("grid", "history", "slices", *(["importances"] if report["importances"] else [])):
        assert f"(pictures/{name}.png)" in text
        assert (out / f"pictures/{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (out / f"pictures/{name}.svg").read_text()[:2000]


@pytest.mark.slow
def test_workers_share_a_study(search_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "get_context", lambda method: FORKSERVER)  # test_search.py starts workers as users do
    args, own = RunArguments(**search_recipe), {"seeds": 1, "batch_sizes": [16], "learning_rates": [2.5e-3]}
    search_hparams(read_table(args), args, tmp_path, trials=1, **own, show_progress=False)
    report = search_hparams(read_table(args), args, tmp_path, trials=6, workers=2, **own, show_progress=False)
    assert len(report["trials"]) == 6
    assert len({json.dumps(trial["params"]) for trial in report["trials"]}) == 6
    assert report["trials"][0]["params"]["embedding_size"] == args.embedding_size
    assert not list((tmp_path / "fits").glob("*.f32"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials", "0"], "trials is 0"),
        (["--seeds", "0"], "seeds is 0"),
        (["--workers", "0"], "workers is 0"),
        (["--batch_sizes", "0", "8"], "batch_sizes is 0; it must be at least 1"),
        (["--learning_rates", "-1"], "learning_rates is -1.0; it must be above 0"),
        (["--layer_dropout", "1.5"], "layer_dropout is 1.5"),
    ],
)
def test_bad_options_are_refused_in_one_line(search_config, tmp_path, capsys, options, message):
    assert main([str(search_config), "--output_dir", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out/fits/*"))


def test_the_console_script_reaches_every_search(search_config, tmp_path, capsys):
    for program in set(PROGRAMS) - {"phase1", "transfer"}:
        assert wavcse_cli.main(["search", program, str(search_config), "--output_dir", str(tmp_path), "--seeds", "0"]) == 2
        assert f"wavcse search {program}: seeds is 0" in capsys.readouterr().err
    for program in ("phase1", "transfer"):  # which read a file of their own
        assert wavcse_cli.main(["search", program, str(tmp_path / "missing.yaml")]) == 2
        assert f"wavcse search {program}: " in capsys.readouterr().err


def test_a_grid_may_hold_learning_rates_that_diverge(search_recipe, tmp_path):
    args = RunArguments(**{**search_recipe, "num_epochs": 2})
    table = read_table(args)
    rates, ways = [args.learning_rate, 1e30], {"batch_sizes": [16], "seeds": 1, "show_progress": False}
    report = search_hparams(table, args, tmp_path, trials=1, learning_rates=rates, **ways)
    assert report["settings"]["learning_rate"] == args.learning_rate
    assert ["diverged" in point for point in report["grid"]] == [False, True]
    text = (tmp_path / "hparams.md").read_text()
    assert "| 16 | **" in text
    assert "| diverged |" in text
    assert "Points that diverged are out of the choice; the first: the training diverged in epoch 1: " in text
    assert (tmp_path / "pictures" / "grid.svg").exists()
    with pytest.raises(FitError, match="every point of the grid diverged; the first: the training diverged in epoch 1"):
        search_hparams(table, args, tmp_path / "all", trials=1, learning_rates=[1e30], **ways)


def test_a_stored_fit_that_diverged_prunes_its_trial_again(search_recipe, tmp_path):
    """The same settings in a study of its own: the fit is not repeated, and the trial tells what it told."""
    args = RunArguments(**{**search_recipe, "num_epochs": 2, "learning_rate": 1e30})
    table, store = read_table(args), FitStore(tmp_path / "fits")
    for name in ("first", "second"):
        objective = study.StudyObjective(args, 2, tmp_path / "study.db", name)
        own = study.open_study(objective)
        with pytest.raises(FitError, match="diverged in epoch 1"):
            study.run_trial(own, 0, table, store, objective)
        (trial,) = study.finished(own)
        assert (trial.state.name, trial.intermediate_values) == ("PRUNED", {0: 0.0})
        assert len(list((tmp_path / "fits").iterdir())) == 1  # one seed is enough


def test_a_damaged_database_is_set_aside_and_a_full_disk_names_it(tmp_path, capsys):
    path = tmp_path / "hparams.sqlite"
    objective = StudyObjective(RunArguments(save_hub=False), 1, path, "a")
    open_study(objective)
    set_damaged_database_aside(path)
    assert path.exists()
    assert capsys.readouterr().err == ""
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(4096)
    path.write_bytes(content)
    set_damaged_database_aside(path)
    assert f"{path}: is damaged" in capsys.readouterr().err
    assert [own.name for own in tmp_path.iterdir()] == ["hparams.sqlite.damaged"]
    path.write_text("no database at all")
    with pytest.raises(OSError, match="file is not a database") as other, database_errors(path):
        open_study(objective)
    assert other.value.filename == str(path)
    full = sqlite3.OperationalError("database or disk is full")  # as Optuna hands it on
    with pytest.raises(OSError) as error, database_errors(path):
        raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from full
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
