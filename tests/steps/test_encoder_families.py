"""WavLM, wav2vec2 and HuBERT in training, base and large shape: against plain transformers, saved, loaded, resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModel, HubertConfig, Wav2Vec2Config, WavLMConfig

from wavcse import WavCSEModel
from wavcse.data.inspection import Inspector
from wavcse.eval.task import load_task
from wavcse.feature_extraction_wavcse import normalized
from wavcse.finetuning import loop
from wavcse.finetuning.arguments import FinetuneArguments
from wavcse.finetuning.audio import load_audio
from wavcse.finetuning.losses import MultiTaskNetwork, TaskFigures, weighted_sum
from wavcse.finetuning.program import finetune
from wavcse.finetuning.streams import TaskBatch
from wavcse.finetuning.training import TASK, new_classifier
from wavcse.pretrain_accelerate import pretrain
from wavcse.pretraining.arguments import PretrainArguments
from wavcse.pretraining.network import Figures, PretrainNetwork, total_loss
from wavcse.steps.batches import BatchLoader, CropBatch, Group, encode_groups
from wavcse.steps.encoder import encoder_config, new_encoder, save_upstream
from wavcse.steps.fast_encoder import takes_packs
from wavcse.steps.loop import new_learner, update

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    **dict.fromkeys(["hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"], 0.0),
}
CONFIGS = {"wavlm": WavLMConfig, "wav2vec2": Wav2Vec2Config, "hubert": HubertConfig}
SHAPES = [(family, norm) for family in CONFIGS for norm in ("group", "layer")]
every_shape = pytest.mark.parametrize(("family", "norm"), SHAPES, ids=[f"{family}-{norm}" for family, norm in SHAPES])


def fields_of(family: str, norm: str) -> dict:
    """A recipe's `encoder:`; without `feat_extract_norm` and the rest it is the large shape."""
    base = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
    return {"model_type": family, **SIZES, **(base if norm == "group" else {})}


def spread(encoder):
    """Weights further apart than at the start, so that attention and gates are far from uniform."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return encoder


def encoders(family: str, norm: str):
    """An encoder of fast parts, and transformers' own with the same weights."""
    config = encoder_config(fields_of(family, norm), None)
    torch.manual_seed(0)
    fast = spread(new_encoder(config))
    plain = AutoModel.from_config(config)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def batch_of(num_clips: int = 4) -> CropBatch:
    """Clips of two lengths, two of each label, a third of the frames masked."""
    generator = torch.Generator().manual_seed(2)
    groups = []
    for count, samples, frames in ((num_clips - 2, 4400, 13), (2, 3000, 9)):
        waveforms = normalized(torch.randn(count, samples, generator=generator))
        groups.append(Group(waveforms, torch.rand(count, frames, generator=generator) < 0.3))
    labels = torch.arange(num_clips) % 2
    return CropBatch(groups, labels, sum(int(group.mask.sum()) for group in groups), 2.5)


def task_batch(num_clips: int = 4) -> TaskBatch:
    """The same as a batch of the one task of a fine-tuning."""
    batch = batch_of(num_clips)
    return TaskBatch(TASK, batch.groups, {TASK: batch.labels}, {TASK: num_clips}, num_clips, batch.seconds)


def classifier(encoder, fast_parts: bool = True) -> MultiTaskNetwork:
    return new_classifier(encoder, ["a", "b"], 0, fast_parts)


def loss_of(output, *_) -> torch.Tensor:
    return weighted_sum(output, {TASK: 1.0})


def plain_adamw(modules, args) -> torch.optim.AdamW:
    """Decay on matrices only."""
    weights = [weight for module in modules for weight in module.parameters()]
    matrices, others = ([w for w in weights if (w.dim() > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=tuple(args.adam_betas))


def losses_of_plain_loop(args, modules, loss_of_batch, steps: int) -> list[float]:
    """A straight loop: loss, backward, clipping, step, a rate that warms up over two steps."""
    optimizer, losses = plain_adamw(modules, args), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1.0, (step + 1) / args.warmup_steps)
        loss = loss_of_batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([w for module in modules for w in module.parameters()], args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def losses_of_updates(args, network, loss, figures, batch: CropBatch, steps: int) -> list[float]:
    """The same steps by the loop of the package."""
    learner, accelerator, losses = new_learner(args, network), Accelerator(cpu=True), []

    def noting(output, *others):
        losses.append(loss(output, *others))
        return losses[-1]

    for _ in range(steps):
        update(accelerator, learner, [batch], figures, noting)
    return [float(own.detach()) for own in losses]


def step_arguments(kind, **fields):
    return kind(
        learning_rate=3e-4,
        warmup_steps=2,
        decay="constant",
        weight_decay=0.1,
        batch_seconds=60.0,
        **fields,
    )


def by_hand(plain, head, codes, batch: CropBatch, label_weight: float) -> torch.Tensor:
    """BEST-RQ's cross-entropy at masked frames, and LASR's hard triplets (Eq. 2) with a margin of 0.2."""
    outputs = [plain(group.waveforms, mask_time_indices=group.mask).last_hidden_state for group in batch.groups]
    masked = torch.cat([output[group.mask] for output, group in zip(outputs, batch.groups)])
    means = torch.cat([output.mean(dim=1) for output in outputs])
    angles = torch.arccos(F.cosine_similarity(means[:, None], means[None], dim=2).clamp(-1 + 1e-6, 1 - 1e-6)) / math.pi
    same = batch.labels[:, None] == batch.labels[None]
    itself = torch.eye(len(means), dtype=torch.bool)
    farthest = angles.masked_fill(~same | itself, -1.0).amax(dim=1)
    closest = angles.masked_fill(same, 2.0).amin(dim=1)
    return F.cross_entropy(head(masked), codes) + label_weight * F.relu(0.2 + farthest - closest).mean()


@every_shape
@pytest.mark.parametrize("fast_parts", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_pretraining_is_a_plain_loop_and_learns(family, norm, fast_parts):
    args = step_arguments(
        PretrainArguments, encoder=fields_of(family, norm), codebook_size=32, label_weight=2.0, fast_parts=fast_parts
    )
    batch = batch_of()
    _, plain = encoders(family, norm)
    encoder = new_encoder(plain.config, fast_parts=fast_parts)
    encoder.load_state_dict(plain.state_dict())
    network = PretrainNetwork(args, encoder)
    head = torch.nn.Linear(32, 32)
    head.load_state_dict(network.head.state_dict())
    codes = torch.cat([network.quantizer(group.waveforms, group.mask) for group in batch.groups])
    found = losses_of_updates(args, network, total_loss, Figures(32, torch.device("cpu")), batch, 3)
    expected = losses_of_plain_loop(args, [plain.train(), head], lambda: by_hand(plain, head, codes, batch, 2.0), 3)
    assert found == pytest.approx(expected, rel=2e-5)
    assert found[0] > found[1] > found[2]


@every_shape
@pytest.mark.parametrize("fast_parts", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_finetuning_is_a_plain_loop_and_learns(family, norm, fast_parts):
    args, batch = step_arguments(FinetuneArguments, fast_parts=fast_parts), task_batch(6)
    _, plain = encoders(family, norm)
    encoder = new_encoder(plain.config, fast_parts=fast_parts)
    encoder.load_state_dict(plain.state_dict())
    network = classifier(encoder, fast_parts)
    head = torch.nn.Linear(32, 2)
    head.load_state_dict(network.model.readouts[TASK].head.state_dict())

    def by_hand() -> torch.Tensor:
        outputs = [plain(group.waveforms, mask_time_indices=group.mask).last_hidden_state for group in batch.groups]
        return F.cross_entropy(head(torch.cat([output.mean(dim=1) for output in outputs])), batch.targets[TASK])

    found = losses_of_updates(args, network, loss_of, TaskFigures(), batch, 3)
    expected = losses_of_plain_loop(args, [plain.train(), head], by_hand, 3)
    assert found == pytest.approx(expected, rel=2e-5)
    assert found[0] > found[1] > found[2]


@every_shape
def test_fast_parts_on_and_off_are_equal(family, norm):
    """Output and every gradient."""
    fast, plain = encoders(family, norm)
    (group, _) = batch_of().groups
    found = []
    for encoder in (fast.train(), plain.train()):
        output = encoder(group.waveforms, mask_time_indices=group.mask).last_hidden_state
        (output * torch.linspace(-1, 1, 32)).square().sum().backward()
        found.append((output.detach(), gradients_of(encoder)))
    (output, gradients), (expected, plain_gradients) = found
    assert torch.linalg.norm(output - expected) < 1e-5 * torch.linalg.norm(expected)
    assert_gradients_agree(gradients, plain_gradients)


@pytest.mark.parametrize("kernel", [8, 127, 128])  # the long ones go through the frequency domain
@every_shape
def test_clips_of_several_lengths_in_one_pass_are_each_length_by_itself(family, norm, kernel):
    """Outputs and gradients against transformers' modules, which see one length at a time; three lengths, one clip alone."""
    sizes = {"num_conv_pos_embeddings": kernel}
    config = encoder_config({**fields_of(family, norm), **sizes}, None)
    torch.manual_seed(0)
    fast = spread(new_encoder(config))
    plain = AutoModel.from_config(config)
    plain.load_state_dict(fast.state_dict())
    generator = torch.Generator().manual_seed(3)
    groups = [
        Group(torch.randn(count, samples, generator=generator), torch.rand(count, frames, generator=generator) < 0.3)
        for count, samples, frames in ((2, 50_000, 156), (3, 4400, 13), (1, 3000, 9))
    ]
    found = []
    for encoder in (fast.train(), plain.train()):
        frames, means = encode_groups(encoder, groups)
        assert [own.shape[:2] for own in frames] == [group.mask.shape for group in groups]
        sum((own * torch.linspace(-1, 1, 32)).square().sum() for own in frames).backward()
        found.append((torch.cat([own.flatten() for own in frames]).detach(), means, gradients_of(encoder)))
    (output, means, gradients), (expected, plain_means, plain_gradients) = found
    assert torch.linalg.norm(output - expected) < 1e-5 * torch.linalg.norm(expected)
    torch.testing.assert_close(means, plain_means, rtol=1e-4, atol=1e-5)
    assert_gradients_agree(gradients, plain_gradients)


def test_a_hubert_with_batch_norm_takes_one_length_at_a_time():
    """Its norm sees all clips of one length, in training; nothing else of it changes either."""
    config = encoder_config({**fields_of("hubert", "layer"), "conv_pos_batch_norm": True}, None)
    torch.manual_seed(0)
    fast = new_encoder(config)
    plain = AutoModel.from_config(config)
    plain.load_state_dict(fast.state_dict())
    assert not takes_packs(fast)
    groups = batch_of().groups
    for own, expected in zip(encode_groups(fast.train(), groups)[0], encode_groups(plain.train(), groups)[0], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def gradients_of(encoder) -> dict:
    return {name: weight.grad for name, weight in encoder.named_parameters()}


def assert_gradients_agree(found, expected):
    """Those of keys' biases are zero but for rounding, as they shift all scores of a row."""
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        floor = 1e-6 * largest if name.endswith("k_proj.bias") else 0.0
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + floor, name


@every_shape
def test_without_fast_parts_only_transformers_and_pytorch_run(family, norm):
    args = step_arguments(PretrainArguments, encoder=fields_of(family, norm), fast_parts=False)
    encoder = new_encoder(encoder_config(args.encoder, None), fast_parts=False)
    modules = [*PretrainNetwork(args, encoder).modules(), *classifier(encoder, False).modules()]
    own = {type(module).__name__ for module in modules if type(module).__module__.startswith("wavcse")}
    of_pretraining = {"PretrainNetwork", "HardTriplet", "RandomProjectionQuantizer"}
    assert own == of_pretraining | {"MultiTaskNetwork", "FinetunedWavCSE", "Readout"}


@every_shape
@pytest.mark.parametrize("kind", ["transformers", pytest.param("wavcse", marks=pytest.mark.slow)])
def test_a_checkpoint_is_trained_saved_and_loaded_by_transformers(family, norm, kind, tmp_path):
    """What is trained starts as the checkpoint; the saved folder gives the hidden states of the trained encoder."""
    _, plain = encoders(family, norm)
    save_upstream(plain, tmp_path / "transformers")
    WavCSEModel.from_upstream(str(tmp_path / "transformers"), selected_layers=[2]).save_pretrained(tmp_path / "wavcse")
    config = encoder_config({"model_type": family}, str(tmp_path / kind))
    assert (type(config), config.layerdrop) == (CONFIGS[family], 0.0)
    encoder = new_encoder(config, str(tmp_path / kind))
    waveforms = batch_of().groups[0].waveforms
    with torch.no_grad():
        start = plain.eval()(waveforms, output_hidden_states=True).hidden_states
        found = encoder.eval()(waveforms, output_hidden_states=True).hidden_states
    for own, expected in zip(found, start, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    args = step_arguments(FinetuneArguments)
    losses_of_updates(args, classifier(encoder), loss_of, TaskFigures(), task_batch(), 2)
    save_upstream(encoder, tmp_path / "upstream")
    loaded = AutoModel.from_pretrained(tmp_path / "upstream").eval()
    assert type(loaded.config) is CONFIGS[family]
    with torch.no_grad():
        trained = encoder.eval()(waveforms, output_hidden_states=True).hidden_states
        again = loaded(waveforms, output_hidden_states=True).hidden_states
    assert (trained[-1] - start[-1]).abs().max() > 1e-3
    for own, expected in zip(again, trained, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@every_shape
def test_a_clip_is_the_same_in_every_batch(family, norm):
    """Nothing is padded, so group norms too see the frames of one clip only."""
    encoder = encoders(family, norm)[0].eval()
    waveforms = batch_of(6).groups[0].waveforms
    with torch.no_grad():
        together = encoder(waveforms).last_hidden_state
        for clip, waveform in enumerate(waveforms):
            torch.testing.assert_close(encoder(waveform[None]).last_hidden_state[0], together[clip], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """24 tones of 0.6 to 0.9 s: the pitch is the language, four to six speakers a split."""
    folder = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    rows = ["file_name,language,speaker_id,split"]
    for i in range(24):
        time_s = np.arange(int((0.6 + 0.3 * generator.random()) * 16_000)) / 16_000
        samples = 0.3 * np.sin(2 * np.pi * (300 if i % 2 else 1200) * time_s) + 0.05 * generator.standard_normal(len(time_s))
        soundfile.write(folder / f"{i:02d}.flac", samples, 16_000)
        rows.append(f"{i:02d}.flac,{'ab'[i % 2]},s{i},{('train', 'train', 'validation', 'test')[i // 6]}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder / "metadata.csv"


QUICK = (("wav2vec2", "group"), ("hubert", "layer"))
RESUMED = [own if own in QUICK else pytest.param(*own, marks=pytest.mark.slow) for own in SHAPES]


def same_tensors(first: Path, second: Path) -> bool:
    one, two = (load_file(folder / "checkpoints/last/tensors.safetensors") for folder in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("family", "norm"), RESUMED)
def test_pretraining_stopped_and_continued_is_undisturbed(family, norm, corpus, tmp_path):
    def run(name: str, **changes) -> dict:
        return pretrain(
            PretrainArguments(
                data={"tones": {"manifest": str(corpus)}},
                audio_dir=str(corpus.parent / "audio"),
                encoder=fields_of(family, norm) | {"hidden_dropout": 0.1},
                output_dir=str(tmp_path / name),
                **{"codebook_size": 32, "crop_s": 0.5, "batch_seconds": 3.0, "labels_per_batch": 2, "label_weight": 1.0},
                **{"max_steps": 3, "warmup_steps": 1, "log_every": 1, "checkpoint_every_s": 0.0, **changes},
            )
        )

    result = run("undisturbed")
    assert np.isfinite(result["last"]["loss"])
    assert run("stopped", stop_after_s=0.0) == {}
    run("stopped")
    assert same_tensors(tmp_path / "undisturbed", tmp_path / "stopped")
    assert type(AutoModel.from_pretrained(tmp_path / "stopped" / "upstream").config) is CONFIGS[family]


@pytest.mark.slow
def test_finetuning_of_three_families_in_one_table_resumes(corpus, tmp_path, monkeypatch):
    """Interrupted after its first checkpoint; then as undisturbed, and what each family's record says is its own."""
    upstreams = {}
    for family, norm in (("wavlm", "group"), ("wav2vec2", "layer"), ("hubert", "group")):
        save_upstream(encoders(family, norm)[1], tmp_path / family)
        upstreams[family] = str(tmp_path / family)
    args = FinetuneArguments(
        upstreams=upstreams,
        task={"task": "language", "manifest": str(corpus)},
        audio_dir=str(corpus.parent / "audio"),
        output_dir=str(tmp_path / "undisturbed"),
        **{"crop_s": 0.5, "batch_seconds": 3.0, "labels_per_batch": 2, "warmup_steps": 1, "learning_rate": 1e-3},
        **{"max_steps": 4, "validate_every": 2, "checkpoint_every_s": 0.0},
    )
    summary = finetune(args, show_progress=False)
    assert [record.encoder["name"] for record in summary.results] == list(upstreams)
    stopped = replace(args, output_dir=str(tmp_path / "stopped"))

    def interrupted(accelerator, learner, *others):
        if learner.progress.step == 3:
            raise KeyboardInterrupt
        update(accelerator, learner, *others)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(stopped, show_progress=False)
    finetune(stopped, show_progress=False)
    for family in upstreams:
        assert same_tensors(tmp_path / "undisturbed" / "runs" / f"{family}.0", tmp_path / "stopped" / "runs" / f"{family}.0")


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_crops_have_the_frames_that_every_encoder_makes(norm, corpus):
    """Masks are as long as the output, in each family."""
    data = load_task(*FinetuneArguments(task={"task": "language", "manifest": str(corpus)}).task_request())
    for family in CONFIGS:
        encoder = encoders(family, norm)[0]
        args = step_arguments(FinetuneArguments, crop_s=0.7, length_step_s=0.1, mask_frames=3)
        audio = load_audio(data, [encoder.config], str(corpus.parent / "audio"), Inspector(), show_progress=False)
        rows = audio.data.table.rows("train")
        clips = [audio.data.table.clips[row] for row in rows]
        (batch,) = BatchLoader(args, clips, audio.data.labels[rows], audio.store, encoder.config).update(0)
        assert len(batch.groups) > 1
        for group in batch.groups:
            assert encoder(group.waveforms, mask_time_indices=group.mask).last_hidden_state.shape[:2] == group.mask.shape


@pytest.mark.parametrize(
    ("fields", "init_from", "message"),
    [
        ({"model_type": "whisper"}, None, "encoder: model_type is 'whisper'; allowed: wavlm, wav2vec2, hubert"),
        ({"model_type": "hubert", "num_buckets": 320}, None, r"\['num_buckets'\] are not fields of HubertConfig"),
        (
            {"model_type": "wav2vec2", "hidden_size": "wide"},
            None,
            "field 'hidden_size' of encoder: Field 'hidden_size' expected",
        ),
        ({"model_type": "wav2vec2", "add_adapter": True}, None, "encoder: add_adapter is true"),
        ({"model_type": "hubert"}, "wavlm", "encoder: model_type is 'hubert', and .*wavlm is a wavlm"),
    ],
)
def test_fields_are_checked_against_their_own_family(fields, init_from, message, tmp_path):
    if init_from:
        save_upstream(encoders("wavlm", "layer")[1], tmp_path / init_from)
        init_from = str(tmp_path / init_from)
    with pytest.raises(ValueError, match=message):
        encoder_config(fields, init_from)
