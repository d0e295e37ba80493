"""The root as a model repository: what is installed there, and a README that says what the result files say."""

import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import wavcse
from wavcse.data.files import read_json
from wavcse.eval.report import write_report
from wavcse.hub.build import build_repository
from wavcse.hub.source import read_source
from wavcse.hub_repository_wavcse import CODE_FILES, HANDLER, SENTENCE_TRANSFORMERS
from wavcse.tests.helpers.card_rules import card_errors
from wavcse.tests.helpers.killed import run_killed, started
from wavcse.tests.helpers.processes import run_python
from wavcse.tests.helpers.published_run import make_run
from wavcse.tools import install as install_cli
from wavcse.tools import readme as readme_cli
from wavcse.tools import training_data
from wavcse.tools.readme import BEGIN, END

ROOT = Path(wavcse.__file__).parent
HAND_WRITTEN = f"# Project\n\nBy hand.\n\n{BEGIN}\n{END}\n\n## The end\n\nBy hand, too.\n"
# Of every clip: file, seconds, speaker, corpus, language, licence.
CLIPS = (
    ("a.wav", 36, "kim", "books", "de", "CC0-1.0"),
    ("b.wav", 72, "kim", "books", "de", "CC0-1.0"),
    ("c.wav", 18, "", "words", "en", "CC-BY-4.0"),
    ("d.wav", 108, "robot-1", "synthetic-x", "fr", ""),
    ("e.wav", 9999, "lee", "words", "en", "CC-BY-NC-4.0"),
)
# The second recipe's manifest: no licence column, no speakers, all splits.
TASKS = """file_name,duration,corpus,language,split,keyword
a.wav,36,books,de,train,yes
b.wav,72,books,de,validation,no
c.wav,18,words,en,train,no
d.wav,108,synthetic-x,fr,test,yes
e.wav,9999,words,en,,
f.wav,1,words,en,validation,yes
g.wav,1,words,en,test,no
"""
CORPORA = {
    "books": {"title": "Books", "licence": "CC0-1.0", "attribution": "the readers"},
    "words": {"title": "Words", "licence": "CC-BY-4.0", "attribution": "the speakers", "note": "single words"},
    "synthetic-*": {"title": "Robots", "licence": "synthetic", "attribution": "espeak-ng"},
}


def pretraining(stage: int) -> dict:
    """What `pretrain_accelerate.py` writes, in short."""
    return {
        "last": {"step": 30, "masked_accuracy": 0.125 * stage, "code_perplexity": 321.4},
        "steps": 3000 * stage,
        "hours": 1.5,
        "labels": ["de", "en", "fr"],
        "train_seconds": 1200.0,
        "num_parameters": 2_900_000,
        "num_processes": 2,
        "device": "cpu",
        "config": {
            "label_weight": 4.0 * (stage - 1),
            "label_loss": "hard_triplet",
            "label_column": "language",
            "batch_seconds": 96.0,
            "codebook_size": 2048,
        },
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """A manifest, recipes of pre-training and training on it, and descriptions of its corpora."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = ["file_name,duration,speaker_id,corpus,language,licence", *(",".join(map(str, clip)) for clip in CLIPS)]
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    (folder / "tasks.csv").write_text(TASKS)
    source = {"manifest": str(folder / "metadata.csv"), "where": {"licence": ["CC0-1.0", "CC-BY-4.0", ""]}}
    task = {"manifest": str(folder / "tasks.csv"), "label_column": "keyword"}
    recipes = {
        "one": {"data": {"speech": source}},
        "two": {"tasks": {"keyword": task}, "upstream": ".", "cache_dir": "caches"},
    }
    paths = {name: folder / f"{name}.yaml" for name in (*recipes, "corpora")}
    for name, content in {**recipes, "corpora": {"corpora": CORPORA}}.items():
        paths[name].write_text(yaml.safe_dump(content))
    return paths


@pytest.fixture(scope="module")
def counted(data) -> Path:
    """What the training data's command line writes."""
    out = data["one"].parent / "out" / "data.json"
    arguments = [str(data["one"]), str(data["two"]), "--corpora", str(data["corpora"]), "--out", str(out)]
    assert training_data.main(arguments) == 0
    return out


@pytest.fixture(scope="module")
def run(tiny_multi_task_model, tmp_path_factory) -> Path:
    run = make_run(tmp_path_factory.mktemp("run"), tiny_multi_task_model(), mfcc=0.5)
    write_report(run, table_only=True)
    for stage in (1, 2):
        results = run / f"stage{stage}" / "results"
        results.mkdir(parents=True)
        (results / "pretraining.json").write_text(json.dumps(pretraining(stage)))
    return run


def new_root(folder: Path) -> Path:
    """The code of this repository, and a README of one's own."""
    folder.mkdir()
    for name in CODE_FILES:
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "README.md").write_text(HAND_WRITTEN, encoding="utf-8")
    return folder


def install(run: Path, data: Path, root: Path, **changed) -> int:
    stages = [run / "stage1", run / "stage2"]
    options = {"name": ["wavcse-tiny"], "pretraining": stages, "evaluation": [run], "data": [data], "root": [root], **changed}
    words = [str(part) for name, values in options.items() if values for part in (f"--{name}", *values)]
    return install_cli.main([str(run), *words])


@pytest.fixture(scope="module")
def root(run, counted, tmp_path_factory) -> Path:
    root = new_root(tmp_path_factory.mktemp("installed") / "root")
    assert install(run, counted, root) == 0
    return root


@pytest.fixture
def unloaded(monkeypatch) -> None:
    """Installs that do not load the new root in a fresh process, which takes ten seconds and is told of by other tests."""
    monkeypatch.setattr(install_cli, "verify_repository", lambda *_: 0.0)


@pytest.fixture
def copy(root, tmp_path) -> Path:
    return shutil.copytree(root, tmp_path / "copy")


@pytest.fixture(scope="module")
def readme(root) -> str:
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def card(root) -> str:
    return (root / "results" / "tiny" / "card.md").read_text(encoding="utf-8")


# ---- what was trained on ----


def test_hours_are_those_of_the_clips_that_recipes_take(counted):
    rows = {row["corpus"]: row for row in json.loads(counted.read_text())["rows"]}
    assert rows["books"]["hours"] == {"one": 0.03, "two": 0.01}  # of the second recipe only the training clip
    assert rows["books"]["clips"] == {"one": 2, "two": 1}
    assert rows["words"]["hours"] == {"one": 0.005, "two": 0.005}  # the non-commercial hours are not taken
    assert rows["synthetic-*"]["hours"] == {"one": 0.03}
    assert (rows["synthetic-*"]["licence"], rows["synthetic-*"]["language"]) == ("synthetic", "fr")
    assert (rows["books"]["speakers"], rows["books"]["has_unnamed_speakers"]) == (1, True)  # the tasks' table names nobody
    assert (rows["words"]["speakers"], rows["words"]["title"]) == (0, "Words")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": None}, "does not describe the corpus 'words'"),
        ({"words": {**CORPORA["words"], "licence": "CC0-1.0"}}, "says otherwise"),
        ({"synthetic-*": {**CORPORA["synthetic-*"], "licence": "CC-BY-NC-4.0"}}, "not permissive"),
        ({"words": {**CORPORA["words"], "licens": "x"}}, "unknown fields"),
        ({"words": {"title": "Words", "attribution": "the speakers"}}, "words: licence must be a text"),
        ({"words": {**CORPORA["words"], "note": 3}}, "words: note must be a text"),
    ],
)
def test_corpora_that_may_not_be_there_are_refused(change, message, data, tmp_path, capsys):
    corpora = {name: entry for name, entry in {**CORPORA, **change}.items() if entry}
    (tmp_path / "corpora.yaml").write_text(yaml.safe_dump({"corpora": corpora}))
    arguments = [str(data["one"]), "--corpora", str(tmp_path / "corpora.yaml"), "--out", str(tmp_path / "data.json")]
    assert training_data.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data.json").exists()


def test_non_commercial_clips_of_a_recipe_are_refused(data, tmp_path, capsys):
    recipe = yaml.safe_load(data["one"].read_text())
    del recipe["data"]["speech"]["where"]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [str(tmp_path / "all.yaml"), "--corpora", str(data["corpora"]), "--out", str(tmp_path / "data.json")]
    assert training_data.main(arguments) == 2
    assert "'CC-BY-NC-4.0', which is not permissive" in capsys.readouterr().err


def test_recipes_of_one_name_are_refused(data, tmp_path, capsys):
    out = tmp_path / "data.json"
    assert training_data.main([*[str(data["one"])] * 2, "--corpora", str(data["corpora"]), "--out", str(out)]) == 2
    assert "The recipes are one, one" in capsys.readouterr().err
    assert not out.exists()


def test_a_duration_that_is_none_is_named(data, tmp_path, capsys):
    rows = (data["one"].parent / "metadata.csv").read_text().replace("b.wav,72,", "b.wav,long,")
    (tmp_path / "metadata.csv").write_text(rows)
    recipe = {"data": {"speech": {"manifest": str(tmp_path / "metadata.csv"), "where": {"speaker_id": ["kim"]}}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [str(tmp_path / "recipe.yaml"), "--corpora", str(data["corpora"]), "--out", str(tmp_path / "data.json")]
    assert training_data.main(arguments) == 2
    assert "the duration of b.wav is not a number of seconds" in capsys.readouterr().err


# ---- the root ----


def test_the_files_are_the_runs(root, run):
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (root / name).read_bytes() == (run / "hub" / name).read_bytes()
    kept = {path.relative_to(root).as_posix() for path in (root / "results").rglob("*") if path.is_file()}
    records = {f"results/tiny/results/{path.name}" for path in (run / "results").glob("*__*.json")}
    others = ("card.md", "results.md", "data.json", "phase1.json", "pretraining_1.json", "pretraining_2.json")
    assert kept == {*records, *(f"results/tiny/{name}" for name in others)}  # no predictions, no embeddings


def test_what_is_written_by_hand_stays(readme):
    before, after = HAND_WRITTEN.split(f"{BEGIN}\n{END}")
    assert readme.split("\n---\n\n", 1)[1].startswith(before + BEGIN)
    assert readme.endswith(END + after)


def test_the_header_is_short_and_valid(readme):
    header = yaml.safe_load(readme.split("---\n")[1])
    assert card_errors(readme) == []
    assert (header["library_name"], header["pipeline_tag"], header["license"]) == (
        "transformers",
        "feature-extraction",
        "apache-2.0",
    )
    assert header["language"] == ["de", "en", "fr"]
    assert "wavcse-tiny" in header["tags"]
    assert "model-index" not in header  # .eval_results/ has the figures
    assert len(readme.split("---\n")[1].splitlines()) == len(header)


def test_the_primary_figures_are_what_the_hub_reads(root, run):
    own = {record["task"]["name"]: record for record in map(read_json, (run / "results").glob("*__wavcse.json"))}
    assert {path.stem for path in (root / ".eval_results").iterdir()} == set(own)
    for name, record in own.items():
        (entry,) = yaml.safe_load((root / ".eval_results" / f"{name}.yaml").read_text())
        primary = record["task"]["metrics"][0]
        assert entry["dataset"]["task_id"] == name
        assert entry["value"] == record["metrics"][primary]["value"]


def test_the_short_table_has_the_figures_of_the_records(readme, run):
    """Of the tasks of Phase 1 the evaluation has keywords only; `best_layer` is no column of it."""
    lines = readme.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    assert lines.pop(0).startswith("The model in the root, **wavcse-tiny**, makes 20 numbers of a clip; ")
    assert lines.pop(0) == ""
    assert lines[0] == "| task | metric | test split | `wavcse` | `mfcc` |"
    (row,) = lines[2:-2]
    records = [read_json(run / "results" / f"keyword__{encoder}.json") for encoder in ("wavcse", "mfcc")]
    figures = [record["metrics"]["accuracy"] for record in records]
    cells = [f"{100 * f['value']:.1f} [{100 * f['interval'][0]:.1f}, {100 * f['interval'][1]:.1f}]" for f in figures]
    assert row == f"| Keyword spotting | accuracy, % ↑ | 120 clips, 12 speakers | {' | '.join(cells)} |"
    assert "[results/tiny/card.md](results/tiny/card.md)" in lines[-1]


def test_the_table_is_the_evaluations_with_its_marks(card, run):
    table = (run / "results.md").read_text(encoding="utf-8").split("\n\n")[0]
    assert table in card


def test_the_data_with_licences_and_hours(card):
    assert "| Books | de | CC0-1.0 | the readers |  | 0.03 | 0.01 |" in card
    assert "| Words | en | CC-BY-4.0 | the speakers | single words | 0.01 | 0.01 |" in card
    assert "| Robots | fr | synthetic | espeak-ng |  | 0.03 | – |" in card


def test_the_training(card):
    assert "| 1 | BEST-RQ | 1.50 h | 3,000 of 96 s | 12.5 % | 321 of 2048 | 20 min on cpu, 2 process(es) |" in card
    assert "| 2 | BEST-RQ + 4 x hard_triplet on 3 x `language` | 1.50 h | 6,000 of 96 s | 25.0 % |" in card
    assert "torch 2.13.0" in card  # the training's own section


def test_the_limits(card):
    assert "pre-trained for 40 minutes on cpu with 1.5 hours" in card
    assert "3 languages (de, en, fr)" in card
    assert "46 % in `one`" in card  # 0.03 of 0.065 hours are synthetic
    assert "Of fr it has heard no human voice" in card
    assert "one human voice" not in card  # the tasks' table names no speaker
    assert "A planted remark." in card


def test_one_voice_is_told(copy):
    path = copy / "results" / "tiny" / "data.json"
    content = json.loads(path.read_text())
    for row in content["rows"]:
        row["has_unnamed_speakers"] &= row["corpus"] != "books"
    path.write_text(json.dumps(content))
    assert readme_cli.main(["--root", str(copy)]) == 0
    assert "Of de it has heard one human voice only" in (copy / "results" / "tiny" / "card.md").read_text()


def test_nothing_in_it_names_this_machine(card, run):
    assert str(run) not in card
    assert "/somewhere" not in card  # planted in the training's settings


def test_check_agrees_with_what_was_written(root):
    before = (root / "README.md").read_bytes()
    assert run_python("-m", "wavcse.tools.readme", "--check", "--root", root).returncode == 0
    assert (root / "README.md").read_bytes() == before


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    text = text.replace(old, new)
    if path.parent.name == "results":
        text = re.sub(r',\s*"crc32": "\w+"', "", text)  # as of an earlier version: it is not damage that is to be found
    path.write_text(text, encoding="utf-8")


def test_figures_of_tasks_that_are_gone_are_found_and_removed(copy, capsys):
    old = copy / ".eval_results" / "old.yaml"
    old.write_text("[]")
    assert readme_cli.main(["--check", "--root", str(copy)]) == 2
    assert ".eval_results/old.yaml is not what the result files give" in capsys.readouterr().err
    assert readme_cli.main(["--root", str(copy)]) == 0
    assert not old.exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("results/tiny/card.md", "| Books | de |", "| Books | de, it |", "card.md is not what the result files give"),
        (".eval_results/keyword.yaml", "value: 0", "value: 1", "keyword.yaml is not what the result files give"),
        ("README.md", "| Keyword spotting | accuracy", "| Keywords | accuracy", "README.md is not what the result files give"),
        ("README.md", "license: apache-2.0", "license: mit", "not what the result files give"),
        ("README.md", BEGIN, "", "needs one line"),
        ("results/tiny/results.md", "| 20.0", "| 99.0", "not the table of the results"),
        ("results/tiny/data.json", '"CC0-1.0"', '"CC-BY-NC-4.0"', "not permissive"),
        ("results/tiny/pretraining_1.json", '"hours": 1.5', '"hours": 2.5', "is not what the result files give"),
        ("results/tiny/pretraining_2.json", '"steps"', '"step"', "lacks steps"),
    ],
)
def test_check_finds_what_is_out_of_date(name, old, new, message, copy, capsys):
    if name.endswith("results.md"):
        first = re.search(r"\| \*?\*?(\d+\.\d)", (copy / name).read_text())[0]
        old, new = first, first[:-1] + ("1" if first[-1] != "1" else "2")
    edit(copy / name, old, new)
    before = (copy / "README.md").read_bytes()
    assert readme_cli.main(["--check", "--root", str(copy)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (copy / "README.md").read_bytes() == before


def test_results_of_other_weights_are_refused(copy, capsys):
    path = copy / "results" / "tiny" / "results" / "keyword__wavcse.json"
    weights = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    edit(path, weights, "0" * 64)
    assert readme_cli.main(["--root", str(copy)]) == 2
    assert "keyword by wavcse was measured with other weights" in capsys.readouterr().err


def test_a_root_without_weights_is_refused(copy, capsys):
    (copy / "model.safetensors").unlink()
    assert readme_cli.main(["--check", "--root", str(copy)]) == 2
    assert "model.safetensors" in capsys.readouterr().err


@pytest.mark.usefixtures("unloaded")
def test_a_second_install_replaces_the_first(run, counted, copy):
    (copy / "results" / "tiny" / "results" / "old__wavcse.json").write_text("{}")
    (copy / ".eval_results" / "old.yaml").write_text("[]")
    assert install(run, counted, copy, pretraining=[run / "stage2"]) == 0
    assert not (copy / "results" / "tiny" / "results" / "old__wavcse.json").exists()
    assert not (copy / "results" / "tiny" / "pretraining_2.json").exists()
    assert not (copy / ".eval_results" / "old.yaml").exists()
    assert readme_cli.main(["--check", "--root", str(copy)]) == 0


def states_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def broken_stage(run: Path, root: Path) -> None:
    edit(run / "stage2" / "results" / "pretraining.json", '"steps"', '"step"')


def other_table(run: Path, root: Path) -> None:
    (run / "results.md").write_text("| task |\n| --- |\n\n- a note\n")


def no_marks(run: Path, root: Path) -> None:
    edit(root / "README.md", BEGIN, "")


def other_code(run: Path, root: Path) -> None:
    edit(root / "pooling_wavcse.py", "import torch", "import nothing_of_this_name\nimport torch")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run, root: (run / "results.md").unlink(), "results.md: there is no such file"),
        (lambda run, root: (run / "results" / "phase1.json").unlink(), "phase1.json: there is no such file"),
        (lambda run, root: shutil.rmtree(run / "hub"), "holds no model"),
        (lambda run, root: (root / "README.md").unlink(), "README.md"),
        (broken_stage, "stage2/results/pretraining.json: lacks steps"),
        (other_table, "results.md: is not the table of the results"),
        (no_marks, "README.md needs one line"),
        pytest.param(other_code, "nothing_of_this_name", marks=pytest.mark.slow),  # hub/test_push.py has one by default
    ],
    ids=["table", "training", "model", "readme", "stage", "other table", "marks", "code"],
)
def test_what_cannot_be_installed_changes_nothing(spoil, message, run, counted, copy, tmp_path, capsys):
    run = shutil.copytree(run, tmp_path / "run")
    spoil(run, copy)
    (copy / "model.safetensors").write_bytes(b"of an earlier model")
    before = states_of(copy)
    assert install(run, counted, copy) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert states_of(copy) == before


UPSTREAM = {
    "base_model": "openai/whisper-tiny.en",
    "licence": "MIT",
    "attribution": "OpenAI",
    "notice": "MIT License\n\nCopyright (c) 2022 OpenAI",
}


@pytest.fixture
def counted_on_whisper(data, tmp_path) -> Path:
    """The count of the second recipe's data, with somebody else's upstream."""
    (tmp_path / "corpora.yaml").write_text(yaml.safe_dump({"corpora": CORPORA, "upstream": UPSTREAM}))
    out = tmp_path / "data.json"
    arguments = [str(data["two"]), "--corpora", str(tmp_path / "corpora.yaml"), "--out", str(out)]
    assert training_data.main(arguments) == 0
    return out


@pytest.mark.usefixtures("unloaded")
def test_a_model_on_anothers_upstream_takes_the_place_of_one_trained_from_nothing(run, counted_on_whisper, copy):
    before = states_of(copy / "results" / "tiny")
    assert install(run, counted_on_whisper, copy, name=["wavcse-whisper"], pretraining=[]) == 0
    assert states_of(copy / "results" / "tiny") == before  # what is known of the other model stays
    readme = (copy / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(readme.split("---\n")[1])
    assert card_errors(readme) == []
    assert header["base_model"] == "openai/whisper-tiny.en"
    assert [tag for tag in header["tags"] if tag.startswith("wavcse-")] == ["wavcse-whisper"]
    assert "(results/whisper/card.md)" in readme
    assert "of openai/whisper-tiny.en (OpenAI, MIT), frozen." in readme
    card = (copy / "results" / "whisper" / "card.md").read_text(encoding="utf-8")
    assert card.count("\n## Licences\n") == 1
    assert UPSTREAM["notice"] in card
    assert "Pre-training of the upstream" not in card
    assert "for the authors of openai/whisper-tiny.en to say" in card
    assert readme_cli.main(["--check", "--root", str(copy)]) == 0


@pytest.mark.usefixtures("unloaded")
def test_a_folder_that_is_not_there_becomes_a_root_of_its_own(run, counted, tmp_path, capsys):
    root = tmp_path / "own" / "root"
    assert install(tmp_path / "nothing", counted, root, evaluation=[run]) == 2
    assert not root.exists()
    assert install(run, counted, root) == 0
    assert {*CODE_FILES, *SENTENCE_TRANSFORMERS, HANDLER} <= {path.name for path in root.iterdir()}
    capsys.readouterr()
    assert readme_cli.main(["--show", "--root", str(root)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("| task | metric |")
    assert shown.strip() in (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notice": ""}, "upstream: notice must be a text"),
        ({"licence": "CC-BY-NC-4.0"}, "upstream: is under 'CC-BY-NC-4.0', which is not permissive"),
        ({"model": "x"}, "unknown fields"),
    ],
)
def test_an_upstream_without_terms_is_refused(change, message, data, tmp_path, capsys):
    (tmp_path / "corpora.yaml").write_text(yaml.safe_dump({"corpora": CORPORA, "upstream": {**UPSTREAM, **change}}))
    arguments = [str(data["two"]), "--corpora", str(tmp_path / "corpora.yaml"), "--out", str(tmp_path / "data.json")]
    assert training_data.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny", "wavcse-", "wavcse-a/b"])
def test_a_name_that_cannot_be_found_again_is_refused(name, run, counted, tmp_path, capsys):
    assert install(run, counted, tmp_path / "root", name=[name]) == 2
    assert "name is" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


@pytest.mark.usefixtures("unloaded")
def test_an_exchange_that_breaks_off_is_undone(run, counted, copy, monkeypatch, capsys):
    (copy / "model.safetensors").write_bytes(b"of an earlier model")
    before, rename = states_of(copy), Path.rename

    def broken(path: Path, target: Path) -> Path:
        if (path.parent.name, path.name) == ("new", "README.md"):
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    assert install(run, counted, copy) == 2
    assert "the disk is gone" in capsys.readouterr().err
    assert states_of(copy) == before
    monkeypatch.setattr(Path, "rename", rename)
    assert install(run, counted, copy) == 0
    assert (copy / "model.safetensors").read_bytes() == (run / "hub" / "model.safetensors").read_bytes()
    assert not list(copy.glob(".install*"))


def staged(folder: Path) -> tuple[Path, Path]:
    """A root with a model, and beside it a checked one to be exchanged for it."""
    root, stage = folder / "root", folder / "root" / f"{install_cli.STAGE}x"
    for place, word in ((root, "old"), (stage / install_cli.NEW, "new")):
        (place / "results" / "tiny").mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "results/tiny/data.json"):
            (place / name).write_text(f"{word} {name}")
    (root / "results" / "tiny" / "gone.json").write_text("old")
    return root, stage


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do `work` in a copy of this process that is killed before its rename of this number; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        renames, rename = itertools.count(), Path.rename
        Path.rename = lambda path, target: (
            os.kill(os.getpid(), signal.SIGKILL) if next(renames) == number else rename(path, target)
        )
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_an_exchange_that_is_killed_at_any_of_its_renames_is_finished_by_the_next_start(tmp_path, capsys):
    root, stage = staged(tmp_path / "undisturbed")
    install_cli._exchange(root, stage)
    shutil.rmtree(stage)
    expected = states_of(root)
    assert set(expected.values()) == {f"new {name}".encode() for name in expected}
    number = 0
    while True:
        root, stage = staged(tmp_path / str(number))
        if not killed_at(number, functools.partial(install_cli._exchange, root, stage)):
            break
        # Every other time the next start is killed too, unless it has a single rename to do and is through.
        is_left = number % 2 == 0 or killed_at(1, functools.partial(install_cli.finish_exchange, root))
        install_cli.finish_exchange(root)
        assert states_of(root) == expected
        assert ("an exchange of files that was killed is finished" in capsys.readouterr().err) == is_left
        number += 1
    assert number == 10  # two renames of each of five


def test_what_was_killed_before_the_exchange_is_removed(tmp_path, capsys):
    root, stage = staged(tmp_path)
    before = {name: content for name, content in states_of(root).items() if not name.startswith(stage.name)}
    install_cli.finish_exchange(root)
    assert states_of(root) == before
    assert capsys.readouterr().err == ""


def test_too_many_megabytes_are_refused(run, counted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install_cli, "MAX_MEGABYTES", 0.001)
    assert install(run, counted, new_root(tmp_path / "root")) == 2
    assert "MB at most" in capsys.readouterr().err


@pytest.mark.kill
def test_an_installation_killed_ten_times_at_random_moments_is_the_undisturbed_one(run, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(install_cli, "verify_repository", lambda new, model: 0.0)  # a process of its own, seconds long
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: (time.sleep(0.02), rename(path, target))[1])

    def start(root: Path) -> int:
        if not root.exists():
            new_root(root)
            (root / "model.safetensors").write_bytes(b"of an earlier model")
        return started(lambda argv: install(run, counted, root), [])

    def check(root: Path) -> None:
        assert states_of(root) == states_of(tmp_path / "undisturbed")

    print(run_killed(start, tmp_path, check))


def test_a_push_of_the_checkout_holds_the_model_alone_and_the_card_of_its_results(tmp_path):
    source = read_source(ROOT)
    assert build_repository(source, tmp_path, "org/tiny")
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    figures = {f".eval_results/{path.name}" for path in (ROOT / ".eval_results").iterdir()}
    model = {"LICENSE", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert names == {*figures, *model, *CODE_FILES, *SENTENCE_TRANSFORMERS, HANDLER, "README.md"}
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    sections = source.card_sections()
    titles = [own for own in sections if own != "Licences"]  # which a model on an upstream of others has
    assert titles == ["The model", "What it is good for", "What it was trained on", "How it was trained", "Limits"]
    assert all(body in card for body in sections.values())
    header = yaml.safe_load(card.split("---")[1])
    ours = yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (header["language"], header["tags"]) == (ours["language"], ours["tags"])
    with pytest.raises(ValueError, match=r"card\.md: is about other weights"):
        replace(source, sha256="0" * 64).card_sections()
