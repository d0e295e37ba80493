"""Labels from a file: `predict`, `pipeline("audio-classification")`, and transformers' names for labels."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoConfig, AutoModelForAudioClassification, pipeline

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEForMultiTask, WavCSEModel
from wavcse.tests.helpers.door_pages import link_root, run_first_block

WORDS = ["yes", "no", "stop"]
MOODS = ["calm", "angry"]
ONE_TASK = {"keyword": {"labels": WORDS}}


@pytest.fixture(scope="module")
def model(tiny_multi_task_model) -> WavCSEForMultiTask:
    model = tiny_multi_task_model()
    with torch.no_grad():  # scores that differ visibly
        model.heads.requires_grad_(False)
        for head in model.heads.tasks.values():
            head.weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def one_head(tiny_multi_task_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one_head")
    tiny_multi_task_model(tasks=ONE_TASK).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(waves, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    for index, wave in enumerate(waves(8_000, 5_000)):
        soundfile.write(folder / f"{index}.wav", wave, 16_000, subtype="FLOAT")
    return sorted(folder.glob("*.wav"))


def scores(model: WavCSEForMultiTask, clip: Path, task: str) -> dict[str, float]:
    """Softmax of the head's logits by NumPy in float64, from the model's embedding and the head's weights."""
    head = model.heads.tasks[task]
    logits = head.weight.double().numpy() @ model.wavcse.encode(clip).astype(np.float64) + head.bias.double().numpy()
    exponentials = np.exp(logits - logits.max())
    return dict(zip(model.config.tasks[task]["labels"], exponentials / exponentials.sum()))


def check_ranked(found: list[dict], expected: dict[str, float]) -> None:
    best = sorted(expected, key=expected.get, reverse=True)[: len(found)]
    assert [entry["label"] for entry in found] == best
    np.testing.assert_allclose([entry["score"] for entry in found], [expected[label] for label in best], rtol=1e-4)


def test_predict_ranks_the_labels_of_a_task(model, clips):
    check_ranked(model.predict(clips[0], task="keyword"), scores(model, clips[0], "keyword"))
    several = model.predict(clips, task="keyword", top_k=2)
    assert [len(found) for found in several] == [2, 2]
    for found, clip in zip(several, clips):
        check_ranked(found, scores(model, clip, "keyword"))


def test_predict_of_all_heads(model, clips):
    found = model.predict(clips[1])
    assert list(found) == ["keyword", "emotion"]
    assert {task: len(ranked) for task, ranked in found.items()} == {"keyword": 3, "emotion": 2}
    for task, ranked in found.items():
        check_ranked(ranked, scores(model, clips[1], task))
    assert model.predict([]) == []


def test_predict_is_without_dropout_whatever_mode_the_model_is_in(model, clips):
    expected = model.predict(clips[0])
    assert model.train().predict(clips[0]) == expected
    assert not model.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "pitch"}, "task is 'pitch'; the model has keyword, emotion"),
        ({"top_k": 0}, "top_k is 0; a whole number from 1 on"),
        ({"top_k": True}, "top_k is True"),
    ],
)
def test_what_predict_refuses(model, clips, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.predict(clips[0], **arguments)


def test_a_model_without_heads_says_so(tiny_multi_task_model, clips):
    with pytest.raises(ValueError, match="has no heads"):
        tiny_multi_task_model(tasks={}).predict(clips[0])


# ---- the pipeline ----


@pytest.fixture(scope="module")
def classify(folder):
    return pipeline("audio-classification", model=str(folder), trust_remote_code=True)


def test_pipeline_gives_what_predict_gives(classify, model, clips):
    one, found = model.predict(clips[0]), classify(str(clips[0]))
    assert list(found) == sorted(one)  # a saved configuration is sorted
    for task, ranked in found.items():
        check_ranked(ranked, scores(model, clips[0], task))
    check_ranked(classify(clips[0].read_bytes(), task="keyword", top_k=1), scores(model, clips[0], "keyword"))
    clip, rate = soundfile.read(clips[1], dtype="float32")
    check_ranked(classify({"array": clip, "sampling_rate": rate}, task="emotion"), scores(model, clips[1], "emotion"))


def test_pipeline_in_batches(classify, clips):
    paths = [str(clip) for clip in clips]
    for found, expected in zip(classify(paths, batch_size=2), classify(paths), strict=True):
        assert found.keys() == expected.keys()
        for task, ranked in found.items():
            assert [entry["label"] for entry in ranked] == [entry["label"] for entry in expected[task]]
            np.testing.assert_allclose(*([e["score"] for e in own] for own in (ranked, expected[task])), rtol=1e-4)


def test_pipeline_of_one_head_is_a_list(one_head, clips):
    classify = pipeline("audio-classification", model=str(one_head), trust_remote_code=True, top_k=2)
    found = classify(str(clips[0]))
    assert [set(entry) for entry in found] == [{"label", "score"}] * 2
    assert classify(str(clips[0]), top_k=None)[:2] == found
    with pytest.raises(ValueError, match="task is 'emotion'; the model has keyword"):
        classify(str(clips[0]), task="emotion")
    with pytest.raises(ValueError, match="function_to_apply is unknown"):
        classify(str(clips[0]), function_to_apply="sigmoid")


def test_only_folders_with_heads_offer_labels(model, folder, tmp_path):
    assert set(json.loads((folder / "config.json").read_text())["custom_pipelines"]) == {
        "audio-classification",
        "feature-extraction",
    }
    WavCSEModel.from_pretrained(folder).save_pretrained(tmp_path)  # its heads are left out
    assert list(json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]) == ["feature-extraction"]


# ---- transformers' names ----


def test_names_of_one_task(one_head):
    saved = json.loads((one_head / "config.json").read_text())
    assert saved["id2label"] == {"0": "yes", "1": "no", "2": "stop"}
    assert saved["label2id"] == {"yes": 0, "no": 1, "stop": 2}
    config = AutoConfig.from_pretrained(one_head, trust_remote_code=True)
    assert (config.num_labels, config.id2label) == (3, {0: "yes", 1: "no", 2: "stop"})


def test_names_of_several_tasks_and_of_none(model, tiny_config):
    assert list(model.config.id2label.values()) == [
        *(f"keyword/{word}" for word in WORDS),
        *(f"emotion/{mood}" for mood in MOODS),
    ]
    assert "id2label" not in model.config.to_diff_dict()
    assert (tiny_config().num_labels, tiny_config().id2label) == (0, {})


def test_labels_ask_for_a_new_head(folder):
    ids = {"label2id": {"b": "1", "a": "0"}, "id2label": {"0": "a", "1": "b"}}  # texts, as in transformers' scripts
    model = AutoModelForAudioClassification.from_pretrained(folder, num_labels=2, **ids, trust_remote_code=True)
    assert model.config.tasks == {"label": {"kind": "classification", "labels": ["a", "b"], "loss_weight": 1.0}}
    assert list(model.heads.tasks) == ["label"]
    assert model.heads.tasks["label"].out_features == 2
    config = AutoConfig.from_pretrained(folder, **ids, trust_remote_code=True)
    again = AutoModelForAudioClassification.from_pretrained(folder, config=config, trust_remote_code=True)
    assert again.config.id2label == {0: "a", 1: "b"}
    assert WavCSEForMultiTask.from_pretrained(folder, num_labels=4).config.label2id == {f"LABEL_{i}": i for i in range(4)}


def test_labels_that_a_head_has_keep_it(one_head):
    trained = WavCSEForMultiTask.from_pretrained(one_head)
    for same in ({"num_labels": 3}, {"id2label": dict(enumerate(WORDS))}):
        model = WavCSEForMultiTask.from_pretrained(one_head, **same)
        assert torch.equal(model.heads.tasks["keyword"].weight, trained.heads.tasks["keyword"].weight)
    assert list(WavCSEForMultiTask.from_pretrained(one_head, num_labels=2).heads.tasks) == ["label"]


def test_assigned_labels_rename(tiny_config):
    config = tiny_config(tasks=ONE_TASK)
    config.id2label = {0: "oui", 1: "non", 2: "halte"}
    assert config.tasks["keyword"]["labels"] == ["oui", "non", "halte"]
    config.num_labels = 3
    config.label2id = {"oui": 0, "non": 1, "halte": 2}
    assert list(config.tasks) == ["keyword"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label2id": {"a": 0, "b": 2}}, r"label2id has the indices \[0, 2\]; every one from 0 to 1"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"b": 0, "a": 1}}, "contradict each other"),
        ({"id2label": {0: "a", 1: "b"}, "num_labels": 3}, "contradict each other"),
        ({"id2label": {"first": "a"}}, "must pair labels with whole numbers"),
        ({"num_labels": 2, "tasks": ONE_TASK}, "not both"),
        ({"num_labels": 2.5}, "num_labels is 2.5"),
    ],
)
def test_labels_that_contradict_are_refused(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        WavCSEConfig.from_pretrained(folder, **fields)


# ---- training on them ----


def test_a_single_task_takes_and_gives_tensors(tiny_multi_task_model, model, waves):
    inputs = WavCSEFeatureExtractor()(waves(4_000, 4_000), sampling_rate=16_000, return_tensors="pt")
    one, labels = tiny_multi_task_model(tasks=ONE_TASK), torch.tensor([2, -100])
    output = one(**inputs, labels=labels)
    assert output.logits.shape == (2, 3)
    torch.testing.assert_close(output.loss, -output.logits.log_softmax(dim=1)[0, 2])
    assert torch.equal(one(**inputs, labels={"keyword": labels}).loss, output.loss)
    with pytest.raises(ValueError, match=r"labels is one tensor, but the model has 2 tasks \(keyword, emotion\)"):
        model(**inputs, labels=labels)
    with pytest.raises(ValueError, match="labels names the task 'pitch'"):
        model(**inputs, labels={"pitch": labels})


@pytest.mark.doors
def test_the_page_runs(monkeypatch, tmp_path, waves, capsys):
    """docs/doors/labels.md, in a folder like the root."""
    link_root(tmp_path)
    soundfile.write(tmp_path / "clip.wav", waves(16_000)[0], 16_000)
    monkeypatch.chdir(tmp_path)
    run_first_block("labels.md")
    first, second, third = map(ast.literal_eval, capsys.readouterr().out.splitlines())
    check_ranked(first, {entry["label"]: entry["score"] for entry in third})
    assert set(second) == set(WavCSEConfig.from_pretrained(tmp_path).tasks)
