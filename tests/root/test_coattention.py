"""Mixes of layers and attention that other tasks steer: by value, in the network, and what a configuration refuses."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, pipeline

from wavcse import FinetunedWavCSE, FinetunedWavCSEConfig
from wavcse.coattention_wavcse import ARI, WEIGHTED_BLOCKS, Fusion, LayerMix
from wavcse.configuration_wavcse import count_frames
from wavcse.tests.helpers.tiny_families import ROWS

H, T_MAX = 6, 9
HIDDEN = {"hidden": H, "dropout": 0.0}
READOUTS = {
    "asr": {"kind": "ctc", "tap": "ari", "vocabulary": ["<blank>", "a", "b"], **HIDDEN},
    "gender": {"kind": "classes", "tap": "ari", "labels": ["f", "m"], **HIDDEN},
    "emotion": {
        "kind": "classes",
        "tap": "ari",
        "labels": ["anger", "joy", "none"],
        "fusion": {"kind": "content", "tasks": ["asr", "gender"], "hidden": H, "dropout": 0.0},
    },
}


def new_model(readouts: dict = READOUTS, row: str = "WavLM, base", **fields) -> FinetunedWavCSE:
    torch.manual_seed(0)
    model_type, sizes = ROWS[row]
    upstream = AutoConfig.for_model(model_type, **sizes)
    no_embedding = {"layer_projection_size": None, "pooling_type": "mean"}
    config = FinetunedWavCSEConfig(
        upstream_config=upstream, selected_layers=[3], readouts=readouts, freeze_upstream=False, **no_embedding, **fields
    )
    return FinetunedWavCSE(config).eval()


def with_fusion(**changes) -> dict:
    emotion = {**READOUTS["emotion"], "fusion": {**READOUTS["emotion"]["fusion"], **changes}}
    return {**READOUTS, "emotion": emotion}


def random_layers(num_blocks: int = 4) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {block: torch.randn(2, 5, 3, generator=generator) for block in range(num_blocks + 1)}


# ---- mixes ----


@pytest.mark.parametrize(("tap", "blocks", "width"), [(ARI, [1, 2, 3], 6), (WEIGHTED_BLOCKS, [1, 2, 3, 4], 3)])
def test_a_weight_of_one_picks_a_block(tap, blocks, width):
    layers = random_layers()
    for place, block in enumerate(blocks):
        raw = LayerMix(tap, 4, raw=True)
        raw.weights.data = torch.eye(len(blocks))[place]
        mixed = raw(layers)
        assert mixed.shape == (2, 5, width)
        torch.testing.assert_close(mixed[..., -3:], layers[block])
        if tap == ARI:
            assert torch.equal(mixed[..., :3], layers[4])
        softmax = LayerMix(tap, 4)
        softmax.weights.data = 60.0 * torch.eye(len(blocks))[place]
        torch.testing.assert_close(softmax(layers), mixed)


@pytest.mark.parametrize("is_raw", [False, True])
def test_a_mix_starts_with_the_mean_and_reaches_every_block_and_weight(is_raw):
    layers = {block: one.requires_grad_() for block, one in random_layers().items()}
    mix = LayerMix(ARI, 4, is_raw)
    mixed = mix(layers)
    expected = torch.stack([layers[block] for block in (1, 2, 3)]).mean(dim=0)
    torch.testing.assert_close(mixed[..., 3:], expected)
    mixed.square().sum().backward()
    assert all(layers[block].grad.abs().min() > 0 for block in (1, 2, 3, 4))
    assert layers[0].grad is None  # the blocks' input is no block
    assert mix.weights.grad.abs().min() > 0


def test_tasks_share_their_weights_or_have_their_own():
    shared = dict(new_model().named_parameters())
    assert [name for name in shared if "mix" in name] == ["mixes.ari.weights"]
    own = dict(new_model(ari={"raw": True, "per_task": True}).named_parameters())
    assert [name for name in own if "mix" in name] == [f"readouts.{name}.mix.weights" for name in READOUTS]
    assert own["readouts.asr.mix.weights"].tolist() == [0.5, 0.5]


# ---- attention ----


def fusion_of(kind: str, **options) -> tuple[Fusion, torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    fusion = Fusion(8, [H, H], kind, hidden=H, dropout=0.0, **options).eval()
    return fusion, torch.randn(3, 7, 8), [torch.randn(3, H), torch.randn(3, H)]


def read(fusion: Fusion, attended: torch.Tensor, context: list[torch.Tensor]) -> torch.Tensor:
    """e and FC1, written out."""
    e = F.relu(attended @ fusion.of_frames.weight.T + fusion.of_frames.bias)
    return F.relu(torch.cat([e, *context], dim=1) @ fusion.together.weight.T + fusion.together.bias)


def test_content_attention_is_its_formula():
    fusion, frames, context = fusion_of("content")
    own = fusion.attention
    expected, expected_weights = [], []
    for clip, hidden in zip(frames, torch.cat(context, dim=1)):
        scores = [
            own.score.weight[0]
            @ torch.tanh(own.of_context.weight @ hidden + own.of_frames.weight @ frame + own.of_frames.bias)
            for frame in clip
        ]
        shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
        expected_weights.append(shares)
        expected.append(sum(share * frame for share, frame in zip(shares, clip)))
    vectors, weights = fusion(frames, context)
    torch.testing.assert_close(weights, torch.stack(expected_weights))
    torch.testing.assert_close(vectors, read(fusion, torch.stack(expected), context))


def test_content_attention_that_scores_nothing_is_the_mean():
    fusion, frames, context = fusion_of("content")
    mean, _, _ = fusion_of("none")
    mean.load_state_dict({name: one for name, one in fusion.state_dict().items() if not name.startswith("attention")})
    assert not torch.allclose(fusion(frames, context)[0], mean(frames, context)[0], atol=1e-4)
    torch.nn.init.zeros_(fusion.attention.score.weight)
    vectors, weights = fusion(frames, context)
    torch.testing.assert_close(weights, torch.full((3, 7), 1 / 7))
    torch.testing.assert_close(vectors, mean(frames, context)[0])


@pytest.mark.parametrize("num_frames", [5, 9, 12])  # padded to T_MAX frames, just as many, or cropped
def test_fixed_attention_is_the_straight_reference(num_frames):
    fusion, _, context = fusion_of("fixed", frames=T_MAX)
    frames = torch.randn(3, num_frames, 8)
    straight = frames.new_zeros(3, T_MAX, 8)
    straight[:, : min(T_MAX, num_frames)] = frames[:, :T_MAX]
    linear = fusion.attention.of_context
    shares = F.relu(torch.cat(context, dim=1) @ linear.weight.T + linear.bias)  # [B, T_MAX]
    vectors, weights = fusion(frames, context)
    torch.testing.assert_close(vectors, read(fusion, torch.bmm(shares[:, None], straight)[:, 0], context))
    assert weights.shape == (3, num_frames)
    assert not weights[:, T_MAX:].any()


def test_cross_attention_is_that_of_pytorch():
    fusion, frames, context = fusion_of("cross", heads=2)
    own = fusion.attention
    theirs = torch.nn.MultiheadAttention(H, 2, kdim=8, vdim=8, batch_first=True)
    state = {f"{name}_proj_weight": getattr(own, part).weight for name, part in zip("qkv", ("query", "key", "value"))}
    state["in_proj_bias"] = torch.cat([own.query.bias, own.key.bias, own.value.bias])
    theirs.load_state_dict({**state, "out_proj.weight": own.out.weight, "out_proj.bias": own.out.bias})
    tasks = torch.stack(context, dim=1)
    heard, shares = theirs(tasks, frames, frames)
    attended = F.layer_norm(tasks + heard, (H,), own.norm.weight, own.norm.bias).mean(dim=1)
    vectors, weights = fusion(frames, context)
    torch.testing.assert_close(vectors, read(fusion, attended, context))
    torch.testing.assert_close(weights, shares.mean(dim=1))


@pytest.mark.parametrize("kind", ["content", "fixed", "cross", "none"])
def test_padding_of_a_batch_changes_nothing(kind):
    fusion, frames, context = fusion_of(kind, **{"fixed": {"frames": T_MAX}, "cross": {"heads": 2}}.get(kind, {}))
    mask = torch.arange(7) < torch.tensor([[7], [4], [2]])
    vectors, weights = fusion(frames.masked_fill(~mask[..., None], 1e3), context, mask)
    for place, count in enumerate((7, 4, 2)):
        alone, shares = fusion(frames[place : place + 1, :count], [one[place : place + 1] for one in context])
        torch.testing.assert_close(vectors[place], alone[0])
        torch.testing.assert_close(weights[place, :count], shares[0])
        assert not weights[place, count:].any()


# ---- the network ----


@pytest.mark.parametrize("row", ["WavLM, large", "Whisper, `context: clip`"])
def test_a_readout_is_written_out_from_the_layers(row, waves):
    model = new_model(row=row)
    waveform = torch.from_numpy(waves(9_000)[0])
    with torch.no_grad():
        output = model([waveform])
        states = model.run_upstream.frames(model.upstream, [waveform], [1, 2, 3])[0]
        frames = torch.cat([states[:, 2], states[:, :2].mean(dim=1)], dim=1)  # block 3's own output, and the mean of 1 and 2
        asr, gender, emotion = (model.readouts[name] for name in READOUTS)
        u = F.relu(asr.hidden[0](frames))
        h_gender = F.relu(gender.hidden[0](frames.mean(dim=0, keepdim=True)))
        vectors, weights = emotion.fusion(frames[None], [u.mean(dim=0, keepdim=True), h_gender])
        expected = {"asr": asr.head(u)[None], "gender": gender.head(h_gender), "emotion": emotion.head(vectors)}
    for name, logits in expected.items():
        torch.testing.assert_close(output.logits[name], logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.embeddings, vectors, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.attention["emotion"], weights, atol=1e-5, rtol=1e-4)
    assert model.config.embedding_size == H


CONVOLUTIONAL = ["wav2vec 2.0, base", "wav2vec 2.0, large; XLS-R, MMS", "HuBERT, base", "HuBERT, large"]


@pytest.mark.parametrize("row", [*CONVOLUTIONAL, "WavLM, base", "WavLM, large"])
def test_blocks_are_mixed_as_the_blocks_of_transformers_put_them_out(row, waves):
    """In the large shapes a norm follows the last block; it is none of what the block puts out."""
    model, waveform = new_model(row=row), torch.from_numpy(waves(9_000)[0])
    model.mixes["ari"].weights.data = torch.tensor([0.5, -1.0])
    gender, shares = model.readouts["gender"], torch.tensor([0.5, -1.0]).softmax(dim=0)
    theirs, outputs = AutoModel.from_config(model.config.upstream_config).eval(), []
    theirs.load_state_dict(model.upstream.state_dict())
    theirs.encoder.layers[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        found = theirs(waveform[None], output_hidden_states=True)
        last = outputs[0] if isinstance(outputs[0], torch.Tensor) else outputs[0][0]
        expected = torch.cat([last, shares[0] * found.hidden_states[1] + shares[1] * found.hidden_states[2]], dim=-1)
        logits = gender.head(F.relu(gender.hidden[0](expected.mean(dim=1))))
        trained = model.layers_of_group(waveform[None], None, ["gender"])["ari"]
        answered = model([waveform]).logits["gender"]
    torch.testing.assert_close(trained, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answered, logits, atol=1e-5, rtol=1e-4)
    normed = theirs.encoder.layer_norm(last) if "large" in row else last
    torch.testing.assert_close(found.last_hidden_state, normed)
    assert torch.allclose(last, normed, atol=0.1) == ("base" in row)


@pytest.mark.parametrize("kind", ["content", "fixed", "cross", "none"])
def test_a_clips_answers_do_not_depend_on_its_batch(kind, waves):
    model = new_model(with_fusion(kind=kind, **{"cross": {"heads": 2}}.get(kind, {})))
    clips = [torch.from_numpy(wave) for wave in waves(16_000, 9_000, 16_000, 12_345)]
    with torch.no_grad():
        together = model(clips)
        for place, clip in enumerate(clips):
            alone, count = model([clip]), int(together.num_frames[place])
            torch.testing.assert_close(together.logits["emotion"][place], alone.logits["emotion"][0], atol=1e-5, rtol=0)
            torch.testing.assert_close(together.attention["emotion"][place, :count], alone.attention["emotion"][0])
            assert not together.attention["emotion"][place, count:].any()
            trained = model.read_group(clip[None], None, ["emotion"])["emotion"]  # the path of training
            torch.testing.assert_close(trained.logits, alone.logits["emotion"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("context", ["clip", "window"])
def test_training_hears_as_much_of_whispers_clips_as_inference(context, waves):
    """A clip of fewer frames than there are positions, and one of several windows."""
    last = {"words": {"kind": "ctc", "tap": "last", "vocabulary": ["<blank>", "a"]}}
    model = new_model({**READOUTS, **last}, row="Whisper, `context: clip`", context=context)
    most = 320 * model.config.upstream_config.max_source_positions
    for samples in (9_000, 2 * most + 5_000):
        clips = torch.from_numpy(np.stack(waves(samples, samples)))
        nothing_masked = torch.zeros(2, count_frames(samples, model.config.upstream_config), dtype=torch.bool)
        trained = model.read_group(clips, nothing_masked, list(model.readouts))
        with torch.no_grad():
            expected = model(list(clips))
        for name, read_off in trained.items():
            torch.testing.assert_close(read_off.logits, expected.logits[name], atol=1e-5, rtol=1e-4)
        masked = nothing_masked.clone()
        masked[0, 2] = True
        changed = model.read_group(clips, masked, ["emotion"])["emotion"].logits
        assert not torch.equal(changed[0], trained["emotion"].logits[0])
        torch.testing.assert_close(changed[1], trained["emotion"].logits[1])
    trained["emotion"].logits.square().sum().backward()
    assert model.upstream.conv1.weight.grad.any()


def test_the_card_says_how_many_labels_the_pipeline_gives(tmp_path, waves):
    new_model(embedding_of="emotion").save_pretrained(tmp_path)
    usage = (tmp_path / "README.md").read_text().split("## Usage")[1]
    said = int(re.search(r'print\(len\(classify\("clip.wav"\)\)\)  # (\d+);', usage)[1])
    classify = pipeline("audio-classification", model=str(tmp_path), trust_remote_code=True)
    assert len(classify(waves(9_000)[0])) == said == len(READOUTS["emotion"]["labels"])


def test_the_loss_of_emotions_reaches_all_blocks_and_hidden_layers_but_no_other_head(waves):
    model = new_model()
    read_off = model.read_group(torch.from_numpy(np.stack(waves(9_000, 9_000))), None, ["emotion"])
    assert read_off.keys() == {"emotion"}
    read_off["emotion"].logits.square().sum().backward()
    untouched = {name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()}
    assert {name for name in untouched if name.startswith(("readouts", "mixes"))} == {
        f"readouts.{task}.head.{part}" for task in ("asr", "gender") for part in ("weight", "bias")
    }
    assert not any("layers" in name for name in untouched if ".weight" in name)


def test_a_saved_network_answers_alike_and_a_config_of_before_stays_as_it_is(tmp_path, waves):
    model = new_model(ari={"raw": True})
    model.save_pretrained(tmp_path)
    again = FinetunedWavCSE.from_pretrained(tmp_path).eval()
    assert again.config.readouts == model.config.readouts
    assert again.config.ari == {"raw": True, "per_task": False}
    clip = torch.from_numpy(waves(9_000)[0])
    with torch.no_grad():
        assert math.isclose(float((again([clip]).embeddings - model([clip]).embeddings).abs().max()), 0.0, abs_tol=1e-6)
    plain = new_model({"voice": {"kind": "classes", "labels": ["a", "b"], "tap": "weighted_sum"}})
    assert plain.config.readouts["voice"].keys() == {"kind", "tap", "pooling", "loss", "labels"}
    assert plain.config.ari is None
    assert {name for name in plain.state_dict() if not name.startswith("upstream")} == {
        "readouts.voice.layer_weights",
        "readouts.voice.head.weight",
        "readouts.voice.head.bias",
    }
    assert len(plain.readouts["voice"].layer_weights) == 4  # with the input of the first block


def test_code_of_a_folder_from_before_the_audio_classification_still_counts(tmp_path):
    model = new_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"].pop("AutoModelForAudioClassification") == "finetuned_wavcse.FinetunedWavCSE"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open(tmp_path / "finetuned_wavcse.py", "a") as file:
        file.write("\n# the code of this folder\n")
    theirs = FinetunedWavCSE.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(theirs).__module__.startswith("transformers_modules.")
    assert type(FinetunedWavCSE.from_pretrained(tmp_path)) is FinetunedWavCSE


def test_the_card_says_how_each_task_is_read(tmp_path):
    new_model().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "gender (2 classes: ari, mean, hidden layer of 6)" in card
    assert "emotion (3 classes: ari, content attention by `asr` and `gender`)" in card


@pytest.mark.parametrize(
    ("readouts", "fields", "message"),
    [
        (with_fusion(kind="mean"), {}, r"\['fusion'\]\['kind'\] is 'mean'; allowed: content, fixed, cross, none"),
        (with_fusion(tasks=["emotion"]), {}, "names 'emotion'; it must be another readout with a hidden layer"),
        (with_fusion(tasks=["asr", "style"]), {}, "names 'style'; it must be another readout"),
        (with_fusion(kind="fixed", tasks=[]), {}, "is of kind fixed, and names no tasks"),
        (with_fusion(kind="cross", heads=4), {}, r"hidden \(6\) must be a multiple of heads \(4\)"),
        (with_fusion(kind="cross", hidden=8, heads=2), {}, "the hidden sizes of all its tasks must be 8"),
        (with_fusion(frames=10), {}, r"\['frames'\] is unknown; a fusion of kind content has kind, tasks, hidden, dropout"),
        (with_fusion(dropout=1.0), {}, "dropout 1.0; sizes above 0 and a share below 1"),
        ({**READOUTS, "asr": {**READOUTS["asr"], "hidden": -1}}, {}, "hidden -1"),
        ({**READOUTS, "emotion": {**READOUTS["emotion"], "hidden": 3}}, {}, "has a fusion, which takes the place of"),
        (READOUTS, {"ari": {"row": True}}, "ari is {'row': True}; it holds raw, per_task"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(readouts, fields, message):
    with pytest.raises(ValueError, match=message):
        new_model(readouts, **fields)
