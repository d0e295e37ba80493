"""What is packed into a wheel."""

import re
from pathlib import Path

import pytest

from wavcse.settings.libraries import EXTRAS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def distribution(monkeypatch):
    """What setup.py describes."""
    pytest.importorskip("setuptools")
    from distutils.core import run_setup  # setuptools' own copy, once setuptools is imported

    monkeypatch.chdir(ROOT)
    return run_setup("setup.py", stop_after="init")


@pytest.fixture
def build(distribution):
    """setuptools' command that collects the modules and data of the package, ready to be asked."""
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    return command


def test_an_extra_that_a_message_names_installs_the_library(distribution):
    names = {"sklearn": "scikit-learn"}  # imported as -> called in the registry
    for library, extra in EXTRAS.items():
        required = [re.match(r"[\w.-]+", line)[0] for line in distribution.extras_require[extra]]
        assert names.get(library, library) in required, library


def test_a_wheel_holds_every_package_and_nothing_beside_it(build):
    files = {Path(path).resolve().relative_to(ROOT).as_posix() for *_, path in build.find_all_modules()}
    packed = {path.split("/")[0] for path in files if "/" in path}
    assert packed == {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {f"{name}/__init__.py" for name in packed} <= files
    assert {"__init__.py", "embed.py", "modeling_wavcse.py", "train_accelerate.py", "wavcse_cli.py"} <= files
    modules = [(package, name) for package, name, _ in build.find_all_modules()]
    assert ("wavcse", "setup") not in modules
    assert [package for package, name in modules if name == "wavcse_cli"] == [""]


def test_a_wheel_says_that_the_package_has_types(build):
    data = {name for _, _, _, names in build.data_files for name in names}
    assert {"py.typed", "LICENSE", "conf/quickstart.yaml", "retrieval/map_page.html"} <= data
