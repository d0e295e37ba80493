"""PEFT's LoRA on the upstreams: adapters that train, and a warning where they do not. With the real library."""

import numpy as np
import pytest
import soundfile
import torch

from wavcse import WavCSEConfig, WavCSEForMultiTask
from wavcse.doors.peft import lora_config, lora_targets
from wavcse.tests.helpers.door_pages import link_root, run_first_block
from wavcse.tests.root.test_families import ROWS

pytestmark = pytest.mark.doors

TASKS = {"word": {"labels": ["yes", "no"]}}
FAMILIES = {family: fields for family, fields in ROWS.values() if "adapter_attn_dim" not in fields}  # the last row of each


def make_model(family: str) -> WavCSEForMultiTask:
    torch.manual_seed(0)
    sizes = {"selected_layers": [0, 1, 3], "layer_projection_size": 8, "embedding_size": 20}
    return WavCSEForMultiTask(WavCSEConfig({"model_type": family, **FAMILIES[family]}, tasks=TASKS, **sizes))


def train(model, steps: int = 2) -> dict[str, float | None]:
    """Gradient norms of the adapters in the last step."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_values=torch.randn(2, 4_000), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    named = {name: p.grad for name, p in model.named_parameters() if "lora_" in name}
    return {name: None if grad is None else grad.norm().item() for name, grad in named.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_is_trained_saved_and_merged(family, log, tmp_path):
    peft = pytest.importorskip("peft")
    base = make_model(family)
    clip = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    untrained = base.predict(clip)[0]["score"]
    adapted = peft.get_peft_model(base, lora_config(base.config, r=2))
    norms = train(adapted)
    reached = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in norms}
    assert reached == set(lora_targets(base.config))
    assert len(norms) >= 2 * len(reached) * base.config.num_hidden_layers
    assert all(norm for norm in norms.values())
    assert "require gradients" not in log.text
    expected = adapted.eval().predict(clip)
    assert abs(expected[0]["score"] - untrained) > 1e-4
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(make_model(family), tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = WavCSEForMultiTask.from_pretrained(tmp_path / "merged")
    for found in (loaded.predict(clip), merged.predict(clip)):
        assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
        assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)


def test_adapters_on_wavlms_attention_warn(log):
    peft = pytest.importorskip("peft")
    base = make_model("wavlm")
    norms = train(peft.get_peft_model(base, lora_config(base.config, target_modules=["q_proj", "v_proj"])))
    assert norms
    assert not any(norms.values())
    assert "parameters that require gradients got none in the first training step" in log.text
    assert "Choose intermediate_dense and output_dense." in log.text


def test_the_page_runs(monkeypatch, tmp_path, waves):
    """docs/doors/peft.md, in a folder like the root."""
    pytest.importorskip("peft")
    link_root(tmp_path)
    clips = waves(16_000, 12_000)
    for name, wave in zip(("yes.wav", "no.wav"), clips):
        soundfile.write(tmp_path / name, wave, 16_000)
    monkeypatch.chdir(tmp_path)
    run_first_block("peft.md")
    found = WavCSEForMultiTask.from_pretrained("words").predict(clips[0])
    assert {entry["label"] for entry in found} == {"yes", "no"}
