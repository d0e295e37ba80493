"""transformers' `Trainer` on our models: what is trained, checkpoints, early stopping, pushes, several tasks; the example."""

import json
import sys

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, pipeline

from wavcse import WavCSEForMultiTask
from wavcse.data.manifest import Manifest
from wavcse.doors.trainer import LabelledClips, label_index, metrics_per_task
from wavcse.examples import run_audio_classification
from wavcse.tests.helpers.door_pages import link_root, run_first_block
from wavcse.tests.helpers.hub_server import TOKEN, HubServer

WORDS = ["word0", "word1", "word2"]
KEYWORD = {"keyword": {"labels": WORDS}}
QUIET = {"report_to": "none", "remove_unused_columns": False, "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
WHOLE = {"freeze_upstream": False, "upstream": {"layerdrop": 0.0, "mask_time_prob": 0.0}}  # clips of nine frames
STEM, BLOCKS, DOWNSTREAM, HEADS = "feature_extractor", "encoder", "downstream", "heads"


@pytest.fixture(scope="module")
def rows(toy_corpus) -> list[dict]:
    manifest = Manifest(toy_corpus)
    labels = zip(manifest.column("keyword"), manifest.column("speaker_id"))
    return [
        {"audio": str(clip.path), "keyword": word, "speaker": speaker} for clip, (word, speaker) in zip(manifest.clips, labels)
    ][:12]


def trained(model, rows, folder, steps=2, **settings) -> Trainer:
    arguments = TrainingArguments(
        str(folder), **{**QUIET, "max_steps": steps, "per_device_train_batch_size": 6, "learning_rate": 1e-3, **settings}
    )
    trainer = Trainer(
        model, arguments, LabelledClips(model), rows, rows, compute_metrics=metrics_per_task(model), callbacks=[]
    )
    trainer.train()
    return trainer


def changed(model, before: dict) -> set[str]:
    """Parts of the model with a parameter that training has moved."""
    parts = set()
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            parts.add(next((part for part in (STEM, BLOCKS, DOWNSTREAM, HEADS) if part in name.split(".")), "other"))
    return parts


@pytest.mark.parametrize(
    ("fields", "freeze", "expected"),
    [
        ({}, "freeze_base_model", {HEADS}),
        pytest.param({}, "freeze_feature_encoder", {HEADS, DOWNSTREAM}, marks=pytest.mark.slow),
        pytest.param(WHOLE, "freeze_feature_encoder", {HEADS, DOWNSTREAM, BLOCKS, "other"}, marks=pytest.mark.slow),
        (WHOLE, None, {HEADS, DOWNSTREAM, BLOCKS, STEM, "other"}),
    ],
    ids=["heads", "downstream", "without the stem", "whole"],
)
def test_what_is_trained(tiny_multi_task_model, rows, tmp_path, fields, freeze, expected):
    model = tiny_multi_task_model(tasks=KEYWORD, **fields)
    if freeze:
        getattr(model, freeze)()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = trained(model, rows, tmp_path)
    assert changed(model, before) == expected
    figures = trainer.evaluate()
    found = [ranked[0]["label"] for ranked in model.predict([row["audio"] for row in rows])]
    assert figures["eval_accuracy"] == np.mean([word == row["keyword"] for word, row in zip(found, rows)])


@pytest.mark.slow
def test_gradient_checkpointing_trains_the_same(tiny_multi_task_model, rows, tmp_path):
    weights = []
    for is_on in (False, True):
        model = tiny_multi_task_model(tasks=KEYWORD, **WHOLE)
        trained(model, rows, tmp_path, gradient_checkpointing=is_on)
        assert model.is_gradient_checkpointing == is_on
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, msg=name)


@pytest.mark.slow
def test_early_stopping_keeps_the_best_checkpoint(tiny_multi_task_model, rows, tmp_path):
    model = tiny_multi_task_model(tasks=KEYWORD)
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "learning_rate": 0.0}
    arguments = TrainingArguments(
        str(tmp_path), **{**QUIET, **settings}, num_train_epochs=9, metric_for_best_model="accuracy", save_total_limit=1
    )
    trainer = Trainer(
        model,
        arguments,
        LabelledClips(model),
        rows,
        rows,
        compute_metrics=metrics_per_task(model),
        callbacks=[EarlyStoppingCallback(2)],
    )
    trainer.train()
    assert trainer.state.epoch == 3  # nothing gets better after the first
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    again = WavCSEForMultiTask.from_pretrained(trainer.state.best_model_checkpoint)
    assert again.predict(rows[0]["audio"]) == model.predict(rows[0]["audio"])


@pytest.mark.slow
def test_push_to_the_hub(tiny_multi_task_model, rows, tmp_path, monkeypatch):
    with HubServer() as hub:
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the loopback Hub has none
        model = tiny_multi_task_model(tasks=KEYWORD)
        settings = {"push_to_hub": True, "hub_model_id": "org/words", "hub_token": TOKEN}
        trainer = trained(model, rows, tmp_path / "run", **settings)
        trainer.push_to_hub()
        repository = hub.repositories["org/words"]
    for name, content in repository.commits[repository.branches["main"]].items():
        (tmp_path / "pulled" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(content)
    classify = pipeline("audio-classification", model=str(tmp_path / "pulled"), trust_remote_code=True)
    expected = model.predict(rows[0]["audio"])
    assert [entry["label"] for entry in classify(rows[0]["audio"])] == [entry["label"] for entry in expected]


def test_several_tasks(tiny_multi_task_model, rows, tmp_path):
    speakers = sorted({row["speaker"] for row in rows})
    model = tiny_multi_task_model(tasks={**KEYWORD, "who": {"labels": speakers}})
    rows = [{**row, "keyword": None if i % 2 else row["keyword"]} for i, row in enumerate(rows)]
    collator = LabelledClips(model, columns={"who": "speaker"})
    batch = collator(rows[:3])
    assert batch["labels"]["keyword"].tolist() == [WORDS.index(rows[0]["keyword"]), -100, WORDS.index(rows[2]["keyword"])]
    assert batch["labels"]["who"].tolist() == [speakers.index(row["speaker"]) for row in rows[:3]]
    arguments = TrainingArguments(str(tmp_path), **QUIET, max_steps=2, per_device_eval_batch_size=5)
    trainer = Trainer(model, arguments, collator, rows, rows, compute_metrics=metrics_per_task(model))
    trainer.train()
    figures = trainer.evaluate()
    found = [{task: own[0]["label"] for task, own in of.items()} for of in model.predict([row["audio"] for row in rows])]
    who = np.mean([own["who"] == row["speaker"] for own, row in zip(found, rows)])
    words = np.mean([own["keyword"] == row["keyword"] for own, row in zip(found, rows) if row["keyword"]])
    assert (figures["eval_who_accuracy"], figures["eval_keyword_accuracy"]) == (who, words)
    assert figures["eval_accuracy"] == pytest.approx((who + words) / 2)
    assert 0 <= figures["eval_who_uar"] <= 1


@pytest.mark.parametrize(
    ("value", "index"), [("b", 1), (1, 1), (np.int64(0), 0), (None, -100), ("", -100), (float("nan"), -100), (-100, -100)]
)
def test_labels_as_text_or_index(value, index):
    assert label_index(value, "letter", ["a", "b"]) == index


@pytest.mark.parametrize("value", ["c", 2, -1, True, 0.5])
def test_what_is_no_label(value):
    with pytest.raises(ValueError, match="is no label of the task 'letter', which has 2: a, b"):
        label_index(value, "letter", ["a", "b"])


def test_columns_that_are_missing(tiny_multi_task_model, rows):
    model = tiny_multi_task_model(tasks=KEYWORD)
    with pytest.raises(ValueError, match=r"no column 'keyword'; it has audio. .*remove_unused_columns=False"):
        LabelledClips(model)([{"audio": rows[0]["audio"]}])
    with pytest.raises(ValueError, match="columns names the task 'mood'; the model has keyword"):
        LabelledClips(model, columns={"mood": "m"})


# ---- the example ----


def run_example(monkeypatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run_audio_classification.py", *options])
    run_audio_classification.main()


@pytest.fixture
def base(tiny_multi_task_model, tmp_path):
    tiny_multi_task_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


OPTIONS = ["--do_train", "--do_eval", "--report_to", "none", "--disable_tqdm", "True", "--max_steps", "2", "--use_cpu"]


def test_example_on_a_table(base, toy_corpus, tmp_path, monkeypatch):
    data = ["--dataset_name", str(toy_corpus.parent), "--label_column_name", "keyword", "--split_column_name", "split_ks"]
    run_example(monkeypatch, *OPTIONS, *data, "--model_name_or_path", str(base), "--output_dir", str(tmp_path / "out"))
    figures = json.loads((tmp_path / "out/all_results.json").read_text())
    assert figures["train_samples_per_second"] > 0
    model = WavCSEForMultiTask.from_pretrained(tmp_path / "out")
    assert model.config.id2label == dict(enumerate(WORDS))
    manifest = Manifest(toy_corpus)
    rows = np.flatnonzero(manifest.split("split_ks") == "validation")
    found = model.predict([manifest.clips[row].path for row in rows], top_k=1)
    expected = np.mean([own[0]["label"] == word for own, word in zip(found, manifest.column("keyword")[rows])])
    assert figures["eval_accuracy"] == pytest.approx(expected)


@pytest.mark.slow
def test_example_on_an_audiofolder(base, waves, tmp_path, monkeypatch):
    for split in ("train", "validation"):
        for index, label in enumerate(["left", "right"]):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            soundfile.write(tmp_path / "data" / split / label / "a.wav", waves(8_000, seed=index)[0], 16_000)
    options = [*OPTIONS, "--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    run_example(monkeypatch, *options, "--model_name_or_path", str(base), "--max_length_seconds", "0.3")
    assert json.loads((tmp_path / "out/config.json").read_text())["label2id"] == {"left": 0, "right": 1}


@pytest.mark.doors
def test_the_page_runs(monkeypatch, tmp_path, waves):
    """docs/doors/trainer.md, in a folder like the root."""
    link_root(tmp_path)
    for name, wave in zip(("yes.wav", "no.wav"), waves(16_000, 12_000)):
        soundfile.write(tmp_path / name, wave, 16_000)
    monkeypatch.chdir(tmp_path)
    trainer = run_first_block("trainer.md")["trainer"]
    assert trainer.state.global_step == 2
