"""Studies of several tasks: what their files mean, which learning rate counts, and what their reports say."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from wavcse.finetuning import study as studies
from wavcse.finetuning.study import facts_of, main, read_study, study_text
from wavcse.reports.page import inert

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study_file(tasks_recipe, tmp_path) -> Path:
    """Two variants and two learning rates of the recipe of two tasks."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**tasks_recipe, "choose": {"voice.eer": 1.0}}))
    alone = {"tasks": {"speech": None}, "streams": {"voice": {"tasks": ["voice"], "batch_seconds": 8.0, "crop": 0.6}}}
    study = {
        "recipe": str(tmp_path / "recipe.yaml"),
        "overrides": {"max_steps": 2, "validate_every": 2},
        "variants": {"both": {}, "alone": alone},
        "learning_rates": [1e-3, 1e-4],
        "published": {"alone": {"voice.eer": 2.5}},
        "source": "Table 1",
        "output_dir": str(tmp_path / "study"),
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return tmp_path / "study.yaml"


def changed(path: Path, **fields) -> Path:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **fields}, sort_keys=False))
    return path


def test_the_studies_of_the_repository_are_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    variants = {variant.name: variant.args for variant in read_study("conf/mtl_synthetic.yaml").variants}
    assert set(variants["stl_speech"].tasks) == {"speech"}  # a task that is null is left out
    assert set(variants["stl_voice"].tasks) == {"voice"}
    assert variants["disjoint_c3_first"].tasks["voice"]["tap"] == 3
    assert variants["disjoint_c3_first"].tasks["voice"]["loss"] == variants["disjoint_last_mean"].tasks["voice"]["loss"]


DATA = ROOT.parent / "shared"


@pytest.mark.skipif(not (DATA / "pretrain").is_dir(), reason="needs ../shared/pretrain")
def test_no_reader_of_the_real_study_is_in_its_trials():
    readers = pd.read_csv(DATA / "pretrain" / "manifest.csv", dtype=str)
    readers = set(readers.loc[readers["corpus"] == "librispeech", "speaker_id"])
    mini = pd.read_csv(DATA / "data" / "librispeech_mini" / "metadata.csv", dtype=str)
    tested = set(mini.loc[mini["split"] == "test", "speaker_id"])
    trained = set(mini.loc[mini["split"] != "test", "speaker_id"])
    assert readers & trained  # both manifests name a reader alike
    assert not readers & tested


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_papers_studies_are_read(number, monkeypatch):
    """Of every row the paper's figures, all of which are of a column; no variant trains a task that it does not show."""
    monkeypatch.chdir(ROOT)
    study = read_study(f"conf/paper/002_table{number}.yaml")
    settings = study.settings
    assert settings.learning_rates == [1e-4, 3e-4, 1e-5, 3e-5, 1e-6, 3e-6]
    assert set(settings.published) == {variant.name for variant in study.variants}
    for variant in study.variants:
        known, tests = variant.args.task_settings(), variant.args.test_settings()
        for column in settings.published[variant.name]:
            name = column.rpartition(".")[0]
            assert column in settings.columns
            assert name in tests, variant.name  # the figures of all rows are of the same clips
        assert set(variant.args.chosen_by()) == {
            f"{name}.{figure}" for name, figure in (("speech", "wer"), ("voice", "eer")) if name in known
        }


def test_test_sets_go_with_their_task_and_runs_have_a_folder_of_their_own(study_file, spoken_corpus):
    recipe = study_file.parent / "recipe.yaml"
    tests = {
        "more": {"of": "speech", "manifest": str(spoken_corpus)},
        "other": {"of": "voice", "manifest": str(spoken_corpus)},
    }
    changed(recipe, tests=tests)
    variants = {
        **yaml.safe_load(study_file.read_text())["variants"],
        "fewer": {"tests": {"other": None, "more": {"first_s": 1}}},
    }
    study = read_study(changed(study_file, variants=variants, runs_dir="runs/elsewhere"))
    by_name = {variant.name: variant.args.tests for variant in study.variants}
    assert by_name["both"] == tests
    assert by_name["alone"] == {"other": tests["other"]}
    assert by_name["fewer"] == {"more": {**tests["more"], "first_s": 1}}
    assert study.runs(study.variants[0])[1e-3][0].output_dir == "runs/elsewhere/both.0.001/0"
    assert study.folder == study_file.parent / "study"


def test_the_committed_report_is_made_from_its_figures():
    folder = ROOT / "results" / "mtl_synthetic"
    facts = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert (folder / "study.md").read_text(encoding="utf-8") == study_text(inert(facts))
    figures = {name: own["figures"] for name, own in facts["variants"].items()}
    assert figures["stl_speech"]["speech.cer"]["value"] < 0.5  # half of an untrained head's, which says nothing
    assert all(own["steps"] == [400] for own in facts["variants"].values())


@pytest.mark.parametrize("name", ["losses", "figures"])
def test_many_variants_can_be_told_apart_in_a_picture(name, monkeypatch, tmp_path):
    facts = json.loads((ROOT / "results" / "ser_ravdess" / "study.json").read_text(encoding="utf-8"))
    drawn = {}
    monkeypatch.setattr(studies, "draw_all", lambda pictures, facts, folder: drawn.update(pictures))
    studies.write_report(facts, tmp_path)
    figure = drawn[name](facts)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(facts["variants"])
    for axes in figure.axes:
        looks = [(line.get_color(), line.get_linestyle()) for line in axes.lines]
        assert len(set(looks)) == len(looks) == len(facts["variants"])
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert figure.bbox.contains(*legend.get_window_extent().min)


def test_every_variant_has_a_run_per_rate_and_seed(study_file):
    study = read_study(changed(study_file, seeds=2))
    runs = study.runs(study.variants[0])
    assert {rate: [run.seed for run in own] for rate, own in runs.items()} == {1e-3: [0, 1], 1e-4: [0, 1]}
    assert [Path(run.output_dir).relative_to(study.folder) for run in runs[1e-4]] == [
        Path("both.0.0001/0"),
        Path("both.0.0001/1"),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variants": {"a": {"seed": 1}}}, "seed"),
        ({"variants": {"a": {"tasks": {"speech": None, "voice": None}}}}, "variants.a"),
        ({"published": {"other": {}}}, "other"),
        ({"recipe": ""}, "recipe missing"),
        ({"columns": ["voice.wer"]}, "columns: one is 'voice.wer' .*voice.eer"),
        ({"layers": {"manifest": "m.csv", "trial": "t.csv"}}, "trial"),
    ],
)
def test_what_a_study_cannot_mean_is_refused(study_file, fields, message):
    with pytest.raises(ValueError, match=message):
        read_study(changed(study_file, **fields))


def finished(figures: dict[str, float], score: float, config: dict) -> dict:
    """The result of a training, as far as a study reads it."""
    tasks: dict[str, dict] = {}
    for name, value in figures.items():
        task, figure = name.split(".")
        tasks.setdefault(task, {})[figure] = {"value": value, "interval": [value - 0.01, value + 0.01], "unit": "percent"}
    known = {"best_step": 2, "steps": 2, "train_seconds": 90.0, "num_parameters": 2_000_000, "config": config}
    return {"tasks": tasks, "validation": {"validation.score": score}, **known}


def test_the_rate_with_the_lowest_score_counts_and_seeds_are_averaged(study_file):
    study = read_study(changed(study_file, seeds=2))
    scores = {1e-3: (0.30, 0.10), 1e-4: (0.25, 0.25)}  # means 0.20 and 0.25
    for rate, runs in study.runs(study.variants[1]).items():
        for place, run in enumerate(runs):
            folder = Path(run.output_dir)
            (folder / "results").mkdir(parents=True)
            config = json.loads(json.dumps(run.identity()))
            eer = {1e-3: (0.20, 0.24), 1e-4: (0.9, 0.9)}[rate][place]
            found = finished({"voice.eer": eer}, scores[rate][place], config)
            (folder / "results" / "finetuning.json").write_text(json.dumps(found))
            (folder / "log.jsonl").write_text('{"step": 2, "voice.train_loss": 1.0}\n')
    facts = facts_of(study)
    assert set(facts["variants"]) == {"alone"}  # the other one is not trained
    alone = facts["variants"]["alone"]
    assert alone["learning_rate"] == 1e-3
    assert alone["figures"]["voice.eer"]["value"] == pytest.approx(0.22)
    assert alone["scores"] == {"0.001": pytest.approx(0.2), "0.0001": pytest.approx(0.25)}
    text = study_text(facts)
    assert "| alone | 22.0 [19.0 – 21.0] / 2.5 |" in text
    assert "| alone | 0.001 | 2, 2 | 2, 2 | 1.5 | 2.00 | – |" in text
    assert "Table 1" in text


@pytest.mark.slow
def test_a_study_is_trained_reported_and_not_trained_again(study_file, spoken_corpus, monkeypatch, capsys):
    trials = spoken_corpus.parent / "trials.csv"
    trials.write_text("label,enrolment,test\n1,s0.flac,s1.flac\n0,s0.flac,t1.flac\n1,t0.flac,t1.flac\n0,t2.flac,s3.flac\n")
    changed(study_file, layers={"manifest": str(spoken_corpus), "trials": str(trials)})
    assert main([str(study_file)]) == 0
    folder = study_file.parent / "study"
    facts = json.loads((folder / "study.json").read_text())
    assert set(facts["variants"]) == {"both", "alone"}
    for name in ("both", "alone"):
        own = facts["variants"][name]
        rate = min(own["scores"], key=own["scores"].get)
        result = json.loads((folder / f"{name}.{rate}" / "0" / "results" / "finetuning.json").read_text())
        assert own["figures"]["voice.eer"]["value"] == result["tasks"]["voice"]["eer"]["value"]
    assert set(facts["variants"]["alone"]["figures"]) < set(facts["variants"]["both"]["figures"])
    assert {path.name for path in (folder / "pictures").glob("*.svg")} == {"figures.svg", "losses.svg", "layers.svg"}
    assert set(facts["layers"]["models"]) == {"both", "alone"}  # both start from nothing
    assert len(facts["layers"]["models"]["both"]["layers"]) == 3
    assert "pictures/layers.svg" in (folder / "study.md").read_text()
    monkeypatch.setattr(studies, "finetune_tasks", lambda *_: pytest.fail("trained again"))
    assert main([str(study_file)]) == 0
    assert "0 trainings to do" in capsys.readouterr().out
