"""Pre-training runs: faster parts that compute the same, exact resume, one against two processes, and what comes out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, WavLMModel

from wavcse import WavCSEFeatureExtractor, WavCSEModel
from wavcse.feature_extraction_wavcse import normalized
from wavcse.pretrain_accelerate import main, pretrain
from wavcse.pretraining.arguments import PretrainArguments
from wavcse.pretraining.network import Figures, PretrainNetwork, total_loss
from wavcse.steps.arguments import learning_rate_factor
from wavcse.steps.batches import CropBatch, Group
from wavcse.steps.encoder import encoder_config, new_encoder, use_fast_parts
from wavcse.steps.loop import new_learner, update
from wavcse.tests.helpers.processes import Child, run_in_two_processes, run_python

ROOT = Path(__file__).parents[2]
PRETRAIN = ROOT.parent / "shared" / "pretrain" / "manifest.csv"
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16, 16],
    "conv_kernel": [400, 3],
    "conv_stride": [160, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
NO_DROPOUT = dict.fromkeys(["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"], 0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """36 clips of 0.6 to 1.5 s: three "languages" of vibrating tones, a few clips without a label."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    rows = ["file_name,language"]
    for i in range(36):
        time_s = np.arange(int((0.6 + 0.9 * generator.random()) * 16_000)) / 16_000
        phase = 2 * np.pi * (200 * (1 + i % 3) * time_s + 3 * np.sin(2 * np.pi * (2 + i % 5) * time_s))
        samples = 0.3 * np.sin(phase) + 0.05 * generator.standard_normal(len(time_s))
        soundfile.write(folder / f"{i:02d}.flac", samples, 16_000)
        rows.append(f"{i:02d}.flac,{'' if i >= 33 else 'abc'[i % 3]}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder / "metadata.csv"


@pytest.fixture(scope="module")
def recipe(corpus, tmp_path_factory):
    return {
        "data": {"tones": {"manifest": str(corpus)}},
        "audio_dir": str(tmp_path_factory.mktemp("audio")),
        "encoder": ENCODER,
        "codebook_size": 64,
        "labels_per_batch": 3,
        "batch_seconds": 9.0,
        "crop_s": 1.0,
        "label_weight": 4.0,
        "max_steps": 8,
        "warmup_steps": 4,
        "learning_rate": 1e-3,
        "log_every": 2,
        "checkpoint_every_s": 0.0,
        "gradient_accumulation_steps": 2,
    }


def run(recipe, folder, **changes):
    return pretrain(PretrainArguments(**{**recipe, "output_dir": str(folder), **changes}))


def log_of(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in ("seconds", "audio_s_per_s")} for entry in entries]


def assert_same_run(first, second):
    assert log_of(first) == log_of(second)
    tensors = [load_file(folder / "checkpoints/last/tensors.safetensors") for folder in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return folder, run(recipe, folder)


@pytest.mark.parametrize("stem", ["two convolutions", "seven convolutions"])
def test_fast_parts_compute_what_transformers_computes(stem):
    fields = dict(ENCODER) if stem == "two convolutions" else {**ENCODER, "conv_dim": [16] * 7}
    if stem == "seven convolutions":
        del fields["conv_kernel"], fields["conv_stride"]
    torch.manual_seed(0)
    plain = WavLMModel(encoder_config({**fields, **NO_DROPOUT}, None))
    with torch.no_grad():
        for parameter in plain.encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    fast = WavLMModel(plain.config)
    fast.load_state_dict(plain.state_dict())
    fast = use_fast_parts(fast)
    waveforms = torch.randn(3, 8000)
    mask = torch.rand(3, 23 if stem == "two convolutions" else 24) < 0.3
    outputs = []
    for model in (plain.train(), fast.train()):
        output = model(waveforms, mask_time_indices=mask).last_hidden_state
        output.square().mean().backward()
        outputs.append(output.detach())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    expected = dict(plain.named_parameters())
    for name, parameter in fast.named_parameters():
        scale = expected[name].grad.abs().max().item()
        # That of a key's bias is zero but for rounding: it shifts all scores of a row.
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=max(1e-4 * scale, 1e-6), msg=name)


def test_a_first_convolution_as_long_as_a_window_starts_as_a_filterbank():
    """Each of its filters answers most to a wave of its own band; four phases of a band in a row, bands upwards."""
    torch.manual_seed(0)
    first = new_encoder(encoder_config({**ENCODER, "conv_dim": [64, 16]}, None)).feature_extractor.conv_layers[0].conv
    spectrum = np.abs(np.fft.rfft(first.weight.detach().numpy()[:, 0], n=16_000))
    peaks_hz = spectrum.argmax(axis=1).reshape(16, 4)
    assert (np.ptp(peaks_hz, axis=1) <= 40).all()
    assert (np.diff(peaks_hz.mean(axis=1)) > 0).all()
    np.testing.assert_allclose(first.weight.detach().norm(dim=2), np.sqrt(2), rtol=1e-5)
    plain = new_encoder(encoder_config({**ENCODER, "conv_kernel": [320, 3]}, None)).feature_extractor.conv_layers[0].conv
    assert np.ptp(np.abs(np.fft.rfft(plain.weight.detach().numpy()[0, 0]))) > 0  # a shorter one stays random
    assert not np.allclose(plain.weight.detach().norm(dim=2), np.sqrt(2), rtol=1e-5)


def test_only_masked_frames_count(recipe):
    """The loss is the cross-entropy at masked frames, and what the encoder heard there was not the clip."""
    args = PretrainArguments(**{**recipe, "encoder": {**ENCODER, **NO_DROPOUT}})
    torch.manual_seed(0)
    network = PretrainNetwork(args, new_encoder(encoder_config(args.encoder, None)))
    waveforms, mask = normalized(torch.randn(2, 16_000)), torch.zeros(2, 48, dtype=torch.bool)
    mask[0, 5:25], mask[1, 30:] = True, True
    batch = CropBatch([Group(waveforms, mask)], torch.tensor([0, 1]), int(mask.sum()), 2.0)
    output = network(batch, 0)
    frames = network.encoder(waveforms, mask_time_indices=mask).last_hidden_state
    logits = network.head(frames)
    everywhere = network.quantizer(waveforms, torch.ones_like(mask)).view(2, 48)
    by_hand = [-logits[b, t].log_softmax(0)[everywhere[b, t]].item() for b in range(2) for t in range(48) if mask[b, t]]
    assert output.masked_loss.item() == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert torch.equal(output.codes, everywhere[mask])
    changed = waveforms.clone()
    changed[0, 320 * 7 : 320 * 20] = torch.randn(320 * 13)  # within the masked span
    again = network.encoder(changed, mask_time_indices=mask).last_hidden_state
    torch.testing.assert_close(again[0], frames[0])


def test_groups_of_lengths_are_one_batch(recipe):
    """Two lengths in one batch: the masked loss is the mean over all frames, labels see all clips."""
    args = PretrainArguments(**{**recipe, "encoder": {**ENCODER, **NO_DROPOUT}})
    torch.manual_seed(0)
    network = PretrainNetwork(args, new_encoder(encoder_config(args.encoder, None)))
    groups = [Group(torch.randn(2, 16_000), torch.rand(2, 48) < 0.5), Group(torch.randn(3, 8000), torch.rand(3, 23) < 0.5)]
    labels, counts = torch.tensor([0, 1, 0, 1, 0]), [int(group.mask.sum()) for group in groups]
    output = network(CropBatch(groups, labels, sum(counts), 3.5), 0)
    parts = [
        network(CropBatch([group], labels[:1].expand(len(group.mask)), count, 1.0), 0) for group, count in zip(groups, counts)
    ]
    expected = sum(part.masked_loss * count for part, count in zip(parts, counts)) / sum(counts)
    torch.testing.assert_close(output.masked_loss, expected)
    frames = [network.encoder(group.waveforms, mask_time_indices=group.mask).last_hidden_state.mean(dim=1) for group in groups]
    torch.testing.assert_close(output.label_loss, network.label_loss(torch.cat(frames), labels))


def test_the_log_says_what_matters(undisturbed, recipe):
    folder, result = undisturbed
    entries = log_of(folder)
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8]
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["masked_loss"] + recipe["label_weight"] * entry["label_loss"])
        assert 0 <= entry["masked_accuracy"] <= 1
        assert entry["code_perplexity"] == pytest.approx(np.exp(entry["code_entropy"]))
        assert 1 <= entry["prediction_perplexity"] <= 64
        assert 0 <= entry["active_share"] <= 1
        assert 0 <= entry["negative_distance"] <= 1
    assert entries[0]["masked_loss"] == pytest.approx(np.log(64), rel=0.2)  # an untrained head knows nothing
    assert result["last"]["step"] == 8
    assert result["labels"] == ["a", "b", "c"]


def test_a_run_is_repeated_to_the_bit_and_another_seed_is_another_run(recipe, undisturbed, tmp_path):
    run(recipe, tmp_path / "again")
    assert_same_run(undisturbed[0], tmp_path / "again")
    run(recipe, tmp_path / "other", seed=1, max_steps=2)
    assert log_of(tmp_path / "other")[0] != log_of(undisturbed[0])[0]


def test_stopped_by_time_and_continued_is_not_stopped(recipe, undisturbed, tmp_path):
    assert run(recipe, tmp_path / "run", stop_after_s=0.0) == {}
    assert len(log_of(tmp_path / "run")) == 1
    run(recipe, tmp_path / "run")
    assert_same_run(undisturbed[0], tmp_path / "run")


def test_killed_and_continued_is_not_killed(recipe, undisturbed, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    child = Child(ROOT / "pretrain_accelerate.py", tmp_path / "recipe.yaml", "--output_dir", folder)
    child.kill_when((folder / "checkpoints" / "last").exists, interval_s=0.002)
    assert not (folder / "upstream").exists(), "the run ended before it could be killed"
    run(recipe, folder)
    assert_same_run(undisturbed[0], folder)


def test_another_recipe_or_other_data_do_not_continue_a_run(recipe, undisturbed, tmp_path, capsys):
    folder = shutil.copytree(undisturbed[0], tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(folder)}))
    assert main([str(tmp_path / "recipe.yaml"), "--label_weight", "1"]) == 2
    assert "other settings (label_weight)" in capsys.readouterr().err
    (folder / "data.json").write_text('{"fingerprint": "another"}')
    assert main([str(tmp_path / "recipe.yaml")]) == 2
    assert "the clips or labels have changed" in capsys.readouterr().err


def test_a_run_without_fast_parts_has_the_same_losses_and_is_another_run(recipe, tmp_path, capsys):
    recipe = {**recipe, "encoder": {**ENCODER, **NO_DROPOUT}, "max_steps": 4}
    run(recipe, tmp_path / "fast")
    run(recipe, tmp_path / "plain", fast_parts=False)
    for fast, plain in zip(log_of(tmp_path / "fast"), log_of(tmp_path / "plain"), strict=True):
        assert plain["masked_loss"] == pytest.approx(fast["masked_loss"], abs=1e-4)
        assert plain["label_loss"] == pytest.approx(fast["label_loss"], abs=1e-4)
    configs = [json.loads((tmp_path / name / "results/pretraining.json").read_text())["config"] for name in ("fast", "plain")]
    assert "fast_parts" not in configs[0]  # as runs of before the field
    assert configs[1]["fast_parts"] is False
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for folder, switch in (("fast", "--no_fast_parts"), ("plain", "--fast_parts")):
        assert main([str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / folder), switch]) == 2
        assert "other settings (fast_parts)" in capsys.readouterr().err


def test_one_and_two_processes_have_the_same_losses(recipe, tmp_path):
    recipe = {**recipe, "encoder": {**ENCODER, **NO_DROPOUT}, "label_loss": "ge2e", "label_loss_start": 3}
    run(recipe, tmp_path / "one")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = (ROOT / "pretrain_accelerate.py", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "two")
    for done in run_in_two_processes(*command):
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two/results/pretraining.json").read_text())["num_processes"] == 2
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two):
        assert b == pytest.approx(a, abs=2e-3)
        assert b["masked_frames"] == a["masked_frames"]
        assert b["masked_loss"] == pytest.approx(a["masked_loss"], abs=1e-4)
        assert b["label_loss"] == pytest.approx(a["label_loss"], abs=1e-4)


def test_the_result_is_an_upstream(undisturbed):
    folder = undisturbed[0] / "upstream"
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert AutoFeatureExtractor.from_pretrained(folder).do_normalize
    plain = WavLMModel.from_pretrained(folder).eval()
    trained = load_file(undisturbed[0] / "checkpoints/last/tensors.safetensors")
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, trained[f"model.encoder.{name}"], rtol=0, atol=0)
    model = WavCSEModel.from_upstream(str(folder), selected_layers=[0, 1, 2], embedding_size=8).eval()
    waves = [np.random.default_rng(i).standard_normal(n).astype(np.float32) for i, n in enumerate((16_000, 7000, 11_111))]
    inputs = WavCSEFeatureExtractor.from_config(model.config)(waves, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        packed = model(**inputs).pooled_layers
        for i, wave in enumerate(waves):
            states = []
            blocks = [plain.encoder.dropout, *plain.encoder.layers]
            hooks = [
                block.register_forward_hook(
                    lambda _, __, out, states=states: states.append(out[0] if type(out) is tuple else out)
                )
                for block in blocks
            ]
            plain(normalized(torch.from_numpy(wave)[None]))
            for hook in hooks:
                hook.remove()
            expected = torch.stack([state[0].mean(dim=0) for state in states])
            torch.testing.assert_close(packed[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["run", "upstream", "wavcse"])
def test_a_run_can_start_from_another(recipe, undisturbed, tmp_path, kind):
    init_from = {"run": undisturbed[0], "upstream": undisturbed[0] / "upstream", "wavcse": tmp_path / "wavcse"}[kind]
    if kind == "wavcse":
        num_blocks = recipe["encoder"]["num_hidden_layers"]
        WavCSEModel.from_upstream(str(undisturbed[0] / "upstream"), selected_layers=[num_blocks]).save_pretrained(init_from)
    run(recipe, tmp_path / "next", init_from=str(init_from), encoder={}, max_steps=1, learning_rate=1e-9, label_weight=0.0)
    before, after = (
        load_file(folder / "checkpoints/last/tensors.safetensors") for folder in (undisturbed[0], tmp_path / "next")
    )
    for name in before:
        if name == "model.encoder.masked_spec_embed" and kind == "wavcse":
            continue  # what stands for masked frames is no part of an embedding model
        if name.startswith("model.encoder.") or (kind == "run" and name.startswith(("model.head.", "model.quantizer."))):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert kind == "run" or not torch.equal(after["model.head.weight"], before["model.head.weight"])


def test_the_example_writes_what_a_recipe_starts_from(recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "seed": 3}))
    example = ROOT / "examples" / "random_upstream.py"
    done = run_python(example, "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "upstream")
    assert done.returncode == 0, done.stderr
    run(recipe, tmp_path / "run", seed=3, max_steps=1, learning_rate=1e-12)
    written = WavLMModel.from_pretrained(tmp_path / "upstream").state_dict()
    trained = WavLMModel.from_pretrained(tmp_path / "run" / "upstream").state_dict()
    assert written.keys() == trained.keys()
    for name, weight in written.items():
        torch.testing.assert_close(weight, trained[name], rtol=0, atol=1e-9)


def test_a_frozen_stem_stays(recipe, undisturbed, tmp_path):
    run(recipe, tmp_path / "next", init_from=str(undisturbed[0]), freeze_stem=True, max_steps=2, learning_rate=1e-2)
    before, after = (
        load_file(folder / "checkpoints/last/tensors.safetensors") for folder in (undisturbed[0], tmp_path / "next")
    )
    stem = [name for name in after if name.startswith("model.encoder.feature_extractor.")]
    assert stem
    assert all(torch.equal(before[name], after[name]) for name in stem)
    assert not torch.equal(before["model.head.weight"], after["model.head.weight"])


def learner_of(recipe, **changes):
    args = PretrainArguments(**{**recipe, **changes})
    torch.manual_seed(0)
    return new_learner(args, PretrainNetwork(args, new_encoder(encoder_config(args.encoder, None))))


def test_steps_that_are_not_finite_change_nothing_and_then_stop_the_run(recipe):
    accelerator = Accelerator(cpu=True)
    learner = learner_of(recipe, max_skipped_steps=3)
    mask = torch.rand(2, 48) < 0.5
    good = CropBatch([Group(torch.randn(2, 16_000), mask)], torch.tensor([0, 1]), int(mask.sum()), 2.0)
    bad = CropBatch([Group(torch.full((2, 16_000), torch.nan), mask)], torch.tensor([0, 1]), int(mask.sum()), 2.0)
    figures = Figures(64, torch.device("cpu"))
    update(accelerator, learner, [good], figures, total_loss)
    before = {name: tensor.clone() for name, tensor in learner.network.state_dict().items()}
    for _ in range(2):
        update(accelerator, learner, [bad], figures, total_loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.network.state_dict().items())
    assert (learner.progress.skipped, learner.progress.skipped_in_row, figures.batches) == (2, 2, 1)
    update(accelerator, learner, [good], figures, total_loss)  # the count in a row starts again
    assert (learner.progress.skipped, learner.progress.skipped_in_row, learner.progress.step) == (2, 0, 4)
    for _ in range(2):
        update(accelerator, learner, [bad], figures, total_loss)
    with pytest.raises(FloatingPointError, match="3 steps in a row up to step 7"):
        update(accelerator, learner, [bad], figures, total_loss)


def test_a_run_that_diverges_says_so(recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({**recipe, "learning_rate": 1e20, "warmup_steps": 0, "max_skipped_steps": 2, "log_every": 1})
    )
    assert main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "2 steps in a row up to step 3 had a loss or gradient that is not finite (the last loss is " in line
    assert "Lower learning_rate (1e+20 here) or label_weight (4)" in line
    assert not (tmp_path / "run" / "upstream").exists()


def test_a_run_whose_last_update_throws_the_weights_away_leaves_no_encoder(recipe, tmp_path, capsys):
    """No later loss would tell: the weights of the last step are looked at themselves."""
    changes = {"learning_rate": 1e39, "warmup_steps": 0, "max_steps": 1, "log_every": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    assert main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the training diverged by step 1: weights are not finite" in line
    assert not (tmp_path / "run" / "upstream").exists()
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()
    assert (tmp_path / "run" / "log.jsonl").read_text() == ""


def test_a_run_whose_last_updates_were_all_skipped_is_not_finished(recipe, tmp_path, capsys):
    changes = {"learning_rate": 1e20, "warmup_steps": 0, "max_steps": 4, "log_every": 2, "max_skipped_steps": 10}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    assert main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    assert "every update since the last line of the log" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "upstream").exists()


def test_a_finite_run_that_learns_nothing_says_so(recipe, tmp_path, capsys):
    result = run(recipe, tmp_path / "run", learning_rate=1e-12, max_steps=2)
    (words,) = result["warnings"]
    assert f"warning: {words}" in capsys.readouterr().out
    assert words.startswith("the loss of the masked frames ends at ")
    assert "guessing among 64 codes has 4.16" in words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {}}, "data is empty"),
        ({"encoder": {**ENCODER, "conv_stride": [160, 4]}}, "every 640 samples"),
        ({"encoder": {**ENCODER, "conv_dim": [16]}}, "as many"),
        ({"encoder": {**ENCODER, "width": 3}}, "not fields of WavLMConfig"),
        ({"encoder": {**ENCODER, "num_attention_heads": 3}}, "hidden_size 32"),
        ({"encoder": {**ENCODER, "num_attention_heads": 0}}, "encoder: num_attention_heads is 0; it must be above 0"),
        ({"encoder": {**ENCODER, "hidden_size": "wide"}}, "field 'hidden_size' of encoder: Field 'hidden_size' expected int"),
        ({"encoder": {**ENCODER, "hidden_size": None}}, "expected int, got NoneType (value: None)"),
        ({"encoder": {**ENCODER, "hidden_size": 32.0}}, "field 'hidden_size' of encoder: Field 'hidden_size' expected int"),
        ({"encoder": {**ENCODER, "num_hidden_layers": True}}, "expected int, got bool (value: True)"),
        ({"encoder": {**ENCODER, "hidden_dropout": "much"}}, "field 'hidden_dropout' of encoder: Field 'hidden_dropout' with"),
        ({"encoder": {**ENCODER, "conv_dim": 16}}, "field 'conv_dim' of encoder: Field 'conv_dim' with value 16 doesn't"),
        (
            {"encoder": {**ENCODER, "conv_kernel": [400, "3"]}},
            "field 'conv_kernel' of encoder: Field 'conv_kernel' with",
        ),
        ({"encoder": {**ENCODER, "width": 3, 5: 6}}, "encoder: [5, 'width'] are not fields of WavLMConfig"),
        ({"learning_rate": None}, "learning_rate is None; a number is needed"),
        ({"length_step_s": 1e-5}, "length_step_s is 1e-05; it must be at least one sample"),
        ({"adam_betas": [0.9, 1.0]}, "adam_betas is [0.9, 1.0]; it must be two numbers from 0 to below 1"),
        ({"seed": -3}, "seed is -3; it must not be negative"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(recipe, tmp_path, capsys, changes, message):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    assert main([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_learning_rate_rises_and_falls():
    for decay, at_four_warmups, at_end in (("inverse_sqrt", 0.5, 0.5), ("cosine", None, 0.0), ("linear", None, 0.0)):
        factor = learning_rate_factor(100, 400, decay)
        assert [factor(step) for step in (0, 49, 99)] == pytest.approx([0.01, 0.5, 1.0])
        assert factor(100) == pytest.approx(1.0, abs=0.01)
        assert factor(399 if decay == "inverse_sqrt" else 400) == pytest.approx(at_end, abs=1e-6)
        assert at_four_warmups is None or factor(399) == pytest.approx(at_four_warmups)


@pytest.mark.pretrain
@pytest.mark.skipif(not PRETRAIN.exists(), reason="needs ../shared/pretrain")
@pytest.mark.parametrize("label_weight", [0.0, 0.5])
def test_two_hundred_steps_on_speech_beat_the_frequencies_of_the_codes(tmp_path_factory, tmp_path, label_weight):
    result = pretrain(
        PretrainArguments(
            data={"speech": {"manifest": str(PRETRAIN), "where": {"corpus": ["librispeech", "kerstin", "nathalie"]}}},
            audio_dir=str(tmp_path_factory.getbasetemp() / "speech"),
            output_dir=str(tmp_path),
            encoder={**ENCODER, "hidden_size": 96, "intermediate_size": 384, "conv_dim": [96, 96]},
            codebook_size=256,
            mask_probability=0.05,
            mask_frames=8,
            labels_per_batch=3,
            batch_seconds=60.0,
            crop_s=2.0,
            label_loss="semi_hard_triplet",
            label_weight=label_weight,
            max_steps=200,
            warmup_steps=20,
            learning_rate=3e-3,
            log_every=50,
        )
    )
    first, last = log_of(tmp_path)[0], result["last"]
    assert last["masked_loss"] < first["masked_loss"]
    assert last["masked_loss"] < last["code_entropy"] - 0.1  # knows more than how frequent a code is
    assert last["code_perplexity"] > 30
    if label_weight:
        assert last["label_loss"] < first["label_loss"]
