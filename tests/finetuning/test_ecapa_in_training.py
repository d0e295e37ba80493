"""ECAPA-TDNN among several tasks: its batch norms see the clips of a whole batch, whatever lengths they have."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import WavLMConfig

from wavcse.ecapa_wavcse import mirrored
from wavcse.finetuned_wavcse import FinetunedWavCSE, FinetunedWavCSEConfig
from wavcse.finetuning.arguments import MultiTaskArguments
from wavcse.finetuning.multi_task import finetune_tasks

SIZES = {"channels": 8, "aggregated_channels": 12, "embedding_size": 5}


def test_the_norms_see_all_groups_of_a_batch(tasks_recipe):
    """A group of one clip beside others: running figures are those of all clips; outside of training every clip is alone."""
    voice = {"kind": "classes", "labels": ["a", "b"], "tap": 1, "pooling": "ecapa", "ecapa": SIZES}
    encoder = WavLMConfig(**tasks_recipe["encoder"], num_feat_extract_layers=2)
    torch.manual_seed(0)
    model = FinetunedWavCSE(FinetunedWavCSEConfig(readouts={"voice": voice}, upstream_config=encoder, selected_layers=[1]))
    readout, groups = model.readouts["voice"], [{1: torch.randn(1, 9, 32)}, {1: torch.randn(3, 6, 32)}]
    first = copy.deepcopy(readout.pooling.first)
    readout.train().over_groups(groups)
    rectified = torch.cat([F.relu(first.conv(mirrored(layers[1].mT, 2, None))).mT.flatten(0, 1) for layers in groups])
    torch.testing.assert_close(readout.pooling.first.norm.running_mean, 0.1 * rectified.mean(dim=0))
    with torch.no_grad():
        together, apart = readout.eval().over_groups(groups), [readout(layers) for layers in groups]
    torch.testing.assert_close(together.vectors, torch.cat([one.vectors for one in apart]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in apart]), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_joint_training_takes_batches_of_one_clip(tasks_recipe, tmp_path):
    """Of so few seconds that a batch has one or two clips, each with its length."""
    pytest.importorskip("jiwer")
    voice = {**tasks_recipe["tasks"]["voice"], "pooling": "ecapa", "ecapa": SIZES}
    recipe = {**tasks_recipe, "tasks": {**tasks_recipe["tasks"], "voice": voice}, "max_steps": 6, "validate_every": 6}
    recipe["streams"] = {"both": {"tasks": ["speech", "voice"], "batch_seconds": 1.6}}
    finetune_tasks(MultiTaskArguments(**recipe, output_dir=str(tmp_path)), show_progress=False)
    (entry,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert math.isfinite(entry["voice.train_loss"])
    assert entry["skipped_steps"] == 0
