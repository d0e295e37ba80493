"""A run folder as training and evaluation leave it, in small: what publishing is tested on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from wavcse.data.files import read_json
from wavcse.tests.helpers.evaluation_folder import make_folder

REPO_ID = "org/wavcse"
MANIFEST = "file_name,keyword,language,split\na.wav,yes,en,train\nb.wav,si,it,test\nc.wav,yes,unknown,train\n"


def training_result(manifest: Path) -> dict:
    """What `train_accelerate.py` writes, in short."""
    task = {"accuracy": {"validation": 0.5, "test": 0.4625}, "num_classes": 3, "protocol": "official"}
    return {
        "tasks": {"keyword": {**task, "num_clips": {"train": 300, "validation": 40, "test": 80}}},
        "best_epoch": 7,
        "num_epochs": 9,
        "train_seconds": 12.5,
        "num_processes": 1,
        "device": "cpu",
        "note": "A planted remark.",
        "config": {
            "tasks": {"keyword": {"manifest": str(manifest), "label_column": "keyword"}},
            "cache_dir": "/somewhere/private/cache",
            "upstream": "microsoft/wavlm-base",
            "learning_rate": 0.0025,
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }


def make_run(folder: Path, model, **baselines: float) -> Path:
    """A run folder with a saved model, a training result and an evaluation of exactly these weights.

    Args:
        baselines: name -> how wrong it is, as of `make_folder`.
    """
    model.save_pretrained(folder / "hub")
    make_folder(folder, corpora={"gender": "timit"}, noise={"wavcse": 0.15, **baselines})
    weights = hashlib.sha256((folder / "hub" / "model.safetensors").read_bytes()).hexdigest()
    for path in (folder / "results").glob("*__wavcse.json"):
        record = read_json(path)
        record["encoder"]["weights_sha256"] = weights
        path.write_text(json.dumps(record))
    manifest = folder / "corpus" / "metadata.csv"
    manifest.parent.mkdir()
    manifest.write_text(MANIFEST)
    (folder / "results" / "phase1.json").write_text(json.dumps(training_result(manifest)))
    return folder
