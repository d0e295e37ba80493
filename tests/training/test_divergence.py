"""A training whose loss or weights are not finite stops with words, is never the best, and leaves no model."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from wavcse.data.files import json_text, read_json, write_json
from wavcse.eval.probe import AbsoluteErrorObjective, ClassObjective, LabelledEmbeddings, ProbeSettings, fit_probe
from wavcse.eval.report import write_report
from wavcse.eval.results import Result, read_results, write_result
from wavcse.hub.figures import figures_of
from wavcse.tests.helpers.evaluation_folder import make_folder
from wavcse.tests.helpers.processes import run_in_two_processes
from wavcse.train_accelerate import main, train
from wavcse.training.arguments import RunArguments

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(search_recipe):
    """Two tasks on a cache of a small upstream, two epochs; a Hub folder is asked for."""
    return {**search_recipe, "num_epochs": 2, "save_hub": True, "checkpoint_every_s": 0.0}


def strict(text: str) -> dict:
    """JSON as the standard has it, without NaN and Infinity."""

    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def run_main(recipe, folder, capsys, **changes) -> tuple[int, str]:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(folder), **changes}))
    code = main([str(path)])
    return code, capsys.readouterr().err.splitlines()[-1]


def test_a_training_that_diverges_stops_with_task_epoch_loss_and_what_to_try(recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    code, line = run_main(recipe, folder, capsys, learning_rate=1e30)
    assert code == 2
    assert "the training diverged in epoch 1: the " in line
    assert "loss of keyword is nan" in line or "loss of keyword is inf" in line
    assert "Try a smaller learning_rate (1e+30 here), l1 (1e-07) or l2 (1e-05)." in line
    assert "another --out, or --overwrite." in line
    assert not (folder / "hub").exists()
    assert not list((folder / "results").iterdir())
    assert not (folder / "checkpoints" / "last").exists()
    assert [strict(entry) for entry in (folder / "log.jsonl").read_text().splitlines()] == []
    assert run_main(recipe, folder, capsys, overwrite_output_dir=True)[0] == 0  # what the message says to do
    entries = [strict(entry) for entry in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2]


def test_penalties_that_diverge_are_named(recipe, tmp_path, capsys):
    code, line = run_main(recipe, tmp_path / "run", capsys, l2=1e38, num_epochs=1)
    assert code == 2
    assert "diverged in epoch 1: the penalties of the weights are inf" in line
    assert "l2 (1e+38)" in line


def test_weights_that_diverged_under_an_older_version_are_not_published(recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    train(RunArguments(**recipe, output_dir=str(folder)))
    tensors_path = folder / "checkpoints/last/tensors.safetensors"
    tensors = load_file(tensors_path)
    name = next(name for name in tensors if name.startswith("best."))
    tensors[name].view(-1)[0] = math.nan
    before = (folder / "hub" / "model.safetensors").stat().st_mtime_ns
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"epoch": 3, "train_loss": {"keyword": NaN}, "validation": {"loss": Infinity}}\n')
    save_file(tensors, tensors_path)
    state_path = tensors_path.with_name("state.json")
    state = json.loads(state_path.read_text())
    state_path.write_text(json.dumps({name: state[name] for name in ("state", "scheduler", "groups")}))  # no checksums then
    code, line = run_main(recipe, folder, capsys)
    assert code == 2
    assert str(folder / "checkpoints/last") in line
    assert (folder / "hub" / "model.safetensors").stat().st_mtime_ns == before


def test_an_old_log_with_nan_is_read_and_written_as_json(recipe, tmp_path):
    folder = tmp_path / "run"
    settings = {**recipe, "output_dir": str(folder), "save_hub": False}
    train(RunArguments(**settings))
    lines = (folder / "log.jsonl").read_text().splitlines()
    entry = strict(lines[0])
    entry["train_loss"]["keyword"] = math.nan
    (folder / "log.jsonl").write_text(json.dumps(entry) + "\n" + lines[1] + "\n")
    train(RunArguments(**{**settings, "num_epochs": 3}))
    entries = [strict(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [own["epoch"] for own in entries] == [1, 2, 3]
    assert entries[0]["train_loss"]["keyword"] is None


def test_a_finite_training_that_learns_nothing_says_so(recipe, tmp_path, capsys):
    folder = tmp_path / "run"
    result = train(RunArguments(**{**recipe, "output_dir": str(folder), "save_hub": False, "learning_rate": 1e-12, "l2": 0.0}))
    shown = capsys.readouterr().out
    warned = [words.partition(":")[0] for words in result["warnings"]]
    assert warned
    assert all(f"warning: {words}" in shown for words in result["warnings"])
    assert "accuracy on the training clips is no better than chance (" in result["warnings"][0]
    assert "learning_rate (1e-12 here)" in result["warnings"][0]
    assert strict((folder / "results/phase1.json").read_text())["warnings"] == result["warnings"]


TWO_PROCESSES = """
import sys
import torch
from wavcse import train_accelerate
from wavcse.training import heads

do = heads.evaluate

def evaluate(accelerator, learner, split):
    if accelerator.process_index == 1:
        with torch.no_grad():
            next(learner.network.parameters()).fill_(float("nan"))
    return do(accelerator, learner, split)

heads.evaluate = evaluate
code = train_accelerate.main(sys.argv[1:])
print(f"ended with {code}\\n", end="", flush=True)
"""


def test_processes_stop_together_where_one_of_them_diverges(recipe, tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "run"), "save_hub": False}))
    first, _ = run_in_two_processes(tmp_path / "script.py", tmp_path / "recipe.yaml")
    # The first process speaks. Its own figures are finite: the reason is the other's.
    assert "ended with 2" in first.stdout, first.stderr
    assert "diverged in epoch 1: the validation loss of keyword is nan" in first.stderr
    assert not list((tmp_path / "run" / "results").iterdir())


def clusters(seed: int = 0) -> tuple[LabelledEmbeddings, LabelledEmbeddings, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(120) % 3
    embeddings = (2 * np.eye(3, 8)[labels] + generator.standard_normal((120, 8))).astype(np.float32)
    parts = [LabelledEmbeddings(embeddings[rows], labels[rows]) for rows in (slice(0, 60), slice(60, 90))]
    return *parts, embeddings[90:]


def test_a_probe_that_diverges_does_not_win():
    train_part, validation, test = clusters()
    sound = fit_probe(train_part, validation, test, ClassObjective(3), settings=ProbeSettings((1e-2,)))
    both = fit_probe(train_part, validation, test, ClassObjective(3), settings=ProbeSettings((1e38, 1e-2)))
    assert (both.learning_rate, both.validation) == (1e-2, sound.validation)
    assert np.array_equal(both.predictions, sound.predictions)
    with pytest.raises(ValueError, match=r"probe diverged with every learning rate \(1e\+38\)"):
        fit_probe(train_part, validation, test, ClassObjective(3), settings=ProbeSettings((1e38,)))


def test_a_regression_whose_probe_diverges_is_refused():
    train_part, validation, test = clusters()
    train_part, validation = (
        replace(part, labels=part.labels.astype(np.float32)[:, None]) for part in (train_part, validation)
    )
    objective = AbsoluteErrorObjective(train_part.labels)
    with pytest.raises(ValueError, match="probe diverged with every learning rate"):
        fit_probe(train_part, validation, test, objective, settings=ProbeSettings((1e38, 3e38)))


def test_every_file_of_results_is_json_as_the_standard_has_it(tmp_path):
    """Correlations of constants are undefined: null in the file, a dash in the report, and no figure of the card."""
    make_folder(tmp_path, noise={"wavcse": 0.15})
    result = next(own for own in read_results(tmp_path) if len(own.task.metrics) > 1)
    primary, second = result.task.metrics[:2]
    metrics = {**result.metrics, second: replace(result.metrics[second], value=math.nan, interval=None)}
    path = write_result(tmp_path, replace(result, metrics=metrics))
    assert strict(path.read_text())["metrics"][second]["value"] is None
    assert second not in [figure.metric for figure in figures_of([Result.from_json(strict(path.read_text()))])]
    write_report(tmp_path)
    assert not re.search(r"\bnan\b", (tmp_path / "report.md").read_text())
    assert "| – |" in (tmp_path / "report.md").read_text()
    metrics[primary] = replace(metrics[primary], value=math.inf)
    name = write_result(tmp_path, replace(result, metrics=metrics)).name
    with pytest.raises(ValueError, match=f"{name}: '{primary}' is not a finite number"):
        write_report(tmp_path)


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    value = {"a": [1.5, math.nan, {"b": -math.inf}], "c": (np.float64("nan"), "NaN", None, True)}
    expected = {"a": [1.5, None, {"b": None}], "c": [None, "NaN", None, True]}
    assert strict(json_text(value, indent=1)) == expected
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == expected  # and its checksum fits
    assert json_text({"é": 1}, ensure_ascii=False) == '{"é": 1}'
    with pytest.raises(TypeError):
        json_text({"a": object()})
