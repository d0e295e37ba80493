"""Objectives against second implementations, and probes of numbers: they find what is planted, choose on validation only."""

from __future__ import annotations

from dataclasses import replace

import audmetric
import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from wavcse.data.composite import TaskClips
from wavcse.data.manifest import Clip
from wavcse.eval.probe import (
    AbsoluteErrorObjective,
    ClassObjective,
    ConcordanceObjective,
    LabelledEmbeddings,
    ProbeSettings,
    fit_probe,
    objective_for,
    probe_outcomes,
)
from wavcse.eval.task import TaskData
from wavcse.eval.tasks import TASKS
from wavcse.modeling_wavcse import concordance

SIZE = 12
RATINGS = ConcordanceObjective(3, (1.0, 5.0))
QUICK = ProbeSettings((1e-2,), max_epochs=40)


def planted(num_clips: int, seed: int, noise: float = 0.1) -> LabelledEmbeddings:
    """Three ratings that are linear in the embedding, around 3 on a scale from 1 to 5."""
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((num_clips, SIZE)).astype(np.float32)
    weights = np.random.default_rng(99).standard_normal((SIZE, 3)) / SIZE**0.5
    ratings = 3 + 0.6 * embeddings @ weights + noise * rng.standard_normal((num_clips, 3))
    return LabelledEmbeddings(embeddings, ratings.astype(np.float32))


def test_concordance_equals_a_second_implementation():
    rng = np.random.default_rng(0)
    x, y = rng.normal(2, 1, (64, 3)), rng.normal(2.5, 2, (64, 3))
    y[:, 1] = x[:, 1] + 0.3
    y[:, 2] = -x[:, 2]
    found = concordance(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    expected = [audmetric.concordance_cc(x[:, target], y[:, target]) for target in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found[1] == pytest.approx(2 * x[:, 1].var() / (2 * x[:, 1].var() + 0.09))


def test_concordance_of_constants_is_zero_and_its_gradient_finite():
    outputs = torch.full((8, 2), 0.5, requires_grad=True)
    labels = torch.stack([torch.full((8,), 0.5), torch.linspace(0, 1, 8)], dim=1)
    loss = 1 - concordance(outputs, labels).mean()
    loss.backward()
    assert loss.item() == 1
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("objective", [RATINGS, AbsoluteErrorObjective(np.array([[20.0], [41.0], [30.0]]))])
def test_gradients_are_those_of_finite_differences(objective):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.rand(16, objective.num_outputs, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = 1 + 4 * torch.rand(16, objective.num_outputs, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: objective.loss(x, labels), (outputs,))


def test_the_loss_on_the_unit_scale_is_that_of_the_ratings():
    outputs, ratings = torch.rand(32, 3), 1 + 4 * torch.rand(32, 3)
    predicted = RATINGS.predict(outputs)
    expected = [audmetric.concordance_cc(ratings[:, t].numpy(), predicted[:, t].numpy()) for t in range(3)]
    assert RATINGS.loss(outputs, ratings).item() == pytest.approx(1 - np.mean(expected), abs=1e-5)
    assert RATINGS.figure(predicted, ratings) == pytest.approx(np.mean(expected), abs=1e-5)


def test_errors_are_in_the_unit_of_the_labels():
    ages = np.array([[20.0], [30.0], [70.0]], dtype=np.float32)
    objective = AbsoluteErrorObjective(ages)
    standardised = torch.from_numpy((ages - ages.mean()) / ages.std())
    np.testing.assert_allclose(objective.predict(standardised).numpy(), ages, rtol=1e-6)
    assert objective.loss(standardised, torch.from_numpy(ages)).item() == pytest.approx(0, abs=1e-6)
    assert objective.figure(torch.tensor([[25.0], [30.0], [65.0]]), torch.from_numpy(ages)) == pytest.approx(10 / 3)


def test_planted_ratings_are_found_on_their_own_scale():
    train, validation, test = (planted(400, seed) for seed in range(3))
    run = fit_probe(train, validation, test.embeddings, RATINGS, settings=QUICK)
    found = [audmetric.concordance_cc(test.labels[:, t], run.predictions[:, t]) for t in range(3)]
    assert min(found) > 0.9
    assert run.validation > 0.9
    np.testing.assert_allclose(run.predictions.mean(axis=0), test.labels.mean(axis=0), atol=0.1)


def test_planted_ages_are_found_in_years():
    parts = [planted(400, seed) for seed in range(3)]
    parts = [LabelledEmbeddings(part.embeddings, 10 * part.labels[:, :1]) for part in parts]
    objective = AbsoluteErrorObjective(parts[0].labels)
    run = fit_probe(parts[0], parts[1], parts[2].embeddings, objective, settings=QUICK)
    assert run.validation == pytest.approx(0.8, abs=0.25)  # mean |noise| of 1 year
    assert np.abs(run.predictions - parts[2].labels).mean() < 1.1
    spread = np.abs(parts[2].labels - np.median(parts[0].labels)).mean()
    assert spread > 3


def test_nothing_is_found_where_nothing_is():
    train, validation, test = (planted(500, seed) for seed in range(3))
    mixed = [replace(part, labels=np.random.default_rng(5).permutation(part.labels)) for part in (train, validation)]
    run = fit_probe(*mixed, test.embeddings, RATINGS, settings=QUICK)
    assert abs(np.mean([audmetric.concordance_cc(test.labels[:, t], run.predictions[:, t]) for t in range(3)])) < 0.1


def test_the_validation_error_chooses_the_smaller_one():
    parts = [planted(300, seed) for seed in range(3)]
    parts = [LabelledEmbeddings(part.embeddings, 10 * part.labels[:, :1]) for part in parts]
    objective = AbsoluteErrorObjective(parts[0].labels)
    run = fit_probe(parts[0], parts[1], parts[2].embeddings, objective, settings=ProbeSettings((1e-12, 1e-2)))
    assert run.learning_rate == 1e-2


def test_without_dimensions_the_best_constants_are_predicted():
    labels = np.array([[1.0, 2, 3], [2, 2, 5], [6, 2, 4]], dtype=np.float32)
    empty = LabelledEmbeddings(np.empty((3, 0), np.float32), labels)
    ratings = fit_probe(empty, empty, np.empty((2, 0), np.float32), RATINGS)
    np.testing.assert_allclose(ratings.predictions, [[3, 2, 4]] * 2)
    assert ratings.validation == 0
    ages = LabelledEmbeddings(empty.embeddings, labels[:, :1])
    median = fit_probe(ages, ages, np.empty((2, 0), np.float32), AbsoluteErrorObjective(ages.labels))
    np.testing.assert_array_equal(median.predictions, [[2], [2]])
    assert median.validation == pytest.approx(5 / 3)


def affect_task(parts: list[LabelledEmbeddings]) -> TaskData:
    splits = np.repeat(np.array(["train", "validation", "test"], dtype=object), [len(part.labels) for part in parts])
    speakers = np.array([f"{split}{number % 8}" for number, split in enumerate(splits)], dtype=object)
    clips = [Clip(f"{number}.wav", None) for number in range(len(splits))]
    values = np.concatenate([part.labels for part in parts])
    table = TaskClips("affect", clips, values[:, 0].astype(str).astype(object), splits, speakers, [])
    return TaskData(TASKS["affect"], table, [], values)


@pytest.mark.usefixtures("quick_probes")
def test_one_layer_serves_all_targets_and_gives_a_row_for_each():
    parts = [planted(200, seed) for seed in range(3)]
    data = affect_task(parts)
    embeddings = np.concatenate([part.embeddings for part in parts])
    outcomes = probe_outcomes(embeddings, data, seeds=(0, 1))
    assert [outcome.target for outcome in outcomes] == ["valence", "activation", "dominance"]
    for place, outcome in enumerate(outcomes):
        found, interval = outcome.measured(("ccc",), seed=0)
        figure = found["ccc"]
        expected = [audmetric.concordance_cc(parts[2].labels[:, place], run) for run in outcome.runs]
        assert figure.value == pytest.approx(np.mean(expected), abs=1e-5)
        assert figure.interval[0] < figure.value < figure.interval[1]
        assert (outcome.unit, interval.units) == ("speaker", 8)
        assert len(outcome.figures["scatter"]["true"]) == 200
    assert outcomes[0].probe.runs[0]["validation_ccc"] == outcomes[2].probe.runs[0]["validation_ccc"]


@pytest.mark.usefixtures("quick_probes")
def test_validation_chooses_among_candidates_and_the_test_split_has_no_say():
    parts = [planted(80, seed) for seed in range(3)]
    data = affect_task(parts)
    useful = np.concatenate([part.embeddings for part in parts])
    useless = np.random.default_rng(7).standard_normal(useful.shape).astype(np.float32)
    ideal_for_test = useless.copy()
    ideal_for_test[160:, :3] = parts[2].labels  # says all of the test clips, nothing of the others
    candidates = np.concatenate([useless, useful, ideal_for_test], axis=1)
    chosen = probe_outcomes(candidates, data, seeds=(0,), num_candidates=3)
    alone = probe_outcomes(useful, data, seeds=(0,))
    assert chosen[0].probe.candidate == 1
    assert alone[0].probe.candidate is None
    np.testing.assert_array_equal(chosen[1].runs[0], alone[1].runs[0])


def test_the_objective_follows_from_kind_and_metric():
    data = affect_task([planted(10, seed) for seed in range(3)])
    assert isinstance(objective_for(data), ConcordanceObjective)
    ages = replace(data, task=TASKS["age"], values=data.values[:, :1])
    assert isinstance(objective_for(ages), AbsoluteErrorObjective)
    table = replace(data.table, classes=sorted(set(data.table.labels)))
    classes = objective_for(replace(data, task=TASKS["gender"], table=table, values=None))
    assert isinstance(classes, ClassObjective)
    assert classes.num_outputs == 30


def test_epsilon_does_not_move_a_concordance():
    exact = multivariate_normal([0.5, 0.5], [[0.04, 0.02], [0.02, 0.04]]).rvs(20_000, random_state=0)
    found = concordance(torch.from_numpy(exact[:, :1]), torch.from_numpy(exact[:, 1:])).item()
    assert found == pytest.approx(0.5, abs=0.02)  # 2 * 0.02 / (0.04 + 0.04)
