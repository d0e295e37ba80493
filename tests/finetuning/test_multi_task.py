"""Fine-tuning on several tasks: losses, streams and gradients by value, whole runs, and what is refused."""

import itertools
import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from wavcse import FinetunedWavCSE
from wavcse.data.inspection import Inspector
from wavcse.eval.encoder import WavCSEEncoder, check_encoder
from wavcse.feature_extraction_wavcse import normalized
from wavcse.finetuning.__main__ import main
from wavcse.finetuning.arguments import FINETUNE, FINETUNE_TASKS, FINETUNING, TASK_STUDY, MultiTaskArguments
from wavcse.finetuning.labelled_clips import labelled_clips
from wavcse.finetuning.losses import ctc_losses, weighted_sum
from wavcse.finetuning.multi_task import Prepared, finetune_tasks, score_of, set_up
from wavcse.finetuning.streams import CropRules, StreamLoader, WholePlanner
from wavcse.finetuning.update import StreamGradients
from wavcse.settings.fields import settings_from
from wavcse.tests.helpers.processes import Child, run_in_two_processes
from wavcse.tests.helpers.strangers import run_without_wavcse
from wavcse.training.run import new_accelerator

ROOT = Path(__file__).parents[2]
NOT_COMPARED = ("seconds", "audio_s_per_s")


def arguments(recipe: dict, **changes) -> MultiTaskArguments:
    return settings_from(MultiTaskArguments, {**recipe, **changes})


def run(recipe: dict, folder: Path, **changes) -> dict:
    return finetune_tasks(arguments(recipe, output_dir=str(folder), **changes), show_progress=False)


def log_of(folder: Path) -> list[dict]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in NOT_COMPARED} for entry in entries]


def prepared(recipe: dict, folder: Path, **changes) -> Prepared:
    args = arguments(recipe, output_dir=str(folder), **changes)
    return set_up(args, new_accelerator(args), show_progress=False)


# ---- losses, by value ----


def test_ctc_is_the_sum_over_all_alignments():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 3, dtype=torch.float64)
    texts = [torch.tensor([1, 2]), torch.tensor([1, 1]), None]
    expected = []
    for own, text in zip(logits.float().log_softmax(dim=2).double(), texts):
        if text is None:
            expected.append(0.0)
            continue
        total = 0.0
        for path in itertools.product(range(3), repeat=4):
            symbols = [symbol for symbol, _ in itertools.groupby(path) if symbol]
            if symbols == text.tolist():
                total += math.exp(sum(float(own[frame, symbol]) for frame, symbol in enumerate(path)))
        expected.append(-math.log(total) / len(text))
    assert ctc_losses(logits, texts).tolist() == pytest.approx(expected, rel=1e-5)
    assert math.isinf(ctc_losses(logits[:1, :2], [torch.tensor([1, 1])])[0])  # needs a blank between the two


def test_figures_that_are_better_when_greater_are_subtracted():
    found = {"speech.wer": 0.4, "voice.eer": 0.2, "keyword.accuracy": 0.9, "speech.loss": math.nan}
    assert score_of(found, {"speech.wer": 0.25, "voice.eer": 0.75}, 7.0) == pytest.approx(0.25)
    assert score_of(found, {"speech.wer": 1.0, "keyword.accuracy": 2.0}, 7.0) == pytest.approx(-1.4)
    assert score_of(found, {}, 7.0) == 7.0
    with pytest.raises(ValueError, match=r"choose: speech\.loss cannot be computed .* has speech\.wer, voice\.eer"):
        score_of(found, {"speech.loss": 1.0}, 7.0)


# ---- streams ----


def rules(batch_seconds: float, seed: int = 0) -> CropRules:
    return CropRules(seed, batch_seconds, batch_seconds, 0.5, 0, 0.5, 0.005, 10, 2)


def test_whole_clips_come_once_in_an_epoch_with_others_as_long():
    generator = np.random.default_rng(0)
    num_samples = generator.integers(8_000, 40_000, size=41)
    num_samples[::10] = 0  # not in the stream
    planner = WholePlanner(rules(6.0), num_samples, lambda samples: samples // 320 - 1, stream=1)
    per_epoch = len(planner.bounds) - 1
    epochs = [[planner.crops(step) for step in range(start, start + per_epoch)] for start in (0, per_epoch)]
    for epoch in epochs:
        rows = Counter(crop.clip for crops in epoch for crop in crops)
        assert rows == Counter(np.flatnonzero(num_samples).tolist())
        for crops in epoch:
            lengths = [crop.length for crop in crops]
            assert lengths == sorted(lengths, reverse=True)
            assert all(length % 1600 == 0 for length in lengths)
            assert sum(lengths) <= 96_000
            for crop in crops:
                assert (crop.start, crop.num_samples) == (0, num_samples[crop.clip])
                assert 0 <= crop.silence < 1600
                assert len(crop.mask) == crop.length // 320 - 1
    assert [[crop.clip for crop in crops] for crops in epochs[0]] != [[crop.clip for crop in crops] for crops in epochs[1]]
    again = WholePlanner(rules(6.0), num_samples, lambda samples: samples // 320 - 1, stream=1)
    step = per_epoch + 2
    assert [(crop.clip, crop.mask.tolist()) for crop in again.crops(step)] == [
        (crop.clip, crop.mask.tolist()) for crop in planner.crops(step)
    ]


def test_masks_have_two_spans_at_least_and_cover_five_percent():
    planner = WholePlanner(rules(1e6), np.full(400, 320_000), lambda samples: samples // 320, stream=0)
    masks = np.stack([crop.mask for crop in planner.crops(0)])
    assert masks.sum(axis=1).min() >= 11  # two spans of 10 that may overlap
    assert 0.045 < masks.mean() < 0.06  # 1 - (1 - 0.005) ** 10 = 4.9 %, and a little for the least


def test_silence_follows_the_normalised_clip(tasks_recipe, tmp_path):
    pytest.importorskip("jiwer")
    state = prepared(tasks_recipe, tmp_path)
    speech, voice = state.loader.update(0)
    assert (speech.stream, voice.stream) == ("speech", "voice")
    assert len(speech.targets["speech"]) == sum(len(group.waveforms) for group in speech.groups) == speech.num_clips
    assert voice.counts == {"voice": voice.num_clips}
    planner = state.loader.planners["speech"]
    crop = planner(0)[0]
    found = speech.groups[0].waveforms[0]
    start = state.reader.first[crop.clip]
    samples = state.reader.store.read(state.labelled.clips[crop.clip].path, start, crop.num_samples)
    assert torch.equal(found[: crop.num_samples], normalized(torch.from_numpy(samples)[None])[0])
    assert not found[crop.num_samples :].any()
    assert {len(group.waveforms[0]) for group in voice.groups} == {9600, 6400}  # 0.6 s, and 0.4 s of shorter clips


def test_missing_labels_of_a_joint_stream_are_ignored(tasks_recipe, spoken_corpus, tmp_path):
    pytest.importorskip("jiwer")
    table = pd.read_csv(spoken_corpus)
    table["file_name"] = [str(spoken_corpus.parent / name) for name in table["file_name"]]
    table.loc[table["speaker_id"].isin(["k", "l"]), "text"] = ""
    table.to_csv(tmp_path / "some.csv", index=False)
    tasks = {name: {**task, "manifest": str(tmp_path / "some.csv")} for name, task in tasks_recipe["tasks"].items()}
    joint = {"all": {"tasks": ["speech", "voice"], "batch_seconds": 1000.0}}
    state = prepared(tasks_recipe, tmp_path / "out", tasks=tasks, streams=joint)
    (batch,) = state.loader.update(0)
    assert batch.counts == {"speech": 24, "voice": 36}
    rows = [crop.clip for crop in state.loader.planners["all"](0)]
    assert [text is None for text in batch.targets["speech"]] == [
        state.labelled.clips[row].path.name[0] in "kl" for row in rows
    ]
    network = state.run.learner.network.eval()
    with torch.no_grad():
        losses = network(batch, 0).losses
        alone = []
        for place in range(len(rows)):
            group = state.loader.reader.groups([state.loader.planners["all"](0)[place]])[0]
            if batch.targets["speech"][place] is not None:
                read = state.model.read_group(group.waveforms, group.mask, ["speech"])["speech"]
                alone.append(float(ctc_losses(read.logits, [batch.targets["speech"][place]])))
    assert float(losses["speech"]) == pytest.approx(np.mean(alone), rel=1e-4)


# ---- gradients ----


@pytest.fixture(scope="module")
def streams_state(tasks_recipe, tmp_path_factory) -> Prepared:
    pytest.importorskip("jiwer")
    tasks = {name: {**task, "weight": weight} for (name, task), weight in zip(tasks_recipe["tasks"].items(), (0.9, 0.1))}
    return prepared(tasks_recipe, tmp_path_factory.mktemp("streams"), tasks=tasks)


def gradients_by(state: Prepared, **how) -> tuple[dict[str, torch.Tensor], list]:
    """What an update would take its step by, and the outputs of the streams."""
    args = arguments(vars(state.run.args), gradients={"max": 1e9, **how})
    weights = {name: task.weight for name, task in args.task_settings().items()}
    learner = state.run.learner
    learner.model.train()
    torch.manual_seed(0)
    loss_of = lambda output, *_: weighted_sum(output, weights)  # noqa: E731
    gradients_of = StreamGradients(args.gradient_settings())
    outputs, _, _ = gradients_of(state.run.accelerator, learner, state.loader.update(0), loss_of, 0)
    found = {name: weight.grad for name, weight in learner.network.named_parameters() if weight.grad is not None}
    learner.network.zero_grad()
    return found, outputs


def straight(state: Prepared, weights: dict[str, float]) -> dict[str, torch.Tensor]:
    """The gradient of the weighted sum of the losses, in one backward pass."""
    network = state.run.learner.network.train()
    torch.manual_seed(0)
    losses = {}
    for batch in state.loader.update(0):
        losses |= network(batch, 0).losses
    sum(weight * losses[name] for name, weight in weights.items()).backward()
    found = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    network.zero_grad()
    return found


def test_sum_is_one_backward_pass_of_the_weighted_sum(streams_state):
    found, _ = gradients_by(streams_state, combine="sum")
    expected = straight(streams_state, {"speech": 0.9, "voice": 0.1})
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_mean_and_clipping_of_each_against_a_straight_computation(streams_state):
    speech, voice = (straight(streams_state, {name: weight}) for name, weight in (("speech", 0.9), ("voice", 0.1)))
    norms = [torch.sqrt(sum(one.square().sum() for one in own.values())) for own in (speech, voice)]
    found, outputs = gradients_by(streams_state, combine="mean", clip="each", max=1.0)
    assert [float(output.norm) for output in outputs] == pytest.approx([float(norm) for norm in norms], rel=1e-4)
    shared = speech.keys() & voice.keys()
    assert not any(
        "encoder.layers.1" in name or "readouts" in name for name in shared
    )  # voice reads layer 1, text the last one
    assert any("layers.0" in name for name in shared)
    for name, value in found.items():
        parts = [own[name] / max(1.0, float(norm) + 1e-6) for own, norm in zip((speech, voice), norms) if name in own]
        torch.testing.assert_close(value, sum(parts) / len(parts), rtol=1e-3, atol=1e-6)
    product = sum((speech[name] * voice[name]).sum() for name in shared)
    lengths = [torch.sqrt(sum(own[name].square().sum() for name in shared)) for own in (speech, voice)]
    assert float(outputs[0].cosines["voice"]) == pytest.approx(float(product / lengths[0] / lengths[1]), abs=1e-4)


def test_half_precision_has_the_gradient_of_whole_precision_but_for_its_digits(streams_state, tasks_recipe, tmp_path):
    found, outputs = gradients_by(streams_state)
    AcceleratorState._reset_state()  # accelerate has one precision in a process
    halved = prepared(tasks_recipe, tmp_path, tasks=streams_state.run.args.tasks, mixed_precision="bf16")
    halved.run.learner.network.load_state_dict(streams_state.run.learner.network.state_dict())
    rounded, others = gradients_by(halved)
    AcceleratorState._reset_state()
    for one, other in zip(outputs, others):
        for name, loss in one.losses.items():
            assert float(other.losses[name]) == pytest.approx(float(loss), rel=0.05)
            assert float(other.losses[name]) != float(loss)
    assert {name: value.dtype for name, value in rounded.items()} == dict.fromkeys(found, torch.float32)
    flat, flat_rounded = (torch.cat([one[name].flatten() for name in found]) for one in (found, rounded))
    assert float(torch.cosine_similarity(flat, flat_rounded, dim=0)) > 0.98


def test_what_a_task_does_not_read_gets_no_gradient_of_it(streams_state):
    voice = straight(streams_state, {"voice": 1.0})
    assert any("encoder.layers.0" in name for name in voice)
    assert not any("encoder.layers.1" in name or "encoder.layer_norm" in name or "speech" in name for name in voice)


def test_a_task_and_the_encoder_may_have_learning_rates_of_their_own(tasks_recipe, tmp_path):
    pytest.importorskip("jiwer")
    tasks = {**tasks_recipe["tasks"], "speech": {**tasks_recipe["tasks"]["speech"], "learning_rate": 5e-2}}
    state = prepared(tasks_recipe, tmp_path / "out", tasks=tasks, encoder_learning_rate=1e-4)
    learner = state.run.learner
    names = {id(weight): name for name, weight in learner.network.named_parameters()}
    rates = {names[id(weight)]: group["initial_lr"] for group in learner.optimizer.param_groups for weight in group["params"]}
    for part, rate in (("upstream", 1e-4), ("readouts.speech", 5e-2), ("readouts.voice", tasks_recipe["learning_rate"])):
        assert {own for name, own in rates.items() if name.startswith(f"model.{part}.")} == {rate}, part
    logged = state._rates()
    assert logged["encoder_learning_rate"] / logged["learning_rate"] == pytest.approx(1e-4 / tasks_recipe["learning_rate"])


# ---- whole runs ----


FIRST_S = 0.5
PAIRS = [("s0", "s1"), ("s0", "t1"), ("s2", "s3"), ("t0", "t5"), ("t2", "s4"), ("s5", "t3")]


@pytest.fixture(scope="module")
def finished_recipe(tasks_recipe, spoken_corpus) -> dict:
    """With further test sets: the text's own test split again, trials of the voices, and trials of their beginnings."""
    trials = spoken_corpus.parent / "pairs.csv"
    rows = [(int(one[0] == other[0]), f"{one}.flac", f"{other}.flac") for one, other in PAIRS]
    pd.DataFrame(rows, columns=["label", "enrolment", "test"]).to_csv(trials, index=False)
    pairs = {"of": "voice", "manifest": str(spoken_corpus), "trials": str(trials)}
    again = {"of": "speech", "manifest": str(spoken_corpus)}
    tests = {"again": again, "pairs": pairs, "beginnings": {**pairs, "first_s": FIRST_S}}
    return {**tasks_recipe, "max_steps": 4, "validate_every": 2, "embedding_of": "voice", "tests": tests}


@pytest.fixture(scope="module")
def finished(finished_recipe, tmp_path_factory) -> Path:
    pytest.importorskip("jiwer")
    folder = tmp_path_factory.mktemp("finished") / "out"
    run(finished_recipe, folder)
    return folder


def test_a_run_leaves_its_figures_and_models(finished, tasks_recipe):
    assert {path.name for path in finished.iterdir()} >= {"config.yaml", "log.jsonl", "results", "upstream", "ctc", "hub"}
    entries = log_of(finished)
    assert [entry["step"] for entry in entries] == [2, 4]
    for name in ("speech.train_loss", "voice.train_loss", "speech.gradient_norm", "speech.voice.gradient_cosine"):
        assert all(math.isfinite(entry[name]) for entry in entries)
    result = json.loads((finished / "results/finetuning.json").read_text())
    assert list(result["tasks"]) == ["speech", "voice", "again", "beginnings", "pairs"]
    assert result["tasks"]["speech"].keys() == {"wer", "cer"}
    assert result["tasks"]["again"] == result["tasks"]["speech"]
    assert not any("again" in name or "pairs" in name for entry in entries for name in entry)  # validation looks at no test
    assert result["tasks"]["voice"].keys() == {"eer"}  # its speakers are unseen
    assert result["clips"]["speech"] == {"train": 36, "validation": 12, "test": 12}
    best = min(entries, key=lambda entry: entry["validation.speech.loss"])
    assert result["best_step"] == best["step"]
    upstream = load_file(finished / "upstream/model.safetensors")
    hub = load_file(finished / "hub/model.safetensors")
    assert all(torch.equal(upstream[name], hub[f"upstream.{name}"]) for name in upstream)


def test_further_test_sets_have_their_trials_and_beginnings(finished, spoken_corpus):
    """By cosines of `encode` and scikit-learn's ROC curve."""
    model = FinetunedWavCSE.from_pretrained(finished / "hub").eval()
    found = json.loads((finished / "results/finetuning.json").read_text())["tasks"]
    table = pd.read_csv(spoken_corpus).set_index("file_name")
    for name, length in (("pairs", None), ("beginnings", int(FIRST_S * 16_000))):
        read = {
            clip: soundfile.read(spoken_corpus.parent / clip, dtype="float32")[0][:length]
            for clip in table.index[table["split"] == "test"]
        }
        vectors = dict(zip(read, model.encode(list(read.values()), normalize_embeddings=True)))
        scores = [float(vectors[f"{one}.flac"] @ vectors[f"{other}.flac"]) for one, other in PAIRS]
        false, true, _ = roc_curve([one[0] == other[0] for one, other in PAIRS], scores, drop_intermediate=False)
        excess = partial(lambda rate, x, y: 1 - rate - np.interp(rate, x, y), x=false, y=true)
        expected = brentq(excess, 0, 1)  # as the authors' code
        assert found[name]["eer"]["value"] == pytest.approx(expected, abs=1e-6), name
        assert found[name]["eer"]["clips"] == len(PAIRS)


def test_a_clips_logits_do_not_depend_on_its_batch(finished, spoken_corpus):
    model = FinetunedWavCSE.from_pretrained(finished / "hub").eval()
    generator = np.random.default_rng(1)
    clips = [torch.from_numpy(generator.standard_normal(n)).float() for n in (16_000, 9_000, 16_000, 12_345)]
    with torch.no_grad():
        together = model(clips)
        for place, clip in enumerate(clips):
            alone = model([clip])
            count = int(together.num_frames[place])
            torch.testing.assert_close(together.logits["speech"][place, :count], alone.logits["speech"][0], atol=1e-5, rtol=0)
            assert not together.logits["speech"][place, count:].any()
            torch.testing.assert_close(together.logits["voice"][place], alone.logits["voice"][0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.embeddings[place], alone.embeddings[0], atol=1e-5, rtol=0)
            trained = model.read_group(clip[None], None, ["speech", "voice"])  # the path of training
            torch.testing.assert_close(alone.logits["speech"], trained["speech"].logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(alone.logits["voice"], trained["voice"].logits, atol=1e-5, rtol=0)


HUB = """
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCTC, AutoProcessor, pipeline
folder, clip, out = sys.argv[1:]
samples = np.load(clip)
model = AutoModel.from_pretrained(folder + "/hub", trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(folder + "/hub", trust_remote_code=True)
with torch.no_grad():
    output = model(**extractor(samples, sampling_rate=16000, return_tensors="pt"))
    processor = AutoProcessor.from_pretrained(folder + "/ctc")
    ctc = AutoModelForCTC.from_pretrained(folder + "/ctc")(**processor(samples, sampling_rate=16000, return_tensors="pt"))
embed = pipeline("feature-extraction", model=folder + "/hub", trust_remote_code=True)
np.savez(out, speech=output.logits["speech"], voice=output.logits["voice"], embeddings=output.embeddings, ctc=ctc.logits,
         pipeline=embed(samples, return_tensors=True), encode=model.encode(samples)[None])
"""


@pytest.mark.slow
def test_the_folders_give_the_networks_logits_where_wavcse_does_not_exist(finished, tmp_path):
    samples = np.random.default_rng(0).standard_normal(14_000).astype(np.float32)
    np.save(tmp_path / "clip.npy", samples)
    run_without_wavcse(HUB, finished, tmp_path / "clip.npy", tmp_path / "out.npz", modules=tmp_path)
    found = np.load(tmp_path / "out.npz")
    model = FinetunedWavCSE.from_pretrained(finished / "hub").eval()
    with torch.no_grad():
        read = model.read_group(normalized(torch.from_numpy(samples)[None]), None, ["speech", "voice"])
    expected = {"speech": read["speech"].logits, "ctc": read["speech"].logits, "voice": read["voice"].logits}
    expected |= dict.fromkeys(("embeddings", "pipeline", "encode"), read["voice"].vectors)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.numpy(), atol=2e-5)


def test_a_finished_run_is_not_done_again_and_another_recipe_is_refused(finished, finished_recipe, tmp_path, capsys):
    recipe = {**finished_recipe, "output_dir": str(finished)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "learning_rate": 1.0}))
    assert main([str(tmp_path / "recipe.yaml")]) == 2
    assert "other settings (learning_rate)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_stops_when_the_loss_has_not_fallen(tasks_recipe, tmp_path):
    pytest.importorskip("jiwer")
    result = run(tasks_recipe, tmp_path, learning_rate=1e-30, validate_every=1, patience=2)
    assert (result["steps"], result["best_step"], result["is_stopped_early"]) == (3, 1, True)
    again = run(tasks_recipe, tmp_path, learning_rate=1e-30, validate_every=1, patience=2)
    assert again["steps"] == 3  # it has stopped for good


@pytest.mark.slow
def test_the_evaluation_takes_the_folder_as_any_model(finished):
    encoder = WavCSEEncoder(str(finished / "hub"))
    check_encoder(encoder)
    clips = [np.random.default_rng(seed).standard_normal(9_000 + 3_000 * seed).astype(np.float32) for seed in range(2)]
    model = FinetunedWavCSE.from_pretrained(finished / "hub").eval()
    np.testing.assert_allclose(encoder.embed(clips), model.encode(clips), atol=1e-5)
    layers = encoder.all_layers(clips)
    assert layers.shape == (2, 3, 32)
    np.testing.assert_allclose(layers[:, 1], encoder.embed(clips), atol=1e-5)  # voice is the mean of layer 1


@pytest.mark.slow
def test_killed_and_continued_is_not_killed(tasks_recipe, tmp_path):
    pytest.importorskip("jiwer")
    recipe = {**tasks_recipe, "validate_every": 2, "freeze": {"stem": True, "encoder_until": 3}}
    run(recipe, tmp_path / "undisturbed")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "out")}))
    last = tmp_path / "out/checkpoints/last"
    Child("-m", "wavcse.finetuning", tmp_path / "recipe.yaml").kill_when(last.exists, interval_s=0.002)
    assert not (tmp_path / "out/results/finetuning.json").exists()
    assert main([str(tmp_path / "recipe.yaml")]) == 0
    assert log_of(tmp_path / "out") == log_of(tmp_path / "undisturbed")
    one, other = (load_file(tmp_path / name / "hub/model.safetensors") for name in ("out", "undisturbed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_one_and_two_processes_have_the_same_losses(tasks_recipe, tmp_path):
    pytest.importorskip("jiwer")
    length = {
        **tasks_recipe["tasks"]["speech"],
        "kind": "numbers",
        "label_column": "length",
        "loss": "ccc",
        "pooling": "mean_std",
    }
    tasks = {**tasks_recipe["tasks"], "length": length}
    streams = {**tasks_recipe["streams"], "length": {"tasks": ["length"], "batch_seconds": 12.0}}
    recipe = {**tasks_recipe, "tasks": tasks, "streams": streams, "max_steps": 6, "validate_every": 2}
    run(recipe, tmp_path / "one")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for done in run_in_two_processes(ROOT / "finetune_accelerate.py", tmp_path / "recipe.yaml", "--out", tmp_path / "two"):
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two/results/finetuning.json").read_text())["num_processes"] == 2
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == len(two) == 3
    for a, b in zip(one, two):
        assert b.keys() == a.keys()
        for name in ("speech.train_loss", "voice.train_loss", "length.train_loss", "validation.speech.loss"):
            assert b[name] == pytest.approx(a[name], rel=2e-3), name


# ---- what is refused ----


def test_the_recipe_says_which_program_is_meant(tmp_path):
    for text, program in (("tasks: {}\n", FINETUNE_TASKS), ("upstreams: {}\ntask: {}\n", FINETUNE), ("seed: 1\n", FINETUNE)):
        (tmp_path / "recipe.yaml").write_text(text)
        assert FINETUNING.of([str(tmp_path / "recipe.yaml"), "--seed", "2"]) is program
    (tmp_path / "study.yaml").write_text("recipe: r.yaml\nupstreams: {a: b}\nvariants: {}\n")
    assert FINETUNING.of([str(tmp_path / "study.yaml"), "--dry_run"]) is TASK_STUDY
    assert FINETUNING.of(["--init_from=x"]) is FINETUNE_TASKS
    assert FINETUNING.of(["no such file"]) is FINETUNE


def test_a_leak_between_tasks_is_refused(tasks_recipe, spoken_corpus, tmp_path):
    """The speaker task trains on clips of speakers whom the text task holds out."""
    tasks = {name: dict(task) for name, task in tasks_recipe["tasks"].items()}
    tasks["voice"] |= {"split_column": ["split_all"], "disjoint_by": None}
    table = pd.read_csv(spoken_corpus)
    table["split_all"] = np.tile(["train"] * 4 + ["validation", "test"], len(table) // 6)
    table["file_name"] = [str(spoken_corpus.parent / name) for name in table["file_name"]]
    table.to_csv(tmp_path / "all.csv", index=False)
    tasks["voice"]["manifest"] = tasks["speech"]["manifest"] = str(tmp_path / "all.csv")
    args = arguments(tasks_recipe, tasks=tasks)
    with pytest.raises(ValueError, match="task 'voice' .*trains.* 'speech'|task 'speech'.*hold"):
        labelled_clips(args, Inspector())


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ({"speech": {"of": "voice", "manifest": "m.csv"}}, r"tests\.speech: that is the name of a task"),
        ({"more": {"of": "text", "manifest": "m.csv"}}, r"tests\.more\.of is 'text'; .*speech"),
        ({"more": {"of": "speech"}}, r"tests\.more: manifest missing"),
        ({"more": {"of": "speech", "manifest": "m.csv", "trials": "t.csv"}}, r"tests\.more: trials is given, .* kind classes"),
        ({"more": {"of": "voice", "manifest": "m.csv", "first_s": 0}}, r"tests\.more: .*first_s is 0"),
    ],
)
def test_wrong_test_sets_are_refused_by_name(tasks_recipe, tests, message):
    with pytest.raises(ValueError, match=message):
        arguments(tasks_recipe, tests=tests).check_sections()


def test_a_test_set_of_trained_clips_is_refused(tasks_recipe, spoken_corpus, tmp_path):
    table = pd.read_csv(spoken_corpus)
    table["file_name"] = [str(spoken_corpus.parent / name) for name in table["file_name"]]
    table[table["split"] == "train"].assign(split="test").to_csv(tmp_path / "known.csv", index=False)
    tests = {"known": {"of": "voice", "manifest": str(tmp_path / "known.csv")}}
    with pytest.raises(ValueError, match="task 'known'"):
        labelled_clips(arguments(tasks_recipe, tests=tests), Inspector())


def test_trials_of_strangers_may_judge_the_vector_of_any_classes(tasks_recipe, spoken_corpus, tmp_path):
    pairs = pd.DataFrame([(1, "s0.flac", "s1.flac"), (0, "s0.flac", "t1.flac")], columns=["label", "enrolment", "test"])
    pairs.to_csv(tmp_path / "strangers.csv", index=False)
    letter = {"kind": "classes", "manifest": str(spoken_corpus), "label_column": "letter", "disjoint_by": "speaker_id"}
    speakers = {"of": "letter", "manifest": str(spoken_corpus), "label_column": "speaker_id"}
    args = partial(arguments, tasks_recipe, tasks={"letter": letter}, streams={})
    labelled = labelled_clips(args(tests={"voices": {**speakers, "trials": str(tmp_path / "strangers.csv")}}), Inspector())
    voices = labelled.tests["voices"]
    assert len(voices.trials.labels) == 2
    assert "test" in voices.open_splits  # no accuracy of classes that are not the task's
    with pytest.raises(ValueError, match=r"tests\.voices: the labels \['5'\] never occur in the training of 'letter'"):
        labelled_clips(args(tests={"voices": {**speakers, "label_column": "session"}}), Inspector())


def test_clips_that_cannot_serve_a_text_are_left_out(tasks_recipe, spoken_corpus, tmp_path):
    pytest.importorskip("jiwer")
    table = pd.read_csv(spoken_corpus)
    table["file_name"] = [str(spoken_corpus.parent / name) for name in table["file_name"]]
    table.loc[0, "text"], table.loc[1, "text"], table.loc[2, "text"] = "a" * 200, "?!", "ab" * 200
    table.to_csv(tmp_path / "some.csv", index=False)
    tasks = {"speech": {**tasks_recipe["tasks"]["speech"], "manifest": str(tmp_path / "some.csv")}}
    state = prepared(tasks_recipe, tmp_path / "out", tasks=tasks, streams={}, max_clip_s=1.2)
    seconds = [state.reader.num_samples[row] / 16_000 for row in range(len(table))]
    fitted = (table["split"] != "test").to_numpy()
    too_long = sum(fitted[row] and seconds[row] > 1.2 for row in range(len(table)) if row != 1)
    left_out = state.labelled.left_out["speech"]
    assert left_out["without a text"] == 1
    assert left_out["over 1.2 s"] == too_long
    others = left_out["over 300 characters"] + left_out["too short for their text"]
    assert others == sum(seconds[row] <= 1.2 for row in (0, 2))


VOICE = {"kind": "classes", "manifest": "m.csv", "label_column": "speaker_id"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, "tasks is {}; name at least one"),
        ({"tasks": {"a/b": VOICE}}, "a name in tasks is 'a/b'"),
        ({"tasks": {"voice": {"kind": "speakers"}}}, r"tasks\.voice: kind is 'speakers'; allowed: ctc, classes, numbers"),
        ({"tasks": {"voice": {**VOICE, "manifest": []}}}, r"tasks\.voice: manifest missing"),
        ({"tasks": {"voice": {**VOICE, "loss": "ctc"}}}, r"tasks\.voice: loss is 'ctc'; allowed: cross_entropy, aam_softmax"),
        ({"tasks": {"voice": {**VOICE, "margin": 0.1}}}, r"tasks\.voice: scale and margin belong to loss aam_softmax"),
        ({"tasks": {"voice": {**VOICE, "tap": "first"}}}, r"tasks\.voice: tap is 'first'; allowed: a number, last"),
        ({"tasks": {"voice": {**VOICE, "tap": "embedding", "pooling": "ecapa"}}}, r"tap is embedding, one vector per clip"),
        ({"tasks": {"voice": {**VOICE, "text": {"case": "lower"}}}}, "text is given, but it belongs to kind ctc"),
        ({"streams": {"a": {"tasks": ["voice"], "crop": "part"}}}, r"streams\.a: crop is 'part'; allowed: a number, whole"),
        ({"streams": {"a": {"tasks": ["speech"], "crop": 2.0}}}, "crop is 2.0, but the text of 'speech' is of whole clips"),
        ({"streams": {"a": {"tasks": ["voice"]}}}, r"streams: the tasks \['speech'\] are in none"),
        ({"streams": {"a": {"tasks": ["voice", "voice", "speech"]}}}, "the task 'voice' is named twice"),
        ({"streams": {"a": {"tasks": ["voices"]}}}, r"streams\.a: a task is 'voices' \(did you mean voice\?\)"),
        ({"gradients": {"combine": "max"}}, "gradients: combine is 'max'; allowed: sum, mean"),
        ({"freeze": {"blocks": -1}}, "freeze: blocks is -1; it must not be negative"),
        ({"choose": {"voice.wer": 1.0}}, r"choose: unknown fields \['voice\.wer'\]"),
        ({"choose": {"voice.eer": 0}}, "choose: voice.eer is 0; a weight above 0 is needed"),
        ({"embedding_of": "voices"}, "embedding_of is 'voices'"),
        ({"mask_share": 1.0}, "mask_share is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(tasks_recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tasks_recipe, **changes).check_sections()


def test_a_tap_that_the_encoder_does_not_have_is_refused(tasks_recipe, tmp_path):
    tasks = {"voice": {**tasks_recipe["tasks"]["voice"], "tap": 3}}
    with pytest.raises(
        ValueError, match=r"readouts\['voice'\]\['tap'\] is 3; allowed: .* 0 to 2|selected_layers asks for layer 3"
    ):
        prepared(tasks_recipe, tmp_path, tasks=tasks, streams={})
    tasks = {"voice": {**tasks_recipe["tasks"]["voice"], "tap": "embedding"}}
    with pytest.raises(ValueError, match="init_from must be a wavCSE model"):
        prepared(tasks_recipe, tmp_path, tasks=tasks, streams={})


def test_batches_smaller_than_the_number_of_processes_are_refused_before_training(tasks_recipe, tmp_path):
    streams = {"speech": {"tasks": ["speech"], "batch_seconds": 0.2}, "voice": {"tasks": ["voice"], "batch_seconds": 8.0}}
    loader = prepared(tasks_recipe, tmp_path, streams=streams).loader
    with pytest.raises(ValueError, match=r"streams.speech: a batch has 1 clips for 2 processes"):
        StreamLoader(loader.args, loader.labelled, loader.reader, 400, process_index=0, num_processes=2)
