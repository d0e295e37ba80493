"""`wavcse analyze` on a corpus of tones: one command, a report; the same numbers after a kill; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wavcse.analysis.__main__ import main
from wavcse.analysis.analyses import ANALYSES

PROBES = {"learning_rates": (1e-2,), "max_epochs": 15}


@pytest.fixture(scope="module")
def command(toy_corpus, upstream_folder, quick_probes, tmp_path_factory) -> list[str]:
    """Without --out."""
    return [
        *("--encoders", f"{upstream_folder},mfcc", "--manifest", str(toy_corpus), "--tasks", "keyword"),
        *("--language", "en", "--device", "cpu", "--workers", "1"),
    ]


@pytest.fixture(scope="module")
def study_folder(command, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert main([*command, "--out", str(folder)]) == 0
    return folder


def records(folder: Path) -> dict[str, dict]:
    found = {}
    for path in sorted((folder / "records").glob("*/*.json")):
        record = json.loads(path.read_text())
        found[f"{path.parent.name}/{path.stem}"] = record["found"]
    return found


def test_one_command_leaves_a_report_with_pictures(study_folder):
    text = (study_folder / "report.md").read_text()
    assert text.startswith("# What the embeddings hold\n\n![")
    assert "(pictures/layers_keyword.png)" in text
    assert (study_folder / "report.html").read_text().count("data:image/svg+xml;base64,") == text.count("](pictures/")
    assert {path.split("/")[0] for path in records(study_folder)} <= set(ANALYSES)
