"""A study of pre-training variants by its command: killed and continued, its tables against the files they are made from."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import WavLMModel

from wavcse.pretrain_accelerate import initial_network
from wavcse.pretraining.study import main, read_study
from wavcse.studies import variants as studied
from wavcse.studies.speed import noise_clips
from wavcse.studies.variants import merged
from wavcse.tests.helpers.processes import FORKSERVER, Child

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
ROOT = Path(__file__).parents[2]
TRAINED, LABELLED, UNTRAINED = "plain", "labels-3blocks", "untrained"
PROBES = {"learning_rates": (1e-2,), "max_epochs": 5}  # figures need not be good, only be the same everywhere
# As `python -m wavcse.pretraining.study`, but its trainings are forked: to start each takes ten seconds otherwise.
FORKING_STUDY = """
import multiprocessing, sys
from wavcse.pretraining import study
from wavcse.studies import variants
variants.get_context = lambda _: multiprocessing.get_context("fork")
sys.exit(study.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    """24 clips of about a second: vibrating tones of three "languages"."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(0)
    rows = ["file_name,language"]
    for i in range(24):
        time_s = np.arange(int((0.6 + 0.6 * generator.random()) * 16_000)) / 16_000
        samples = 0.3 * np.sin(1500 * (1 + i % 3) * time_s + 3 * np.sin(12 * (2 + i % 5) * time_s))
        soundfile.write(folder / f"{i:02d}.flac", samples + 0.05 * generator.standard_normal(len(time_s)), 16_000)
        rows.append(f"{i:02d}.flac,{'abc'[i % 3]}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder / "metadata.csv"


@pytest.fixture(scope="module")
def config(speech, toy_corpus, tmp_path_factory) -> Path:
    """The untrained encoder and two variants, of which the first takes long enough to be killed."""
    folder = tmp_path_factory.mktemp("study")
    recipe = {
        "data": {  # not in alphabetical order: that of the recipe is that of the clips
            "tones": {"manifest": str(speech), "where": {"language": ["b", "c"]}},
            "others": {"manifest": str(speech), "where": {"language": ["a"]}},
        },
        "audio_dir": str(folder / "audio"),
        "output_dir": "set by the study",
        "encoder": ENCODER,
        "codebook_size": 64,
        "labels_per_batch": 3,
        "batch_seconds": 6.0,
        "crop_s": 1.0,
        "max_steps": 6,
        "warmup_steps": 2,
        "learning_rate": "2e-3",  # which YAML takes for a text
        "log_every": 2,
        "checkpoint_every_s": 0.0,
    }
    evaluation = {
        "baselines": ["best_layer", "mfcc", "majority"],
        "temporal_pooling": "mean_std",
        "manifest": str(toy_corpus),
        "tasks": {"keyword": {"split_column": "split_ks"}, "speaker": {"split_column": "split_sid"}},
    }
    study = {
        "recipe": str(folder / "recipe.yaml"),
        "overrides": {"label_weight": 0, "codebook_dim": 8},
        "variants": {
            UNTRAINED: {"untrained": True},
            LABELLED: {"label_weight": 1.0, "max_steps": 60, "encoder": {"num_hidden_layers": 3}},
            TRAINED: {},
        },
        "evaluation": str(folder / "eval.yaml"),
        "measure_speed": True,
        "plots": [
            {"x": "speed", "task": "mean", "reference": [UNTRAINED]},
            {"x": "label_weight", "task": "keyword", "variants": [LABELLED, TRAINED]},
        ],
        "output_dir": str(folder / "out"),
    }
    for name, content in (("recipe", recipe), ("eval", evaluation), ("study", study)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def out(config, real_pictures_in_module, quick_probes) -> Path:
    """The study's folder after it was killed in its first training and continued with two trainings at a time."""
    folder = config.parent / "out"
    child = Child("-c", FORKING_STUDY, config)
    child.kill_when((folder / LABELLED / "checkpoints" / "last").exists, interval_s=0.002)
    assert not (folder / LABELLED / "upstream").exists(), "the training ended before it could be killed"
    time.sleep(0.5)
    left = (folder / LABELLED / "log.jsonl").read_bytes()
    time.sleep(0.5)
    assert (folder / LABELLED / "log.jsonl").read_bytes() == left, "the training outlived the study"
    untrained = states_of(folder / UNTRAINED / "upstream")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studied, "get_context", lambda method: FORKSERVER)
        assert main([str(config), "--workers", "2"]) == 0
    assert states_of(folder / UNTRAINED / "upstream") == untrained
    return folder


def states_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file of a folder."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "study.json").read_text())


def table(text: str, heading: str) -> dict[str, dict[str, str]]:
    """The table below a heading of study.md: first cell, without its marks, -> column -> cell."""
    lines = re.search(rf"^## {heading}\n.*?(^\|.*?)\n\n", text + "\n\n", re.MULTILINE | re.DOTALL)[1].splitlines()
    columns, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("* "): dict(zip(columns, row, strict=True)) for row in rows}


def record_of(folder: Path, task: str, encoder: str) -> dict:
    return json.loads((folder / f"evaluation/results/{task}__{encoder}.json").read_text())


def log_of(folder: Path, variant: str) -> list[dict]:
    return [json.loads(line) for line in (folder / variant / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_study_goes_on_and_every_step_is_done_once(out):
    assert [entry["step"] for entry in log_of(out, TRAINED)] == [2, 4, 6]
    assert [entry["step"] for entry in log_of(out, LABELLED)] == list(range(2, 61, 2))


@pytest.mark.slow
def test_every_variant_is_the_run_that_the_study_describes(out, config):
    variants = {variant.name: variant for variant in read_study(config).variants}
    saved = {name: yaml.safe_load((out / name / "config.yaml").read_text()) for name in variants}
    assert {own["codebook_dim"] for own in saved.values()} == {8}
    assert {own["learning_rate"] for own in saved.values()} == {2e-3}
    assert [saved[name]["label_weight"] for name in (TRAINED, LABELLED)] == [0, 1.0]
    assert [WavLMModel.from_pretrained(out / name / "upstream").config.num_hidden_layers for name in variants] == [2, 3, 2]
    untrained = WavLMModel.from_pretrained(out / UNTRAINED / "upstream")
    expected = initial_network(variants[TRAINED].args).encoder.state_dict()  # the same seed and recipe
    assert all(torch.equal(tensor, expected[name]) for name, tensor in untrained.state_dict().items())
    assert not (out / UNTRAINED / "log.jsonl").exists()


@pytest.mark.slow
def test_the_variants_table_has_the_values_of_the_files(out):
    found = table((out / "study.md").read_text(), "Variants")
    facts, speeds = facts_of(out), json.loads((out / "speed.json").read_text())["upstreams"]
    best = max(found, key=lambda name: facts["variants"][name]["mean_validation"])
    assert f"| **{best}** |" in (out / "study.md").read_text()
    for name, blocks in ((TRAINED, 2), (LABELLED, 3), (UNTRAINED, 2)):
        weights = out / name / "upstream"
        assert facts["variants"][name]["parameters"] == WavLMModel.from_pretrained(weights).num_parameters()
        row = found[name]
        assert row["parameters, M"] == f"{WavLMModel.from_pretrained(weights).num_parameters() / 1e6:.2f}"
        assert row["size, MB"] == f"{(weights / 'model.safetensors').stat().st_size / 1e6:.1f}"
        assert (row["blocks"], row["width"]) == (str(blocks), "32")
        assert row["stem: channels (kernels / strides)"] == "2 × 16 (400, 3 / 160, 2)"
        assert float(row["times real time"]) > 1
        assert row["times real time"] == f"{speeds[name]['times_real_time']:.0f}"
        runs = [record_of(out, task, f"{name}_best_layer")["probe"]["runs"][0] for task in ("keyword", "speaker")]
        assert row["mean validation accuracy, %"] == f"{50 * sum(run['validation_accuracy'] for run in runs):.1f}"
    assert found[LABELLED]["differs in"] == "encoder, label_weight 1.0, max_steps 60"
    assert found[UNTRAINED]["differs in"] == "before training"
    assert speeds[UNTRAINED]["ratio"] == 1  # the first is what the others are beside


@pytest.mark.slow
def test_validation_and_test_figures_are_those_of_the_records(out):
    text = (out / "study.md").read_text()
    assert "linear probes on its layers, pooled over time by `mean_std`" in text
    validation, test = table(text, "Validation accuracy"), table(text, "Test figures")
    encoders = {name: f"{name}_best_layer" for name in (UNTRAINED, LABELLED, TRAINED)}
    encoders |= {"mfcc": "mfcc", "majority": "majority"}
    assert list(validation) == list(test) == list(encoders)
    for name, encoder in encoders.items():
        for task in ("keyword", "speaker"):
            record = record_of(out, task, encoder)
            title, figure = record["task"]["title"], record["metrics"]["accuracy"]
            interval = [round(100 * end, 1) for end in figure["interval"] or ()]  # one speaker has none
            cell = f"{100 * figure['value']:.1f}" + (f" {interval}" if interval else "")
            assert test[name][title].replace("*", "") == cell
            assert record["encoder"].get("temporal_pooling") == ("mean_std" if "best_layer" in encoder else None)
            if name == "majority":
                assert validation[name][title] == "–"
                continue
            layer = f" ({record['probe']['candidate']})" if name != "mfcc" else ""
            assert validation[name][title] == f"{100 * record['probe']['runs'][0]['validation_accuracy']:.1f}{layer}"
    keyword = [record_of(out, "keyword", encoder)["metrics"]["accuracy"]["value"] for encoder in encoders.values()]
    title = record_of(out, "keyword", "mfcc")["task"]["title"]
    assert [row[title].startswith("**") for row in test.values()] == [value == max(keyword) for value in keyword]


@pytest.mark.slow
def test_the_training_table_is_of_the_logs(out):
    found = table((out / "study.md").read_text(), "Training")
    assert list(found) == [LABELLED, TRAINED]
    for name, row in found.items():
        log = log_of(out, name)
        assert row["steps"] == str(log[-1]["step"])
        assert row["audio-s/s"] == f"{np.median([entry['audio_s_per_s'] for entry in log]):.0f}"
        for column, field in (("masked loss", "masked_loss"), ("positive distance", "positive_distance")):
            assert row[column] == f"{log[-1][field]:.3f}"
        assert row["masked accuracy, %"] == f"{100 * log[-1]['masked_accuracy']:.1f}"


@pytest.mark.slow
def test_every_picture_is_there_and_in_the_page(out):
    text, page = (out / "study.md").read_text(), (out / "study.html").read_text()
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert links == ["pictures/0_mean_speed.png", "pictures/1_keyword_label_weight.png"]
    assert all((out / link).stat().st_size > 5000 for link in links)
    assert page.count("data:image/svg+xml") == 2
    drawing = (out / "pictures/1_keyword_label_weight.svg").read_text()
    assert "<!-- label_weight -->" in drawing
    assert f"<!-- {LABELLED} -->" in drawing
    assert f"<!-- {UNTRAINED} -->" not in drawing


@pytest.mark.slow
def test_the_same_command_again_changes_nothing(out, config, capsys):
    before = {path: path.read_bytes() for name in ("study.json", "study.md", "speed.json") for path in [out / name]}
    trained = states_of(out / TRAINED), states_of(out / TRAINED / "upstream")
    assert main([str(config), "--only", TRAINED]) == 0
    assert "3 finished, 0 to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    kept = states_of(out / TRAINED), states_of(out / TRAINED / "upstream")
    assert kept[1] == trained[1]
    assert kept[0]["log.jsonl"] == trained[0]["log.jsonl"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {"mask_lenght": 3}}}, "variants.a: unknown fields ['mask_lenght']"),
        ({"variants": {"a": {"output_dir": "x"}}}, "variants.a: unknown fields ['output_dir']"),
        ({"variants": {"a": {"label_weight": -1}}}, "variants.a: label_weight is -1"),
        ({"variants": {"a": {"encoder": 3}}}, "variants.a: encoder is 3"),
        ({"variants": {"evaluation": {}}}, "variants.evaluation: the name names files"),
        ({"variants": {"mfcc": {}}}, "variants.mfcc: the name names files"),
        ({"variants": {"..": {}}}, "variants...: the name names files"),
        ({"variants": {"a": {"untrained": "no"}}}, "variants.a: untrained is 'no'"),
        ({"overrides": {"steps": 3}}, "overrides: unknown fields ['steps']"),
        ({"variants": {}}, "variants missing"),
        ({"speed": True}, "unknown fields ['speed']"),
        ({"measure_speed": False}, "plots[0]: x is 'speed'"),
        ({"plots": [{"x": "seed", "task": "gender"}]}, "plots[0]: task is 'gender'; allowed: keyword, speaker, mean"),
        ({"plots": [{"x": "seed", "reference": ["b"]}]}, "plots[0]: ['b'] are not variants"),
        ({"plots": [{"x": "encoder", "task": "keyword"}]}, "plots[0]: x is 'encoder'"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(config, tmp_path, capsys, changes, message):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **changes}))
    assert main([str(tmp_path / "study.yaml"), "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "message"),
    [({"learning_rate": 0.5}, "other settings (learning_rate)"), ({"untrained": True}, "labels or training have changed")],
)
def test_a_changed_variant_is_refused_by_its_name(out, config, tmp_path, capsys, variant, message):
    study = yaml.safe_load(config.read_text())
    study["variants"][TRAINED] = variant
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    log = (out / TRAINED / "log.jsonl").read_bytes()
    assert main([str(tmp_path / "study.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"variants.{TRAINED}: " in line
    assert message in line
    assert (out / TRAINED / "log.jsonl").read_bytes() == log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "message"),
    [({"conv_dim": [16]}, "encoder: conv_dim, conv_kernel"), ({"hidden_act": "nonsense"}, "KeyError: ")],
)
def test_a_variant_that_cannot_be_trained_does_not_stop_the_others(out, config, tmp_path, capsys, encoder, message):
    study = yaml.safe_load(config.read_text())
    study["variants"]["broken"] = {"untrained": True, "encoder": encoder}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    folder = shutil.copytree(out, tmp_path / "out")
    (folder / "study.json").unlink()
    assert main([str(tmp_path / "study.yaml"), "--output_dir", str(folder)]) == 2
    assert f"variants.broken: {message}" in capsys.readouterr().err.splitlines()[-1]
    assert facts_of(folder)["variants"].keys() == {TRAINED, LABELLED, UNTRAINED}


@pytest.mark.slow
def test_results_of_an_earlier_evaluation_do_not_count(out, config, tmp_path):
    """Else means of some variants would be over other tasks than those of the others."""
    evaluation, study = (yaml.safe_load((config.parent / f"{name}.yaml").read_text()) for name in ("eval", "study"))
    del evaluation["tasks"]["speaker"]
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(evaluation))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "evaluation": str(tmp_path / "eval.yaml")}))
    folder = shutil.copytree(out, tmp_path / "out")
    assert main([str(tmp_path / "study.yaml"), "--output_dir", str(folder)]) == 0
    facts = facts_of(folder)
    assert facts["rows"].keys() == {"keyword"}
    for own in facts["variants"].values():
        assert own["mean_validation"] == own["validation"]["keyword"]["accuracy"]


def test_only_names_variants(config, capsys):
    assert main([str(config), "--only", "nobody"]) == 2
    assert "--only: ['nobody'] are not variants" in capsys.readouterr().err


def test_encoders_are_merged_key_by_key_and_other_fields_whole():
    recipe = {"encoder": {"hidden_size": 32, "num_hidden_layers": 2}, "data": {"a": 1, "b": 2}, "seed": 1}
    overrides = {"encoder": {"num_hidden_layers": 4, "layerdrop": 0.1}, "seed": 2}
    variant = {"encoder": {"hidden_size": 64}, "data": {"c": 3}}
    assert merged([recipe, overrides, variant]) == {
        "encoder": {"hidden_size": 64, "num_hidden_layers": 4, "layerdrop": 0.1},
        "data": {"c": 3},
        "seed": 2,
    }
    assert recipe["encoder"] == {"hidden_size": 32, "num_hidden_layers": 2}


def test_speed_is_measured_on_clips_of_one_to_ten_seconds():
    lengths = np.array([len(clip) for clip in noise_clips(16_000)])
    assert len(lengths) == 20
    assert (lengths[0], lengths[-1]) == (16_000, 160_000)
    assert (np.diff(lengths) > 0).all()


STUDIES = [path for path in sorted((ROOT / "conf").glob("*.yaml")) if "recipe: conf/pretrain" in path.read_text()]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_of_the_repository_are_read(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_study(path)
    for variant in study.variants:
        assert variant.args.encoder["hidden_size"] == 64 * variant.args.encoder["num_attention_heads"]
        assert variant.args.encoder["intermediate_size"] == 4 * variant.args.encoder["hidden_size"]
        assert np.prod(variant.args.encoder["conv_stride"]) == 320
    assert len({(variant.args.max_steps, variant.args.batch_seconds) for variant in study.variants}) == 1
