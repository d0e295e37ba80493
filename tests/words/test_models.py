"""The four word models against plain loops: one word at a time, one frame at a time, without batches and padding."""

import itertools

import numpy as np
import pytest
import torch

from wavcse.words.arguments import WordsArguments
from wavcse.words.encoder import padded
from wavcse.words.models import MODELS
from wavcse.words.tokens import Tokens, neighbours

NUM_MFCC, HIDDEN = 3, 4
WORDS = ["red", "blue", "red", "green", "blue"]
LENGTHS = [5, 2, 7, 1, 4]


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    frames = [torch.from_numpy(rng.standard_normal((length, NUM_MFCC)).astype(np.float32)) for length in LENGTHS]
    utterances = ["a", "a", "a", "b", "b"]
    before, after = neighbours(utterances, ["train"] * 5, [0, 1, 2, 0, 1])
    text = [np.array(own, dtype=object) for own in (WORDS, ["train"] * 5, utterances)]
    return Tokens(frames, *text[:2], before, after, text[2], [f"clip {i}" for i in range(5)])


@pytest.fixture
def build(tokens):
    """Kind and options -> a model with random weights, peepholes and scales, in evaluation."""

    def build(kind, **options):
        args = WordsArguments(manifest=["m.csv"], kind=kind, num_mfcc=NUM_MFCC, hidden_size=HIDDEN, **options)
        vectors = {word: np.random.default_rng(len(word)).standard_normal(6) for word in ("red", "blue")}
        torch.manual_seed(1)
        model = MODELS[kind](args, tokens, vectors if kind == "lee" else None)
        for name, own in model.named_parameters():
            torch.nn.init.normal_(own, std=0.5, generator=torch.Generator().manual_seed(len(name)))
        model.encoder.mean.normal_()
        model.encoder.scale.uniform_(0.5, 2)
        return model.eval()

    return build


# The plain second implementation, in float64


def weights_of(module):
    return {name: own.detach().numpy().astype(np.float64) for name, own in module.state_dict().items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step(gates, cell, peephole=None):
    i, f, g, o = np.split(gates, 4)
    if peephole is not None:
        i, f = i + peephole[0] * cell, f + peephole[1] * cell
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    if peephole is not None:
        o = o + peephole[2] * cell
    return sigmoid(o) * np.tanh(cell), cell


def encode(model, row):
    """Scaled frames, outputs summed over directions, last h and c summed over directions."""
    own = weights_of(model.encoder)
    frames = (model.tokens.frames[row].numpy().astype(np.float64) - own["mean"]) / own["scale"]
    found = []
    for suffix, ordered in (("", frames), ("_reverse", frames[::-1])):
        h, c, outputs = np.zeros(HIDDEN), np.zeros(HIDDEN), []
        for frame in ordered:
            gates = own[f"lstm.weight_ih_l0{suffix}"] @ frame + own[f"lstm.weight_hh_l0{suffix}"] @ h
            h, c = step(gates + own[f"lstm.bias_ih_l0{suffix}"] + own[f"lstm.bias_hh_l0{suffix}"], c)
            outputs.append(h)
        found.append((np.array(outputs if not suffix else outputs[::-1]), h, c))
    return frames, *(a + b for a, b in zip(*found, strict=True))


def decode(decoder, wanted, h, c, condition=None):
    own, before, said = weights_of(decoder), np.zeros(NUM_MFCC), []
    for frame in wanted:
        gates = own["cell.input.weight"] @ before + own["cell.input.bias"] + own["cell.hidden.weight"] @ h
        if condition is not None:
            gates = gates + own["cell.condition.weight"] @ condition
        h, c = step(gates, c, own.get("cell.peephole"))
        said.append(own["output.weight"] @ h + own["output.bias"])
        before = frame
    return np.array(said)


def mean_over_frames(pairs, power):
    return np.mean(np.concatenate([(np.abs(said - wanted) ** power).ravel() for said, wanted in pairs]))


def expected_audio_word2vec(model, examples):
    pairs = []
    for (row,) in examples:
        frames, _, h, c = encode(model, row)
        pairs.append((decode(model.decoder, frames, h, c), frames))
    return mean_over_frames(pairs, 2)


def expected_speech2vec(model, examples):
    loss = 0.0
    for place in (1, 2):
        pairs = []
        for example in examples:
            if example[place] >= 0:
                _, _, h, c = encode(model, example[0])
                wanted = encode(model, example[place])[0]
                pairs.append((decode(model.decoder, wanted, h, c, condition=h), wanted))
        loss += mean_over_frames(pairs, 2)
    return loss


def expected_siamese(model, examples):
    def far(a, b):
        x, y = (encode(model, row)[2] for row in (a, b))
        return 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    return np.mean([max(0, far(a, p) - far(a, n) + 0.4) + max(0, far(p, a) - far(p, n) + 0.4) for a, p, n in examples])


def expected_lee(model, examples):
    own, pairs, named = weights_of(model), [], []
    for (row,) in examples:
        frames, outputs, embedding, c = encode(model, row)
        h, before, said = embedding, np.zeros(NUM_MFCC), []
        for frame in frames:
            keys = outputs @ own["acoustic.key.weight"].T + own["acoustic.key.bias"]
            scores = np.tanh(keys + own["acoustic.query.weight"] @ h) @ own["acoustic.score.weight"][0]
            weights = np.exp(scores) / np.exp(scores).sum()
            given = np.concatenate([weights @ outputs, before])
            gates = own["acoustic.cell.weight_ih"] @ given + own["acoustic.cell.weight_hh"] @ h
            h, c = step(gates + own["acoustic.cell.bias_ih"] + own["acoustic.cell.bias_hh"], c)
            said.append(own["acoustic.output.weight"] @ h + own["acoustic.output.bias"])
            before = frame
        pairs.append((np.array(said), frames))
        word = model.tokens.words[row]
        if word != "green":  # which has no vector
            x = embedding
            for layer in ("0", "3"):
                x = np.maximum(0, own[f"linguistic.{layer}.weight"] @ x + own[f"linguistic.{layer}.bias"])
            x = own["linguistic.6.weight"] @ x + own["linguistic.6.bias"]
            named.append((x, np.random.default_rng(len(word)).standard_normal(6)))
    return mean_over_frames(pairs, 1) + mean_over_frames(named, 1)


EXPECTED = {
    "audio_word2vec": expected_audio_word2vec,
    "speech2vec": expected_speech2vec,
    "siamese": expected_siamese,
    "lee": expected_lee,
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_of_a_batch_is_that_of_plain_loops(kind, build):
    model = build(kind)
    examples = model.examples(np.arange(5), np.random.default_rng(0))
    assert len(examples) >= 2
    assert model.loss(examples).item() == pytest.approx(EXPECTED[kind](model, examples), rel=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_learns(kind, build):
    model = build(kind)
    model.loss(model.examples(np.arange(5), np.random.default_rng(0))).backward()
    idle = [name for name, own in model.named_parameters() if own.grad is None or not own.grad.abs().sum() > 0]
    assert not idle


def test_padding_does_not_reach_an_embedding(build, tokens):
    encoder = build("siamese").encoder
    frames, lengths = padded(tokens.frames)
    for row, length in enumerate(LENGTHS):
        frames[row, length:] = torch.nan
    together = encoder(frames, lengths)
    for row, own in enumerate(tokens.frames):
        alone = encoder(own[None], lengths[row : row + 1])
        torch.testing.assert_close(together.embedding[row], alone.embedding[0])
        torch.testing.assert_close(together.outputs[row, : LENGTHS[row]], alone.outputs[0])


def test_frames_or_numbers_are_zeroed_in_training_only(build):
    frames = torch.ones(40, 50, NUM_MFCC)
    for corruption, is_whole in (("frames", True), ("elements", False)):
        model = build("audio_word2vec", corruption=corruption, corruption_rate=0.3)
        assert torch.equal(model.corrupted(frames), frames)
        zeroed = model.train().corrupted(frames) == 0
        assert zeroed.float().mean().item() == pytest.approx(0.3, abs=0.03)
        assert bool((zeroed.all(dim=-1) == zeroed.any(dim=-1)).all()) is is_whole
    assert torch.equal(build("audio_word2vec", corruption="none").train().corrupted(frames), frames)


def test_neighbours_are_of_one_utterance_and_follow_by_ones(build):
    examples = build("speech2vec").examples(np.arange(5), np.random.default_rng(0))
    assert examples.tolist() == [[0, -1, 1], [1, 0, 2], [2, 1, -1], [3, -1, 4], [4, 3, -1]]
    before, after = neighbours(["a", "a", "a", "", "a"], ["train", "train", "train", "train", "test"], [0, 1, 3, 1, 2])
    assert before.tolist() == [-1, 0, -1, -1, -1]
    assert after.tolist() == [1, -1, -1, -1, -1]


def test_triplets_are_all_pairs_of_a_word_and_another_word(build, tokens):
    model = build("siamese")
    examples = model.examples(np.arange(5), np.random.default_rng(0))
    assert {tuple(own[:2]) for own in examples.tolist()} == {(0, 2), (1, 4)}
    assert all(WORDS[a] == WORDS[p] != WORDS[n] for a, p, n in examples)
    tokens.words = np.array(["red"] * 4 + ["blue"], dtype=object)
    few = build("siamese", tokens_per_word=3)
    few.tokens = tokens
    chosen = few.examples(np.arange(5), np.random.default_rng(1))
    rows = sorted({row for own in chosen.tolist() for row in own[:2]})
    assert len(rows) == 3
    assert sorted(map(tuple, chosen[:, :2].tolist())) == list(itertools.combinations(rows, 2))


def test_two_threads_give_the_same_gradient_every_time(build):
    """Words that stand in many triplets add up their gradients; in which order must not depend on threads."""
    model, triplets = build("siamese"), np.tile([[0, 2, 1], [2, 0, 3], [1, 4, 0]], (2000, 1))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [torch.autograd.grad(model.loss(triplets), model.encoder.lstm.weight_ih_l0)[0] for _ in range(10)]
    finally:
        torch.set_num_threads(num_threads)
    assert gradients[0].abs().max() > 0
    assert all(torch.equal(gradients[0], other) for other in gradients)
