"""The linear probe: finds what is there, finds nothing where nothing is, repeats itself, never sees a test label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wavcse.eval.probe import ClassObjective, LabelledEmbeddings, ProbeSettings, fit_probe

NUM_CLASSES, SIZE = 4, 16
CLASSES = ClassObjective(NUM_CLASSES)
QUICK = ProbeSettings((1e-2, 2.5e-3), max_epochs=30)


def gaussians(num_clips: int, seed: int, offset: float = 3.0) -> LabelledEmbeddings:
    """Classes that are unit Gaussians, `offset` away from the origin along axes of their own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, num_clips)
    embeddings = rng.standard_normal((num_clips, SIZE)) + offset * np.eye(SIZE)[labels]
    return LabelledEmbeddings(embeddings.astype(np.float32), labels)


def shuffled(part: LabelledEmbeddings) -> LabelledEmbeddings:
    return LabelledEmbeddings(part.embeddings, np.random.default_rng(9).permutation(part.labels))


def test_separates_planted_classes():
    train, validation, test = (gaussians(400, seed, offset=4.0) for seed in range(3))
    run = fit_probe(train, validation, test.embeddings, CLASSES)
    assert (run.predictions == test.labels).mean() > 0.97
    assert run.validation > 0.97
    assert run.learning_rate in ProbeSettings().learning_rates


def test_is_at_chance_on_shuffled_labels():
    train, validation, test = (gaussians(600, seed) for seed in range(3))
    run = fit_probe(shuffled(train), shuffled(validation), test.embeddings, CLASSES, settings=QUICK)
    assert (run.predictions == shuffled(test).labels).mean() == pytest.approx(1 / NUM_CLASSES, abs=0.06)


def test_same_seed_same_predictions_and_the_global_random_state_is_left_alone():
    train, validation, test = (gaussians(200, seed, offset=0.7) for seed in range(3))
    state = torch.get_rng_state()
    first = fit_probe(train, validation, test.embeddings, CLASSES, seed=1, settings=QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = fit_probe(train, validation, test.embeddings, CLASSES, seed=1, settings=QUICK)
    other = fit_probe(train, validation, test.embeddings, CLASSES, seed=2, settings=QUICK)
    np.testing.assert_array_equal(first.predictions, again.predictions)
    assert first.validation == again.validation
    assert (first.predictions != other.predictions).any()


def test_test_clips_do_not_influence_each_other():
    train, validation, test = (gaussians(200, seed, offset=0.7) for seed in range(3))
    whole = fit_probe(train, validation, test.embeddings, CLASSES, settings=QUICK).predictions
    half = fit_probe(train, validation, test.embeddings[::2], CLASSES, settings=QUICK).predictions
    np.testing.assert_array_equal(whole[::2], half)


def test_scale_offset_and_constant_dimensions_do_not_matter():
    parts = [gaussians(300, seed, offset=4.0) for seed in range(3)]
    rescaled = [LabelledEmbeddings(1e-4 * part.embeddings + 0.05, part.labels) for part in parts]
    for part in rescaled:
        part.embeddings[:, -1] = 7.0
    run = fit_probe(rescaled[0], rescaled[1], rescaled[2].embeddings, CLASSES, settings=QUICK)
    assert (run.predictions == parts[2].labels).mean() > 0.95


def test_choices_are_made_on_validation():
    train, validation, test = (gaussians(300, seed) for seed in range(3))
    useless, useful = 1e-12, 1e-2
    run = fit_probe(train, validation, test.embeddings, CLASSES, settings=ProbeSettings((useless, useful)))
    assert run.learning_rate == useful
    assert 1 <= run.epoch <= ProbeSettings().max_epochs


def test_first_step_follows_the_stated_loss():
    # One batch, one epoch: AdamW's first step moves every parameter by lr against the sign of its gradient, where the
    # gradient is that of cross-entropy + L1 + L2. With huge penalties the sign is that of the parameter.
    train = gaussians(64, 0)
    settings = ProbeSettings((0.05,), min_steps_per_epoch=1, max_epochs=1, l1=1e3, l2=1e3, weight_decay=0.0)
    torch.manual_seed(5)
    linear = torch.nn.Linear(SIZE, NUM_CLASSES)
    standardised = (train.embeddings - train.embeddings.mean(axis=0)) / train.embeddings.std(axis=0)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.sub_(0.05 * parameter.sign())
        expected = linear(torch.from_numpy(standardised)).argmax(dim=1).numpy()
    run = fit_probe(train, train, train.embeddings, CLASSES, seed=5, settings=settings)
    np.testing.assert_array_equal(run.predictions, expected)


def test_without_dimensions_the_most_frequent_training_label_is_predicted():
    train = LabelledEmbeddings(np.empty((5, 0), np.float32), np.array([2, 1, 1, 2, 1]))
    validation = LabelledEmbeddings(np.empty((4, 0), np.float32), np.array([1, 2, 2, 2]))
    run = fit_probe(train, validation, np.empty((3, 0), np.float32), ClassObjective(3))
    np.testing.assert_array_equal(run.predictions, [1, 1, 1])
    assert (run.validation, run.learning_rate, run.epoch) == (0.25, None, None)


def test_a_run_keeps_what_it_predicted_with():
    train, validation, test = (gaussians(200, seed, offset=0.7) for seed in range(3))
    run = fit_probe(train, validation, test.embeddings, CLASSES, settings=QUICK)
    with torch.no_grad():
        outputs = [run.model(torch.from_numpy(part.embeddings)).argmax(dim=1).numpy() for part in (validation, test)]
    assert (outputs[0] == validation.labels).mean() == pytest.approx(run.validation)
    np.testing.assert_array_equal(outputs[1], run.predictions)


def test_another_head_is_trained_by_the_same_rules():
    """A head that looks at the second of two vectors per clip, of which the first is noise."""

    class Second(torch.nn.Linear):
        def forward(self, pairs):
            return super().forward(pairs[:, 1])

    parts = [gaussians(200, seed, offset=4.0) for seed in range(3)]
    noise = np.random.default_rng(7).standard_normal((200, SIZE)).astype(np.float32)
    pairs = [LabelledEmbeddings(np.stack([noise, part.embeddings], axis=1), part.labels) for part in parts]
    run = fit_probe(pairs[0], pairs[1], pairs[2].embeddings, CLASSES, settings=QUICK, head=Second)
    plain = fit_probe(parts[0], parts[1], parts[2].embeddings, CLASSES, settings=QUICK)
    np.testing.assert_array_equal(run.predictions, plain.predictions)
