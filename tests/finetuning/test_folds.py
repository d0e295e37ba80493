"""Folds of a fine-tuning: what a run tests and reports, figures over folds, and clips at other speeds."""

import json
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, recall_score

from wavcse.data.inspection import Inspector
from wavcse.finetuning.arguments import MultiTaskArguments, ProbeSettings
from wavcse.finetuning.fold_study import probed
from wavcse.finetuning.fold_tables import fold_facts, fold_table, single_folds_table
from wavcse.finetuning.folds import fold_names, fold_of
from wavcse.finetuning.labelled_clips import labelled_clips
from wavcse.finetuning.multi_task import Prepared, finetune_tasks, set_up
from wavcse.finetuning.predictions import fold_figures, paired, read_folds, read_probe
from wavcse.finetuning.text import frames_needed
from wavcse.settings.fields import settings_from
from wavcse.steps.batches import played_at
from wavcse.steps.crops import Crop
from wavcse.training.run import new_accelerator


@pytest.fixture(scope="module")
def folds_recipe(tasks_recipe, spoken_corpus) -> dict:
    """Speakers, first letters and texts of the same clips; a session is tested."""
    own = {"manifest": str(spoken_corpus)}
    tasks = {
        "voice": {**own, "label_column": "speaker_id"},
        "letter": {**own, "label_column": "letter", "disjoint_by": "speaker_id"},
        "speech": {**own, "kind": "ctc", "label_column": "text"},
    }
    streams = {"all": {"tasks": [*tasks], "batch_seconds": 12.0}}
    changes = {"tasks": tasks, "streams": streams, "folds": {"column": "session", "validation_share": 0.2}, "fold": 2}
    return {**tasks_recipe, **changes, "max_steps": 3, "validate_every": 3}


def arguments(recipe: dict, **changes) -> MultiTaskArguments:
    return settings_from(MultiTaskArguments, {**recipe, **changes})


def prepared(recipe: dict, folder, **changes) -> Prepared:
    args = arguments(recipe, output_dir=str(folder), **changes)
    return set_up(args, new_accelerator(args), show_progress=False)


# ---- what a fold trains and tests ----


def test_folds_partition_the_speakers_and_no_task_trains_on_those_that_are_tested(folds_recipe):
    names = fold_names(arguments(folds_recipe))
    assert names == {1: "1", 2: "2", 3: "3", 4: "4", 5: "5"}
    tested = []
    for fold in names:
        tasks = labelled_clips(arguments(folds_recipe, fold=fold), Inspector()).tasks
        assert {task.splits.tolist() == tasks["voice"].splits.tolist() for task in tasks.values()} == {True}
        speakers = {
            split: set(tasks["voice"].labels[tasks["letter"].rows(split)]) for split in ("train", "validation", "test")
        }
        assert not speakers["test"] & (speakers["train"] | speakers["validation"])
        assert len(speakers["test"]) == 2
        assert tasks["voice"].readout["labels"] == sorted(speakers["train"])
        tested += sorted(speakers["test"])
    assert sorted(tested) == list("klmnopqrst")
    groups = fold_names(arguments(folds_recipe, folds={"column": "speaker_id", "groups": 4}, fold=None))
    assert list(groups.values()) == ["k, o, s", "l, p, t", "m, q", "n, r"]


def test_a_run_says_what_it_tests_keeps_its_answers_and_claims_nothing_about_unknown_speakers(
    folds_recipe, spoken_corpus, tmp_path
):
    result = finetune_tasks(arguments(folds_recipe, output_dir=str(tmp_path / "run")), show_progress=False)
    assert result["fold"] == {"number": 2, "of": 5, "column": "session", "tests": ["2"]}
    assert set(result["tasks"]["voice"]) == {"eer"}
    assert set(result["not_reported"]) == {"voice.accuracy", "voice.uar"}
    assert "the values of speaker_id that training knows" in result["not_reported"]["voice.accuracy"]
    assert {"validation.voice.accuracy", "validation.letter.uar"} <= set(result["validation"])
    assert sorted(path.name for path in (tmp_path / "run" / "predictions").iterdir()) == ["letter.parquet", "speech.parquet"]
    table, manifest = pd.read_parquet(tmp_path / "run" / "predictions" / "letter.parquet"), pd.read_csv(spoken_corpus)
    expected = manifest[manifest["session"] == 2]
    assert table["clip_id"].tolist() == expected["file_name"].tolist()
    assert table["label"].tolist() == expected["letter"].tolist()
    assert table["group"].tolist() == expected["speaker_id"].tolist()
    accuracy = np.mean(table["label"] == table["prediction_0"])
    assert result["tasks"]["letter"]["accuracy"]["value"] == pytest.approx(accuracy)
    figures = fold_figures(read_folds([[tmp_path / "run"]], "speech"), "ctc")
    assert figures["wer"]["folds"] == [pytest.approx(result["tasks"]["speech"]["wer"]["value"])]
    with pytest.raises(ValueError, match=r"voice\.parquet: is not there; the run .* keeps no answers of this task"):
        read_folds([[tmp_path / "run"]], "voice")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": None}, "fold is None; say which of the 5 folds is tested"),
        ({"fold": 6}, "fold is 6; say which of the 5 folds"),
        ({"folds": {}}, "fold is 2, but there are no folds"),
        ({"folds": {"groups": 3}}, "folds: column missing"),
        ({"folds": {"column": "dialog"}}, "folds: .* has no column 'dialog'"),
        ({"folds": {"column": "session", "groups": 6}}, r"folds: column 'session' has 5 values .*; 6 folds need as many"),
        ({"folds": {"column": "letter"}}, "speaker_id .* occur in both train and test"),
        ({"augment": {"speeds": [10]}}, "augment: speeds"),
    ],
)
def test_folds_that_do_not_divide_the_clips_are_refused(folds_recipe, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        prepared(folds_recipe, tmp_path, **changes)


def test_a_stage_starts_from_one_that_tested_the_same_speakers(folds_recipe, tmp_path):
    def stage(**changes):
        own = {"init_from": {"stage": 1}, "output_dir": str(tmp_path / "stage2"), **changes}
        return arguments(folds_recipe, **own)

    assert fold_of(stage()).tested == {"2"}  # nothing is known of stage 1
    path = tmp_path / "stage1/results/finetuning.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"fold": {"number": 2, "tests": ["2"]}}))
    assert fold_of(stage()).tested == {"2"}
    with pytest.raises(ValueError, match=r"fold 3 tests 3, but .*stage1, which it starts from, tested 2 and may know them"):
        fold_of(stage(fold=3))
    path.write_text("{}")
    with pytest.raises(ValueError, match="tested no fold and may know them"):
        fold_of(stage())


# ---- figures over folds ----


def answers_table(fold, labels, answers, folder="") -> pd.DataFrame:
    """Answers to clips of two speakers of a fold."""
    numbers = range(len(labels))
    names, speakers = [f"{folder}{fold}_{number:03d}.wav" for number in numbers], [f"{fold}{number % 2}" for number in numbers]
    return pd.DataFrame({"clip_id": names, "group": speakers, "label": labels, "prediction_0": answers})


@pytest.fixture
def variants():
    """Two variants x two seeds x three folds of unequal size, in which classes are unequally frequent; the first is better."""
    rng, classes = np.random.default_rng(0), np.array(["sad", "happy", "angry"])
    labels = [rng.choice(classes, size=size, p=[0.6, 0.3, 0.1]) for size in (30, 60, 90)]

    def answered(fold, own, skill):
        return answers_table(fold, own, np.where(rng.random(len(own)) < skill, own, rng.choice(classes, size=len(own))))

    return {
        variant: [[answered(fold, own, skill) for fold, own in enumerate(labels)] for _ in range(2)]
        for variant, skill in (("good", 0.8), ("poor", 0.4))
    }


def test_wa_and_ua_over_folds_are_scikit_learns_and_the_formulas(variants):
    found = fold_figures(variants["good"], "classes")
    assert set(found) == {"accuracy", "uar"}
    seeds = [[(one["label"].tolist(), one["prediction_0"].tolist()) for one in tables] for tables in variants["good"]]
    for figure, score in (("accuracy", accuracy_score), ("uar", lambda *own: recall_score(*own, average="macro"))):
        folds = [np.mean([score(*folds[place]) for folds in seeds]) for place in range(3)]
        pooled = np.mean([score(*(list(chain(*own)) for own in zip(*folds))) for folds in seeds])
        assert found[figure]["folds"] == pytest.approx(folds)
        assert found[figure]["mean"] == pytest.approx(np.mean(folds))
        assert found[figure]["pooled"] == pytest.approx(pooled)
        assert found[figure]["mean"] != pytest.approx(pooled, abs=1e-4)  # the folds are of unequal size
        low, high = found[figure]["interval"]
        assert low < pooled < high
    labels, answers = (np.array(list(chain(*own))) for own in zip(*seeds[0]))
    recalls = [np.mean(answers[labels == one] == one) for one in ("sad", "happy", "angry")]
    single = fold_figures(variants["good"][:1], "classes")
    assert single["uar"]["pooled"] == pytest.approx(np.mean(recalls))  # UA: the mean of the classes' recalls
    assert single["accuracy"]["pooled"] == pytest.approx(np.mean(labels == answers))  # WA: the share of right clips


def test_variants_are_compared_on_the_same_clips_of_all_folds(variants):
    good, poor = variants["good"], variants["poor"]
    found, back = paired(good, poor, "uar"), paired(poor, good, "uar")
    own = [fold_figures(folds, "classes")["uar"]["pooled"] for folds in (good, poor)]
    assert found["difference"] == pytest.approx(own[0] - own[1])
    assert back["difference"] == pytest.approx(-found["difference"])
    assert 0 < found["interval"][0] < found["difference"] < found["interval"][1]
    assert paired(good, good, "accuracy") == {"difference": 0.0, "interval": (0.0, 0.0), "unit": "percent"}
    with pytest.raises(ValueError, match="other clips were tested"):
        paired([good[0][:2]], [poor[0][1:]], "uar")


def test_a_probe_of_frozen_embeddings_is_compared_with_a_training_on_the_same_folds(variants, tmp_path, capsys):
    (tmp_path / "predictions").mkdir()
    rows = [f"emotion_fold{number}" for number in (1, 2, 3)]
    for row, table in zip(rows, variants["poor"][0]):
        elsewhere = table.assign(clip_id="../audio/" + table["clip_id"]).sample(frac=1, random_state=0)
        elsewhere.to_parquet(tmp_path / "predictions" / f"{row}__mfcc.parquet")
    probe = read_probe(tmp_path, rows, "mfcc")
    assert fold_figures(probe, "classes")["uar"] == fold_figures(variants["poor"][:1], "classes")["uar"]
    assert paired(variants["good"], probe, "uar") == paired(variants["good"], variants["poor"][:1], "uar")
    own = {name: ProbeSettings("emotion", str(tmp_path), rows, name) for name in ("mfcc", "majority")}
    assert list(probed("emotion", variants["good"], own)) == ["mfcc"]
    assert "probes.majority is left out: " in capsys.readouterr().out
    assert probed("emotion", [variants["good"][0][:2]], own) == probed("words", variants["good"], own) == {}
    with pytest.raises(ValueError, match=r"emotion_fold1__majority\.parquet: is not there"):
        read_probe(tmp_path, rows, "majority")


def test_the_table_of_folds_shows_both_sums_and_the_paired_difference(variants):
    facts = fold_facts({"plain": variants["poor"], "whole": variants["good"]}, "classes")
    head, _, plain, whole = ([cell.strip() for cell in line.split("|")[1:-1]] for line in fold_table(facts).splitlines())
    assert head[1:] == [
        *("WA, %, mean of folds", "WA, %, pooled [95 %]", "UA, %, mean of folds", "UA, %, pooled [95 %]"),
        "UA, % minus plain's [95 %]",
    ]
    own, difference = facts["whole"]["figures"], paired(variants["good"], variants["poor"], "uar")
    assert whole[0] == "whole"
    assert whole[1] == f"{100 * own['accuracy']['mean']:.1f}"
    assert whole[4] == "{:.1f} [{:.1f}, {:.1f}]".format(
        *(100 * one for one in (own["uar"]["pooled"], *own["uar"]["interval"]))
    )
    assert whole[5].startswith(f"{100 * difference['difference']:.1f} [")
    assert plain[5] == "–"
    single = single_folds_table(facts, "uar", ["1", "2", "3"]).splitlines()
    assert single[0] == "| UA, % | 1 | 2 | 3 |"
    assert single[3] == "| whole | " + " | ".join(f"{100 * one:.1f}" for one in own["uar"]["folds"]) + " |"


# ---- speeds ----


def test_a_speed_of_80_makes_a_clip_a_quarter_longer_and_lower():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    for speed, length in ((80, 20_000), (100, 16_000), (120, 13_333)):
        changed = played_at(tone, speed)
        assert len(changed) == length
        peak = np.argmax(np.abs(np.fft.rfft(changed * np.hanning(length)))) * 16_000 / length
        assert peak == pytest.approx(10 * speed, abs=2)
        expected = np.sin(2 * np.pi * 10 * speed * np.arange(length) / 16_000)
        assert np.abs(changed - expected)[500:-500].max() < 1e-3


def test_masks_are_stretched_with_their_clip():
    mask = np.repeat([False, True, False, False], 10)
    crop = Crop(0, 0, 12_000, mask, silence=800)
    slower = crop.played_at(80, lambda samples: samples // 320)
    assert (slower.length, len(slower.mask)) == (16_000, 50)
    assert np.flatnonzero(slower.mask).tolist() == list(range(13, 25))
    assert crop.played_at(100, lambda samples: samples // 320) is crop


def test_batches_draw_a_speed_from_seed_and_step_and_validation_has_none(folds_recipe, tmp_path):
    plain = prepared(folds_recipe, tmp_path / "plain")
    drawn = prepared(folds_recipe, tmp_path / "drawn", augment={"speeds": [80, 100, 120]})
    speeds = []
    for step in range(30):
        before, after = plain.loader.update(step)[0], drawn.loader.update(step)[0]
        assert [group.waveforms.shape[0] for group in after.groups] == [group.waveforms.shape[0] for group in before.groups]
        assert after.targets["letter"].tolist() == before.targets["letter"].tolist()
        texts = [[one.tolist() for one in batch.targets["speech"] if one is not None] for batch in (before, after)]
        assert texts[0] == texts[1]
        ratios = {
            round(other.waveforms.shape[1] / group.waveforms.shape[1], 3) for group, other in zip(before.groups, after.groups)
        }
        assert len(ratios) == 1
        speeds.append(ratios.pop())
        assert after.seconds == pytest.approx(before.seconds * speeds[-1], rel=1e-3)
        frames = [drawn.reader.num_frames(group.waveforms.shape[1]) for group in after.groups]
        assert [group.mask.shape[1] for group in after.groups] == frames
        again = drawn.loader.update(step)[0]
        assert all(torch.equal(one.waveforms, other.waveforms) for one, other in zip(after.groups, again.groups))
    assert set(speeds) == {1.25, 1.0, 0.833}
    assert min(speeds.count(speed) for speed in set(speeds)) >= 4
    other = prepared(folds_recipe, tmp_path / "other", augment={"speeds": [80, 100, 120]}, seed=1)
    assert [other.loader.update(step)[0].seconds for step in range(3)] != [
        drawn.loader.update(step)[0].seconds for step in range(3)
    ]
    rows = drawn.labelled.tasks["letter"].rows("validation")
    for row in rows[:3]:
        heard = [one.reader.groups([one.reader.whole(row)])[0].waveforms for one in (drawn, plain)]
        assert torch.equal(*heard)


def test_a_text_must_fit_its_clip_at_the_fastest_speed(folds_recipe, tmp_path):
    plain, fast = (prepared(folds_recipe, tmp_path / str(speed), augment={"speeds": [100, speed]}) for speed in (100, 400))
    rows, tokens = plain.labelled.tasks["speech"].rows("train"), plain.labelled.tasks["speech"].targets
    frames = {row: fast.reader.num_frames(round(plain.reader.num_samples[row] / 4)) for row in rows}
    fitting = [row for row in rows if frames_needed(tokens[row].tolist()) <= frames[row]]
    assert 0 < len(fitting) < len(rows)
    assert fast.labelled.tasks["speech"].rows("train").tolist() == fitting
    assert fast.labelled.left_out["speech"]["too short for their text"] == len(rows) - len(fitting)
    validated = [one.labelled.tasks["speech"].rows("validation").tolist() for one in (plain, fast)]
    assert validated[0] == validated[1]  # which is heard at its own speed
