"""Studies in folds and stages: what a dry run lists, what is trained, and the report; through the command line."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transformers import AutoConfig

from wavcse import FinetunedWavCSE
from wavcse.finetuning.__main__ import main
from wavcse.finetuning.multi_task import finetune_tasks
from wavcse.finetuning.shared_stages import train_shared_stages
from wavcse.finetuning.stages import stages_of
from wavcse.finetuning.study import drawn_variants, read_study
from wavcse.finetuning.text import SPECIAL
from wavcse.tests.helpers.corpus_trees import manifest_of
from wavcse.tests.helpers.iemocap_tree import ER_COUNTS, write_iemocap, write_transcriptions
from wavcse.tests.helpers.tiny_families import ROWS
from wavcse.upstream_wavcse import build_upstream

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fold_study(staged_recipe, tmp_path_factory) -> Path:
    """Two variants of a staged recipe in two folds of speakers."""
    folder = tmp_path_factory.mktemp("folds")
    recipe = {**staged_recipe, "folds": {"column": "speaker_id", "groups": 2}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    alone = {"tasks": {"words": None, "gender": None, "emotion": {"tap": "last", "fusion": {}}}, "stages": []}
    study = {
        "recipe": str(folder / "recipe.yaml"),
        "variants": {"alone": alone, "whole": {}, "without_coattention": {"tasks": {"emotion": {"fusion": {"kind": "none"}}}}},
        "columns": ["emotion.uar", "emotion.accuracy", "words.cer"],
        "tables": {"Table I": {"columns": ["emotion.uar"]}, "Table III": {"variants": ["whole"]}},
        "published": {"whole": {"emotion.uar": 77.7}},
        "differences": ["Tones are no speech."],
        "against": {"whole": ["alone", "without_coattention"]},
        "output_dir": str(folder / "study"),
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return folder / "study.yaml"


def test_a_dry_run_lists_runs_updates_and_sizes(fold_study, capsys):
    assert main([str(fold_study), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ") and ".0.01" in line
    ]
    known = [(row[0], row[1], row[2], row[3]) for row in rows]
    assert known == [
        ("alone.0.01", "2", "1", "emotion"),
        ("whole.0.01", "2", "1", "gender, words"),
        ("whole.0.01", "2", "2", "emotion"),
        ("without_coattention.0.01", "2", "1", "gender, words"),
        ("without_coattention.0.01", "2", "2", "emotion"),
    ]
    for row in rows:
        training, validation, test, updates = (int(cell) for cell in row[4:8])
        assert training + validation + test == 60
        assert test == 30  # of five speakers
        assert updates == -(-training // 8)
    total = sum(2 * int(row[7]) for row in rows if row[0] != "without_coattention.0.01" or row[2] == "2")  # one first stage
    assert lines[-1] == f"6 runs, about {total:,} updates."
    assert not (fold_study.parent / "study").exists()


@pytest.mark.slow
def test_the_report_has_both_stages_of_all_folds(fold_study, capsys):
    assert main([str(fold_study)]) == 0
    folder = fold_study.parent / "study"
    page, facts = (folder / "study.md").read_text(), json.loads((folder / "study.json").read_text())
    places = [folder / "whole.0.01/0" / f"fold{number}" for number in (1, 2)]
    tables = [pd.read_parquet(place / "stage2/predictions/emotion.parquet") for place in places]
    assert not set(tables[0]["group"]) & set(tables[1]["group"])
    uar = [balanced_accuracy_score(table["label"], table["prediction_0"]) for table in tables]
    accuracy = [accuracy_score(table["label"], table["prediction_0"]) for table in tables]
    figures = facts["variants"]["whole"]["figures"]
    assert figures["emotion.uar"]["values"] == pytest.approx(uar)
    assert figures["emotion.uar"]["value"] == pytest.approx(sum(uar) / 2)
    assert figures["emotion.accuracy"]["values"] == pytest.approx(accuracy)
    assert {"words.cer", "gender.uar"} <= figures.keys()  # of the first stage
    assert facts["variants"]["alone"]["figures"].keys() == {"emotion.uar", "emotion.accuracy"}
    for words in ("### Table I", "### Table III", "- Tones are no speech.", "/ 77.7", "## Folds: emotion", "attention.svg"):
        assert words in page, words
    folds = facts["folds"]["emotion"]
    pairs = {own["second"]: own for own in folds["against"]}
    first = folds["variants"]["whole"]["difference"]["uar"]
    assert [pairs["alone"][name] for name in first] == list(first.values())
    pooled = {name: own["figures"]["uar"]["pooled"] for name, own in folds["variants"].items()}
    assert pairs["without_coattention"]["difference"] == pytest.approx(pooled["whole"] - pooled["without_coattention"])
    assert "| whole | without_coattention | UA, % |" in page
    assert (folder / "pictures/blocks.svg").exists()
    for fold in (1, 2):  # the first stage of both variants is one training, and the second is not
        ours, theirs = (folder / f"{name}.0.01/0/fold{fold}" for name in ("whole", "without_coattention"))
        assert (ours / "stage1/hub/model.safetensors").samefile(theirs / "stage1/hub/model.safetensors")
        assert not (ours / "stage2/hub/model.safetensors").samefile(theirs / "stage2/hub/model.safetensors")
        assert facts["variants"]["without_coattention"]["figures"]["words.cer"] == figures["words.cer"]
    before = (places[1] / "stage2/results/finetuning.json").stat().st_mtime_ns
    assert main([str(fold_study)]) == 0  # nothing is trained again
    assert (places[1] / "stage2/results/finetuning.json").stat().st_mtime_ns == before


def test_a_leak_in_a_later_fold_is_refused_before_the_first_is_trained(fold_study, emotional_corpus, tmp_path, capsys):
    table = pd.read_csv(emotional_corpus)
    table["session"] = table["speaker_id"].map(lambda speaker: "klmnopqrst".index(speaker) // 4)
    table.loc[table.index[table["speaker_id"] == "r"][0], "session"] = 2  # the others of this speaker are in session 1
    table.to_csv(tmp_path / "sessions.csv", index=False)
    study = yaml.safe_load(fold_study.read_text())
    recipe = yaml.safe_load(Path(study["recipe"]).read_text())
    tasks = {name: {**own, "manifest": str(tmp_path / "sessions.csv")} for name, own in recipe["tasks"].items()}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "tasks": tasks, "folds": {"column": "session"}}))
    study |= {"recipe": str(tmp_path / "recipe.yaml"), "output_dir": str(tmp_path / "study")}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    assert main([str(tmp_path / "study.yaml")]) == 2
    assert "fold 2: task 'emotion': speaker_id ['r'] occur in both" in capsys.readouterr().err
    assert not list((tmp_path / "study").rglob("results"))


def test_the_first_variant_that_weighs_frames_is_drawn():
    def variant(shares, weights):
        return {"block_shares": [shares], "attention": {"emotion": {"sad": {"clip": "a.wav", "weights": weights}}}}

    mixed = {"ari": [0.4, 0.6]}
    variants = {"even": variant(mixed, [0.5, 0.5]), "last": variant({}, [0.2, 0.8]), "whole": variant(mixed, [0.2, 0.8])}
    variants["later"] = variants["whole"]
    assert drawn_variants({"variants": variants, "pictures_of": []}) == ["whole"]
    assert drawn_variants({"variants": variants, "pictures_of": ["later", "whole"]}) == ["whole", "later"]
    assert drawn_variants({"variants": {"even": variants["even"]}, "pictures_of": []}) == []


def test_a_first_stage_is_taken_from_whoever_has_it_and_fails_for_all_at_once(fold_study, tmp_path, monkeypatch):
    study = read_study(fold_study, str(tmp_path))
    (whole, without) = (
        {f"{variant.name}/{run.fold}": run for run in study.runs(variant)[0.01]} for variant in study.variants[1:]
    )
    first = stages_of(whole["whole/1"])[0]
    results = Path(first.output_dir) / "results"
    results.mkdir(parents=True)
    (results / "finetuning.json").write_text(json.dumps({"config": json.loads(json.dumps(first.identity()))}))
    trained = []

    def train_all(here, apart, workers):
        trained.extend(apart)
        return dict.fromkeys(apart, "it diverged.")

    monkeypatch.setattr("wavcse.finetuning.shared_stages.train_all", train_all)
    failures = train_shared_stages({**whole, **without}, {*without, "whole/2"})
    assert trained == ["whole/2/stage1"]  # once; that of fold 1 is there
    assert failures == dict.fromkeys(["whole/2", "without_coattention/2"], "stage 1: it diverged.")
    other = Path(stages_of(without["without_coattention/1"])[0].output_dir) / "results/finetuning.json"
    assert other.samefile(results / "finetuning.json")


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"task": "emotion", "folder": "e", "encoder": "mfcc"}, "probes.mfcc: rows missing"),
        ({"task": "emotion", "folders": "e"}, r"probes.mfcc: unknown fields \['folders'\]"),
    ],
)
def test_probes_that_cannot_be_found_are_refused(fold_study, tmp_path, probe, message):
    study = {**yaml.safe_load(fold_study.read_text()), "probes": {"mfcc": probe}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ({"hole": ["alone"]}, r"against: a variant is 'hole' \(did you mean whole\?\)"),
        ({"whole": ["mfcc"]}, "against.whole: one is 'mfcc'"),
        ({"whole": "alone"}, "against.whole is 'alone'; a list of variants or probes is needed"),
    ],
)
def test_comparisons_with_what_is_not_there_are_refused(fold_study, tmp_path, against, message):
    study = {**yaml.safe_load(fold_study.read_text()), "against": against}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(ValueError, match=message):
        read_study(tmp_path / "study.yaml")


def test_the_papers_study_has_all_variants_of_three_encoders(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = read_study("conf/paper/003_iemocap.yaml")
    variants = {variant.name: variant.args for variant in study.variants}
    assert len(variants) == 3 * (6 + 15)  # Tables I to III, and all subsets of the four tasks but the whole
    of_emotion = {frozenset(args.tasks) - {"emotion"} for args in variants.values()}
    assert len(of_emotion) == 16
    assert {args.init_from for args in variants.values()} == set(study.settings.upstreams.values())
    assert set(study.settings.published) == set(variants)
    assert variants["wavlm.whole"].tasks["emotion"] == {**variants["hubert.whole"].tasks["emotion"]}
    for name in ("baseline", "emotion_only"):
        assert not variants[f"wavlm.{name}"].stages


ENCODERS = {"wav2vec2": "wav2vec 2.0, base", "hubert": "HuBERT, base", "wavlm": "WavLM, base"}
AUXILIARY = ["gender", "speaker", "style", "words"]
IN_FOLD_1 = {"train": 32, "validation": 4, "test": 9}


@pytest.fixture(scope="module")
def papers_folder(tmp_path_factory) -> Path:
    """A folder with what the paper's recipe names: a manifest, of a miniature IEMOCAP by its adapter; and tiny encoders."""
    folder = tmp_path_factory.mktemp("paper")
    root = write_iemocap(folder / "IEMOCAP_full_release", seconds=0.5)
    write_transcriptions(root)
    manifest_of("iemocap", root, folder / "manifests/iemocap.csv", "leave-one-session-out", {**ER_COUNTS, "turns": 60})
    torch.manual_seed(0)
    for name, row in ENCODERS.items():
        model_type, sizes = ROWS[row]
        config = AutoConfig.for_model(model_type, **{**sizes, "num_hidden_layers": 5})
        build_upstream(config).save_pretrained(folder / name)
    return folder


@pytest.fixture
def papers_study(papers_folder, monkeypatch) -> dict:
    """The paper's study in that folder, as it is but for the encoders that it names."""
    monkeypatch.chdir(papers_folder)
    study = yaml.safe_load((ROOT / "conf/paper/003_iemocap.yaml").read_text())
    upstreams = {name: str(papers_folder / name) for name in ENCODERS}
    return {**study, "recipe": str(ROOT / "conf/paper/003_base.yaml"), "upstreams": upstreams}


def planned_rows(study: dict, capsys, *only: str) -> tuple[list[list[str]], str]:
    """The rows of a dry run of a study, and its last line."""
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    assert main(["study.yaml", "--dry_run", *(["--only", *only] if only else [])]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if ".0.0001 " in line]
    return rows, lines[-1]


@pytest.mark.slow
def test_a_dry_run_of_the_papers_recipe_lists_what_it_would_train_on_iemocap(papers_study, capsys):
    rows, sum_of_all = planned_rows(papers_study, capsys)
    assert len(rows) == 3 * (2 + 2 * 19)  # `baseline` and `emotion_only` have one stage
    assert {tuple(row[4:8]) for row in rows} == {("32", "4", "9", "800")}  # 45 labelled turns; 100 passes over 32, 4 at a time
    learns = {(row[0], row[1], row[2]): row[3] for row in rows}
    for name in ENCODERS:
        assert learns[f"{name}.whole.0.0001", "5", "1"] == "gender, speaker, style, words"
        assert learns[f"{name}.whole.0.0001", "5", "2"] == learns[f"{name}.baseline.0.0001", "5", "1"] == "emotion"
        assert learns[f"{name}.with_speaker_words.0.0001", "5", "1"] == "speaker, words"
    # Per encoder 21 last stages and 17 first ones: two variants without co-attention have the first stage of one with it.
    assert sum_of_all == f"315 runs, about {3 * (21 + 17) * 5 * 800:,} updates."


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_two_steps_of_each_stage_of_the_papers_recipe_run_on_iemocap(name, papers_study, capsys):
    pytest.importorskip("jiwer")
    papers_study["overrides"] = {"num_epochs": 0, "max_steps": 2}
    rows, sum_of_all = planned_rows(papers_study, capsys, f"{name}.whole")
    study = read_study("study.yaml")
    variants = {variant.name: variant for variant in study.variants}
    (runs,) = study.runs(variants[f"{name}.whole"]).values()
    finetune_tasks(runs[0], show_progress=False)
    folders = [Path(stage.output_dir) for stage in stages_of(runs[0])]
    first, second = (json.loads((folder / "results/finetuning.json").read_text()) for folder in folders)
    assert sum_of_all == "5 runs, about 20 updates."
    assert [row[7] for row in rows] == ["2", "2"]
    assert first["steps"] == second["steps"] == 2
    assert [row[3].split(", ") for row in rows] == [list(first["clips"]), list(second["clips"])] == [AUXILIARY, ["emotion"]]
    for result in (first, second):
        assert result["fold"] == {"number": 1, "of": 5, "column": "session", "tests": ["1"]}
        assert list(result["clips"].values()) == [IN_FOLD_1] * len(result["clips"])  # of 60 those with an emotion
    assert first["tasks"].keys() == set(AUXILIARY)
    assert first["not_reported"].keys() == {"speaker.accuracy", "speaker.uar"}
    readouts = FinetunedWavCSE.from_pretrained(folders[1] / "hub").config.readouts
    assert "".join(readouts["words"]["vocabulary"][len(SPECIAL) :]) == "ADFIMS"  # "I said: F000.", without colon and digits
    assert readouts["emotion"]["fusion"]["tasks"] == AUXILIARY
    before, after = (load_file(folder / "hub/model.safetensors") for folder in folders)
    trained = [one for weight, one in after.items() if weight not in before or not torch.equal(one, before[weight])]
    sizes = [float(row[8]) for row in rows] + [float(rows[1][9])]  # all parameters, and those that the second stage trains
    assert sizes == pytest.approx([numbers_of(some) for some in (before.values(), after.values(), trained)], abs=0.006)


def numbers_of(tensors: Iterable[torch.Tensor]) -> float:
    """How many numbers tensors hold, in millions."""
    return sum(tensor.numel() for tensor in tensors) / 1e6
