"""Fine-tuning of whole upstreams: through the command line, against plain transformers, after a kill, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax
from sklearn.metrics import f1_score
from transformers import WavLMModel, WhisperConfig, WhisperModel

from wavcse import WavCSEModel
from wavcse.data.files import checksum, read_json, write_json
from wavcse.data.inspection import Inspector
from wavcse.eval.metrics import METRICS
from wavcse.eval.report import main as report_main
from wavcse.eval.task import load_task
from wavcse.feature_extraction_wavcse import normalized
from wavcse.finetuning import loop, training
from wavcse.finetuning.__main__ import main
from wavcse.finetuning.arguments import FINETUNE, FinetuneArguments
from wavcse.finetuning.audio import load_audio, whole_clips
from wavcse.finetuning.groups import class_groups, group_data
from wavcse.finetuning.program import finetune
from wavcse.steps.batches import CropReader, encode_groups
from wavcse.steps.crops import span_mask
from wavcse.steps.encoder import encoder_config, new_encoder, save_upstream
from wavcse.steps.loop import update
from wavcse.tests.helpers.processes import Child, run_python
from wavcse.tests.helpers.tiny_families import TRAINED
from wavcse.training.checkpoint import STATE_FILE, TENSOR_FILE
from wavcse.training.run import RunFolder

ROOT = Path(__file__).parents[2]
PITCH_HZ = {"aa": 300, "bb": 900, "cc": 2700}
SPLIT_OF_SPEAKER = dict(zip("abcdefgh", ["train"] * 4 + ["validation"] * 2 + ["test"] * 2))
ENCODERS, ROWS = ("pretrained", "untrained"), ("language", "language_O", "language_NO")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """72 vibrating tones; the pitch is the language. One training file is no audio, one test clip is too short."""
    folder = tmp_path_factory.mktemp("languages")
    generator = np.random.default_rng(0)
    rows = []
    for speaker, split in SPLIT_OF_SPEAKER.items():
        for language, pitch_hz in PITCH_HZ.items():
            for take in range(3):
                num_samples = 14_001 if take == 2 else int(generator.integers(9_000, 17_000))  # some are equally long
                time_s = np.arange(num_samples) / 16_000
                phase = 2 * np.pi * (pitch_hz * time_s + 3 * np.sin(2 * np.pi * 4 * time_s))
                samples = 0.2 * np.sin(phase) + 0.05 * generator.standard_normal(num_samples)
                name = f"{speaker}_{language}_{take}.flac"
                soundfile.write(folder / name, samples[:200] if name == "h_cc_0.flac" else samples, 16_000)
                rows.append((name, language, speaker, split))
    (folder / "a_aa_0.flac").write_bytes(b"fLaC, but broken")
    pd.DataFrame(rows, columns=["file_name", "language", "speaker_id", "split"]).to_csv(folder / "metadata.csv", index=False)
    return folder / "metadata.csv"


@pytest.fixture(scope="module")
def recipe(corpus, tmp_path_factory) -> dict:
    """Two random upstreams; one lies where a pre-training run on the languages aa and zz would leave it."""
    folder = tmp_path_factory.mktemp("upstreams")
    for seed, name in enumerate(("run/upstream", "other")):
        torch.manual_seed(seed)
        save_upstream(new_encoder(encoder_config(TRAINED, None)), folder / name)
    (folder / "run" / "results").mkdir()
    result = {"labels": ["aa", "zz"], "config": {"label_column": "language"}}
    (folder / "run" / "results" / "pretraining.json").write_text(json.dumps(result))
    return {
        "upstreams": {"pretrained": str(folder / "run" / "upstream"), "untrained": str(folder / "other")},
        "task": {"task": "language", "manifest": str(corpus)},
        "audio_dir": str(tmp_path_factory.mktemp("audio")),
        "batch_seconds": 8.0,
        "crop_s": 0.6,
        "length_step_s": 0.2,
        "max_steps": 40,
        "warmup_steps": 4,
        "learning_rate": 2e-3,
        "validate_every": 10,
        "checkpoint_every_s": 0.0,
        "seeds": 2,
    }


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory) -> tuple[Path, CompletedProcess]:
    """Both upstreams with two seeds each through the console script: the folder of the results, and the finished process."""
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": "out", "note": "random upstreams"}))
    code = "import sys, wavcse_cli; sys.exit(wavcse_cli.main(['finetune', 'recipe.yaml']))"
    return folder / "out", run_python("-c", code, cwd=folder)


def record_of(folder: Path, row: str, encoder: str) -> dict:
    return json.loads((folder / f"results/{row}__{encoder}.json").read_text())


def predictions_of(folder: Path, row: str, encoder: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"predictions/{row}__{encoder}.parquet")


def log_of(folder: Path) -> list[dict]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in ("seconds", "audio_s_per_s")} for entry in entries]


def test_tones_are_told_apart(run):
    folder, process = run
    assert process.returncode == 3, process.stderr
    assert sorted(path.stem for path in (folder / "results").iterdir()) == sorted(
        f"{row}__{name}" for row in ROWS for name in ENCODERS
    )
    for name in ENCODERS:
        for row in ROWS:
            metrics = record_of(folder, row, name)["metrics"]
            assert metrics["accuracy"] == {"value": 1.0, "interval": [1.0, 1.0], "greater_is_better": True, "unit": "percent"}
            assert metrics["ovr_eer"]["value"] == 0
            assert not metrics["ovr_eer"]["greater_is_better"]
        assert record_of(folder, "language", name)["metrics"]["macro_f1"]["value"] == 1


def test_the_whole_encoder_is_trained(run, recipe):
    folder, _ = run
    before = load_file(Path(recipe["upstreams"]["pretrained"]) / "model.safetensors")
    after = load_file(folder / "runs/pretrained.0/checkpoints/last/tensors.safetensors")
    parts = ("feature_extractor.conv_layers.0.conv.bias", "feature_projection.projection.bias", "encoder.layer_norm.weight")
    for name in (*parts, "encoder.layers.0.attention.q_proj.bias", "encoder.layers.1.feed_forward.output_dense.bias"):
        assert not torch.equal(before[name], after[f"best.model.upstream.{name}"]), name
    assert torch.equal(before["masked_spec_embed"], after["best.model.upstream.masked_spec_embed"])  # nothing was masked


def test_bad_clips_are_left_out_with_reasons(run):
    folder, process = run
    skipped = pd.read_csv(folder / "skipped.csv")
    assert skipped["clip"].tolist() == ["a_aa_0.flac", "h_cc_0.flac"]
    assert skipped["reason"][0].startswith("a_aa_0.flac: cannot be read as audio")
    assert skipped["reason"][1] == "h_cc_0.flac: has 200 samples at 16 kHz; a frame needs 720."
    assert "2 clips were skipped, see out/skipped.csv" in process.stdout
    counts = record_of(folder, "language", "untrained")["counts"]["clips"]
    assert counts == {"train": 35, "validation": 18, "test": 17}


def test_a_record_says_how_it_came_about(run, recipe):
    folder, _ = run
    record = record_of(folder, "language_NO", "pretrained")
    assert record["task"]["title"] == "Language identification: NO (bb, cc)"
    assert record["task"]["metrics"] == ["accuracy", "uar", "macro_f1_true", "ovr_eer"]
    assert record["counts"]["clips"]["test"] == 11
    assert record["interval"]["unit"] == "speaker"
    assert record["encoder"]["name"] == "pretrained"
    assert len(record["encoder"]["weights_sha256"]) == 64
    assert record["probe"]["settings"]["learning_rate"] == recipe["learning_rate"]
    assert [own["seed"] for own in record["probe"]["runs"]] == [0, 1]
    for seed, own in enumerate(record["probe"]["runs"]):
        log = log_of(folder / f"runs/pretrained.{seed}")
        best = max(log, key=lambda entry: (entry["validation_accuracy"], -entry["validation_loss"]))
        assert (own["step"], own["validation_accuracy"]) == (best["step"], best["validation_accuracy"])
    assert log_of(folder / "runs/pretrained.0") != log_of(folder / "runs/pretrained.1")


def test_the_report_reads_the_records(run, capsys):
    folder, process = run
    assert report_main([str(folder)]) == 0
    table = capsys.readouterr().out
    assert table in process.stdout
    for words in ("| Language identification: O (aa) |", "| Language identification: NO (bb, cc) |", "Note: random upstreams"):
        assert words in table
    assert "`pretrained`, `untrained`: the whole encoder was fine-tuned on the training split" in table
    assert "frozen" not in table
    assert "Figures are means over 2 seeds." in table
    assert "EER (one-vs-rest), % ↓" in (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def spoilt(recipe, tmp_path_factory) -> Path:
    """Two short runs, which cannot tell the languages apart yet, and whose last step turns their classifier upside down."""
    folder = tmp_path_factory.mktemp("spoilt")
    changes = {
        "max_steps": 4,
        "validate_every": 2,
        "learning_rate": 1e-3,
        "upstreams": {"a": recipe["upstreams"]["untrained"]},
    }
    changes |= {"labels_per_batch": 3, "length_step_s": 0.6, "mask_frames": 2, "output_dir": str(folder)}

    def spoiling_update(accelerator, learner, *others):
        update(accelerator, learner, *others)
        if learner.progress.step == 4:
            with torch.no_grad():
                for weight in learner.network.model.readouts["classes"].head.parameters():
                    weight.neg_()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "update", spoiling_update)
        args = FinetuneArguments(**{**recipe, **changes, "groups": {"O": ["bb"], "NO": ["aa", "cc"]}})
        finetune(args, show_progress=False)
    return folder


@pytest.fixture(scope="module")
def posteriors(spoilt, recipe, corpus) -> list[pd.DataFrame]:
    """Log posteriors of the test clips by transformers' own encoder on one whole clip at a time, with the best weights."""
    names = pd.read_csv(corpus).query("split == 'test' and file_name != 'h_cc_0.flac'")["file_name"]
    tables, prefix, head = [], "best.model.upstream.", "model.readouts.classes.head"
    for seed in (0, 1):
        model = WavLMModel.from_pretrained(recipe["upstreams"]["untrained"]).eval()
        kept = load_file(spoilt / f"runs/a.{seed}/checkpoints/last/tensors.safetensors")
        best, last = (kept[f"{kind}.{head}.weight"].ravel() for kind in ("best", "model"))
        assert torch.dot(best, last) < 0  # kept before the last step
        model.load_state_dict({name.removeprefix(prefix): own for name, own in kept.items() if name.startswith(prefix)})
        rows = []
        for name in names:
            samples = torch.from_numpy(soundfile.read(corpus.parent / name, dtype="float32")[0])
            with torch.no_grad():
                mean = model(normalized(samples[None])).last_hidden_state[0].mean(dim=0)
            rows.append((kept[f"best.{head}.weight"] @ mean + kept[f"best.{head}.bias"]).double().numpy())
        tables.append(pd.DataFrame(log_softmax(np.array(rows), axis=1), index=names, columns=list(PITCH_HZ)))
    return tables


def test_figures_are_those_of_transformers_at_the_best_step(spoilt, posteriors):
    table = predictions_of(spoilt, "language", "a").set_index("clip_id")
    for seed, own in enumerate(posteriors):
        assert own.idxmax(axis=1).to_dict() == table[f"prediction_{seed}"].to_dict()
        assert (table["label"] != table[f"prediction_{seed}"]).any()
    assert (table["prediction_0"] != table["prediction_1"]).any()
    for row in ROWS:
        own = predictions_of(spoilt, row, "a")
        record = record_of(spoilt, row, "a")
        labels = np.array([list(PITCH_HZ).index(label) for label in own["label"]])
        eers = [METRICS["ovr_eer"].compute(labels, one.loc[own["clip_id"]].to_numpy()) for one in posteriors]
        accuracies = [(own["label"] == own[f"prediction_{seed}"]).mean() for seed in (0, 1)]
        for name, expected in (("ovr_eer", eers), ("accuracy", accuracies)):
            assert record["metrics"][name]["value"] == pytest.approx(np.mean(expected), abs=1e-6)
            assert [run[name] for run in record["probe"]["runs"]] == pytest.approx(expected, abs=1e-6)
        assert [run["step"] for run in record["probe"]["runs"]] == [2, 2]


def test_clips_too_short_for_a_crop_are_counted(spoilt, corpus):
    names = pd.read_csv(corpus).query("split == 'train' and file_name != 'a_aa_0.flac'")["file_name"]
    expected = sum(soundfile.info(corpus.parent / name).duration < 0.6 for name in names)
    assert record_of(spoilt, "language", "a")["probe"]["short_train_clips"] == expected > 0


def test_a_row_of_a_group_is_the_groups_part_of_the_test_split(spoilt):
    whole = predictions_of(spoilt, "language", "a")
    for row, classes in (("language_O", ["bb"]), ("language_NO", ["aa", "cc"])):
        part = whole[whole["label"].isin(classes)].reset_index(drop=True)
        pd.testing.assert_frame_equal(predictions_of(spoilt, row, "a"), part)
        runs = [part["prediction_0"], part["prediction_1"]]
        f1 = np.mean([f1_score(part["label"], own, labels=classes, average="macro", zero_division=0) for own in runs])
        assert record_of(spoilt, row, "a")["metrics"]["macro_f1_true"]["value"] == pytest.approx(f1)


def test_a_wavcse_model_is_trained_as_the_upstream_in_it(recipe, tmp_path, monkeypatch):
    """The model of the working folder, which ends at layer 1, against the upstream that it is made from, cut there."""
    upstream = str(tmp_path / "unmasked")  # was never masked, so that it has no vector for masked frames
    WavLMModel.from_pretrained(recipe["upstreams"]["untrained"], mask_time_prob=0.0).save_pretrained(upstream)
    assert "masked_spec_embed" not in load_file(f"{upstream}/model.safetensors")
    WavCSEModel.from_upstream(upstream, selected_layers=[0, 1]).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    changes = {
        "upstreams": {"plain": upstream, "wavcse": "."},
        "encoder": {"num_hidden_layers": 1},
        "max_steps": 2,
        "seeds": 1,
    }
    finetune(FinetuneArguments(**{**recipe, **changes, "output_dir": "out"}), show_progress=False)
    assert log_of(Path("out/runs/plain.0")) == log_of(Path("out/runs/wavcse.0"))
    assert len(log_of(Path("out/runs/plain.0"))) == 1
    assert record_of(Path("out"), "language", "wavcse")["encoder"]["model"] == "."

    found = []  # the seed draws the vector of masked frames
    for name in ("first", "second"):
        torch.manual_seed(len(found))
        own = {"upstreams": {"wavcse": "."}, "mask_frames": 2, "output_dir": name}
        finetune(FinetuneArguments(**{**recipe, **changes, **own}), show_progress=False)
        found.append(load_file(f"{name}/runs/wavcse.0/checkpoints/last/tensors.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_clip_does_not_depend_on_its_batch(recipe, corpus):
    args = FinetuneArguments(**recipe)
    config = encoder_config({}, recipe["upstreams"]["pretrained"])
    audio = load_audio(load_task(*args.task_request()), [config], args.audio_dir, Inspector(), show_progress=False)
    reader = CropReader(audio.data.table.clips, audio.store, config)
    rows = audio.data.table.rows("test")
    encoder, found = new_encoder(config, recipe["upstreams"]["pretrained"]).eval(), {}
    for batch_seconds in (0.001, 100.0):
        means = np.full((len(rows), 32), np.nan)
        sizes = []
        for batch in whole_clips(reader, rows, batch_seconds):
            for places, group in batch:
                assert set(reader.num_samples[rows[places]]) == {group.waveforms.shape[1]}  # whole, and not padded
                assert not group.mask.any()
            order = np.concatenate([places for places, _ in batch])
            with torch.inference_mode():
                means[order] = encode_groups(encoder, [group for _, group in batch])[1]
            sizes.append(len(order))
        found[batch_seconds] = (means, max(sizes))
    assert (found[0.001][1], found[100.0][1]) == (1, len(rows))
    np.testing.assert_allclose(found[0.001][0], found[100.0][0], rtol=1e-4, atol=1e-5)


def test_killed_and_continued_is_not_killed(run, recipe, tmp_path):
    """One upstream, one seed, killed after its first checkpoint; then as in the undisturbed run."""
    settings = {**recipe, "upstreams": {"pretrained": recipe["upstreams"]["pretrained"]}, "seeds": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "out")}))
    last = tmp_path / "out/runs/pretrained.0/checkpoints/last"
    Child("-m", "wavcse.finetuning", tmp_path / "recipe.yaml").kill_when(last.exists, interval_s=0.002)
    assert not (tmp_path / "out" / "results").exists(), "the run ended before it could be killed"
    assert main([str(tmp_path / "recipe.yaml")]) == 3
    undisturbed = run[0] / "runs/pretrained.0"
    assert log_of(last.parents[1]) == log_of(undisturbed)
    tensors = [load_file(folder / "tensors.safetensors") for folder in (last, undisturbed / "checkpoints/last")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    tables = [predictions_of(folder, "language", "pretrained")["prediction_0"] for folder in (tmp_path / "out", run[0])]
    pd.testing.assert_series_equal(*tables)


def test_what_is_finished_is_kept_and_another_recipe_is_refused(run, recipe, tmp_path, capsys):
    folder = shutil.copytree(run[0], tmp_path / "out")
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({**recipe, "output_dir": str(folder), "note": "random upstreams", "checkpoint_every_s": 60.0})
    )
    paths = [*folder.glob("results/*.json"), *folder.glob("runs/*/log.jsonl")]
    before = [path.stat().st_mtime_ns for path in paths]
    assert main([str(tmp_path / "recipe.yaml")]) == 3
    assert [path.stat().st_mtime_ns for path in paths] == before
    capsys.readouterr()
    assert main([str(tmp_path / "recipe.yaml"), "--max_steps", "41"]) == 2
    assert "other settings (max_steps)" in capsys.readouterr().err


def as_earlier_versions_wrote_it(last: Path) -> None:
    """Give the weights in a checkpoint the names that they had in a network of an encoder and a head."""
    names = {"model.upstream.": "encoder.", "model.readouts.classes.head.": "head."}
    tensors = load_file(last / TENSOR_FILE)
    for kind in ("model.", "best."):
        for now, before in names.items():
            for name in [name for name in tensors if name.startswith(kind + now)]:
                tensors[kind + before + name.removeprefix(kind + now)] = tensors.pop(name)
    assert not any("upstream" in name for name in tensors)
    save_file(tensors, last / TENSOR_FILE)
    write_json(last / STATE_FILE, {**read_json(last / STATE_FILE), TENSOR_FILE: checksum(last / TENSOR_FILE)})


def test_a_run_of_an_earlier_version_is_gone_on_with(run, recipe, tmp_path):
    """Its checkpoint before the last one has all but the last steps."""
    done = run[0] / "runs/pretrained.0"
    folder = shutil.copytree(done, tmp_path / "out/runs/pretrained.0")
    shutil.rmtree(folder / "checkpoints/last")
    as_earlier_versions_wrote_it(folder / "checkpoints/last.old")
    changes = {"upstreams": {"pretrained": recipe["upstreams"]["pretrained"]}, "seeds": 1, "output_dir": str(tmp_path / "out")}
    finetune(FinetuneArguments(**{**recipe, **changes}), show_progress=False)
    assert log_of(folder) == log_of(done)
    found, expected = (load_file(one / "checkpoints/last" / TENSOR_FILE) for one in (folder, done))
    assert all(torch.equal(found[name], own) for name, own in expected.items() if not name.startswith("best."))
    tables = [predictions_of(one, "language", "pretrained")["prediction_0"] for one in (tmp_path / "out", run[0])]
    pd.testing.assert_series_equal(*tables)


def test_other_groups_and_words_need_no_training(run, recipe, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "out")
    log = folder / "runs/pretrained.0/log.jsonl"
    before = log.read_text()
    changes = {"groups": {"low": ["aa", "bb"]}, "task": {**recipe["task"], "title": "Tones", "note": "not speech"}}
    finetune(FinetuneArguments(**{**recipe, **changes, "output_dir": str(folder)}), show_progress=False)
    record = record_of(folder, "language_low", "pretrained")
    assert record["counts"]["clips"]["test"] == 12
    assert (record["task"]["title"], record["task"]["note"]) == ("Tones: low (aa, bb)", "not speech")
    assert log.read_text() == before


def refusal(recipe, tmp_path, capsys, **changes) -> str:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "out"), **changes}))
    capsys.readouterr()
    assert main([str(tmp_path / "recipe.yaml")]) == 2
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text and "%|" not in text)  # no bars
    assert not (tmp_path / "out" / "runs").exists()
    return line


def test_a_leaking_split_is_refused_with_the_speakers_name(recipe, corpus, tmp_path, capsys):
    table = pd.read_csv(corpus)
    table["file_name"] = [str(corpus.parent / name) for name in table["file_name"]]
    table.loc[table["file_name"].str.endswith("b_bb_1.flac"), ["split", "speaker_id"]] = ["test", "dora"]
    table.loc[table["file_name"].str.endswith("c_bb_1.flac"), "speaker_id"] = "dora"
    table.to_csv(tmp_path / "leaking.csv", index=False)
    line = refusal(recipe, tmp_path, capsys, task={"manifest": str(tmp_path / "leaking.csv")})
    assert "['dora'] occur in both train and test" in line


def test_a_training_that_diverges_is_not_tested(recipe, tmp_path, capsys):
    changes = {"max_steps": 1, "validate_every": 1, "warmup_steps": 0, "seeds": 1, "learning_rate": 1e39}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "out"), **changes}))
    assert main([str(tmp_path / "recipe.yaml")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "wavcse finetune: the training diverged by step 1: " in line
    assert "weights are not finite. Lower learning_rate (1e+39 here)" in line
    assert not list((tmp_path / "out").rglob("last"))
    assert not list((tmp_path / "out").rglob("results/*.json"))


@pytest.mark.parametrize(("accuracy", "is_warned"), [(0.3, True), (0.4, False)])
def test_a_training_that_learns_nothing_says_so(tmp_path, capsys, accuracy, is_warned):
    folder = RunFolder(tmp_path)
    folder.append_log({"step": 4, "train_accuracy": accuracy})
    args = SimpleNamespace(learning_rate=1e-3)
    training._warn_of_chance(SimpleNamespace(folder=folder, num_done=4, args=args), ["a", "b", "c"])
    words = "30.00% accuracy on the last training crops is no better than chance (33.33% of 3 classes)"
    assert (words in capsys.readouterr().out) == is_warned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"upstreams": {}}, "upstreams is {}; name at least one"),
        ({"upstreams": ["a"]}, "upstreams is ['a']"),
        ({"groups": ["aa"]}, "groups is ['aa']; a mapping is needed"),
        ({"upstreams": {"a/b": "x"}}, "'a/b'"),
        ({"upstreams": {"a": "no/such/folder"}}, "upstreams.a: The model 'no/such/folder' cannot be loaded"),
        ({"task": {"task": "language"}}, "names no manifest"),
        ({"task": {"task": "age", "manifest": "a.csv"}}, "is a regression task"),
        ({"task": {"task": "lingo", "manifest": "a.csv"}}, "task: task is 'lingo'; allowed: keyword"),
        ({"task": {"manifset": "a.csv"}}, "task: unknown fields ['manifset']"),
        ({"groups": {False: ["aa"]}}, "groups: the name is False; it names files"),
        ({"groups": {"O": [False]}}, "groups.O: is [False]"),
        ({"groups": {"O": ["dd"]}}, "groups.O: ['dd'] are not classes of the task; they are ['aa', 'bb', 'cc']"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"validate_every": 2.5}, "validate_every is 2.5; a whole number is needed"),
        ({"seed": -1}, "seed is -1; it must not be negative"),
        ({"seeds": True}, "seeds is True; a whole number is needed"),
        ({"learning_rate": None}, "learning_rate is None; a number is needed"),
        ({"mixed_precision": False}, "mixed_precision is False; a text is needed (YAML needs yes, no, on and off in quotes)"),
        ({"adam_betas": [0.9, None]}, "adam_betas is [0.9, None]; a list of numbers is needed"),
        ({"adam_betas": [0.9, 1.0]}, "adam_betas is [0.9, 1.0]; it must be two numbers from 0 to below 1"),
        ({"length_step_s": 0.6, "crop_s": 0.5}, "length_step_s"),
        ({"length_step_s": 1e-5}, "length_step_s is 1e-05; it must be at least one sample"),
        ({"encoder": {"width": 3}}, "upstreams.pretrained: encoder: ['width'] are not fields of WavLMConfig"),
        (
            {"encoder": {"num_hidden_layers": 3}},
            "upstreams.pretrained: encoder: with ['num_hidden_layers'] changed, the check",
        ),
        (
            {"encoder": {"hidden_size": 64}},
            "upstreams.pretrained: encoder: with ['hidden_size'] changed, the checkpoint has no",
        ),
        ({"encoder": {"hidden_dropout": "much"}}, "upstreams.pretrained: Validation error for field 'hidden_dropout'"),
        ({"encoder": {"hidden_size": None}}, "upstreams.pretrained: Validation error for field 'hidden_size' of encoder: "),
        ({"encoder": {"conv_stride": [160, 1]}}, "upstreams.pretrained: conv_stride [160, 1] gives a frame every 160 samples"),
    ],
)
def test_settings_that_cannot_work_are_refused(recipe, tmp_path, capsys, changes, message):
    assert message in refusal(recipe, tmp_path, capsys, **changes)


def test_only_encoders_of_waveforms_with_safe_weights_are_taken(recipe, tmp_path, capsys):
    shape = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_layers": 1}
    WhisperModel(WhisperConfig(**shape, decoder_attention_heads=2)).save_pretrained(tmp_path / "whisper")
    line = refusal(recipe, tmp_path, capsys, upstreams={"a": str(tmp_path / "whisper")})
    assert "is a whisper; only wavlm, wav2vec2, hubert encoders can be trained here" in line
    pickled = shutil.copytree(recipe["upstreams"]["untrained"], tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "No safetensors weights" in refusal(recipe, tmp_path, capsys, upstreams={"a": str(pickled)})
    cut = shutil.copytree(recipe["upstreams"]["untrained"], tmp_path / "cut")
    with open(cut / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    upstreams = {**recipe["upstreams"], "cut": str(cut)}
    assert f"upstreams.cut: The model '{cut}' cannot be loaded" in refusal(recipe, tmp_path, capsys, upstreams=upstreams)


def test_audio_that_cannot_be_learnt_from_is_refused(recipe, corpus, tmp_path, capsys):
    """No file of the training split is audio; all training clips of a class are shorter than the shortest crop."""
    table, folder = pd.read_csv(corpus), shutil.copytree(corpus.parent, tmp_path / "corpus")
    task, settings = {"manifest": str(folder / "metadata.csv")}, {"crop_s": 0.5, "length_step_s": 0.4}
    train = table.query("split == 'train' and file_name != 'a_aa_0.flac'")
    for name in train.query("language == 'cc'")["file_name"]:
        soundfile.write(folder / name, np.zeros(6_000), 16_000)
    line = refusal(recipe, tmp_path, capsys, task=task, **settings)
    assert "length_step_s is 0.4; no training clip of ['cc'] is as long" in line
    for name in train["file_name"]:
        (folder / name).write_bytes(b"no audio")
    line = refusal(recipe, tmp_path, capsys, task=task)
    assert (
        "36 of 72 clips could not be embedded, which leaves the train split empty. The first: a_aa_0.flac: cannot be" in line
    )


@pytest.fixture(scope="module")
def data(recipe):
    return load_task(*FinetuneArguments(**recipe).task_request())


def test_groups_follow_from_the_pre_training(recipe, data, tmp_path):
    """O: classes that the pre-training data had labels of; NO: the others. A folder that is of no such run says nothing."""

    def run_folder(name: str, labels: list[str], column: str = "language") -> str:
        (tmp_path / name / "results").mkdir(parents=True)
        result = {"labels": labels, "config": {"label_column": column}}
        (tmp_path / name / "results" / "pretraining.json").write_text(json.dumps(result))
        return str(tmp_path / name / "upstream")

    some, every = run_folder("some", ["bb", "cc", "zz"]), run_folder("every", ["aa", "bb", "cc"])
    speakers = run_folder("speakers", ["aa"], column="speaker_id")
    assert class_groups({}, {"x": some, "y": "elsewhere"}, data) == {"O": ["bb", "cc"], "NO": ["aa"]}
    assert class_groups({}, {"x": every}, data) == {"O": ["aa", "bb", "cc"]}
    assert class_groups({}, {"x": speakers, "y": "elsewhere"}, data) == {}
    assert class_groups({"mine": ["aa"]}, {"x": some, "y": every}, data) == {"mine": ["aa"]}
    others = run_folder("others", ["bb", "cc", "yy"])  # differ in what is no class of this task
    assert class_groups({}, {"x": some, "y": others}, data) == {"O": ["bb", "cc"], "NO": ["aa"]}
    with pytest.raises(ValueError, match="x and y were pre-trained on different labels"):
        class_groups({}, {"x": some, "y": every}, data)
    (tmp_path / "some" / "results" / "pretraining.json").write_text("[]")
    with pytest.raises(ValueError, match=r"pretraining\.json: is not the result of a pre-training"):
        class_groups({}, {"x": some}, data)


def test_a_group_keeps_training_and_validation(data):
    own = group_data(data, "O", ["aa", "cc"])
    splits = [len(own.table.rows(split)) for split in ("train", "validation", "test")]
    assert splits == [36, 18, 12]
    assert set(own.table.labels[own.table.rows("test")]) == {"aa", "cc"}
    assert own.classes == data.classes
    assert own.task.benchmark.published == {}
    assert group_data(data, "many", [str(i) for i in range(9)]).task.title.endswith("many (9 classes)")
    empty = replace(data, table=replace(data.table, splits=np.where(data.table.labels == "aa", "train", data.table.splits)))
    with pytest.raises(ValueError, match=r"groups\.O: none of its classes has a test clip"):
        class_groups({"O": ["aa"]}, {}, empty)


def test_spans_of_no_frames_mask_nothing():
    generator = np.random.default_rng(0)
    assert not any(span_mask(generator, frames, 0.3, 0).any() for frames in range(1, 60))


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("finetune_*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_are_sound(path):
    args = FINETUNE.parse([str(path)])
    assert args.named_upstreams()
    assert args.task_request().task.kind == "classification"
