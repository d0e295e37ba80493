"""Probes that are fitted together are those that are fitted one by one."""

import numpy as np
import pytest

from wavcse.eval import probe_stack
from wavcse.eval.probe import ProbeSettings, fit_on_task, objective_for
from wavcse.eval.probe_stack import fit_all
from wavcse.tests.helpers.planted_study import planted_task


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    labels, speakers = rng.integers(0, 3, 150), rng.integers(0, 12, 150)
    splits = np.array(["train"] * 7 + ["validation"] * 3 + ["test"] * 2)[speakers]
    return planted_task([f"word{own}" for own in labels], [f"speaker{own}" for own in speakers], splits)


def vectors_of(task, sizes):
    rng = np.random.default_rng(1)
    found = {}
    for name, (size, strength) in sizes.items():
        own = 5 * rng.standard_normal((150, size)) + 40
        own[:, :3] += strength * np.eye(3)[task.labels]
        found[name] = own.astype(np.float32)
    return found


def test_together_they_are_what_each_is_alone(task):
    vectors = vectors_of(task, {"noise": (20, 0), "weak": (20, 5), "other": (8, 3), "strong": (20, 25)})
    settings = ProbeSettings(learning_rates=(3e-2, 1e-2, 5e-4), max_epochs=40, patience=4)
    together = fit_all(vectors, task, objective_for(task), 5, settings)
    assert list(together) == list(vectors)
    epochs = set()
    for name, own in vectors.items():
        alone, found = fit_on_task(own, task, objective_for(task), 5, settings=settings), together[name]
        chosen = (alone.validation, alone.learning_rate, alone.epoch)
        assert (found.validation, found.learning_rate, found.epoch) == pytest.approx(chosen)
        np.testing.assert_array_equal(found.predictions, alone.predictions)
        for one, other in zip(found.model.head.parameters(), alone.model.head.parameters()):
            np.testing.assert_allclose(one.detach(), other.detach(), atol=1e-5)
        np.testing.assert_array_equal(found.model.mean, alone.model.mean)
        np.testing.assert_array_equal(found.model.scale, alone.model.scale)
        epochs.add(found.epoch)
    assert len(epochs) > 1  # they have stopped at different times


def test_what_does_not_fit_into_memory_at_once_is_the_same(task, monkeypatch):
    vectors = vectors_of(task, {"a": (6, 5), "b": (6, 9), "c": (6, 2)})
    settings = ProbeSettings(learning_rates=(1e-2,), max_epochs=6)
    whole = fit_all(vectors, task, objective_for(task), settings=settings)
    monkeypatch.setattr(probe_stack, "MOST_NUMBERS", 2 * 150 * 6)
    for name, own in fit_all(vectors, task, objective_for(task), settings=settings).items():
        np.testing.assert_allclose(own.model.head.weight.detach(), whole[name].model.head.weight.detach(), atol=1e-6)


def test_one_that_diverges_is_refused_and_takes_no_other_with_it(task):
    vectors = vectors_of(task, {"good": (6, 9), "bad": (6, 9)})
    settings = ProbeSettings(learning_rates=(1e-2,), max_epochs=6)
    alone = fit_all({"good": vectors["good"]}, task, objective_for(task), settings=settings)["good"]
    vectors["bad"][task.table.rows("train")[0], 0] = np.nan
    with pytest.raises(ValueError, match="keyword: the probe diverged with every learning rate"):
        fit_all(vectors, task, objective_for(task), settings=settings)
    assert alone.validation > 0.5
