"""Recipes and command lines: words stay words, and every mistake is one sentence."""

import json
from dataclasses import dataclass

import pytest

from wavcse.eval.arguments import EVAL
from wavcse.finetuning.arguments import FINETUNE
from wavcse.pretraining.arguments import PRETRAIN
from wavcse.search.phase1_config import read_config
from wavcse.settings.command import Program
from wavcse.settings.fields import check_fields, option
from wavcse.settings.recipes import read_recipe
from wavcse.training.arguments import TRAIN

TASK = "{manifest: m.csv, label_column: keyword}"


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_words_that_yaml_takes_for_booleans_are_classes_and_names(tmp_path):
    text = "save_hub: no\ntasks:\n  on: {manifest: m.csv, label_column: keyword, classes: [yes, no, on, Off, go]}\n"
    args = TRAIN.parse([recipe(tmp_path, text)])
    assert args.save_hub is False
    assert args.task_sources()["on"].classes == ("yes", "no", "on", "Off", "go")
    text = "data: {speech: {manifest: m.csv, where: {language: [no, sv], public: true, year: 2020}}}\n"
    assert PRETRAIN.parse([recipe(tmp_path, text)]).clip_sources()["speech"].where == {
        "language": ("no", "sv"),
        "public": ("True",),
        "year": ("2020",),
    }
    text = f"task: {TASK}\nupstreams: {{on: FOLDER}}\ngroups: {{NO: [yes, no]}}\n"
    args = FINETUNE.parse([recipe(tmp_path, text)])
    assert (args.upstreams, args.groups) == ({"on": "FOLDER"}, {"NO": ["yes", "no"]})


@pytest.mark.parametrize("value", ["yes", "on", "true", "True", '"yes"'])
def test_switches_keep_all_their_spellings(tmp_path, value):
    assert TRAIN.parse([recipe(tmp_path, f"save_hub: false\noverwrite_output_dir: {value}")]).overwrite_output_dir is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [keyword]", "tasks is ['keyword']; a mapping is needed"),
        ("tasks: keyword", "tasks is 'keyword'; a mapping is needed"),
        (f"tasks: {{1: {TASK}}}", "the name 1 is not text; put it in quotes"),
        (f"tasks: {{true: {TASK}}}", "the name True is not text"),
        (f"tasks: {{a.b: {TASK}}}", "the name 'a.b' must serve"),
        (f"tasks: {{keys: {TASK}}}", "the name 'keys' is taken by torch's ModuleDict"),
        (f"tasks: {{'': {TASK}}}", "the name '' must serve"),
        ("tasks: {k: }", "tasks.k: must hold fields of the form"),
        ("tasks: {k: [m.csv]}", "tasks.k: must hold fields of the form"),
        ("tasks: {k: {manifest: m.csv}}", "tasks.k: 'label_column' is missing"),
        (
            "tasks: {k: {manifest: m.csv, label_column: on}}",
            "label_column is True; a column's name is needed, in quotes if it is",
        ),
        ("tasks: {k: {manifest: 3, label_column: k}}", "manifest is 3; a text or a list of texts is needed"),
        ("tasks: {k: {manifest: m.csv, label_column: k, split_column: [no, 2]}}", "split_column is ['no', 2]"),
        ("tasks: {k: {manifest: m.csv, label_column: k, classes: yes}}", "classes is True; a list of labels is needed"),
        ("tasks: {k: {manifest: m.csv, label_column: k, classes: up}}", "classes is 'up'; a list of labels is needed"),
        ("tasks: {k: {manifest: m.csv, label_column: k, classes: [up, ~]}}", "classes is ['up', None]; a list"),
        ("tasks: {k: {manifest: m.csv, label_column: k, classes: [up, down, 'up ']}}", "classes names 'up' twice"),
        ("tasks: {k: {manifest: m.csv, label_column: k, classes: [1, 1.0]}}", "classes names '1' twice"),
        ("tasks: {k: {manifest: m.csv, label_column: k, loss_weight: .nan}}", "loss_weight is nan; a number from 0 on"),
        ("tasks: {k: {manifest: m.csv, label_column: k, loss_weight: x}}", "loss_weight is 'x'; a number from 0 on"),
        ("mixed_precision: no", "mixed_precision is False; a text is needed (YAML needs yes, no, on and off in quotes)"),
        ("num_epochs: x", "num_epochs is 'x'; a whole number is needed."),
        ("num_epochs: [3]", "num_epochs is [3]; a whole number is needed"),
        ("selected_layers: 3", "selected_layers is 3; a list of whole numbers is needed"),
        ("learning_rate: .nan", "learning_rate is nan; it must be above 0"),
        ("l2: .nan", "l2 is nan; it must not be negative"),
        ("seed: 1\nseed: 2", "recipe.yaml: cannot be read as YAML ('seed' is given twice at line 3"),
        (f"tasks:\n  k: {TASK}\n  k: {TASK}", "'k' is given twice at line 4"),
        ("[" * 3000, "recipe.yaml: cannot be read as YAML (nested too deeply)"),
        ("note: caf\xe9".encode("latin-1"), "recipe.yaml: cannot be read as YAML ('utf-8' codec can't decode byte 0xe9"),
        ("note: &a [*a]", "an alias is part of what it stands for"),
        ("note: 2024-13-45", "recipe.yaml: cannot be read as YAML (month must be in 1..12)"),
        ("note: !!timestamp x", "recipe.yaml: cannot be read as YAML"),
        ("# " + "x" * 2**20, "larger than 1,048,576 bytes"),
        ("", "must hold fields of the form `name: value`"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_sentence(tmp_path, text, message):
    prefix = b"upstream: u\n" if isinstance(text, bytes) else "upstream: u\n"
    path = recipe(tmp_path, prefix + text if text[:1] not in ("", "[") else text)
    with pytest.raises(ValueError) as refusal:
        TRAIN.parse([path])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_aliases_that_explode_are_refused_and_others_serve(tmp_path):
    layers = [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi")]
    bomb = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x, x]", *layers])
    with pytest.raises(ValueError, match="its aliases stand for too much"):
        read_recipe(recipe(tmp_path, bomb), allowed="abcdefghi")
    merges = [f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}" for before, name in zip("abcdefgh", "bcdefghi")]
    with pytest.raises(ValueError, match="its aliases stand for too much"):
        read_recipe(recipe(tmp_path, "\n".join(["a: &a {x: 1}", *merges])), allowed="abcdefghi")
    text = "upstream: u\ntasks:\n  k: &k {manifest: m.csv, label_column: keyword}\n  s: {<<: *k, label_column: speaker_id}\n"
    sources = TRAIN.parse([recipe(tmp_path, text)]).task_sources()
    assert {name: source.label_column for name, source in sources.items()} == {"k": "keyword", "s": "speaker_id"}


def test_mappings_on_the_command_line_are_json():
    tasks = {"keyword": {"manifest": "m.csv", "label_column": "keyword", "classes": ["yes", "no"]}}
    line = ["--upstream", "u", "--tasks", json.dumps(tasks), "--pooling_kwargs", '{"p": 4.0}']
    args = TRAIN.parse(line)
    assert (args.tasks, args.pooling_kwargs) == (tasks, {"p": 4.0})
    assert PRETRAIN.parse(["--data", '{"x": {"manifest": "m.csv"}}']).clip_sources()["x"].manifest == "m.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{keyword", "tasks is '{keyword'; on the command line it must be a JSON object"),
        ("[1]", "tasks is '[1]'; a mapping is needed"),
        ('{"k": 1, "k": 2}', "a name is given twice"),
        ('{"k": ' + "[" * 100_000, "it must be a JSON object (maximum recursion depth"),
        ("{}", "there is no option --unknown; --help shows all."),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(text, message):
    line = ["--upstream", "u", "--tasks", text] + (["--unknown", "1"] if text == "{}" else [])
    with pytest.raises(ValueError) as refusal:
        TRAIN.parse(line)
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_all_programs_read_recipes_the_same_way(tmp_path):
    path = recipe(tmp_path, "note: a\nnote: b\n")
    for parse in (TRAIN.parse, PRETRAIN.parse, FINETUNE.parse, EVAL.parse, lambda argv: read_config(argv[0])):
        with pytest.raises(ValueError, match=r"recipe\.yaml: cannot be read as YAML \('note' is given twice at line 2"):
            parse([path])


def test_phase1_reads_texts_as_the_command_line_does(tmp_path):
    own = f"upstream: u\nlearning_rate: 1e-3\ntasks: {{k: {TASK}}}\ntraining: {{l1: 2e-3, pooling_kwargs: {{p: 3}}}}\n"
    config = read_config(recipe(tmp_path, own))
    assert config.recipe.learning_rate == 1e-3
    with pytest.raises(ValueError, match=r"recipe\.yaml: training: num_epochs is \'x\'; a whole number"):
        read_config(recipe(tmp_path, own.replace("p: 3}", "p: 3}, num_epochs: x")))


def test_two_tasks_of_an_evaluation_with_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"two of the names \['1', '1'\] are the same"):
        EVAL.parse([recipe(tmp_path, "tasks: {1: {task: keyword}, '1': {task: speaker}}")])


def test_folder_and_starting_again_have_one_name_for_all_commands_and_the_older_ones_still_work():
    line = ["--upstream", "u", "--out", "runs/a", "--overwrite"]
    older = ["--upstream", "u", "--output_dir", "runs/a", "--overwrite_output_dir", "true"]
    assert TRAIN.parse(line) == TRAIN.parse(older)
    assert TRAIN.parse(line).output_dir == "runs/a"
    assert TRAIN.parse(line).overwrite_output_dir is True
    assert PRETRAIN.parse(["--out", "runs/a", "--overwrite"]) == PRETRAIN.parse(["--output-dir", "runs/a", *older[-2:]])
    own = ["--model", "m", "--tasks", "keyword", "--manifest", "m.csv"]
    assert EVAL.parse([*own, "--out", "runs/a"]) == EVAL.parse([*own, "--output_dir", "runs/a"])


def test_flags_are_turned_on_and_off():
    for words, saves in ((["--save_hub"], True), (["--save_hub", "no"], False), (["--no_save_hub"], False)):
        assert TRAIN.parse(["--upstream", "u", *words]).save_hub is saves
    with pytest.raises(ValueError, match="save_hub is 'perhaps'; true or false is needed"):
        TRAIN.parse(["--upstream", "u", "--save_hub=perhaps"])
    with pytest.raises(ValueError, match="--no_save_hub takes no value"):
        TRAIN.parse(["--upstream", "u", "--no_save_hub=yes"])


@dataclass
class Limited:
    share: float = option(0.5, "A share of 100 %.", at_least=0, at_most=1)
    between: float = option(0.5, "Inside.", above=0, below=1)
    count: int = option(1, "From one on.", at_least=1)
    rate: float | None = option(None, "Or none.", above=0)
    kind: str = option("a", "Of two.", choices=("a", "b"))

    def __post_init__(self):
        check_fields(self)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.5}, "share is 1.5; it must be at least 0 and at most 1."),
        ({"share": float("nan")}, "share is nan; it must be at least 0 and at most 1."),
        ({"between": 1}, "between is 1; it must be above 0 and below 1."),
        ({"count": 0}, "count is 0; it must be at least 1."),
        ({"rate": 0.0}, "rate is 0.0; it must be above 0."),
        ({"rate": "x"}, "rate is 'x'; a number or null is needed."),
        ({"kind": "c"}, "kind is 'c'; allowed: a, b."),
    ],
)
def test_a_field_says_its_range_and_choices(changes, message):
    with pytest.raises(ValueError) as refusal:
        Limited(**changes)
    assert str(refusal.value) == message


def test_the_help_shows_defaults_and_choices(capsys):
    with pytest.raises(SystemExit):
        Program("prog", Limited, "What it does.", "prog --share 0.1", has_recipe=True).parse(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("usage: prog [RECIPE.yaml] [--option value ...] What it does. recipe: RECIPE.yaml YAML file")
    assert "--share X A share of 100 %. (default: 0.5)" in words
    assert "--kind NAME Of two. One of a, b. (default: a)" in words
    assert words.endswith("example: prog --share 0.1")
    with pytest.raises(TypeError, match="no limits"):
        option(0, "A typing mistake.", atleast=1)
