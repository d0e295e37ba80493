"""The console script, and the help of every program."""

import subprocess
import sys
from pathlib import Path

import pytest

import wavcse
import wavcse_cli
from wavcse.configuration_wavcse import CONTEXTS, LAYER_POOLINGS, LAYER_SCALINGS, PRECISIONS, TEMPORAL_POOLINGS
from wavcse.data import arguments as of_data
from wavcse.pretraining.arguments import LABEL_LOSS_NAMES
from wavcse.pretraining.label_losses import LABEL_LOSSES
from wavcse.search import arguments as of_searches
from wavcse.search.selection import RIVALS
from wavcse.training import arguments as of_training

ROOT = Path(__file__).parents[1]
SEARCHES = ("layers", "poolings", "hparams", "phase1")
MODULES = (
    *("data.cache", "data.corpora", "data.synthetic", "embed", "eval", "eval.report", "finetuning"),
    *("pca", "hub.card", "hub.push", "pretrain_accelerate", "pretraining.study", "train_accelerate"),
    *("doors.export", "retrieval.compare", "retrieval.map", "retrieval.reduce", "retrieval.similar", "retrieval.sizes"),
    *("tools.install", "tools.readme", "tools.training_data"),
    *("search", *(f"search.{name}" for name in SEARCHES)),
)
HELPS = f"""
import contextlib, io, re, runpy, sys, warnings
import wavcse_cli

warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # `asked` runs them by both names
EXAMPLE = r"(?m)[Ee]xample|^ +(wavcse|python -m wavcse\\S*|accelerate launch) "  # behind the usage

def asked(name, run):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            code = run()
        except SystemExit as stop:
            code = stop.code
    assert code == 0, (name, code)
    assert re.search(EXAMPLE, text.getvalue().partition("\\n\\n")[2]), (name, text.getvalue())
    large = {{"torch", "transformers", "accelerate", "pandas", "sklearn", "matplotlib"}} & set(sys.modules)
    assert not large, (name, large)

for command in ([], *([name] for name in wavcse_cli.COMMANDS), *(["search", name] for name in {SEARCHES})):
    name = " ".join(["wavcse", *command])
    asked(name, lambda: wavcse_cli.main([*command, "--help"]))
sys.argv = ["program", "--help"]
for module in {MODULES}:
    asked(f"python -m wavcse.{{module}}", lambda: runpy.run_module(f"wavcse.{{module}}", run_name="__main__"))
for script in ("train_accelerate.py", "pretrain_accelerate.py", "finetune_accelerate.py"):
    asked(script, lambda: runpy.run_path(script, run_name="__main__"))
"""


def test_every_help_has_an_example_and_loads_no_large_library():
    """One process asks for all: what one of them loads would still be there for the next."""
    done = subprocess.run([sys.executable, "-c", HELPS], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_first_help_lists_every_command(capsys):
    assert wavcse_cli.main([]) == 0
    assert wavcse_cli.main(["--help"]) == 0
    assert capsys.readouterr().out == 2 * f"{wavcse_cli.HELP}\n"
    assert all(f"\n  {name} " in wavcse_cli.HELP for name in wavcse_cli.COMMANDS)


def test_searches_call_themselves_by_their_names(capsys):
    for name in SEARCHES:
        with pytest.raises(SystemExit):
            wavcse_cli.main(["search", name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: wavcse search {name} ")
    assert wavcse_cli.main(["search", "layers"]) == 2
    assert capsys.readouterr().err.startswith("wavcse search layers: RECIPE.yaml is missing: Training recipe")
    assert wavcse_cli.main(["search", "layer"]) == 2
    assert "there is no command 'layer' (did you mean layers?); there are layers, poolings" in capsys.readouterr().err
    assert wavcse_cli.main(["search", "layers", "absent.yaml", "--output_dir", "unused"]) == 2
    assert capsys.readouterr().err.startswith("wavcse search layers: absent.yaml: cannot be read")


def test_the_version_is_the_package_s(capsys):
    assert wavcse_cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"wavcse {wavcse.__version__}\n"


def test_an_unknown_command_is_an_error(capsys):
    assert wavcse_cli.main(["embd"]) == 2
    assert capsys.readouterr().err.startswith("wavcse: there is no command 'embd' (did you mean embed?); there are corpora, ")


def test_the_names_that_command_lines_allow_are_those_that_the_code_has():
    """They are written twice: the code that has them loads PyTorch, and a help does not wait for that."""
    assert of_data.TEMPORAL_POOLINGS == tuple(TEMPORAL_POOLINGS)
    assert of_data.CONTEXTS == CONTEXTS
    assert of_data.PRECISIONS == PRECISIONS
    assert LABEL_LOSS_NAMES == tuple(LABEL_LOSSES)
    assert of_searches.POOLINGS == tuple(LAYER_POOLINGS)
    assert of_training.SCALINGS == LAYER_SCALINGS
    assert of_searches.RIVALS == tuple(RIVALS)
