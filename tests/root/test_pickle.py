"""Models in pickles: for workers that are spawned, and for the fingerprints by which `datasets.map` finds its cache."""

import copy
import multiprocessing
import pickle

import datasets
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher

from wavcse import WavCSEModel
from wavcse.tests.helpers.processes import FORKSERVER


@pytest.fixture(scope="module")
def clips(waves) -> list[np.ndarray]:
    return waves(8_000, 3_000)


@pytest.mark.parametrize(("family", "norm"), [("wavlm", "group"), ("wav2vec2", "layer")])
def test_a_copy_gives_the_same_numbers(tiny_model, clips, family, norm):
    model = tiny_model(family, norm, freeze_upstream=False)
    expected = model.encode(clips)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.run_upstream.packed is None  # what was arranged for speed is made again
        np.testing.assert_array_equal(again.encode(clips), expected)
        assert not again.training
        weights, own = dict(again.named_parameters()), dict(model.named_parameters())
        assert weights.keys() == own.keys()
        for name in own:
            assert torch.equal(weights[name], own[name])
            assert weights[name].requires_grad == own[name].requires_grad
            assert weights[name].data_ptr() != own[name].data_ptr()
    again = pickle.loads(pickle.dumps(model))
    again.load_state_dict({name: 2 * weight for name, weight in model.state_dict().items()})
    conv = again.upstream.encoder.pos_conv_embed.conv  # its weight follows the two parts of its weight norm
    torch.testing.assert_close(conv.weight, 2 * model.upstream.encoder.pos_conv_embed.conv.weight)
    assert model.run_upstream.packed is not None


def test_heads_go_with_it(tiny_multi_task_model, clips):
    model = tiny_multi_task_model()
    again = pickle.loads(pickle.dumps(model))
    embeddings = torch.from_numpy(model.wavcse.encode(clips))
    for task, logits in model.heads(embeddings).items():
        assert torch.equal(again.heads(embeddings)[task], logits)


def embedded(model: WavCSEModel, clips: list[np.ndarray], queue) -> None:
    queue.put((model.encode(clips), Hasher.hash(model)))


@pytest.mark.slow
def test_another_process_gives_the_same_numbers_and_the_same_fingerprint(tiny_model, clips):
    model = tiny_model("wavlm", "group")
    fingerprint = Hasher.hash(model)
    expected = model.encode(clips)
    assert Hasher.hash(model) == fingerprint  # also after the packed weights were made
    queue = FORKSERVER.Queue()
    found = []
    for _ in range(2):
        child = FORKSERVER.Process(target=embedded, args=(model, clips, queue))
        child.start()
        found.append(queue.get(timeout=120))
        child.join()
    for embeddings, _ in found:
        np.testing.assert_array_equal(embeddings, expected)
    assert found[0][1] == found[1][1]


def test_map_finds_what_it_has_computed(tiny_model, clips, tmp_path):
    data = datasets.Dataset.from_dict({"audio": [clip.tolist() for clip in clips]})
    data.save_to_disk(tmp_path / "data")
    model, calls = tiny_model("wavlm", "group"), tmp_path / "calls"

    def embed(batch):
        with open(calls, "a") as file:
            file.write("x")
        return {"embedding": model.encode([np.float32(clip) for clip in batch["audio"]])}

    for _ in range(2):
        mapped = datasets.load_from_disk(tmp_path / "data").map(embed, batched=True)
        np.testing.assert_allclose(mapped["embedding"][:], model.encode(clips), rtol=1e-6)
    assert calls.read_text() == "x"
    with torch.no_grad():
        model.downstream.embedding_projection.bias += 1.0
    datasets.load_from_disk(tmp_path / "data").map(embed, batched=True)
    assert calls.read_text() == "xx"  # other weights, another fingerprint


@pytest.mark.slow
def test_spawned_workers_embed(tiny_model, clips):
    model = tiny_model("wavlm", "group")
    expected = model.encode(clips)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(model.encode, (clips,)), expected)
