"""What is planted is found, what is not planted is not: layers, dimensions, speakers."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from wavcse.analysis.analyses import dimensions, discrimination, load_analysis
from wavcse.analysis.analyses.dimensions import DimensionsSettings, Ranker, by_luck, rank_and_retrain
from wavcse.analysis.analyses.discrimination import DiscriminationSettings, by_language, discriminate, forms_of
from wavcse.analysis.analyses.layers import Judge, LayersSettings, answers, is_above_floors, probe_views
from wavcse.analysis.analyses.layers import _places as layers_places
from wavcse.analysis.analyses.overlap import overlap_of
from wavcse.analysis.analyses.sequence import Scale, SequenceSettings, fit_sequence, part_of_frames, ranked
from wavcse.analysis.attribution import importance, integrated_gradients
from wavcse.analysis.figures import figure
from wavcse.analysis.frames import Frames
from wavcse.analysis.study import Analysis, Cell, run_analysis
from wavcse.data.corpus_pass import WorkerDied
from wavcse.tests.helpers.planted_study import planted_study, planted_task

PROBES = {"learning_rates": (1e-2,), "max_epochs": 12}
pytestmark = pytest.mark.usefixtures("quick_probes")


def clips(num_clips: int, num_classes: int, seed: int):
    """Labels, speakers (two per split and more) and splits of clips; every speaker has every label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_clips) % num_classes
    speakers = rng.permutation(np.arange(num_clips) // num_classes % 12)
    splits = np.array(["train"] * 6 + ["validation"] * 3 + ["test"] * 3)[speakers]
    return labels, speakers, splits, rng


def task_of(labels, speakers, splits):
    return planted_task([f"word{own}" for own in labels], [f"speaker{own}" for own in speakers], splits)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_a_label_in_layer_3_of_8_only_is_found_there(tmp_path, seed):
    labels, speakers, splits, rng = clips(144, 3, seed)
    views = {f"layer {layer}": rng.standard_normal((144, 12)) for layer in range(8)}
    views["layer 3"][:, :3] += 3 * np.eye(3)[labels]
    study = planted_study(tmp_path, {"keyword": task_of(labels, speakers, splits)}, views, seed)
    found = probe_views(study, study.encoders[0], "keyword", LayersSettings())
    assert found["chosen"] == "layer 3"
    assert [own["view"] for own in found["views"] if own["tied"]] == ["layer 3"]
    assert found["test"]["value"] > 0.9
    assert is_above_floors(found)
    weights = found["weighted_sum"]["weights"]
    assert max(weights, key=weights.get) == "layer 3"
    record = {"about": {"task": "keyword", "encoder": "planted"}, "found": found}
    words = "test figure at the best of 8 vectors on validation (so many others cannot be told from it)"
    share = 100 * found["test"]["value"]
    assert answers([record]) == [f"`planted`, {words}: keyword {share:.1f} % at 3 (0)."]


def test_speakers_of_one_class_each_hide_no_gender(tmp_path):
    """Of eight speakers drawn seven can be of one class: a constant answer then is nearly as right as the encoder ever is."""
    speakers = np.repeat(np.arange(24), 10)
    labels, splits = speakers % 2, ["train", "validation", "test"]
    views = {"layer 0": np.random.default_rng(0).standard_normal((240, 8))}
    views["layer 0"][:, :2] += 2 * np.eye(2)[labels]
    data = task_of(labels, speakers, [splits[own // 2 % 3] for own in speakers])
    study = planted_study(tmp_path, {"keyword": data}, views)
    found = probe_views(study, study.encoders[0], "keyword", LayersSettings(weighted_sum=False))
    constant = found["test"]["floor"]["chance"]
    assert constant["value"] == 0.5
    assert constant["interval"][1] > found["test"]["interval"][0]
    assert is_above_floors(found)


def test_noise_is_at_chance_and_said_to_be(tmp_path):
    labels, speakers, splits, rng = clips(240, 4, 0)
    views = {f"layer {layer}": rng.standard_normal((240, 12)) for layer in range(4)}
    study = planted_study(tmp_path, {"keyword": task_of(labels, speakers, splits)}, views)
    records = run_analysis(study, load_analysis("layers"), LayersSettings(), overwrite=False, show_progress=False)
    (record,) = records
    assert not is_above_floors(record["found"])
    assert answers(records)[-1].endswith("planted on keyword.")
    assert abs(record["found"]["test"]["value"] - 0.25) < 0.15
    with pytest.MonkeyPatch.context() as patch:  # the record is kept: nothing is computed again
        patch.setattr("wavcse.analysis.analyses.layers.probe_views", None)
        again = run_analysis(study, load_analysis("layers"), LayersSettings(), overwrite=False, show_progress=False)
    assert again == records


def test_a_vector_of_voices_is_good_at_any_and_below_chance_in_hard(tmp_path):
    labels, speakers, splits, rng = clips(240, 4, 1)
    voices, words = 2 * rng.standard_normal((12, 8))[speakers], 1.2 * np.eye(4)[labels]
    vectors = np.concatenate([voices, words], axis=1) + 0.2 * rng.standard_normal((240, 12))
    study = planted_study(tmp_path, {"keyword": task_of(labels, speakers, splits)}, {"layer 0": vectors})
    found = discriminate(study, study.encoders[0], "keyword", DiscriminationSettings())
    raw = found["test"]["raw"]
    assert raw["hard"]["interval"][1] < 0.05
    assert raw["any"]["value"] > 0.5
    assert raw["any"]["value"] > raw["any"]["floor"]["shuffled"]["value"]
    assert raw["across"]["value"] > 0.6
    assert found["test"]["by_speaker"]["hard"]["value"] > 0.8
    assert found["test"]["projected"]["hard"]["value"] > 0.8
    assert 0.35 < raw["across"]["floor"]["shuffled"]["value"] < 0.65
    assert raw["hard"]["floor"]["chance"] == 0.5
    assert "chance" not in found["test"]["by_speaker"]["hard"]["floor"]  # that of shuffled labels is its floor
    assert (
        found["precision"]["by_speaker"]["value"]
        > found["precision"]["raw"]["value"]
        > found["precision"]["raw"]["floor"]["chance"]
    )


def test_triplets_by_language_set_matched_beside_mismatched_and_words_apart_from_other_labels():
    def record(encoder, task, labels, learnt_from, language, hard):
        test = {
            "raw": {
                c: figure(value, (value - 0.1, value + 0.1), 8, 4, "speaker") for c, value in (("any", 0.9), ("hard", hard))
            }
        }
        found = {"labels": labels, "learnt_from": learnt_from, "language": language, "test": test}
        return {"about": {"encoder": encoder, "task": task}, "found": found}

    records = [
        record("a", "emotion", "other labels", "en", "en", 0.8),
        record("a", "word_es", "words", "en", "es", 0.4),
        record("a", "word_en", "words", "en", "en", 0.6),
        record("b", "word_en", "words", "", "en", 0.1),  # does not say what it has learnt from
        {"about": {}, "found": {"obstacle": "none"}},
    ]
    found = by_language(records)
    assert [(own["task"], own["is_matched"], own["hard"]["value"]) for own in found] == [
        ("word_en", True, 0.6),
        ("word_es", False, 0.4),
        ("emotion", True, 0.8),
    ]
    assert found[0]["hard"]["interval"] == pytest.approx([0.5, 0.7])
    assert "across" not in found[0]
    table = discrimination._language_table(records)[1].splitlines()
    assert (
        table[2] == "| words | a | en | en | matched | word_en | 90.0 [80.0, 100.0] | – | 60.0 [50.0, 70.0] | 8, 4 speakers |"
    )


def test_all_three_conditions_stand_beside_shuffled_labels_and_are_judged_by_them():
    def own(value, shuffled):
        floor = figure(shuffled, (shuffled - 0.05, shuffled + 0.05), 8, 4, "speaker")
        return figure(value, (value - 0.05, value + 0.05), 8, 4, "speaker", shuffled=floor)

    test = {"by_speaker": {"any": own(0.7, 0.5), "across": own(0.55, 0.5), "hard": own(0.65, 0.6)}}
    precision = {"by_speaker": figure(0.2, (0.1, 0.3), 28, 4, "speaker", chance=0.1)}
    found = {"chosen": "layer 1", "labels": "words", "language": "", "test": {**test, "raw": {}}, "precision": precision}
    found["precision"]["raw"] = precision["by_speaker"]
    record = {"about": {"task": "word", "encoder": "a"}, "settings": {"most_pairs": 10_000}, "found": found}
    (table,) = [block for block in discrimination.section([record]) if block.startswith("| task")]
    assert (
        "| 70.0 [65.0, 75.0] * (50.0 [45.0, 55.0]) | 55.0 [50.0, 60.0] (50.0 [45.0, 55.0]) | 65.0 [60.0, 70.0] (60.0" in table
    )


def test_forms_that_would_mislead_are_left_out():
    rng = np.random.default_rng(0)
    for per_speaker, num_classes, forms in (
        (4, 3, {"projected"}),
        (12, 2, {"by_speaker"}),
        (12, 3, {"projected", "by_speaker"}),
    ):
        speakers = np.arange(144) // per_speaker
        labels, splits = np.arange(144) % num_classes, np.array(["train", "validation", "test"])[speakers % 3]
        data = task_of(labels, speakers, splits)
        found = forms_of(rng.standard_normal((144, 6)).astype(np.float32), data, data.table.rows("test"))
        assert set(found) == {"raw", "centred", *forms}


def test_what_is_said_of_hard_triplets():
    def record(encoder, labels, raw, projected):
        def hard(value, shuffled):
            own = figure(value, (value - 0.1, value + 0.1), 9, 9, "speaker")
            own["floor"] = {"shuffled": figure(shuffled, (shuffled - 0.1, shuffled + 0.1), 9, 9, "speaker")}
            return {"hard": own}

        test = {"raw": hard(raw, 0.1)} if projected is None else {"raw": hard(raw, 0.1), "projected": hard(projected, 0.5)}
        task = "word" if labels == "words" else "emotion"
        return {"about": {"encoder": encoder, "task": task}, "found": {"labels": labels, "test": test}}

    words, labels = discrimination.answers(
        [
            *(record("a", "words", 0.2, 0.9), record("b", "words", 0.8, 0.6), record("c", "words", 0.7, None)),
            record("a", "other labels", 0.55, 0.75),
        ]
    )
    assert "the same word is nearer in `a` 20 %, `b` 80 %, `c` 70 %; below chance in 1 of 3 pairs" in words
    assert "the nearest clip is the same voice, not the same word: do not search by it as it is." in words
    assert "(*hard* triplets, chance 50 %, emotion): the same label is nearer in `a` 55 %; below chance in 0 of 1" in labels
    assert "do not search" not in labels
    # c has no projection: it is not in the median before it either
    assert "What helps, medians over the same cells: learnt projection 50 -> 75 % (n = 2; with shuffled labels 50;" in words
    assert "above these in 1 of 2" in words
    assert "learnt projection 55 -> 75 % (n = 1; with shuffled labels 50; above these in 1 of 1)" in labels


# ---- dimensions ----


@pytest.mark.doors
def test_attributions_of_a_linear_logit_are_weight_times_number():
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(6, 3), torch.randn(5, 6)
    targets = torch.tensor([0, 2, 1, 1, 0])
    found = integrated_gradients(model, inputs, targets)
    np.testing.assert_allclose(found.values, (model.weight[targets] * inputs).detach().numpy(), atol=1e-5)
    assert found.gap < 1e-5
    assert found.steps == 4
    of_mean = integrated_gradients(model, inputs, targets, inputs.mean(dim=0))
    expected = (model.weight[targets] * (inputs - inputs.mean(dim=0))).detach().numpy()
    np.testing.assert_allclose(of_mean.values, expected, atol=1e-5)


@pytest.mark.doors
def test_steps_double_until_attributions_are_complete():
    torch.manual_seed(0)
    inputs = 2 * torch.randn(8, 4)

    def sharp(x):
        return torch.tanh(6 * x.sum(dim=1, keepdim=True) - 3)

    found = integrated_gradients(sharp, inputs, torch.zeros(8, dtype=torch.long))
    assert found.steps > 4
    assert found.gap <= 0.01


def test_signed_means_cancel_and_absolute_ones_do_not():
    values = np.array([[1.0, 2.0], [-1.0, 2.0]])
    assert importance(values, "signed").tolist() == [0.0, 2.0]
    assert importance(values, "absolute").tolist() == [1.0, 2.0]


def planted_dimensions(seed: int, size: int, planted, num_clips: int = 480, strength: float = 0.9):
    labels, speakers, splits, rng = clips(num_clips, 2, seed)
    vectors = rng.standard_normal((num_clips, size))
    vectors[:, planted] += strength * (2 * labels[:, None] - 1) * rng.choice([-1, 1], len(planted))
    return task_of(labels, speakers, splits), vectors.astype(np.float32)


@pytest.mark.doors
@pytest.mark.parametrize("seed", range(2))
def test_ten_planted_of_a_hundred_dimensions_are_found(tmp_path, seed):
    planted = np.random.default_rng(50 + seed).permutation(100)[:10]
    data, vectors = planted_dimensions(seed, 100, planted)
    study = planted_study(tmp_path, {"keyword": data}, {"layer 0": vectors}, seed)
    run_analysis(study, load_analysis("layers"), LayersSettings(weighted_sum=False), False, show_progress=False)
    settings = DimensionsSettings(draws=5, curve=[0.5], seeds=2)
    found = rank_and_retrain(study, study.encoders[0], "keyword", settings)
    assert all(len(set(own) & set(planted)) >= 9 for own in found["lists"])
    assert found["top"]["value"] >= found["all"]["value"]
    assert found["top"]["value"] > found["random"]["interval"][1]
    assert found["p_random"] == pytest.approx(1 / 6)
    assert found["completeness_gap"] <= 0.01
    assert abs(found["bottom"]["value"] - 0.5) < 0.15
    for own in (found["top"], found["bottom"], found["pca"], found["random"], *found["curve"]):
        assert set(own["floor"]) == {"chance", "shuffled"}
        assert own["floor"] == found["all"]["floor"]
    assert (found["random"]["n"], found["random"]["unit"]) == (5, "draw")
    assert len(found["lists"]) == 2


def test_what_luck_gives_is_said_and_few_draws_say_nothing():
    assert [by_luck(draws) for draws in (2, 19, 20, 38, 39, 40)] == [0, 0, 1 / 21, 1 / 39, 1 / 40, 2 / 41]

    def record(p, draws):
        found = {"p_random": p, "all": {"value": 0.8}, "top": {"value": 0.7}}
        return {"found": found, "settings": {"draws": draws, "share": 0.1}}

    (line,) = dimensions.answers([record(1 / 21, 20), record(0.5, 20), record(0.9, 20)])
    assert (
        "in 1 of 3 pairs of encoder and task they beat all but 5 % of random draws of as many (by luck alone in 0.1)" in line
    )
    (line,) = dimensions.answers([record(1 / 6, 5)])
    assert "with 5 random draws of as many none can be said to be better" in line


@pytest.mark.doors
def test_ranked_noise_chosen_on_validation_are_at_chance(tmp_path):
    values = []
    for seed in range(6):
        data, vectors = planted_dimensions(seed, 60, [0], strength=0.0)
        judge = Judge(data, seed)
        ranker = Ranker(judge, vectors, DimensionsSettings())
        run = ranker.probe(seed)
        top = ranker.order(ranker.attribution(run))[:6]
        predicted = ranker.retrained(run, {"top": vectors[:, top]})["top"]
        values.append(judge.figure(predicted, "test")["value"])
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


@pytest.mark.doors
def test_attribution_on_the_test_clips_is_of_them_and_said_to_bias(tmp_path):
    data, vectors = planted_dimensions(0, 40, range(4), 240)
    study, analysis = planted_study(tmp_path, {"keyword": data}, {"layer 0": vectors}), load_analysis("dimensions")
    run_analysis(study, load_analysis("layers"), LayersSettings(weighted_sum=False), False, show_progress=False)
    run, found = Ranker(Judge(data, 0), vectors, DimensionsSettings()).probe(0), {}
    for split in ("validation", "test"):
        rows = data.table.rows(split)
        ranker = Ranker(Judge(data, 0), vectors, DimensionsSettings(attribute_on=split))
        own = torch.from_numpy(vectors[rows])
        expected = integrated_gradients(run.model, own, torch.from_numpy(data.labels[rows]), run.model.mean).values
        np.testing.assert_array_equal(ranker.attribution(run).values, expected)
        settings = DimensionsSettings(draws=2, curve=[0.5], seeds=1, attribute_on=split)
        (record,) = run_analysis(study, analysis, settings, False, show_progress=False)
        found[split] = record["found"]["lists"]
        assert record["found"]["attributed_on"] == split
        assert (dimensions.BIASED in analysis.section([record])[0]) == (split == "test")
        assert f"on the {split} clips" in analysis.section([record])[0]
    assert found["validation"] != found["test"]


@pytest.mark.doors
@pytest.mark.parametrize("summary", ["absolute", "signed"])
def test_noise_that_chooses_on_the_test_clips_is_drawn_away_from_chance_both_ways(summary):
    """Mirrored at the training mean, test clips of noise are as likely and choose the same: what is won here is lost there."""
    values = []
    for seed in range(3):
        data, vectors = planted_dimensions(seed, 60, [0], strength=0.0)
        test, chosen = data.table.rows("test"), []
        run = Ranker(Judge(data, seed), vectors, DimensionsSettings()).probe(seed)
        mirrored = vectors.copy()
        mirrored[test] = 2 * run.model.mean.numpy() - vectors[test]
        for own in (vectors, mirrored):
            ranker = Ranker(Judge(data, seed), own, DimensionsSettings(attribute_on="test", summary=summary))
            chosen.append(sorted(ranker.order(ranker.attribution(run))[:6]))
            predicted = ranker.retrained(run, {"top": np.ascontiguousarray(own[:, chosen[-1]])})["top"]
            values.append(ranker.judge.figure(predicted, "test")["value"])
        assert chosen[0] == chosen[1]
    assert np.mean(values) == pytest.approx(0.5, abs=0.04)


@pytest.mark.doors
@pytest.mark.slow
def test_overlaps_of_planted_tasks():
    """20 of 200 dimensions each: 10 in common are significant, none in common are not in 90 of 100 seeds."""

    def top(seed: int, planted) -> np.ndarray:
        data, vectors = planted_dimensions(seed, 200, planted, 600)
        ranker = Ranker(Judge(data, seed), vectors, DimensionsSettings())
        return ranker.order(ranker.attribution(ranker.probe(seed)))[:20].tolist()

    assert overlap_of(top(1, range(20)), top(2, range(10, 30)), 200).p < 0.001
    apart = [overlap_of(top(2 * seed, range(20)), top(2 * seed + 1, range(100, 120)), 200).p for seed in range(100)]
    assert sum(p >= 0.05 for p in apart) >= 90


@pytest.mark.doors
def test_a_task_that_has_chosen_another_vector_is_attributed_at_the_shared_one(tmp_path):
    labels, speakers, splits, rng = clips(240, 2, 0)
    views = {f"layer {layer}": rng.standard_normal((240, 20)) for layer in range(2)}
    signs = 2 * labels[:, None] - 1
    views["layer 1"][:, :2] += 2 * signs  # both tasks have these labels; one of them is told to look at layer 0
    views["layer 0"][:, 5:7] += 2 * signs
    tasks = {name: task_of(labels, speakers, splits) for name in ("keyword", "emotion", "intent")}
    study = planted_study(tmp_path, tasks, views)
    records = {
        name: {
            "about": {"task": name, "encoder": "planted"},
            "settings": asdict(DimensionsSettings(share=0.1, seeds=2)),
            "found": {"view": view, "lists": [dimensions] * 2},
            "key": name,
        }
        for name, view, dimensions in (
            ("keyword", "layer 1", [0, 1]),
            ("emotion", "layer 0", [5, 6]),
            ("intent", "layer 1", [0, 1]),
        )
    }
    study.records["dimensions"] = records
    (cell,) = load_analysis("overlap").cells(study, None)
    found = cell.compute()
    assert (found["view"], found["kept"], found["size"]) == ("layer 1", 2, 20)
    assert [own["shared"] for own in found["pairs"]] == [2, 2, 2]
    assert found["ceilings"]["emotion"]["value"] == 1


@pytest.mark.doors
def test_planted_ranked_frames_are_those_that_a_sequence_probe_looks_at():
    labels, speakers, splits, rng = clips(240, 2, 0)
    judge = Judge(task_of(labels, speakers, splits), 0)
    frames = [rng.standard_normal((length, 30)).astype(np.float32) for length in rng.integers(4, 9, 240)]
    for frame, label in zip(frames, labels):
        frame[:, [3, 17, 20]] += 1.5 * (2 * label - 1)
    probe, predicted = fit_sequence(judge, frames, SequenceSettings(epochs=6, learning_rate=1e-2), "cpu")
    assert judge.figure(predicted, "test")["value"] > 0.9
    settings = SequenceSettings(attribute=12)
    order, found = ranked(probe, judge, frames, np.zeros(30, np.float32), settings, "cpu")
    assert set(order[:3]) == {3, 17, 20}
    assert (found["clips"], sorted(order)) == (12, list(range(30)))
    assert found["completeness_gap"] <= found["largest_gap"] <= 0.01
    assert found["incomplete"] == 0


class LinearInTime:
    """Instead of a sequence probe: the mean over time, and weights `[O, D]`, so that attributions are known."""

    def __init__(self, weights: np.ndarray):
        self.weights = torch.from_numpy(weights)

    def of(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean(dim=1) @ self.weights.T


@pytest.mark.doors
@pytest.mark.parametrize("summary", ["absolute", "signed"])
@pytest.mark.parametrize("begin", ["mean", "zero"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_frames_are_attributed_as_the_settings_say(summary, begin, split, monkeypatch):
    labels, speakers, splits, rng = clips(48, 2, 0)
    judge = Judge(task_of(labels, speakers, splits), 0)
    raw = [rng.normal(1, 2, (length, 10)) for length in rng.integers(2, 7, 48)]
    scale = Scale.of(Frames(np.concatenate(raw), [len(own) for own in raw]), judge.data.table.rows("train"))
    frames, weights = [scale.standardised(own) for own in raw], rng.standard_normal((2, 10)).astype(np.float32)
    with_cudnn = []

    def attributed(model, *inputs):
        with_cudnn.append(torch.backends.cudnn.enabled)
        return integrated_gradients(model, *inputs)

    monkeypatch.setattr("wavcse.analysis.analyses.sequence.integrated_gradients", attributed)
    settings = SequenceSettings(attribute=99, share=0.5, baseline=begin, summary=summary, attribute_on=split)
    order, found = ranked(LinearInTime(weights), judge, frames, scale.baseline(begin), settings, "cpu")
    rows = judge.data.table.rows(split)
    away = raw if begin == "zero" else [own - scale.mean for own in raw]
    of_clips = [weights[labels[row]] * away[row] / scale.deviation / len(away[row]) for row in rows]
    if summary == "absolute":
        expected = np.mean([np.abs(own).mean(axis=0) for own in of_clips], axis=0)
    else:
        expected = np.abs(np.mean([own.mean(axis=0) for own in of_clips], axis=0))
    assert order[:5].tolist() == np.argsort(-expected)[:5].tolist()
    assert found["clips"] == len(rows)
    assert with_cudnn == [False] * len(rows)  # its LSTM has no backward in eval mode
    assert torch.backends.cudnn.enabled


def study_of_order(folder, monkeypatch, num_clips: int = 144):
    """Frames of two states in one order or the other, which is the label; their mean knows nothing of it."""
    labels, speakers, splits, rng = clips(num_clips, 2, 0)
    frames = [0.5 * rng.standard_normal((8, 6)).astype(np.float32) for _ in labels]
    for frame, label in zip(frames, labels):
        frame[:4, 0] += 1 - 2 * label
        frame[4:, 0] -= 1 - 2 * label
    own = Frames(np.concatenate(frames), [len(frame) for frame in frames])
    monkeypatch.setattr("wavcse.analysis.analyses.sequence.frames_of", lambda *_: own)
    means = np.stack([frame.mean(axis=0) for frame in frames])
    study = planted_study(folder, {"keyword": task_of(labels, speakers, splits)}, {"layer 0": means})
    run_analysis(study, load_analysis("layers"), LayersSettings(weighted_sum=False), False, show_progress=False)
    return study


def test_a_label_in_the_order_of_two_states_is_found_in_ordered_frames_only(tmp_path, monkeypatch):
    study = study_of_order(tmp_path, monkeypatch)
    settings = SequenceSettings(epochs=10, learning_rate=1e-2)
    (record,) = run_analysis(study, load_analysis("sequence"), settings, False, show_progress=False)
    found = record["found"]
    assert found["sequence"]["value"] > 0.9
    assert abs(found["random_order"]["value"] - 0.5) < 0.2
    assert abs(found["linear"]["value"] - 0.5) < 0.2
    assert found["minus_random_order"][0] > 0
    assert found["minus_linear"][0] > 0
    assert load_analysis("sequence").answers([record])[0].endswith("on frames in random order in 1.")


@pytest.mark.doors
def test_a_sequence_probe_retrained_on_its_top_dimensions_keeps_what_the_bottom_has_not(tmp_path, monkeypatch):
    study, analysis = study_of_order(tmp_path, monkeypatch), load_analysis("sequence")
    settings = SequenceSettings(epochs=10, learning_rate=1e-2, attribute=8, share=0.2, curve=[0.5], draws=20)
    (record,) = run_analysis(study, analysis, settings, False, show_progress=False)
    found = record["found"]["dimensions"]
    assert (found["list"], found["kept"], found["size"]) == ([0], 1, 6)  # one of six dimensions knows the order
    assert found["top"]["value"] > 0.9
    assert abs(found["bottom"]["value"] - 0.5) < 0.2
    draws = np.array(found["random"]["values"])
    knows = np.array([np.random.default_rng(study.seed).permutation(6)[:1][0]])  # the first draw is of the study's seed
    assert (draws[0] > 0.9) == (knows[0] == 0)
    assert 0 < np.mean(draws > 0.9) < 0.6
    assert found["p_random"] == (1 + np.sum(draws >= found["top"]["value"])) / 21
    assert found["pca"]["value"] > 0.8  # two states far apart are where frames vary most
    assert [(own["share"], own["kept"]) for own in found["curve"]] == [(0.5, 3)]
    assert found["curve"][0]["value"] > 0.9
    text = "\n".join(analysis.section([record]))
    assert "| keyword | planted | 1 of 6 |" in text
    assert "pictures/sequence_dimensions_keyword.png" in text
    drawn = analysis.drawings([record])["sequence_dimensions_keyword"]([record])
    assert drawn.axes[0].get_title() == "keyword"


def test_principal_components_of_frames_are_those_of_the_training_clips():
    rng = np.random.default_rng(0)
    frames, train = [rng.standard_normal((length, 7)).astype(np.float32) for length in (3, 9, 4, 6)], np.array([1, 3])
    expected = PCA(2, svd_solver="full").fit(np.concatenate([frames[1], frames[3]]))
    for own, frame in zip(part_of_frames(frames, 2, train), frames):
        np.testing.assert_allclose(np.abs(own), np.abs(expected.transform(frame)), atol=1e-5)
    for own, frame in zip(part_of_frames(frames, np.array([1, 4]), train), frames):
        np.testing.assert_array_equal(own, frame[:, [1, 4]])


@pytest.mark.doors
def test_a_report_says_how_frames_were_attributed_and_where_that_is_not_complete(tmp_path, monkeypatch):
    study, analysis = study_of_order(tmp_path, monkeypatch), load_analysis("sequence")
    authors = SequenceSettings(epochs=1, attribute=3, baseline="zero", summary="signed", attribute_on="test")
    records = run_analysis(study, analysis, authors, False, show_progress=False)
    text = "\n".join(analysis.section(records))
    assert "from the baseline `zero`, on test clips, summed up by the signed mean, as the authors do." in text
    assert dimensions.BIASED in text
    assert "Not complete" not in text
    records[0]["found"]["dimensions"] |= {"largest_gap": 0.034, "incomplete": 1}
    text = "\n".join(analysis.section(records))
    assert "| 3.4 % |" in text
    assert "**Not complete**, a gap above 1 % with the most steps: planted on keyword (1 of 3 clips)." in text
    (record,) = run_analysis(study, analysis, SequenceSettings(epochs=1, attribute=3), False, show_progress=False)
    text = "\n".join(analysis.section([record]))
    assert "from the baseline `mean`, on validation clips, summed up by the mean of absolutes." in text
    assert dimensions.BIASED not in text


# ---- cells on several cores ----


def places(study, name: str, is_timed: bool) -> list[dict]:
    """The records of an analysis of four cells that say which process has computed them."""

    def cells(study, settings):
        return [Cell(f"{number}", {"cell": f"{number}"}, number, lambda: {"process": os.getpid()}) for number in range(4)]

    nothing = (lambda records: [], lambda records: [], lambda records: {})
    return run_analysis(study, Analysis(name, "", LayersSettings, cells, *nothing, is_timed=is_timed), LayersSettings(), False)


def test_two_workers_find_what_one_finds_and_what_is_timed_has_none(tmp_path):
    labels, speakers, splits, rng = clips(144, 3, 0)
    views = {f"layer {layer}": rng.standard_normal((144, 12)) for layer in range(2)}
    tasks = {"keyword": task_of(labels, speakers, splits), "emotion": task_of(labels[::-1].copy(), speakers, splits)}
    found = []
    for workers in (1, 2):
        study = replace(planted_study(tmp_path / str(workers), tasks, views), workers=workers)
        own = run_analysis(study, load_analysis("layers"), LayersSettings(), False, show_progress=False)
        found.append([(record["about"], record["found"], record["key"]) for record in own])
    assert found[0] == found[1]
    assert [about["task"] for about, *_ in found[0]] == ["keyword", "emotion"]
    assert os.getpid() not in {record["found"]["process"] for record in places(study, "shared", is_timed=False)}
    assert {record["found"]["process"] for record in places(study, "timed", is_timed=True)} == {os.getpid()}


def test_a_worker_that_is_killed_costs_its_own_cells_only(tmp_path, monkeypatch):
    labels, speakers, splits, rng = clips(144, 3, 0)
    tasks = {name: task_of(labels, speakers, splits) for name in ("keyword", "emotion", "intent")}
    study = replace(planted_study(tmp_path, tasks, {"layer 0": rng.standard_normal((144, 12))}), workers=2)

    def found_or_die(study, encoder, task, settings):
        if task == "intent":
            while not (tmp_path / "records/layers/keyword__planted.json").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return {"task": task}

    with monkeypatch.context() as patch:
        patch.setattr("wavcse.analysis.analyses.layers.probe_views", found_or_die)
        with pytest.raises(WorkerDied, match=r"died \(SIGKILL\).*, in one of the cells of layers: .*intent__planted"):
            run_analysis(study, load_analysis("layers"), LayersSettings(), False, show_progress=False)
    kept = {path.stem for path in (tmp_path / "records/layers").glob("*.json")}
    assert kept >= {"keyword__planted"}
    assert "intent__planted" not in kept


def test_vectors_stand_at_the_numbers_of_their_layers_in_a_picture():
    views = ["layer 0", "layer 4", "embedding", "layer 0", "layer 2", "statistics"]
    assert layers_places(views) == {"0": 0, "2": 2, "4": 4, "embedding": 5, "statistics": 6}
