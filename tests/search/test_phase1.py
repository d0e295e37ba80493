"""Phase 1 in one command: the chain by its command, killed and continued, and its report against the result files."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from scipy.stats import binomtest

from wavcse.search.phase1 import main, steps_of
from wavcse.search.phase1_config import RandomUpstreamArguments, read_config
from wavcse.search.phase1_report import Paper
from wavcse.search.steps import ROOT, Step, StepError, do_step
from wavcse.tests.helpers.processes import Child
from wavcse.training.arguments import RunArguments

CONF = Path(__file__).parents[2] / "conf"
RESULTS = ("layers/results/layers.json", "poolings/results/poolings.json", "hparams/results/hparams.json")
RESULTS += ("training/results/phase1.json",)


@pytest.fixture(scope="module")
def settings(toy_corpus, upstream_folder) -> dict:
    """Everything small; what the command makes lies below the folder that it runs in."""
    keyword = {"manifest": str(toy_corpus), "label_column": "keyword", "split_column": "split_ks", "disjoint_by": "speaker_id"}
    speaker = {"manifest": str(toy_corpus), "label_column": "speaker_id", "split_column": "split_sid"}
    every = {"workers": 1, "seeds": 1, "num_epochs": 2}
    return {
        "tasks": {"keyword": keyword, "speaker": speaker},
        "upstream": str(upstream_folder),
        "cache_dir": "run/cache",
        "output_dir": "run",
        "layer_projection_size": 16,
        "embedding_size": 24,
        "batch_size": 16,
        "num_epochs": 4,
        "note": "toy tones",
        "search": {
            "layers": {**every, "rivals": ["all"], "sizes": [1, 4]},
            "poolings": {**every, "poolings": ["mean", "max", "learned_norm"], "constants": "default"},
            "hparams": {**every, "trials": 3, "batch_sizes": [16], "learning_rates": [0.01]},
        },
        "training": {"num_epochs": 5},
    }


def run(settings: Mapping, folder: Path) -> None:
    """The command in this process, in that folder."""
    (folder / "phase1.yaml").write_text(yaml.safe_dump(settings))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["phase1.yaml"]) == 0
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run(settings, folder)
    return folder / "run"


def figures_of(path: Path) -> dict:
    """A result file without times."""
    times = ("seconds", "train_seconds")
    return json.loads(path.read_text(), object_hook=lambda own: {name: own[name] for name in own if name not in times})


def killed_when(folder: Path, fits: str, number: int) -> None:
    """Start the command in `folder`, and kill it when it has left so many fits."""
    slow = (
        "import sys, time; from wavcse.search import fit, hparams, phase1, runner, study; do = fit.fit_together\n"
        "runner.fit_together = study.fit_together = lambda *a: (do(*a), time.sleep(0.3))[0]\nphase1.main(sys.argv[1:])"
    )
    child = Child("-c", slow, "phase1.yaml", cwd=folder)
    child.kill_when(lambda: len(list((folder / fits).glob("*.json"))) >= number)


@pytest.mark.slow
def test_a_run_killed_twice_goes_on_and_ends_as_an_undisturbed_one(settings, whole, tmp_path):
    (tmp_path / "phase1.yaml").write_text(yaml.safe_dump(settings))
    killed_when(tmp_path, "run/poolings/fits", 2)
    killed_when(tmp_path, "run/hparams/fits", 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/fits/*.json")}
    run(settings, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in RESULTS:
        assert figures_of(tmp_path / "run" / name) == figures_of(whole / name), name
    attempts = {path.stem: json.loads(path.read_text())["attempts"] for path in (tmp_path / "run/steps").glob("*.json")}
    assert attempts == {"cache": 1, "layers": 1, "poolings": 2, "hparams": 2, "training": 1}


def test_a_run_that_is_done_does_nothing_again(settings, whole, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*") if path.is_file()}
    run(settings, whole.parent)
    assert capsys.readouterr().out.count("was there;") == 5
    written = ("report.md", "report.html", "recipe.yaml", "result.png", "result.svg")
    assert {path.name for path, (time_ns, _) in before.items() if path.stat().st_mtime_ns != time_ns} == set(written)
    assert all(path.read_bytes() == content for path, (_, content) in before.items())


@pytest.mark.parametrize("step", ["layers", "poolings", "hparams", "training"])
def test_the_classes_are_told_before_every_search_and_the_training(whole, step):
    assert "keyword: 3 classes of " in (whole / "steps" / f"{step}.txt").read_text(encoding="utf-8")


def test_each_search_hands_its_choice_to_the_next_step(whole):
    layers, poolings, _, trained = (json.loads((whole / name).read_text()) for name in RESULTS)
    recipes = {name: yaml.safe_load((whole / name / "recipe.yaml").read_text()) for name in ("layers", "poolings", "hparams")}
    final = trained["config"]
    assert recipes["layers"]["selected_layers"] == layers["sets"][str(layers["choice"]["best"])]
    assert final["selected_layers"] == recipes["layers"]["selected_layers"]
    best = next(row for row in poolings["poolings"] if row["name"] == poolings["best"])
    assert (final["pooling_type"], final["pooling_kwargs"]) == (best["pooling_type"], best["pooling_kwargs"])
    chosen = ("batch_size", "learning_rate", "layer_projection_size", "embedding_size", "l1", "l2")
    defaults = RunArguments(save_hub=False)
    assert {name: final[name] for name in chosen} == {
        name: recipes["hparams"].get(name, getattr(defaults, name)) for name in chosen
    }
    assert (layers["settings"]["num_epochs"], poolings["settings"]["num_epochs"], trained["num_epochs"]) == (2, 2, 5)
    assert (whole / "training/hub/model.safetensors").exists()


# -- the report


class Page(HTMLParser):
    """What a page loads or links to, and the cells of its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.rows, self.in_cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.in_cell = self.in_cell or tag in ("td", "th")

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def test_the_page_holds_its_pictures_and_needs_no_other_file(whole):
    text = (whole / "report.html").read_text()
    addresses = Page(text).addresses
    drawings = [path.read_bytes() for path in whole.glob("**/pictures/*.svg")]
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert sorted(base64.b64decode(address.partition(",")[2]) for address in addresses) == sorted(drawings)
    assert len(drawings) >= 7
    assert not re.search(r"@import|url\(|<script|<link", text)
    linked = re.findall(r"\]\((.*?)\)", (whole / "report.md").read_text())
    assert len(linked) == len(drawings)
    assert all((whole / path).is_file() for path in linked)


def test_the_report_says_what_the_result_files_say(whole, settings):
    rows = {row[0]: row for row in reversed(Page((whole / "report.html").read_text()).rows) if row}  # the first of a name
    layers, poolings, _, trained = (json.loads((whole / name).read_text()) for name in RESULTS)
    for task, own in trained["tasks"].items():
        row, accuracy = rows[task], own["accuracy"]
        assert row[1:4] == [str(own["num_classes"]), "24/12/12", f"{100 * accuracy['validation']:.2f}"]
        interval = binomtest(round(12 * accuracy["test"]), 12).proportion_ci(0.975, method="wilson")
        assert row[4] == f"{100 * accuracy['test']:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
        assert row[5] == f"{100 * layers['tasks'][task]['majority']:.2f}"
    assert rows["keyword"][6] == "98.81 ¹"
    mean = trained["mean_accuracy"]
    assert rows["mean"][3:5] == [f"{100 * mean['validation']:.2f}", f"{100 * mean['test']:.2f}"]
    assert rows["selected_layers"][2] == "{0-14, 17}"
    text = (whole / "report.md").read_text()
    _, picture, answer, *_ = text.split("\n\n")
    assert picture.endswith("](pictures/result.png)")
    assert answer.startswith(f"The final model has a mean test accuracy of {100 * mean['test']:.2f} %")
    assert f"`{poolings['best']}` pooling" in answer
    assert text.count("¹ of other data") == 1
    section = text.partition("## Poolings beside Table 2")[2].partition("\n## ")[0].replace("*", "")
    lines = {line.split(" | ")[0]: line for line in section.splitlines()}
    for row in poolings["poolings"]:
        assert f" {100 * row['test']['mean']:.2f} |" in lines[f"| {row['name']}"]
    assert re.findall(r"[\d.]+(?= ¹)", lines["| max"]) == ["98.43", "96.59", f"{(98.43 + 96.59) / 2:.2f}"]
    assert settings["note"] in text
    assert "untrained" not in text  # nobody said so


def test_the_papers_figures_are_comparable_on_its_own_complete_corpora_only():
    config = read_config(CONF / "paper/phase1.yaml")
    records = {step.name: {"exit_code": 0} for step in steps_of(config)}
    assert Paper(config, records).cell("table_3", "wavCSE", ["keyword"]) == "98.81"
    assert Paper(config, records).cell("table_3", "wavCSE", ["keyword", "speaker", "emotion"]) == "91.93"
    partial = {**records, "corpora_iemocap": {"exit_code": 3}}
    assert Paper(config, partial).cell("table_2", "mean", ["emotion"]) == "75.95 ¹"
    assert Paper(config, partial).comparable("table_2", "mean", "emotion") is None
    assert Paper(config, partial).comparable("table_2", "mean", "speaker") == 97.10
    assert Paper(config, partial).cell("table_2", "mean", ["speaker"]) == "97.10"
    iemocap = {**config.corpora[2], "protocol": "superb"}
    other = replace(config, corpora=[*config.corpora[:2], iemocap], recipe=replace(config.recipe, upstream="facebook/hubert"))
    assert Paper(other, records).cell("table_2", "mean", ["emotion"]) == "75.95 ¹"
    assert Paper(other, records).cell("table_2", "mean", ["keyword"]) == "98.23 ²"
    assert Paper(other, records).comparable("table_2", "mean", "keyword") is None
    assert Paper(other, records).cell("table_2", "mean", ["intent"]) == ""


# -- steps


@pytest.fixture
def counting(tmp_path, monkeypatch) -> Step:
    """A step whose program copies its input, and counts how often it ran."""
    source = (
        "import pathlib, sys\ndef main(argv):\n    text = pathlib.Path(argv[0]).read_text()\n"
        "    if not text.isdigit():\n        print('counting: not a number', file=sys.stderr)\n        return 2\n"
        "    pathlib.Path(argv[1]).write_text(text)\n    open(argv[2], 'a').write('.')\n    return 0\n"
    )
    (tmp_path / "counting.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path / name) for name in ("in", "out", "count")]
    (tmp_path / "in").write_text("1")
    return Step("count", "counting", tuple(paths), (paths[0],), (paths[1],))


def test_a_step_is_done_again_when_its_settings_inputs_or_outputs_change(counting, tmp_path):
    count, steps = tmp_path / "count", tmp_path / "steps"
    assert [do_step(counting, steps)["was_there"] for _ in range(2)] == [False, True]
    (tmp_path / "in").write_text("2")
    do_step(counting, steps)
    (tmp_path / "out").unlink()
    do_step(counting, steps)
    do_step(replace(counting, argv=(*counting.argv, "more")), steps)
    assert count.read_text() == "...."
    assert (tmp_path / "out").read_text() == "2"


def test_a_step_that_refuses_is_named_and_tried_again(counting, tmp_path):
    (tmp_path / "in").write_text("one")
    with pytest.raises(StepError, match="^step count: counting: not a number$"):
        do_step(counting, tmp_path / "steps")
    (tmp_path / "in").write_text("1")
    assert do_step(counting, tmp_path / "steps")["attempts"] == 1
    with pytest.raises(StepError, match="ended without leaving .*nowhere"):
        do_step(replace(counting, outputs=(str(tmp_path / "nowhere"),)), tmp_path / "steps")


# -- configurations


@pytest.mark.parametrize("name", ["paper/phase1", "synthetic_phase1", "real_phase1"])
def test_the_configurations_of_the_repository_describe_the_whole_chain(name):
    steps = [step.name for step in steps_of(read_config(CONF / f"{name}.yaml"))]
    assert steps[-5:] == ["cache", "layers", "poolings", "hparams", "training"]


def test_options_become_the_programs_command_lines(settings, tmp_path):
    corpora = [{"corpus": "iemocap", "root": "r", "out": "m.csv", "allow_partial": True, "hub_id": None}]
    layers = {"sizes": [1, 2], "measure_speed": False, "num_epochs": 7}
    own = {"corpora": corpora, "cache": {"dtype": "float16"}, "search": {"layers": layers}, "training": {"save_hub": False}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**settings, **own}))
    lines = {step.name: " ".join(step.argv) for step in steps_of(read_config(tmp_path / "own.yaml", "out"))}
    assert lines["corpora_iemocap"] == "iemocap --allow_partial --out m.csv --root r"
    assert lines["cache"].endswith(f"--upstream {settings['upstream']} --out run/cache --dtype float16")
    assert lines["layers"] == "out/recipe.yaml --output_dir out/layers --num_epochs 7 --sizes 1 2"
    assert lines["hparams"] == "out/poolings/recipe.yaml --output_dir out/hparams --num_epochs 4"
    assert lines["training"] == "out/hparams/recipe.yaml --output_dir out/training --num_epochs 4 --save_hub false"


def test_the_options_of_the_section_for_the_upstream_are_those_of_its_script():
    """Those of the other sections are read from the programs themselves."""
    script = (ROOT / "examples/random_upstream.py").read_text()
    options = re.findall(r'add_argument\("--(\w+)"', script)
    assert sorted(options) == sorted(field.name for field in fields(RandomUpstreamArguments))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"searches": {}}, "unknown fields ['searches']"),
        ({"search": {"layers": {"epochs": 3}}}, "search.layers: unknown fields ['epochs']"),
        ({"synthesize": {"clips": 3}}, "synthesize: --out is missing"),
        ({"synthesize": {"out": "o", "twins": []}}, "synthesize: unknown fields ['twins']"),
        ({"corpora": [{"corpus": "iemo", "root": "r", "out": "m.csv"}]}, "corpora[0]: corpus is 'iemo' (did you mean"),
        ({"cache": {"dtype": "float64"}}, "cache: dtype is 'float64' (did you mean float16?)"),
        ({"cache": {"manifest": ["m.csv"]}}, "cache: unknown fields ['manifest']"),
        ({"random_upstream": {"out": "o", "width": "wide"}}, "random_upstream: width is 'wide'; a whole number is needed"),
        ({"corpora": {"corpus": "iemocap"}}, "corpora must be a list"),
        ({"training": {"num_epochs": 0}}, "num_epochs is 0"),
        ({"training": {"mixed_precision": "bf16"}}, "training: unknown fields ['mixed_precision']"),
        ({"tasks": {}}, "tasks is empty"),
        ({"upstream": None}, "upstream is not given"),
        ({"tasks": {"keyword": {"manifest": "nowhere.csv", "label_column": "keyword"}}}, "step cache: "),
        ({"search": {"layers": {"seeds": 0}}}, "search.layers: seeds is 0; it must be at least 1"),
        ({"search": {"layers": {"seeds": "many"}}}, "search.layers: seeds is 'many'; a whole number is needed"),
        ({"search": {"layers": {"num_epochs": 0}}}, "search.layers: num_epochs is 0"),
        ({"search": {"poolings": {"constants": "all"}}}, "search.poolings: constants is 'all'; allowed: authors, default"),
        ({"search": {"layers": {"sizes": [9]}}}, "step layers: "),
    ],
)
def test_a_bad_configuration_is_refused_in_one_line(settings, whole, changes, message, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**settings, "cache_dir": str(whole / "cache"), **changes}))
    assert main([str(path), "--output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("wavcse search phase1: ")
    assert message in error


def test_a_configuration_that_cannot_be_read_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "absent.yaml")]) == 2
    printed = capsys.readouterr()
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert "absent.yaml: cannot be read as YAML" in printed.err
