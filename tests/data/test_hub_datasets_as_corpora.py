"""One small data set, as a manifest and in the Hub's formats: cache, training, search and evaluation find the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
import yaml
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Value

from wavcse.data import SPLITS
from wavcse.data.cache import main as cache
from wavcse.data.inspection import Inspector
from wavcse.eval.__main__ import main as evaluate
from wavcse.finetuning.arguments import MultiTaskArguments
from wavcse.finetuning.labelled_clips import labelled_clips
from wavcse.pretraining.arguments import ClipSource
from wavcse.pretraining.clips import load_clips
from wavcse.search.layers import main as search
from wavcse.tests.helpers.hub_server import HubServer, Repository, sha256
from wavcse.train_accelerate import main as train

PROBES = {"max_epochs": 3}
RATE = 16_000


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Caches of their own, and no torchcodec even where it is installed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("WAVCSE_DATASETS", str(tmp_path / "copies"))
    monkeypatch.setitem(sys.modules, "torchcodec", None)


@pytest.fixture(scope="module")
def corpus(toy_corpus, tmp_path_factory) -> Path:
    """The clips of the toy corpus that tell its keywords, as a manifest, in the order of their splits."""
    rows = pd.read_csv(toy_corpus, dtype=str, keep_default_na=False)
    rows = rows[rows["split_ks"] != ""].rename(columns={"split_ks": "split"})[["file_name", "keyword", "speaker_id", "split"]]
    rows = pd.concat([rows[rows["split"] == split] for split in SPLITS])
    folder = tmp_path_factory.mktemp("corpus")
    for name in rows["file_name"]:
        shutil.copy(toy_corpus.parent / name, folder / name)
    rows.to_csv(folder / "metadata.csv", index=False)
    return folder / "metadata.csv"


def in_the_hubs_format(corpus: Path) -> DatasetDict:
    """The same rows with the files' bytes, a class and a text, by split."""
    rows = pd.read_csv(corpus, dtype=str)
    words = ClassLabel(names=["word0", "word1", "word2"])
    audio = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"audio": audio, "keyword": words, "speaker_id": Value("string")})
    return DatasetDict(
        {
            split: Dataset.from_list(
                [
                    {
                        "audio": {"bytes": (corpus.parent / row.file_name).read_bytes(), "path": row.file_name},
                        "keyword": row.keyword,
                        "speaker_id": row.speaker_id,
                    }
                    for row in own.itertuples()
                ],
                features,
            ).cast_column("audio", Audio(sampling_rate=RATE))
            for split, own in rows.groupby("split", sort=False)
        }
    )


def saved_to_disk(corpus: Path, folder: Path) -> None:
    in_the_hubs_format(corpus).save_to_disk(folder)


def parquet(corpus: Path, folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for split, own in in_the_hubs_format(corpus).items():
        own.to_parquet(folder / f"data/{split}-00000-of-00001.parquet")


def audiofolder(corpus: Path, folder: Path) -> None:
    for split, own in pd.read_csv(corpus, dtype=str).groupby("split"):
        (folder / split).mkdir(parents=True)
        for name in own["file_name"]:
            shutil.copy(corpus.parent / name, folder / split / name)
        own.drop(columns="split").to_csv(folder / split / "metadata.csv", index=False)


def chain(source: str, upstream: str, folder: Path) -> dict:
    """Cache, training, search of layers and evaluation of one source, by their command lines; what they find."""
    task = {"manifest": source, "label_column": "keyword", "split_column": "split", "disjoint_by": "speaker_id"}
    sizes = {"selected_layers": [0, 1, 3], "layer_projection_size": 12, "embedding_size": 20, "batch_size": 8}
    recipe = {
        "tasks": {"keyword": task},
        "cache_dir": str(folder / "features"),
        "upstream": upstream,
        "num_epochs": 3,
        **sizes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run, found, tested = (str(folder / name) for name in ("run", "search", "eval"))
    codes = [
        cache(["--manifest", source, "--upstream", upstream, "--out", str(folder / "features"), "--workers", "1"]),
        train([str(folder / "recipe.yaml"), "--out", run]),
        search(
            [str(folder / "recipe.yaml"), "--out", found, "--seeds", "1", "--workers", "1", "--num_epochs", "1", "--rivals"]
        ),
        evaluate(["--model", f"{run}/hub", "--manifest", source, "--tasks", "keyword", "--out", tested, "--device", "cpu"]),
    ]
    assert codes == [0, 0, 0, 0]
    trained, layers, probed = (
        json.loads(Path(path).read_text())
        for path in (f"{run}/results/phase1.json", f"{found}/results/layers.json", f"{tested}/results/keyword__wavcse.json")
    )
    last = json.loads(Path(run, "log.jsonl").read_text().splitlines()[-1])
    own = {name: trained["tasks"]["keyword"][name] for name in ("accuracy", "num_clips", "num_classes")}
    return {
        "training": own,
        "losses": [last["train_loss"]["keyword"], last["validation"]["loss"]],
        "order of the layers": layers["order"],
        "layers": [[point["validation"]["mean"], point["test"]["mean"]] for point in layers["curves"]["consensus"]],
        "probe": {name: own["value"] for name, own in probed["metrics"].items()},
        "clips of the probe": probed["counts"]["clips"],
    }


def as_approx(found: dict) -> dict:
    """Losses to rounding: the layers of a clip depend on the clips beside it in a batch by that much."""
    return {**found, "losses": pytest.approx(found["losses"], rel=1e-5)}


@pytest.fixture(scope="module")
def expected(corpus, upstream_folder, quick_probes, tmp_path_factory) -> dict:
    return chain(str(corpus), str(upstream_folder), tmp_path_factory.mktemp("manifest"))


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(parquet, id="parquet"),
        pytest.param(saved_to_disk, id="save_to_disk", marks=pytest.mark.slow),
        pytest.param(audiofolder, id="audiofolder", marks=pytest.mark.slow),
    ],
)
def test_a_local_data_set_gives_the_figures_of_its_manifest(corpus, upstream_folder, expected, tmp_path, write):
    write(corpus, tmp_path / "speech")
    found = chain(str(tmp_path / "speech"), str(upstream_folder), tmp_path / "runs")
    assert found == as_approx(expected)
    assert found["training"]["num_clips"] == {"train": 24, "validation": 12, "test": 12}
    assert found["probe"]["accuracy"] > 0.4  # it was chance, a third, if labels or clips were mixed up


def test_pre_training_and_fine_tuning_read_the_clips_of_its_manifest(corpus, tmp_path):
    parquet(corpus, tmp_path / "speech")

    def read(source: str) -> tuple:
        pretraining = load_clips({"speech": ClipSource(source)}, "keyword")
        task = {"kind": "classes", "manifest": [source], "label_column": "keyword", "disjoint_by": "speaker_id"}
        finetuning = labelled_clips(MultiTaskArguments(tasks={"word": task}), Inspector())
        word = finetuning.tasks["word"]
        audio = [clip.path.read_bytes() for clip in pretraining.clips]
        return (
            audio,
            pretraining.labels,
            pretraining.targets.tolist(),
            finetuning.digests,
            list(word.splits),
            word.targets.tolist(),
        )

    assert read(str(tmp_path / "speech")) == read(str(corpus))


@pytest.mark.slow
def test_a_data_set_of_the_loopback_hub_gives_the_figures_of_its_manifest(corpus, upstream_folder, tmp_path):
    """In processes of their own: the libraries read where the Hub is when they are loaded."""
    parquet(corpus, tmp_path / "speech")
    files = {
        path.relative_to(tmp_path / "speech").as_posix(): path.read_bytes()
        for path in (tmp_path / "speech").rglob("*.parquet")
    }
    words = "import json, sys\nfrom pathlib import Path\nfrom wavcse.tests.data.test_hub_datasets_as_corpora import chain\n"
    words += "source, upstream, folder = sys.argv[1:]\nprint()\nprint(json.dumps(chain(source, upstream, Path(folder))))"
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    def found(source: str, folder: str) -> dict:
        command = [sys.executable, "-c", words, source, str(upstream_folder), str(tmp_path / folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    with HubServer() as hub:
        hub.repositories["datasets/org/speech"] = repository = Repository(private=False)
        repository.commit("v1", files, "data")
        hub.objects.update({sha256(content): content for content in files.values()})
        environment["HF_ENDPOINT"] = hub.url
        ours = found("hf://datasets/org/speech@v1", "hub")
        streamed = found("hf://datasets/org/speech@v1?streaming=true&keyword=keyword", "streamed")
    assert ours == streamed == as_approx(found(str(corpus), "manifest"))
