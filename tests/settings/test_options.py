"""Every option of every program: what is wrong is one line that names it, and a recipe and the command line say the same."""

import json
import re
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

import pytest
import yaml

from wavcse.analysis.arguments import ANALYZE
from wavcse.app.arguments import APP
from wavcse.data.arguments import CACHE, EMBED, TRANSCRIBE, TRIALS
from wavcse.data.corpora.arguments import CORPORA_PROGRAM
from wavcse.data.synthetic.arguments import SYNTHESIZE
from wavcse.doors.arguments import EXPORT
from wavcse.eval.arguments import EVAL, LAYER_CURVES, REPORT
from wavcse.finetuning.arguments import FINETUNE, FINETUNE_TASKS, TASK_STUDY
from wavcse.finetuning.study import read_study as read_task_study
from wavcse.hub.arguments import CARD, PUSH
from wavcse.pca.arguments import PCA
from wavcse.pretraining.arguments import PRETRAIN, STUDY
from wavcse.pretraining.study import read_study
from wavcse.retrieval.arguments import CALIBRATE, COMPARE, MAP, REDUCE, SIMILAR, SIZES, read_sizes
from wavcse.search.arguments import HPARAMS, LAYERS, PHASE1, POOLS
from wavcse.search.phase1_config import read_config
from wavcse.search.transfer import read_study as read_transfer
from wavcse.settings.command import Program
from wavcse.settings.fields import LIMITS, check_fields, operand, option, section_from
from wavcse.tools.arguments import CHOICE, INSTALL, TRAINING_DATA, UPDATE
from wavcse.training.arguments import TRAIN
from wavcse.words.arguments import WORDS

CONF = Path(__file__).parents[2] / "conf"
# The shortest command line of each program; RECIPE is a training recipe.
SHORTEST = {
    ANALYZE: "--encoders mfcc --tasks keyword --manifest m.csv --out o",
    APP: "",
    CACHE: "--manifest m.csv --upstream u --out o",
    CALIBRATE: "t.parquet --label speaker",
    CARD: "run",
    COMPARE: "a.wav b.wav",
    CORPORA_PROGRAM: "iemocap --root r --out m.csv",
    EMBED: "corpus --model m --out o.parquet",
    EVAL: "--tasks keyword --manifest m.csv --baselines mfcc --out o",
    EXPORT: "",
    FINETUNE: "",
    FINETUNE_TASKS: "",
    HPARAMS: "RECIPE --out o",
    INSTALL: "run --name wavcse-x --pretraining a b --evaluation e --data d.json",
    LAYER_CURVES: '--models {"a":"b"} --manifest m.csv --trials t.csv --out o',
    LAYERS: "RECIPE --out o",
    MAP: "t.parquet",
    PCA: "--manifest m.csv --cache c --upstream u --out o",
    PHASE1: "phase1.yaml",
    POOLS: "RECIPE --out o",
    PRETRAIN: "",
    PUSH: "run --repo_id o/n",
    REDUCE: "t.parquet --size 8 --out o",
    REPORT: "folder",
    SIMILAR: "t.parquet q.wav",
    SIZES: "sizes.yaml",
    STUDY: "study.yaml",
    SYNTHESIZE: "--out o",
    TASK_STUDY: "study.yaml",
    TRAIN: "--upstream u",
    TRAINING_DATA: "a.yaml b.yaml --out d.json",
    CHOICE: '--studies {"a":"b.yaml"} --upstreams {"a":"c"}',
    TRANSCRIBE: "m.csv --model m --out o.csv",
    TRIALS: "m.csv",
    UPDATE: "",
    WORDS: "--manifest w.csv --out o",
}
BY_NAME = {program.name: program for program in SHORTEST}


def kind_of(hint):
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next(kind for kind in kinds if kind is not type(None))


def options_of(program):
    """Name, type and what is said of every option; of a list the type of its items."""
    hints = get_type_hints(program.settings)
    for one in fields(program.settings):
        kind = kind_of(hints[one.name])
        if not one.metadata["option"].is_operand:
            yield one.name, get_args(kind)[0] if get_origin(kind) is list else kind, one.metadata["option"]


def mistakes():
    """Program, words that are wrong, and what the message must say."""
    for program in SHORTEST:
        yield program.name, ["--no_such_option", "1"], "there is no option --no_such_option"
        if program is not TRAINING_DATA:  # which takes any number of recipes
            yield program.name, ["one", "word", "too", "many"], "one word too many|cannot be read"
        for name, kind, about in options_of(program):
            flag = f"--{about.flag or name}"
            if kind is not bool and not about.empty:
                yield program.name, [flag], f"{flag} is without a value; "
            if kind in (int, float):
                yield program.name, [flag, "many"], f"{name} is 'many'; |{name} is \\['many'\\]; "
            if kind is bool:
                yield program.name, [f"{flag}=perhaps"], f"{name} is 'perhaps'; true or false is needed"
            if about.choices:
                yield program.name, [flag, "nonsense"], f"{name} is 'nonsense'.*; allowed: "
            for limit, bound in about.limits.items():
                beyond = {"at_least": bound - 1, "at_most": bound + 1}.get(limit, bound)
                yield (
                    program.name,
                    [flag, str(beyond)],
                    f"{name} is {re.escape(str(kind(beyond) if kind is float else beyond))}; it must",
                )


@pytest.fixture
def shortest(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("upstream: u\n")
    return {program.name: line.replace("RECIPE", str(recipe)).split() for program, line in SHORTEST.items()}


def test_the_shortest_command_lines_are_right(shortest):
    for program in SHORTEST:
        assert isinstance(program.parse(shortest[program.name]), program.settings)


@pytest.mark.parametrize(("program", "words", "message"), list(mistakes()))
def test_every_mistake_is_one_line_that_names_it(program, words, message, shortest, capsys):
    assert BY_NAME[program].refusal([*shortest[program], *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{program}: ")
    assert re.search(message, line), line


@pytest.mark.parametrize("program", [name for name, program in BY_NAME.items() if SHORTEST[program]])
def test_what_is_missing_is_named(program, capsys):
    assert BY_NAME[program].refusal([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r" is missing: | is not given; |No task is given; ", line), line


def another(value, kind, about):
    """A value that is not the default, as YAML has it."""
    if about.choices and kind is str:
        return next(choice for choice in about.choices if choice != value)
    if kind in (int, float):
        fit = (own for own in map(kind, (1, 2, 0.5)) if all(LIMITS[limit](own, end) for limit, end in about.limits.items()))
        return next(own for own in fit if own != value)
    return {bool: not value, dict: {"name": "value"}}.get(kind, "text")


def without(line, flag):
    """The command line without an option and its values."""
    if flag not in line:
        return line
    start = line.index(flag)
    end = next((i for i in range(start + 1, len(line)) if line[i].startswith("--")), len(line))
    return [*line[:start], *line[end:]]


def result(program, argv):
    try:
        return program.parse(argv)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("program", [name for name, program in BY_NAME.items() if program.has_recipe])
def test_a_recipe_and_the_command_line_say_the_same(program, shortest, tmp_path):
    """The settings are equal, or both are refused with the same words."""
    program, base = BY_NAME[program], shortest[program]
    start, equal = program.parse(base), 0
    hints = get_type_hints(program.settings)
    for name, kind, about in options_of(program):
        value = ["speaker"] if (program, name) == (EVAL, "tasks") else another(getattr(start, name), kind, about)
        is_list = get_origin(kind_of(hints[name])) is list
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump({name: [value] if is_list else value}))
        word = value[0] if isinstance(value, list) else json.dumps(value) if kind in (bool, dict) else str(value)
        rest = without(base, f"--{about.flag or name}")
        by_recipe = result(program, [str(recipe), *rest])
        by_line = result(program, [*rest, f"--{name}", word])
        assert by_recipe == by_line, name
        equal += not isinstance(by_line, str) and getattr(by_line, name) != getattr(start, name)
    assert equal >= 8  # of the others both are refused


def recipes():
    """Recipe -> what reads it."""
    readers = {
        "analysis": ANALYZE.parse,
        "eval_": lambda argv: EVAL.parse([*argv, "--out", "o"]),
        "finetune_": FINETUNE.parse,
        "mtl_": FINETUNE_TASKS.parse,
        "pretrain_": PRETRAIN.parse,
        "train_": TRAIN.parse,
        "words_": WORDS.parse,
    }
    readers |= {"quickstart": TRAIN.parse, "real_speech": TRAIN.parse}
    found = {}
    for path in sorted(CONF.rglob("*.yaml")):
        reader = next((read for start, read in readers.items() if path.name.startswith(start)), None)
        if path.stem.endswith("phase1"):
            reader = lambda argv: read_config(argv[0])  # noqa: E731
        if path.stem in ("tiny_architectures", "tiny_lasr"):
            reader = lambda argv: read_study(argv[0])  # noqa: E731
        if path.name in ("002_base.yaml", "003_base.yaml", "ser_synthetic_base.yaml"):
            reader = FINETUNE_TASKS.parse
        if path.stem in ("mtl_synthetic", "mtl_real", "mtl_embedding", "003_iemocap") or path.name.startswith("002_table"):
            reader = lambda argv: read_task_study(argv[0])  # noqa: E731
        if path.name.startswith("ser_"):
            reader = FINETUNE_TASKS.parse if path.stem.endswith("_base") else lambda argv: read_task_study(argv[0])
        if path.name.startswith("transfer_"):
            reader = lambda argv: read_transfer(argv[0])  # noqa: E731
        if path.stem == "small_vectors":
            reader = lambda argv: read_sizes(argv[0])  # noqa: E731
        if reader:
            found[path.relative_to(CONF).as_posix()] = reader
    return found


@pytest.mark.parametrize("name", recipes())
def test_a_misspelt_field_of_a_recipe_is_refused_with_the_nearest_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(CONF.parent)
    read, text = recipes()[name], (CONF / name).read_text(encoding="utf-8")
    read([str(CONF / name)])
    key = re.search(r"^(\w+):", text, re.MULTILINE)[1]
    (tmp_path / "wrong.yaml").write_text(text.replace(f"{key}:", f"{key[:-2]}{key[-1]}:", 1))
    with pytest.raises(ValueError) as refusal:
        read([str(tmp_path / "wrong.yaml")])
    assert f"wrong.yaml: unknown fields ['{key[:-2]}{key[-1]}'] (did you mean {key}?); allowed: " in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_no_recipe_is_left_out():
    others = {
        "tiny_data.yaml",
        "root_data.yaml",
        "paper/phase1_figures.yaml",
    }  # tables of corpora and figures, read by other tests
    assert {path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")} == {*recipes(), *others}


# ---- the rules of settings/fields.py, on a small program ----


@dataclass
class Inner:
    steps: int = option(10, "Updates.", at_least=1)
    note: str = option("", "A remark.")

    def __post_init__(self):
        check_fields(self)


@dataclass
class Outer:
    recipe: Inner = operand("Recipe.", value="RECIPE.yaml")
    parts: list[str] = operand("Parts.", default=list)
    note: str = option("", "Of the outer one.")
    folder: Path = option(Path("o"), "Where.", flag="out")
    names: list[str] = option(list, "Some.", commas=True)
    rates: list[float] = option(list, "Some.", empty=True, above=0)
    workers: int | str = option("auto", "How many.", choices=("auto",), at_least=1)
    is_fast: bool = option(True, "Whether.")

    def __post_init__(self):
        check_fields(self)


OUTER = Program("outer", Outer, "What it does.", "outer recipe.yaml")


def test_options_of_the_recipe_are_options_of_the_program_unless_it_has_them_itself(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("steps: 3\nnote: inner\n")
    args = OUTER.parse([str(path), "--note", "outer", "--steps", "5", "a", "b"])
    assert args.recipe == Inner(steps=5, note="inner")
    assert (args.note, args.parts) == ("outer", ["a", "b"])


def test_spellings(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("{}")
    line = [str(path), "--names", "a,b", "c", "--rates", "--folder=x y", "--no-is-fast", "--workers", "3", "--note=--a=b"]
    args = OUTER.parse(line)
    assert (args.names, args.rates, args.folder, args.is_fast) == (["a", "b", "c"], [], Path("x y"), False)
    assert (args.workers, args.note) == (3, "--a=b")
    assert OUTER.parse([str(path), "--is_fast", "no", "--out", "y", "--rates", "1e-3", "2"]).rates == [1e-3, 2.0]
    assert OUTER.parse([str(path), "--is_fast", "part"]).parts == ["part"]  # a switch takes no other word
    for words, message in (
        (["--workers", "many"], "workers is 'many'; allowed: a number, auto."),
        (["--workers", "0"], "workers is 0; it must be at least 1."),
        (["--rates", "1", "0"], "rates is 0.0; it must be above 0."),
        (["--rates", "1", "x"], "rates is [1.0, 'x']; a list of numbers is needed."),
        (["--fodler", "x"], "there is no option --fodler (did you mean --folder?); --help shows all."),
        (["--no_note"], "there is no option --no_note (did you mean --note?); --help shows all."),
    ):
        with pytest.raises(ValueError) as refusal:
            OUTER.parse([str(path), *words])
        assert str(refusal.value) == message


def test_a_field_has_one_value_in_a_recipe_whatever_it_is_called(tmp_path):
    (tmp_path / "r.yaml").write_text("out: a\nbatch_seconds: .inf\n")
    eval_line = ["--tasks", "keyword", "--manifest", "m.csv", "--baselines", "mfcc"]
    with pytest.raises(ValueError, match="batch_seconds is inf; it must be at least 0.1 and below inf"):
        EVAL.parse([str(tmp_path / "r.yaml"), *eval_line])
    assert EVAL.parse([str(tmp_path / "r.yaml"), *eval_line, "--batch_seconds", "9"]).output_dir == "a"
    (tmp_path / "r.yaml").write_text("out: a\noutput_dir: b\n")
    with pytest.raises(ValueError, match=r"r\.yaml: output_dir and out are two names of one field"):
        EVAL.parse([str(tmp_path / "r.yaml"), *eval_line])


def test_a_section_is_held_to_its_program(tmp_path):
    assert section_from(Inner, "part", {"steps": "4"}) == Inner(steps=4)
    for section, message in (
        ({"stepps": 4}, "part: unknown fields ['stepps'] (did you mean steps?); allowed: note, steps."),
        ({"steps": 0}, "part: steps is 0; it must be at least 1."),
        (["steps"], "part: must hold fields of the form `name: value`."),
    ):
        with pytest.raises(ValueError) as refusal:
            section_from(Inner, "part", section)
        assert str(refusal.value) == message
    with pytest.raises(ValueError, match=r"part: unknown fields \['steps'\]"):
        section_from(Inner, "part", {"steps": 3}, steps=4)


@pytest.mark.parametrize("program", [name for name, program in BY_NAME.items() if len(fields(program.settings)) > 8])
def test_many_options_are_shown_in_groups(program, capsys):
    with pytest.raises(SystemExit):
        BY_NAME[program].parse(["--help"])
    lines = capsys.readouterr().out.splitlines()
    titles = [i for i, line in enumerate(lines) if re.fullmatch(r"[a-z][^:]*:", line) and lines[i + 1].startswith("  ")]
    groups = [sum(line.startswith("  -") for line in lines[start:end]) for start, end in pairwise(titles)]
    assert sum(count > 0 for count in groups) >= 2
    assert max(groups) <= 12


def test_the_help_puts_what_must_be_given_first(capsys):
    with pytest.raises(SystemExit):
        EMBED.parse(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: wavcse embed CORPUS --model DIR_OR_HUB_ID --out FILE.parquet [--option value ...]\n")
    titles = re.findall(r"^(\w[^:\n]*):$", text, re.MULTILINE)
    assert titles == ["input and output", "what is made of a clip", "how it is done", "example"]
