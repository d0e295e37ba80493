"""Which package imports which: the table of docs/architecture.md, read off the syntax trees of all modules."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Package or program -> what it may import beside itself. Lower layers come first: a name may import only names above it.
ALLOWED = {
    "root": "",  # what travels to the Hub: *_wavcse.py, and __init__.py
    "settings": "",
    "data": "root settings",
    "reports": "root data",
    "training": "root settings data",
    "steps": "root settings data training",
    "pca": "root settings data reports training",
    "eval": "root settings data reports",
    "words": "root settings data training eval",
    "studies": "root settings data reports training eval",
    "pretraining": "root settings data training steps",
    "hub": "root settings data reports eval",
    "finetuning": "root settings data reports training steps eval studies hub",
    "finetuning/study": "root settings data reports training steps eval studies finetuning",
    "finetuning/__main__": "settings finetuning finetuning/study",
    "finetune_accelerate": "finetuning finetuning/__main__",
    "train_accelerate": "root settings data training",
    "search": "root settings data training reports train_accelerate",
    "pretrain_accelerate": "root settings data training steps pretraining",
    "embed": "root settings data eval",
    "transcribe": "root settings data eval",
    "search/transfer": "root settings data reports training eval studies train_accelerate search",
    "pretraining/study": "root settings data reports training steps eval studies pretraining pretrain_accelerate",
    "retrieval": "root settings data reports eval embed",
    "app": "root settings data eval embed retrieval",
    "analysis": "root settings data reports eval words embed retrieval",
    "doors": "root settings data reports eval hub embed retrieval",
    "tools": "root settings data reports training search studies eval pretraining hub search/transfer",
}
ABOVE = ("finetuning/study", "finetuning/__main__", "pretraining/study", "search/transfer")
FREE = ("benchmarks", "examples", "tests")  # may import anything, and nothing imports them
OUTSIDE = ("setup.py", "wavcse_cli.py", "handler.py")  # no part of the package


def owner(path: Path) -> str:
    """Package or program that a file belongs to; studies lie in their packages and stand above them."""
    first, *rest = path.relative_to(ROOT).parts
    if not rest:
        return "root" if first.endswith("_wavcse.py") or first == "__init__.py" else first.removesuffix(".py")
    study = f"{first}/{rest[0].removesuffix('.py')}"
    return study if study in ABOVE else first


def modules() -> list[Path]:
    folders = [path.parent for path in ROOT.glob("*/__init__.py")]
    return [
        path for path in (*ROOT.glob("*.py"), *(p for own in folders for p in own.rglob("*.py"))) if path.name not in OUTSIDE
    ]


def imported(path: Path) -> set[str]:
    """Owners of what a file imports of this package, late imports too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {_owner_of_name(name) for name in names if name.split(".")[0] == "wavcse"}


def _owner_of_name(name: str) -> str:
    """Of `wavcse.data.files.locked`: the file or package that the longest existing part of the name is."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        if place.with_suffix(".py").is_file():
            return owner(place.with_suffix(".py"))
        if (place / "__init__.py").is_file():
            return owner(place / "__init__.py")
    return "root"  # a public name, `from wavcse import WavCSEModel`


FILES = [path for path in modules() if owner(path) not in FREE]


def test_every_package_has_its_row():
    assert {owner(path) for path in FILES} == set(ALLOWED)


def test_the_table_has_no_circle():
    names = list(ALLOWED)
    for place, (name, allowed) in enumerate(ALLOWED.items()):
        assert set(allowed.split()) <= set(names[:place]), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_imports_upwards(path):
    assert imported(path) - {owner(path)} <= set(ALLOWED[owner(path)].split())
