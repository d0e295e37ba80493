"""Additive angular margins: cases worked by hand, margins in training alone, folders, what is refused."""

import json
import math

import pytest
import torch

from wavcse import WavCSEConfig, WavCSEForMultiTask
from wavcse.modeling_wavcse import CosineHead, WavCSEHeads, cross_entropy_per_task

SPEAKER = {"labels": ["a", "b", "c"], "loss": "aam_softmax"}
TASKS = {"speaker": SPEAKER, "keyword": {"labels": ["yes", "no"]}}


def head_of(scale: float = 30.0, margin: float = 0.2) -> CosineHead:
    """Classes in the directions of 0, 90 and 180 degrees, at lengths that must not matter."""
    head = CosineHead(2, 3, scale, margin)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.1], [-5.0, 0.0]]))
    return head


def at(degrees: float, length: float = 3.0) -> torch.Tensor:
    angle = math.radians(degrees)
    return torch.tensor([[length * math.cos(angle), length * math.sin(angle)]])


def test_logits_are_scaled_cosines():
    logits = head_of(scale=10.0)(at(60))
    torch.testing.assert_close(logits, torch.tensor([[5.0, 10 * math.sqrt(3) / 2, -5.0]]))
    torch.testing.assert_close(head_of(scale=10.0)(at(60, length=0.01)), logits)


def test_a_margin_worked_by_hand():
    head = head_of(scale=10.0, margin=0.2)
    logits = head.with_margin(head(at(60)), torch.tensor([0]))
    expected = torch.tensor([[10 * math.cos(math.pi / 3 + 0.2), 10 * math.sqrt(3) / 2, -5.0]])
    torch.testing.assert_close(logits, expected)
    losses = cross_entropy_per_task({"t": head(at(60))}, {"t": torch.tensor([0])}, margins={"t": head})
    by_hand = -math.log(math.exp(expected[0, 0]) / sum(math.exp(one) for one in expected[0]))
    assert losses["t"].item() == pytest.approx(by_hand, rel=1e-5)


def test_beyond_half_a_turn_a_smaller_angle_is_still_better():
    head, own = head_of(scale=1.0, margin=0.5), torch.tensor([0])
    angles = torch.linspace(0, 180, 181)
    logits = torch.stack([head.with_margin(head(at(angle.item())), own)[0, 0] for angle in angles])
    assert (logits.diff() < 0).all()
    assert logits[180].item() == pytest.approx(-1 - 0.5 * math.sin(0.5), abs=1e-4)
    assert logits[90].item() == pytest.approx(math.cos(math.pi / 2 + 0.5), abs=1e-5)


def test_clips_without_a_label_and_without_a_direction_are_safe():
    head = head_of()
    embeddings = torch.cat([at(10), torch.zeros(1, 2), at(0)]).requires_grad_()
    labels = torch.tensor([-100, 1, 0])
    assert torch.equal(head.with_margin(head(at(10)), labels[:1]), head(at(10)))
    cross_entropy_per_task({"t": head(embeddings)}, {"t": labels}, margins={"t": head})["t"].backward()
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


def test_the_margin_counts_in_training_alone(tiny_config):
    config = tiny_config(tasks=TASKS, embedding_dropout=0.0)
    heads = WavCSEHeads(config)
    assert list(heads.margins) == ["speaker"]
    assert heads.eval().margins == {}
    assert (heads.tasks["speaker"].scale, heads.tasks["speaker"].margin, heads.tasks["speaker"].bias) == (30.0, 0.2, None)
    model = WavCSEForMultiTask(config)
    logits, labels = model.heads(torch.randn(4, 20)), {"speaker": torch.tensor([0, 1, 2, 0])}
    easier = model.eval().loss(logits, labels)
    assert model.train().loss(logits, labels) > easier + 0.5


def test_a_saved_head_keeps_its_scale(tiny_config, tmp_path):
    torch.manual_seed(0)
    model = WavCSEForMultiTask(tiny_config(tasks={**TASKS, "speaker": {**SPEAKER, "scale": 12, "margin": 0.3}})).eval()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["tasks"]
    assert (saved["speaker"]["scale"], saved["speaker"]["margin"]) == (12.0, 0.3)
    assert "loss" not in saved["keyword"]
    embeddings = torch.randn(5, 20)
    loaded = WavCSEForMultiTask.from_pretrained(tmp_path)
    assert torch.equal(loaded.heads(embeddings)["speaker"], model.heads(embeddings)["speaker"])
    expected = 12 * torch.cosine_similarity(embeddings[:, None], model.heads.tasks["speaker"].weight[None], dim=2)
    torch.testing.assert_close(loaded.heads(embeddings)["speaker"], expected)
    plain = {**TASKS, "speaker": {"labels": SPEAKER["labels"]}}
    with pytest.raises(ValueError, match=r"tasks\['speaker'\]\['loss'\] or its scale is not what the head"):
        WavCSEForMultiTask.from_pretrained(tmp_path, tasks=plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "arcface"}, r"tasks\['t'\]\['loss'\] is 'arcface'; allowed: 'cross_entropy', 'aam_softmax'"),
        ({"scale": 0}, r"tasks\['t'\]\['scale'\] is 0; it must be a number from 1 to 1000"),
        ({"margin": "wide"}, r"tasks\['t'\]\['margin'\] is 'wide'"),
        ({"loss": "cross_entropy", "margin": 0.1}, r"tasks\['t'\]\['margin'\] is given, but it belongs to loss aam_softmax"),
    ],
)
def test_what_a_loss_cannot_be_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        WavCSEConfig(tasks={"t": {**SPEAKER, **changes}})
