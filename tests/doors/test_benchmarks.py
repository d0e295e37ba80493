"""HEAR 2021 and X-ARES: their own checks, and the vectors of `encode`."""

import importlib
import io
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import soxr
import torch

from wavcse.doors import hear
from wavcse.doors.xares import WavCSEXaresEncoder
from wavcse.tests.helpers.door_pages import link_root, run_first_block


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("wavlm", "layer")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def audio(waves) -> torch.Tensor:
    return torch.from_numpy(np.stack(waves(16_000, 16_000, 16_000)))


def test_hear_gives_the_embedding_and_the_frames(model, folder, audio):
    loaded = hear.load_model(str(folder))
    assert (loaded.sample_rate, loaded.scene_embedding_size, loaded.timestamp_embedding_size) == (16_000, 20, 32)
    scene = hear.get_scene_embeddings(audio, loaded)
    np.testing.assert_allclose(scene.numpy(), model.encode(audio), rtol=1e-5, atol=1e-6)
    frames, times = hear.get_timestamp_embeddings(audio, loaded)
    assert (frames.shape, times.shape) == ((3, 49, 32), (3, 49))
    np.testing.assert_allclose(times[1].numpy(), 12.5 + 20 * np.arange(49))
    with torch.no_grad():
        pooled = model.pool_layers([(row - row.mean()) / (row.var(correction=0) + 1e-7).sqrt() for row in audio])
    torch.testing.assert_close(frames.mean(dim=1), pooled.mean(dim=1), rtol=0, atol=1e-5)


def test_hear_says_what_is_missing(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="name the folder or the Hub id"):
        hear.load_model()
    tiny_model("wavlm", "layer", sampling_rate=8_000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes 8000 Hz; HEAR has 16000, 22050"):
        hear.load_model(str(tmp_path))


@pytest.mark.doors
def test_hears_own_validator_accepts_it(folder, monkeypatch):
    no_tensorflow = types.ModuleType("tensorflow")  # the validator asks which of the two a model is of
    no_tensorflow.Module, no_tensorflow.float32 = type("Module", (), {}), None
    monkeypatch.setitem(sys.modules, "tensorflow", no_tensorflow)
    pytest.importorskip("hearvalidator")
    validate = importlib.import_module("hearvalidator.validate")
    validate.ValidateModel("wavcse.doors.hear", str(folder), device="cpu")()


def test_the_page(tmp_path, monkeypatch):
    link_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = run_first_block("benchmarks.md")
    assert names["frames"].shape[:2] == names["times_ms"].shape


@pytest.mark.parametrize("frames", [False, True])
def test_xares_takes_the_embedding_or_the_frames(model, folder, audio, frames):
    encoder = WavCSEXaresEncoder(str(folder), frames=frames)
    found = encoder(audio)
    assert (encoder.sampling_rate, encoder.hop_size_in_ms) == (16_000, 20.0)
    assert found.shape == (3, 49 if frames else 1, encoder.output_dim)
    if frames:
        expected = np.stack([own.frames.mean(axis=1) for own in model.encode_frames(audio)])
    else:
        expected = model.encode(audio)[:, None]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.doors
@pytest.mark.parametrize("frames", [False, True])
def test_xares_own_check_accepts_it(folder, frames):
    check = pytest.importorskip("xares.audio_encoder_checker")
    assert check.check_audio_encoder(WavCSEXaresEncoder(str(folder), frames=frames))


def stands_for_torchaudio() -> types.ModuleType:
    """What X-ARES asks torchaudio for, by soundfile and soxr: its own reading needs torchcodec and FFmpeg."""
    torchaudio, functional = types.ModuleType("torchaudio"), types.ModuleType("torchaudio.functional")

    def load(path: str) -> tuple[torch.Tensor, int]:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T.copy()), rate

    def resample(samples: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
        return torch.from_numpy(soxr.resample(samples.numpy().T, rate, wanted).T.copy())

    torchaudio.load, functional.resample, torchaudio.functional = load, resample, functional
    return torchaudio


@pytest.mark.doors
def test_xares_runs_a_task(model, folder, toy_corpus, tmp_path, monkeypatch):
    """Tones of three pitches, through its own tar files, encoding, linear layer and nearest neighbours."""
    monkeypatch.setitem(sys.modules, "torchaudio", stands_for_torchaudio())
    for name in ("xares.audio_encoder_checker", "webdataset", "ignite"):
        pytest.importorskip(name)
    tars, tasks = importlib.import_module("xares.audiowebdataset"), importlib.import_module("xares.task")
    rows = pd.read_csv(toy_corpus, keep_default_na=False)
    (tmp_path / "pitch").mkdir()
    for split, own in rows[rows["split_ks"] != ""].groupby("split_ks"):
        paths = [str(toy_corpus.parent / name) for name in own["file_name"]]
        name = {"validation": "valid"}.get(split, split)
        tars.write_audio_tar(paths, list(own["keyword"]), str(tmp_path / f"pitch/{name}-*.tar"), "flac", num_shards=1)
    (tmp_path / "pitch/.audio_tar_ready").touch()
    words = sorted(set(rows["keyword"]))
    config = tasks.TaskConfig(
        name="pitch",
        env_root=tmp_path,
        private=True,
        encoder=WavCSEXaresEncoder(str(folder)),
        output_dim=len(words),
        label_processor=lambda target: words.index(target["label"]),
        eval_weight=12,
        batch_size_encode=1,
        num_encoder_workers=0,
        torch_num_threads=1,
        epochs=30,
        learning_rate=1e-2,
    )
    (linear, num_clips), (nearest, _) = tasks.XaresTask(config).run()
    assert num_clips == 12
    assert linear > 0.4  # chance: a third
    vectors = {name: model.encode(toy_corpus.parent / name) for name in rows["file_name"]}
    encoded = tmp_path / "pitch/embeddings/WavCSEXaresEncoder"
    for path in encoded.glob("wds-encoded-*.tar"):
        with tarfile.open(path) as tar:
            for member in [own for own in tar.getmembers() if own.name.endswith(".npy")]:
                expected = vectors[f"{member.name[:3]}.flac"]
                found = np.load(io.BytesIO(tar.extractfile(member).read()))[0]
                np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert nearest == pytest.approx(accuracy_of_ten_nearest(rows, vectors))


def accuracy_of_ten_nearest(rows: pd.DataFrame, vectors: dict[str, np.ndarray]) -> float:
    """What X-ARES computes: the label with the most votes of the ten nearest, weighed at temperature 0.07.

    Vectors to be tested have length 1; of those of training every number is scaled over the clips (`KNN` of its trainer).
    """
    train, test = (rows[rows["split_ks"] == split] for split in ("train", "test"))
    one, other = (np.stack([vectors[name] for name in own["file_name"]]).astype(np.float64) for own in (test, train))
    near = (one / np.linalg.norm(one, axis=1, keepdims=True)) @ (other / np.linalg.norm(other, axis=0)).T
    right = []
    for row, word in zip(near, test["keyword"]):
        nearest = np.argsort(-row)[:10]
        votes = pd.Series(np.exp(row[nearest] / 0.07)).groupby(train["keyword"].to_numpy()[nearest]).sum()
        right.append(votes.idxmax() == word)
    return float(np.mean(right))
