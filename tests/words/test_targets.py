"""Word vectors: what is near, what is counted, what a language model is asked."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from wavcse.words.targets import cooccurrence, from_file, from_transformers, spelling


def test_words_that_are_written_alike_are_near():
    letter, better, garden = (spelling(word, 256) for word in ("letter", "better", "garden"))
    assert np.array_equal(letter, spelling("letter", 256))
    assert np.mean(letter**2) == pytest.approx(1)
    assert letter @ better / 256 > 0.4 > letter @ garden / 256


def test_cooccurrence_is_the_square_root_of_ppmi():
    """`a b` twice, `c d` twice, `a d` once: counted both ways, 10 in all; vectors times themselves are (PPMI^2)^(1/2)."""
    found = cooccurrence([["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"], ["a", "d"]], size=4)
    words = ["a", "b", "c", "d"]
    counts = np.array([[0, 2, 0, 1], [2, 0, 0, 0], [0, 0, 0, 2], [1, 0, 2, 0]])
    totals = counts.sum(axis=1)
    with np.errstate(divide="ignore"):
        ppmi = np.log(counts * 10 / np.outer(totals, totals)).clip(min=0)
    vectors = np.stack([found[word] for word in words])
    gram = vectors @ vectors.T
    values, directions = np.linalg.eigh(ppmi @ ppmi)
    expected = directions @ np.diag(np.sqrt(values.clip(min=0))) @ directions.T  # (M M^T)^(1/2)
    np.testing.assert_allclose(gram / np.trace(gram), expected / np.trace(expected), atol=1e-9)
    with pytest.raises(ValueError, match="no training utterance has two words"):
        cooccurrence([["a"], ["b"]], 4)


def test_a_file_of_vectors(tmp_path):
    path = tmp_path / "words.vec"
    path.write_text("3 2\nred 1 2\nblue 3 4\ngreen 5\n")
    assert {word: own.tolist() for word, own in from_file(path, ["red", "blue", "pink"]).items()} == {
        "red": [1, 2],
        "blue": [3, 4],
    }
    with pytest.raises(ValueError, match=r"line 4 is not a word and 2 numbers"):
        from_file(path, ["red", "green"])
    with pytest.raises(ValueError, match="no such file"):
        from_file(tmp_path / "none.vec", ["red"])


def test_a_language_model_is_asked_for_the_word_alone(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "gar", "##den"]))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    config = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=5, num_attention_heads=2, intermediate_size=8)
    model = BertModel(config).eval()
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    layers = model(torch.tensor([[2, 5, 6, 3]]), output_hidden_states=True).hidden_states
    expected = sum(layer[0] for layer in layers[2:]).mean(dim=0)
    found = from_transformers(str(tmp_path), ["garden"])["garden"]
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be loaded"):
        from_transformers(str(tmp_path / "none"), ["garden"])
