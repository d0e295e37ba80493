"""One vector, whatever the door: ten clips through every way into the model folder, against `encode`.

A further door is one line: its name, the function below that takes the clips through it, and in `OF_LIBRARIES` its library.
"""

from __future__ import annotations

import base64
import importlib
import io
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline

import wavcse_cli
from wavcse import WavCSEModel
from wavcse.app.answers import Answers
from wavcse.app.arguments import AppArguments
from wavcse.audio_wavcse import load_waveform
from wavcse.doors import hear
from wavcse.doors.batches import EmbedBatch
from wavcse.doors.export import check_waveforms, load_run, padded, write_onnx, write_torch_export
from wavcse.doors.xares import WavCSEXaresEncoder
from wavcse.eval.encoder import WavCSEEncoder

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared/data/ravdess_speech/audio"  # recordings, where they are present
RATE = 16_000
TOLERANCE = 1e-5  # of the largest value of a clip's embedding
# Sampling rate in Hz, channels, seconds, format.
CLIPS = [
    (16_000, 1, 0.1, "wav"),
    (8_000, 1, 0.3, "wav"),
    (44_100, 2, 0.7, "flac"),
    (16_000, 2, 1.0, "wav"),
    (44_100, 1, 1.7, "ogg"),
    (8_000, 2, 2.5, "flac"),
    (16_000, 1, 4.0, "mp3"),
    (44_100, 2, 7.3, "wav"),
    (8_000, 1, 15.0, "wav"),
    (16_000, 1, 40.0, "flac"),
]


def speech() -> np.ndarray:
    """Float32 samples at 16 kHz, enough for all clips: sentences one after another, or voiced sounds where there are none."""
    files = sorted(REAL.glob("*.flac"))[:30]
    if files:
        return np.concatenate([load_waveform(path, RATE) for path in files])
    generator = np.random.default_rng(0)
    time_s = np.arange(80 * RATE) / RATE
    pitch_hz = 120 + 40 * np.sin(2 * np.pi * 0.3 * time_s)
    voice = sum(np.sin(2 * np.pi * k * np.cumsum(pitch_hz) / RATE) / k for k in range(1, 12))
    syllables = 0.5 + 0.5 * np.sin(2 * np.pi * 3.1 * time_s)
    return np.float32(0.1 * voice * syllables + 0.005 * generator.standard_normal(len(time_s)))


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    """The ten clips as files, in a folder of their own."""
    folder, source, start = tmp_path_factory.mktemp("clips"), speech(), 0
    for index, (rate, channels, seconds, suffix) in enumerate(CLIPS):
        length = round(seconds * RATE)
        clip = soxr.resample(source[start : start + length], RATE, rate, quality="HQ")
        start += length
        sides = [clip, 0.3 * np.roll(clip, rate // 50)][:channels]
        soundfile.write(folder / f"{index}.{suffix}", np.clip(np.stack(sides, axis=1), -1, 1), rate)
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module", params=["small", pytest.param("root", marks=pytest.mark.slow)])
def folder(request, tiny_multi_task_model, tmp_path_factory) -> str:
    """A saved model: a small one with random weights, or that of the root."""
    if request.param == "root":
        return str(ROOT)
    folder = tmp_path_factory.mktemp("hub")
    tiny_multi_task_model("wavlm", "layer").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def expected(folder, paths) -> np.ndarray:
    """What `encode` gives of each clip alone, `[10, E]`."""
    model = WavCSEModel.from_pretrained(folder)
    return np.stack([model.encode(path) for path in paths])


# ---- the doors: folder of a model and paths of clips -> their embeddings `[N, E]`; `place` is an empty folder ----


def auto_model(folder: str, paths: list[str], place: Path) -> np.ndarray:
    inputs = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)(paths, padding=True, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(folder, trust_remote_code=True)(**inputs).embeddings.numpy()


def model_with_heads(folder: str, paths: list[str], place: Path) -> np.ndarray:
    inputs = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)(paths, padding=True, return_tensors="pt")
    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        return model(**inputs).embeddings.numpy()


def feature_extraction_pipeline(folder: str, paths: list[str], place: Path) -> np.ndarray:
    embed = pipeline("feature-extraction", model=folder, trust_remote_code=True)
    return np.concatenate([found.numpy() for found in embed(paths, batch_size=3, return_tensors=True)])


def encode_in_one_call(folder: str, paths: list[str], place: Path) -> np.ndarray:
    return WavCSEModel.from_pretrained(folder).encode(paths, batch_size=4)


def windows_of_whole_clips(folder: str, paths: list[str], place: Path) -> np.ndarray:
    windows = WavCSEModel.from_pretrained(folder).encode(paths, window_s=60.0)
    return np.concatenate([clip.embeddings for clip in windows])


def command_line(folder: str, paths: list[str], place: Path) -> np.ndarray:
    out = place / "table.parquet"
    options = ["--model", folder, "--out", str(out), "--workers", "1"]
    assert wavcse_cli.main(["embed", str(Path(paths[0]).parent), *options]) == 0
    table = parquet.read_table(out)
    assert table["path"].to_pylist() == [Path(path).name for path in paths]
    return np.stack(table["embedding"].to_numpy())


def endpoint(folder: str, paths: list[str], place: Path) -> np.ndarray:
    handler = runpy.run_path(f"{folder}/handler.py")["EndpointHandler"](folder)
    return np.array(handler({"inputs": [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]}))


def batches(folder: str, paths: list[str], place: Path) -> np.ndarray:
    """Of `datasets`, Ray Data and Spark."""
    return np.array(EmbedBatch(folder)({"audio": paths})["embedding"])


def evaluation(folder: str, paths: list[str], place: Path) -> np.ndarray:
    return WavCSEEncoder(folder).embed([load_waveform(path, RATE) for path in paths])


def hear_module(folder: str, paths: list[str], place: Path) -> np.ndarray:
    model = hear.load_model(folder)
    return torch.cat([hear.get_scene_embeddings(sound, model) for sound in sounds(paths)]).numpy()


def xares_encoder(folder: str, paths: list[str], place: Path) -> np.ndarray:
    encoder = WavCSEXaresEncoder(folder)
    return torch.cat([encoder(sound)[:, 0] for sound in sounds(paths)]).numpy()


def sounds(paths: list[str]) -> list[torch.Tensor]:
    """Clips at the model's rate, `[1, samples]` each."""
    return [torch.from_numpy(load_waveform(path, RATE))[None] for path in paths]


def sentence_transformers(folder: str, paths: list[str], place: Path) -> np.ndarray:
    library = importlib.import_module("sentence_transformers")
    door = library.SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    return door.encode([Path(path) for path in paths], batch_size=4)


def mteb_encoder(folder: str, paths: list[str], place: Path) -> np.ndarray:
    door = importlib.import_module("wavcse.doors.mteb").WavCSEMtebEncoder(folder)
    from datasets import Dataset

    return door.encode(DataLoader(Dataset.from_dict({"audio": paths}), batch_size=4))


def app_download(folder: str, paths: list[str], place: Path) -> np.ndarray:
    """The file behind the button of the page."""
    answers = Answers(AppArguments(folder, device="cpu"))
    links = [re.search(r"base64,([^\"]+)", answers.vector(path)).group(1) for path in paths]
    return np.stack([np.load(io.BytesIO(base64.b64decode(link))) for link in links])


def exported(folder: str, paths: list[str], file: Path) -> np.ndarray:
    """An exported file of the model, run on one clip at a time."""
    model = WavCSEModel.from_pretrained(folder).eval()
    (write_onnx if file.suffix == ".onnx" else write_torch_export)(model, file)
    run = load_run(file)
    with torch.inference_mode():
        return torch.cat([run(*padded([clip])) for clip in check_waveforms(model, paths)]).numpy()


def torch_export_program(folder: str, paths: list[str], place: Path) -> np.ndarray:
    return exported(folder, paths, place / "model.pt2")


def datasets_map(folder: str, paths: list[str], place: Path) -> np.ndarray:
    from datasets import Audio, Dataset

    rows = Dataset.from_dict({"audio": paths}).cast_column("audio", Audio(decode=False))
    return np.array(rows.map(EmbedBatch(folder), batched=True, batch_size=4)["embedding"][:])


def onnx_file(folder: str, paths: list[str], place: Path) -> np.ndarray:
    return exported(folder, paths, place / "model.onnx")


def ray_data(folder: str, paths: list[str], place: Path) -> np.ndarray:
    ray = importlib.import_module("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    try:
        items = [{"audio": path, "number": number} for number, path in enumerate(paths)]
        rows = importlib.import_module("ray.data").from_items(items)
        found = rows.map_batches(EmbedBatch, fn_constructor_args=[folder], batch_size=4, concurrency=1).take_all()
    finally:
        ray.shutdown()
    return np.stack([row["embedding"] for row in sorted(found, key=lambda row: row["number"])])


def spark_pandas(folder: str, paths: list[str], place: Path) -> np.ndarray:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    session = importlib.import_module("pyspark.sql").SparkSession.builder.master("local[1]")
    for name, value in {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1"}.items():
        session = session.config(name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        spark = session.getOrCreate()
        try:
            frame = spark.createDataFrame(list(enumerate(paths)), "number int, audio string")
            rows = frame.mapInPandas(EmbedBatch(folder), "number int, embedding array<float>").collect()
        finally:
            spark.stop()
    return np.array([row.embedding for row in sorted(rows, key=lambda row: row.number)])


Door = Callable[[str, list[str], Path], np.ndarray]
CORE: dict[str, Door] = {
    "AutoModel": auto_model,
    "AutoModelForAudioClassification": model_with_heads,
    'pipeline("feature-extraction")': feature_extraction_pipeline,
    "encode, all in one call": encode_in_one_call,
    "encode, one window per clip": windows_of_whole_clips,
    "wavcse embed": command_line,
    "Inference Endpoints": endpoint,
    "EmbedBatch": batches,
    "wavcse eval": evaluation,
    "HEAR 2021": hear_module,
    "X-ARES": xares_encoder,
    "wavcse app": app_download,
}
OF_LIBRARIES: dict[str, tuple[str, Door]] = {  # name -> the library that has to be installed, and the door
    "SentenceTransformer": ("sentence_transformers", sentence_transformers),
    "mteb": ("mteb", mteb_encoder),
    "wavcse export, torch-export": ("torch", torch_export_program),
    "datasets.map": ("datasets", datasets_map),
    "wavcse export, ONNX": ("onnxruntime", onnx_file),
    "Ray Data": ("ray", ray_data),
    "Spark": ("pyspark", spark_pandas),
}


@pytest.mark.parametrize("door", [*CORE, *(pytest.param(name, marks=pytest.mark.doors) for name in OF_LIBRARIES)])
def test_every_door_gives_the_vector_of_encode(folder, paths, expected, tmp_path, door):
    if door in OF_LIBRARIES:
        library, embed = OF_LIBRARIES[door]
        print(f"{door}: {library} {pytest.importorskip(library).__version__}")  # shown by pytest -rP
    else:
        embed = CORE[door]
    found = embed(folder, paths, tmp_path)
    assert found.shape == expected.shape
    errors = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert errors.max() <= TOLERANCE, dict(zip(CLIPS, errors.tolist()))


def test_the_clips_are_not_alike(expected):
    """Else a door that mixed them up would pass."""
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(unit[:, None] - unit[None]).max(axis=2)[np.triu_indices(10, 1)].min() > 100 * TOLERANCE
