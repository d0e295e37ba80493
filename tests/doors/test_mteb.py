"""mteb's encoder: its mock tasks for audio, two tasks on recordings, what it is told of the model."""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from wavcse import WavCSEModel
from wavcse.tests.helpers.door_pages import link_root, run_first_block

pytestmark = pytest.mark.doors

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"  # recordings, where they are present
AUDIO_TASKS = 7  # mock tasks of mteb that need nothing but audio


@pytest.fixture(scope="module")
def mteb():
    return pytest.importorskip("mteb")


@pytest.fixture(scope="module")
def encoder_of(mteb) -> Callable:
    from wavcse.doors.mteb import WavCSEMtebEncoder

    return lambda model, **fields: WavCSEMtebEncoder(str(model), **fields)


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "small"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def wave_files_without_torchcodec(monkeypatch):
    """`datasets` encodes arrays by torchcodec alone, and so are mock tasks made; to read them nothing is needed."""

    class AudioEncoder:
        def __init__(self, samples, sample_rate: int):
            self.samples, self.rate = np.atleast_2d(np.asarray(samples)), sample_rate

        def to_file_like(self, file, format: str, **options) -> None:
            soundfile.write(file, self.samples.T, self.rate, format=format.upper(), subtype="FLOAT")

    encoders = types.ModuleType("torchcodec.encoders")
    encoders.AudioEncoder = AudioEncoder
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)


def test_mtebs_mock_tasks_for_audio_pass(mteb, encoder_of, folder, wave_files_without_torchcodec):
    encoder = encoder_of(folder)
    assert isinstance(encoder, mteb.EncoderProtocol)
    results = mteb.mock_run(encoder)
    ran = {name: own for name, own in results.items() if own is not None}
    assert [name for name, own in ran.items() if not isinstance(own, mteb.TaskResult)] == []
    assert len(ran) >= AUDIO_TASKS  # a task that fails for a missing library would count as passed


@pytest.mark.skipif(not SHARED.exists(), reason="the shared recordings are not here")
@pytest.mark.parametrize(("task", "least"), [("Keywords", 0.6), ("SameSpeaker", 0.8)])
def test_tasks_on_recordings(mteb, encoder_of, task, least):
    tasks = importlib.import_module("wavcse.tests.helpers.mteb_tasks")
    encoder = encoder_of(ROOT, name="wavcse/wavcse-tiny")
    (result,) = mteb.evaluate(encoder, tasks=[getattr(tasks, task)()], cache=None).task_results
    assert result.get_score() > least  # a third of three words, half of the pairs by chance


def test_clips_in_any_form_get_the_vectors_of_encode(encoder_of, folder, waves, tmp_path):
    encoder, clips = encoder_of(folder), waves(4_000, 16_000, 9_000)
    paths = [str(tmp_path / f"{i}.wav") for i in range(3)]
    for path, clip in zip(paths, clips):
        soundfile.write(path, clip, 16_000, subtype="FLOAT")
    expected = encoder.model.encode(clips)
    datasets = importlib.import_module("datasets")
    arrays = [{"array": clip, "sampling_rate": 16_000} for clip in clips]
    stored = datasets.Dataset.from_dict({"audio": paths})
    for dataset in (stored, stored.cast_column("audio", datasets.Audio()), datasets.Dataset.from_dict({"audio": arrays})):
        found = encoder.encode(DataLoader(dataset, batch_size=2))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    bits = encoder.encode(DataLoader(stored, batch_size=2), precision="binary")
    np.testing.assert_array_equal(bits, encoder.model.encode(clips, quantize="binary"))
    with pytest.raises(ValueError, match="no audio: its columns are text"):
        encoder.encode(DataLoader(datasets.Dataset.from_dict({"text": ["a"]})))


def test_mteb_is_told_all_of_the_model(encoder_of, folder):
    given = {"name": "wavcse/wavcse-tiny", "training_datasets": {"SpeechCommands"}, "public_training_data": False}
    meta = encoder_of(ROOT, **given).mteb_model_meta
    required = [name for name, field in type(meta).model_fields.items() if field.is_required()]
    assert [name for name in required if getattr(meta, name) is None] == ["public_training_code"]  # the one that is nowhere
    model = WavCSEModel.from_pretrained(ROOT)
    assert (meta.embed_dim, meta.license, meta.modalities) == (model.config.embedding_size, "apache-2.0", ["audio"])
    assert "eng-Latn" in meta.languages
    assert meta.n_parameters == model.num_parameters()
    assert len(meta.revision) == 40
    assert int(meta.revision, 16) >= 0
    small = encoder_of(folder).mteb_model_meta
    assert (small.name, small.embed_dim) == ("wavcse/small", 20)
    assert small.revision != meta.revision
    with pytest.raises(ValueError, match="colour"):
        encoder_of(folder, colour="red")
    with pytest.raises(ValueError, match="cannot be loaded"):
        encoder_of("/no/model")


def test_the_page(mteb, tmp_path, monkeypatch, wave_files_without_torchcodec):
    """Its tasks are real ones of mteb; a mock task takes their place, for their data are on the Hub."""
    link_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    named, get_tasks = [], mteb.get_tasks

    def mock_tasks(**chosen):
        named.extend(task.metadata.name for task in get_tasks(**chosen))
        return [importlib.import_module("mteb.mocks").MockAudioClassification()]

    monkeypatch.setattr(mteb, "get_tasks", mock_tasks)
    names = run_first_block("mteb.md")
    (result,) = names["results"].task_results
    seen = names["encoder"].mteb_model_meta.training_datasets
    assert {mteb.get_task(name).metadata.name for name in seen} == seen  # mteb refuses names that it has not
    assert named == ["CREMA_D", "CREMADPairClassification"]
    assert result.task_name == "MockAudioClassification"


def test_without_mteb_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "wavcse.doors.mteb", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ImportError, match=r'mteb.* is not installed: pip install "wavcse\[mteb\]"'):
        importlib.import_module("wavcse.doors.mteb")
