"""Trainings in stages: what the second one starts from, freezes and moves; rates, epochs, and a kill in the middle."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import WhisperConfig

from wavcse import FinetunedWavCSE
from wavcse.eval.__main__ import main as evaluate
from wavcse.feature_extraction_wavcse import normalized
from wavcse.finetuning.__main__ import main
from wavcse.finetuning.arguments import MultiTaskArguments
from wavcse.finetuning.multi_task import Prepared, finetune_tasks, most_of, result_of, set_up
from wavcse.finetuning.newbob import NewBob
from wavcse.finetuning.stages import stages_of
from wavcse.finetuning.streams import CropRules, WholePlanner
from wavcse.hub.source import read_source
from wavcse.settings.fields import settings_from
from wavcse.steps.encoder import save_upstream
from wavcse.tests.helpers.processes import Child
from wavcse.tests.helpers.strangers import run_without_wavcse
from wavcse.training.run import new_accelerator
from wavcse.upstream_wavcse import build_upstream

NOT_COMPARED = ("seconds", "audio_s_per_s")
STEM_AND_FIRST_BLOCK = ("feature_extractor.", "feature_projection.", "encoder.pos_conv_embed.", "encoder.layers.0.")


def arguments(recipe: dict, folder: Path, **changes) -> MultiTaskArguments:
    return settings_from(MultiTaskArguments, {**recipe, "output_dir": str(folder), **changes})


def log_of(folder: Path) -> list[dict]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in NOT_COMPARED} for entry in entries]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hub/model.safetensors")


@pytest.fixture(scope="module")
def finished(staged_recipe, tmp_path_factory) -> Path:
    pytest.importorskip("jiwer")
    folder = tmp_path_factory.mktemp("finished") / "out"
    finetune_tasks(arguments(staged_recipe, folder), show_progress=False)
    return folder


# ---- what stages do ----


def test_each_stage_learns_and_judges_its_own_tasks(finished):
    assert {path.name for path in finished.iterdir()} == {"stage1", "stage2"}
    first, second = (json.loads((finished / name / "results/finetuning.json").read_text()) for name in ("stage1", "stage2"))
    assert first["tasks"].keys() == {"words", "gender"}
    assert second["tasks"].keys() == {"emotion"}
    (entry,) = log_of(finished / "stage1")
    weighted = entry["validation.words.loss"] + 0.1 * entry["validation.gender.loss"]
    assert entry["validation.score"] == pytest.approx(weighted)  # stage 1 chooses by the weighted loss
    (entry,) = log_of(finished / "stage2")
    assert entry["validation.score"] == -entry["validation.emotion.uar"]
    assert (entry["learning_rate"], entry["encoder_learning_rate"]) == (1e-2, 1e-3)
    assert first["steps"] == second["steps"] == 5  # 36 clips, 8 at a time


def test_the_second_stage_keeps_stem_and_lowest_blocks_and_moves_the_rest(finished):
    before, after = weights_of(finished / "stage1"), weights_of(finished / "stage2")
    kept = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.removeprefix("upstream.").startswith(STEM_AND_FIRST_BLOCK)}
    frozen |= {"upstream.encoder.layer_norm.weight", "upstream.encoder.layer_norm.bias", "upstream.masked_spec_embed"}
    heads = {name for name in before if name.startswith("readouts.") and ".head." in name}
    assert any(name.startswith("upstream.encoder.layers.1.") for name in before.keys() - kept)
    assert kept - frozen - heads <= {name for name in kept if "k_proj.bias" in name}  # which no attention depends on
    assert frozen & before.keys() <= kept
    assert heads <= kept  # of tasks that are not learnt
    new = {name for name in after if name.startswith("readouts.emotion.")}
    assert after.keys() == before.keys() | new
    assert "readouts.words.hidden.0.weight" in before.keys() - kept


def test_the_second_stage_starts_from_the_first_ones_weights(finished, staged_recipe, tmp_path):
    args = stages_of(arguments(staged_recipe, tmp_path))[1]
    (tmp_path / "stage1").symlink_to(finished / "stage1")
    network = prepared(args).model
    before = weights_of(finished / "stage1")
    assert all(torch.equal(network.state_dict()[name], one) for name, one in before.items())
    assert list(network.readouts) == ["emotion", "gender", "words"]
    assert network.config.readouts["emotion"]["fusion"]["tasks"] == ["gender", "words"]
    assert network.config.embedding_of == "emotion"


def test_a_result_has_what_is_attended_to_and_the_card_the_figures(finished):
    result = json.loads((finished / "stage2/results/finetuning.json").read_text())
    model = FinetunedWavCSE.from_pretrained(finished / "stage2/hub").eval()
    expected = model.mixes["ari"].weights.softmax(dim=0).tolist()
    assert result["block_shares"] == {"ari": pytest.approx(expected, abs=1e-5)}
    assert result["attention"].keys() == {"emotion"}
    assert result["attention"]["emotion"].keys() == {"anger", "joy"}
    for one in result["attention"]["emotion"].values():
        samples, _ = soundfile.read(one["clip"], dtype="float32")
        with torch.no_grad():
            weights = model([normalized(torch.from_numpy(samples)[None])[0]]).attention["emotion"][0]
        assert one["weights"] == pytest.approx(weights.tolist(), abs=1e-5)
    card, uar = (finished / "stage2/hub/README.md").read_text(), result["tasks"]["emotion"]["uar"]
    assert f"| emotion | UAR, % | {100 * uar['value']:.1f}" in card
    assert "UAR, the mean recall of the classes, UA" in card
    assert "The outputs of `gender`, `words` are of heads that an earlier stage trained" in card
    sections = read_source(finished / "stage2").card_sections()  # what `wavcse push` puts into its card
    assert f"{100 * uar['value']:.1f}" in sections["What it is good for"]


def prepared(args: MultiTaskArguments) -> Prepared:
    return set_up(args, new_accelerator(args), show_progress=False)


def test_what_is_frozen_is_in_eval_mode_and_has_no_rate(finished, staged_recipe, tmp_path):
    freeze = {"stem": True, "blocks": 1, "ari": True, "auxiliary": True}
    args = stages_of(arguments(staged_recipe, tmp_path, freeze=freeze))[1]
    (tmp_path / "stage1").symlink_to(finished / "stage1")
    learner = prepared(args).run.learner
    model = learner.network.train().model
    modes = {name: module.training for name, module in model.named_modules()}
    is_frozen = (*(f"upstream.{name[:-1]}" for name in STEM_AND_FIRST_BLOCK), "mixes.ari", "readouts.words", "readouts.gender")
    for name in modes:
        if name.startswith(is_frozen):
            assert not modes[name], name
    assert modes["upstream.encoder.layers.1.dropout"]
    assert modes["readouts.emotion.fusion.dropout"]
    rated = {id(weight): group["lr"] for group in learner.optimizer.param_groups for weight in group["params"]}
    names = {name: rated.get(id(weight)) for name, weight in model.named_parameters()}
    assert {rate for name, rate in names.items() if name.startswith(is_frozen)} == {None}
    assert names["upstream.encoder.layers.1.attention.v_proj.weight"] == 1e-3
    assert names["readouts.emotion.head.weight"] == names["readouts.emotion.fusion.together.bias"] == 1e-2


def test_a_finished_stage_is_not_trained_again_and_another_one_is_refused(finished, staged_recipe):
    before = (finished / "stage2/results/finetuning.json").stat().st_mtime_ns
    args = arguments(staged_recipe, finished)
    assert finetune_tasks(args, show_progress=False)["steps"] == 5
    assert (finished / "stage2/results/finetuning.json").stat().st_mtime_ns == before
    assert result_of(args)["tasks"].keys() == {"emotion"}
    with pytest.raises(ValueError, match=r"stage1: holds a training with other settings \(learning_rate\)"):
        finetune_tasks(arguments(staged_recipe, finished, learning_rate=0.1), show_progress=False)


def test_a_task_that_changes_between_stages_is_refused(finished, staged_recipe, tmp_path):
    stages = [staged_recipe["stages"][0], {**staged_recipe["stages"][1], "tasks": {"gender": {"hidden": 6}}}]
    (tmp_path / "stage1").symlink_to(finished / "stage1")
    args = stages_of(arguments(staged_recipe, tmp_path, stages=stages))[1]
    with pytest.raises(ValueError, match=r"tasks\.gender: differs from what .*stage1/hub was trained on \(hidden\)"):
        prepared(args)


def vector_before_the_last_layer(model: FinetunedWavCSE, samples: np.ndarray) -> torch.Tensor:
    """Of content attention, written out: from the blocks of the encoder to FC1."""
    words, gender, emotion = (model.readouts[name] for name in ("words", "gender", "emotion"))
    own, attention = emotion.fusion, emotion.fusion.attention
    shares = model.mixes["ari"].weights.softmax(dim=0)
    blocks = model.upstream(normalized(torch.from_numpy(samples)[None]), output_hidden_states=True).hidden_states
    frames = torch.cat([blocks[3], shares[0] * blocks[1] + shares[1] * blocks[2]], dim=-1)[0]  # [T, 2 D]
    heard = [gender.hidden[0](frames.mean(dim=0)).relu(), words.hidden[0](frames).relu().mean(dim=0)]
    context = torch.cat(heard)
    scores = attention.score(torch.tanh(attention.of_context(context) + attention.of_frames(frames)))  # [T, 1]
    e = own.of_frames((scores.softmax(dim=0) * frames).sum(dim=0)).relu()
    return own.together(torch.cat([e, context])).relu()


@pytest.mark.slow
def test_the_evaluation_probes_the_vector_before_the_last_layer(finished, emotional_corpus, quick_probes, tmp_path):
    hub, out = finished / "stage2/hub", tmp_path / "out"
    command = ["--model", str(hub), "--manifest", str(emotional_corpus), "--tasks", "emotion", "--output_dir", str(out)]
    assert evaluate([*command, "--device", "cpu"]) == 0
    (piece,) = out.glob("embeddings/wavcse.*/*.safetensors")
    with safe_open(piece, "pt") as file:
        probed = dict(zip(json.loads(file.metadata()["digests"]), file.get_tensor("embeddings")))
    model = FinetunedWavCSE.from_pretrained(hub).eval()
    paths = [Path(name) for name in pd.read_csv(emotional_corpus)["file_name"]]
    assert len(probed) == len(paths) == 60
    for path in paths[::20]:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        samples, _ = soundfile.read(path, dtype="float32")
        with torch.no_grad():
            expected = vector_before_the_last_layer(model, samples)
            logits = model([normalized(torch.from_numpy(samples)[None])[0]]).logits["emotion"][0]
            torch.testing.assert_close(probed[digest], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(model.readouts["emotion"].head(probed[digest]), logits, atol=1e-5, rtol=1e-4)  # FC2


# ---- Whisper ----

WHISPER_STEM = ("conv1.", "conv2.", "embed_positions.")


@pytest.fixture(scope="module")
def whisper_recipe(staged_recipe, tmp_path_factory) -> dict:
    """The staged recipe on a tiny Whisper encoder, with clips at three speeds; two steps."""
    torch.manual_seed(0)
    shape = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
    encoder = build_upstream(WhisperConfig(**shape, num_mel_bins=40, max_source_positions=100))  # of 2 s: no clip is longer
    with torch.no_grad():
        for weight in encoder.parameters():  # small random weights give frames that are all alike
            weight.mul_(3) if weight.dim() > 1 and weight.requires_grad else None
    start = tmp_path_factory.mktemp("whisper") / "upstream"
    save_upstream(encoder, start)
    recipe = {name: value for name, value in staged_recipe.items() if name != "encoder"}
    emotion = {**recipe["tasks"]["emotion"], "fusion": {"kind": "content", "hidden": 12}}
    recipe |= {"tasks": {**recipe["tasks"], "emotion": emotion}, "init_from": str(start), "seed": 1}
    return {**recipe, "augment": {"speeds": [80, 100, 120]}, "num_epochs": 0, "max_steps": 2}


@pytest.fixture(scope="module")
def whisper_stage1(whisper_recipe, tmp_path_factory) -> Path:
    pytest.importorskip("jiwer")
    first, _ = stages_of(arguments(whisper_recipe, tmp_path_factory.mktemp("whisper_stages")))
    assert finetune_tasks(first, show_progress=False)["steps"] == 2
    return Path(first.output_dir)


def is_stem(name: str) -> bool:
    return name.removeprefix("upstream.").startswith(WHISPER_STEM)


def test_the_first_stage_moves_all_of_whisper_but_its_stem_and_positions(whisper_recipe, whisper_stage1, tmp_path):
    before, after = load_file(Path(whisper_recipe["init_from"]) / "model.safetensors"), weights_of(whisper_stage1)
    kept = {name for name in before if torch.equal(before[name], after[f"upstream.{name}"])}
    assert kept == {name for name in before if is_stem(name) or name.startswith("layer_norm.")}  # a norm that nothing reads
    assert after["mixes.ari.weights"].abs().min() > 0  # where it started from
    fast, plain = (
        prepared(stages_of(arguments(whisper_recipe, tmp_path / str(speeds), augment={"speeds": speeds}))[0]).loader
        for speeds in ([80, 100, 120], [100])
    )
    lengths = [[loader.update(step)[0].seconds for step in range(2)] for loader in (fast, plain)]
    assert np.divide(*lengths) == pytest.approx([1.25, 1 / 1.2], rel=1e-3)  # the two steps were of clips at 80 and at 120 %


@pytest.mark.parametrize("parts", [(), ("ari", "auxiliary")])
def test_the_second_stage_of_whisper_starts_from_the_first_one_and_keeps_what_is_frozen(
    parts, whisper_recipe, whisper_stage1, tmp_path
):
    freeze = {"stem": True, "blocks": 1, **dict.fromkeys(parts, True)}
    (tmp_path / "stage1").symlink_to(whisper_stage1)
    second = stages_of(arguments(whisper_recipe, tmp_path, freeze=freeze))[1]
    before = weights_of(whisper_stage1)
    start = prepared(second).model.state_dict()
    assert all(torch.equal(start[name], one) for name, one in before.items())
    assert finetune_tasks(second, show_progress=False)["steps"] == 2
    after = weights_of(tmp_path / "stage2")
    new = {name for name in after if name.startswith("readouts.emotion.")}
    assert after.keys() == before.keys() | new
    frozen = {name for name in before if is_stem(name) or name.startswith(("upstream.layers.0.", "upstream.layer_norm."))}
    frozen |= {name for name in before if ".head." in name}  # of tasks that are not learnt any more
    if parts:
        frozen |= {name for name in before if name.startswith(("mixes.", "readouts."))}
    assert {name for name in after if torch.equal(after[name], start[name])} == frozen
    assert "upstream.layers.1.fc1.weight" in before.keys() - frozen


HUB = """
import json
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel, pipeline
folder, clip, out = sys.argv[1:]
samples = np.load(clip)
emotions = pipeline("audio-classification", model=folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
found = {"emotion": emotions(samples), "gender": emotions(samples, task="gender"), "embedding": model.encode(samples).tolist()}
json.dump(found, open(out, "w"))
"""


@pytest.mark.slow
def test_the_hub_folder_names_emotions_where_wavcse_does_not_exist(finished, tmp_path):
    samples = np.random.default_rng(0).standard_normal(14_000).astype(np.float32)
    np.save(tmp_path / "clip.npy", samples)
    run_without_wavcse(HUB, finished / "stage2/hub", tmp_path / "clip.npy", tmp_path / "out.json", modules=tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())
    model = FinetunedWavCSE.from_pretrained(finished / "stage2/hub").eval()
    with torch.no_grad():
        read = model.read_group(normalized(torch.from_numpy(samples)[None]), None, ["emotion", "gender"])
    for task, labels in (("emotion", ["anger", "joy"]), ("gender", ["female", "male"])):
        shares = read[task].logits[0].softmax(dim=0).tolist()
        expected = sorted(zip(shares, labels), reverse=True)
        assert [one["label"] for one in found[task]] == [label for _, label in expected]
        assert [one["score"] for one in found[task]] == pytest.approx([share for share, _ in expected], abs=1e-5)
    assert found["embedding"] == pytest.approx(read["emotion"].vectors[0].tolist(), abs=1e-5)


@pytest.mark.slow
def test_killed_in_the_second_stage_and_continued_is_not_killed(staged_recipe, tmp_path):
    pytest.importorskip("jiwer")
    recipe = {**staged_recipe, "num_epochs": 3}
    finetune_tasks(arguments(recipe, tmp_path / "undisturbed"), show_progress=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "out")}))
    last = tmp_path / "out/stage2/checkpoints/last"
    Child("-m", "wavcse.finetuning", tmp_path / "recipe.yaml").kill_when(last.exists, interval_s=0.002)
    assert not (tmp_path / "out/stage2/results/finetuning.json").exists()
    assert main([str(tmp_path / "recipe.yaml")]) == 0
    for stage in ("stage1", "stage2"):
        assert log_of(tmp_path / "out" / stage) == log_of(tmp_path / "undisturbed" / stage)
        one, other = weights_of(tmp_path / "out" / stage), weights_of(tmp_path / "undisturbed" / stage)
        assert all(torch.equal(one[name], other[name]) for name in one)
    figures = [json.loads((tmp_path / name / "stage2/results/finetuning.json").read_text()) for name in ("out", "undisturbed")]
    assert figures[0]["tasks"] == figures[1]["tasks"]


# ---- rates, epochs, batches ----


def test_newbob_against_hand_worked_figures():
    """Gains of 10 %, 0.2 %, 0.3 %, a loss, and 50 %; threshold 0.25 %."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": 1e-4}, {"params": weights[1:], "lr": 1e-5}])
    newbob, rates = NewBob(optimizer), []
    for error in (0.5, 0.45, 0.4491, 0.44775, 0.45, 0.225):
        newbob.look(error)
        newbob.step()
        rates.append(newbob.get_last_lr())
    expected = [1e-4, 1e-4, 0.9e-4, 0.9e-4, 0.81e-4, 0.81e-4]
    assert [rate for rate, _ in rates] == pytest.approx(expected)
    assert [rate for _, rate in rates] == pytest.approx([rate / 10 for rate in expected])
    again = NewBob(optimizer)
    again.load_state_dict(newbob.state_dict())
    again.look(0.2249)
    assert again.get_last_lr() == pytest.approx([0.729e-4, 0.729e-5])
    again.look(0.0)  # all of it
    again.look(0.0)  # nothing is left to gain
    assert again.get_last_lr()[0] == pytest.approx(0.6561e-4)


def test_the_error_of_newbob_is_what_a_figure_lacks_to_one():
    assert most_of({"emotion.uar": 1.0}) == 1.0
    assert most_of({"emotion.uar": 0.5, "emotion.accuracy": 0.25, "words.wer": 1.0, "loss": 3.0}) == 0.75
    assert most_of({}) == 0


def test_batches_of_so_many_clips_fill_an_epoch():
    num_samples = np.random.default_rng(0).integers(8_000, 40_000, size=22)
    num_samples[3] = 0
    planner = WholePlanner(
        CropRules(0, 1.0, 1.0, 0.5, 0, 0.5, 0.0, 0, 2, batch_clips=4), num_samples, lambda samples: samples // 320, 0
    )
    assert planner.steps_per_epoch == 6
    epoch = [planner.crops(step) for step in range(6)]
    assert sorted(map(len, epoch)) == [1, 4, 4, 4, 4, 4]
    assert sorted(crop.clip for crops in epoch for crop in crops) == [row for row in range(22) if row != 3]
    assert not any(crop.mask.any() for crops in epoch for crop in crops)


def test_a_second_stage_may_mix_blocks_where_the_first_reads_the_last(staged_recipe, tmp_path):
    tasks = {name: {**own, "tap": "ari" if name == "emotion" else "last"} for name, own in staged_recipe["tasks"].items()}
    result = finetune_tasks(arguments(staged_recipe, tmp_path, tasks=tasks, num_epochs=0, max_steps=1), show_progress=False)
    first, second = (FinetunedWavCSE.from_pretrained(tmp_path / f"stage{number}/hub") for number in (1, 2))
    assert result["steps"] == 1
    assert not first.mixes
    assert list(second.mixes) == ["ari"]
    for name in ("words", "gender"):  # the second stage trains their hidden layers, not their heads
        ours, theirs = (one.readouts[name].head.state_dict() for one in (second, first))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_stages_whose_mixes_say_the_same_in_two_ways_go_together(staged_recipe, tmp_path):
    first, second = staged_recipe["stages"]
    stages = [{**first, "ari": {"raw": False}}, second]
    found = stages_of(arguments(staged_recipe, tmp_path, stages=stages))
    assert [stage.ari for stage in found] == [{"raw": False}, {}]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [{"init_from": {"stage": 1}}]}, "stages: stage 1: init_from is stage 1, which does not come before it"),
        ({"stages": [{"learning_rates": 1}]}, r"stages: stage 1: unknown fields \['learning_rates'\]"),
        ({"stages": [{"init_from": {"stages": 1}}]}, r"init_from: unknown fields \['stages'\]"),
        ({"stages": [{"init_from": {"stage": 0}}]}, r"{stage: N} with a whole number from 1 on"),
        ({"stages": [{"learn": ["emotion"]}]}, "learn is given without init_from"),
        ({"stages": [], "learn": ["word"], "init_from": "x"}, r"learn is 'word' \(did you mean words\?\)"),
        ({"stages": [{"choose": {"emotion.wer": 1}}]}, r"choose: unknown fields \['emotion\.wer'\]"),
        ({"stages": [], "freeze": {"auxiliary": True}}, "auxiliary is for tasks that are not learnt"),
        ({"stages": [], "decay": "constant", "newbob": {"factor": 0.5}}, "newbob is given, but decay is constant"),
        ({"stages": [], "newbob": {"factor": 1.0}}, "newbob: factor is 1.0; it must be above 0 and below 1"),
        ({"stages": [], "ari": {"raw": 1}}, "ari: raw is 1; true or false is needed"),
        (
            {
                "stages": [
                    {"tasks": {"emotion": None}, "choose": {"loss": 1.0}},
                    {"init_from": {"stage": 1}, "learn": ["emotion"], "ari": {"raw": True}},
                ]
            },
            r"stages: stage 2: ari is {'raw': True}, and in stage 1, which it starts from, {}; one of them for both",
        ),
        ({"stages": [], "streams": {"all": {"batch_clips": 4, "crop": 2.0}}}, "batch_clips counts whole clips"),
    ],
)
def test_settings_that_cannot_work_are_refused(staged_recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        stages_of(arguments(staged_recipe, tmp_path, **changes))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"dropout": 0.2}, "dropout is given, but it is of the hidden layer"),
        ({"fusion": {"kind": "content"}, "hidden": 4}, "in place of pooling and of hidden"),
        ({"fusion": {"kind": "content", "frames": 3}}, "frames is given, but it belongs to kind fixed, and kind is content"),
        ({"fusion": {"tasks": ["emotion"]}}, "fusion: a task is 'emotion'"),
    ],
)
def test_tasks_that_cannot_work_are_refused(staged_recipe, tmp_path, task, message):
    tasks = {**staged_recipe["tasks"], "emotion": {**staged_recipe["tasks"]["emotion"], "fusion": {}, **task}}
    with pytest.raises(ValueError, match=message):
        arguments(staged_recipe, tmp_path, tasks=tasks).task_settings()
