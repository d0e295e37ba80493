"""Embeddings that are trained to be cut: the loss by hand, what it does to planted classes, sizes that cannot be."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from wavcse import WavCSEModel
from wavcse.data.composite import CompositeSet
from wavcse.modeling_wavcse import IGNORED_LABEL
from wavcse.search.study import search_space
from wavcse.tests.helpers.processes import run_in_two_processes
from wavcse.train_accelerate import train, train_epoch
from wavcse.training.arguments import RunArguments
from wavcse.training.features import MemoryTable, SplitFeatures
from wavcse.training.heads import TrainingOutput, cut_logits, evaluate, losses_of, model_config, new_learner

ROOT = Path(__file__).parents[2]
D, CLASSES, CLIPS = 32, 8, 480
UPSTREAM = {"model_type": "wavlm", "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2}
LABELS = {"word": [f"w{i}" for i in range(CLASSES)]}


def arguments(**changes) -> RunArguments:
    fields = {
        "tasks": {"word": {"manifest": "none.csv", "label_column": "word"}},
        "selected_layers": [1],
        "pooling_type": "mean",
        "layer_projection_size": 24,
        "embedding_size": 16,
        "layer_dropout": 0.0,
        "embedding_dropout": 0.0,
        "batch_size": 160,
        "num_epochs": 40,
        "learning_rate": 1e-2,
        "scheduler_patience": 40,
    }
    return RunArguments(**{**fields, **changes}, save_hub=False)


def learner_of(args: RunArguments):
    return new_learner(args, model_config(args, UPSTREAM, LABELS), torch.device("cpu"))


def test_a_task_s_loss_is_the_mean_over_sizes_by_hand():
    learner = learner_of(arguments(embedding_size=2, matryoshka_sizes=[1]))
    head = learner.network.heads.tasks["word"]
    with torch.no_grad():
        head.weight.zero_()
        head.weight[0, 0], head.weight[1, 1] = 5.0, 1.0
        head.bias.fill_(-1000.0)  # only two classes are left
        head.bias[:2] = 0.0
    embeddings = torch.tensor([[0.0, math.log(3)]])
    whole, first = learner.network.heads(embeddings), cut_logits(learner.network.heads, embeddings, 1)
    assert first["word"][0, :2].tolist() == [0, 0]
    losses = losses_of(learner.network, TrainingOutput(whole, None, [first]), {"word": torch.tensor([1])}, {"word": 1}, 1)
    assert losses["word"].item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


@pytest.fixture(scope="module")
def splits() -> dict[str, SplitFeatures]:
    """Classes of equal prior around random centres, so that no direction tells all of them apart."""
    generator = np.random.default_rng(0)
    words = np.arange(CLIPS) % CLASSES
    clips = 0.7 * generator.normal(size=(CLIPS, D)) + generator.normal(size=(CLASSES, D))[words]
    features = torch.from_numpy(np.stack([np.zeros_like(clips), clips], axis=1).astype(np.float32))
    which = np.arange(CLIPS) // CLASSES % 3
    targets = {
        split: {"word": np.where(which == i, words, IGNORED_LABEL)} for i, split in enumerate(("train", "validation", "test"))
    }
    composite, table = CompositeSet([], LABELS, targets), MemoryTable(features, [1])
    return {split: SplitFeatures(table, composite, split, torch.device("cpu")) for split in targets}


def accuracies(args: RunArguments, splits) -> tuple[float, float]:
    """On the test clips after training: of the whole embedding, and of its first 3 numbers with the head cut to them."""
    learner, accelerator = learner_of(args), Accelerator(cpu=True)
    for epoch in range(1, args.num_epochs + 1):
        train_epoch(accelerator, learner, splits, epoch)
    network = learner.network.eval()
    (batch,) = splits["test"].batches(CLIPS)
    with torch.no_grad():
        embeddings = network.downstream.project(batch.features.stacked())
        cut = cut_logits(network.heads, embeddings, 3, batch.rows)["word"].argmax(dim=1)
    whole = evaluate(accelerator, learner, splits["test"]).accuracy["word"]
    return whole, (cut == batch.labels["word"]).double().mean().item()


def test_a_model_trained_to_be_cut_keeps_more_accuracy(splits):
    plain_whole, plain_cut = accuracies(arguments(), splits)
    whole, cut = accuracies(arguments(matryoshka_sizes=[3]), splits)
    assert min(plain_whole, whole) > 0.95
    assert cut > max(plain_cut + 0.2, 0.8)


@pytest.mark.parametrize("sizes", [[8, 4], [4, 4], [4, 16], [20]])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match=r"matryoshka_sizes is .* below embedding_size \(16\) are needed, the smallest first"):
        arguments(matryoshka_sizes=sizes)


def test_they_are_part_of_a_run_only_where_there_are_any():
    assert "matryoshka_sizes" not in arguments().identity()
    assert arguments(matryoshka_sizes=[4]).identity()["matryoshka_sizes"] == [4]
    assert search_space(arguments(matryoshka_sizes=[7]))["embedding_size"].low == 8
    assert search_space(arguments())["embedding_size"].low == 4


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_leaves_an_ordinary_model(search_recipe, tmp_path, precision):
    AcceleratorState._reset_state()
    own = {"matryoshka_sizes": [2, 4], "num_epochs": 2, "mixed_precision": precision, "save_hub": True}
    result = train(RunArguments(**{**search_recipe, **own, "output_dir": str(tmp_path)}))
    AcceleratorState._reset_state()  # the next test has another precision
    assert 0 < result["mean_accuracy"]["test"] <= 1
    model = WavCSEModel.from_pretrained(tmp_path / "hub")
    assert model.encode(np.ones(16_000, np.float32), truncate_dim=4).shape == (4,)


@pytest.mark.slow
def test_two_processes_learn_as_one(search_recipe, tmp_path):
    dropouts = {"layer_dropout": 0.0, "embedding_dropout": 0.0}
    fields = {**search_recipe, **dropouts, "matryoshka_sizes": [2, 4], "num_epochs": 2, "save_hub": False}
    train(RunArguments(**{**fields, "output_dir": str(tmp_path / "one")}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    command = (f"{ROOT}/train_accelerate.py", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "two")
    for done in run_in_two_processes(*command):
        assert done.returncode == 0, done.stderr
    one, two = ([json.loads(line) for line in open(tmp_path / name / "log.jsonl")] for name in ("one", "two"))
    for entry, other in zip(one, two, strict=True):
        assert other["train_loss"] == pytest.approx(entry["train_loss"], abs=1e-4)
        assert other["validation"]["task_loss"] == pytest.approx(entry["validation"]["task_loss"], abs=1e-4)
