"""Text of CTC tasks: normalising, tokens, where a head starts, decoding, and the folder that transformers' pipeline takes."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCTC, AutoProcessor, HubertConfig, Wav2Vec2Config, WavLMConfig, WhisperConfig, pipeline

from wavcse.finetuning.ctc_folder import has_ctc_class, save_ctc
from wavcse.finetuning.text import (
    SPECIAL,
    TextSettings,
    bias_start,
    encode_text,
    frames_needed,
    greedy_texts,
    normalised,
    vocabulary_of,
)
from wavcse.tests.helpers.tiny_families import SMALLEST
from wavcse.upstream_wavcse import build_upstream

TEXTS = ["AN ANT", "DON'T"]
SIZES = {**SMALLEST, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    ("settings", "text", "expected"),
    [
        ({}, "  Don’t  stop -- café №5! ", "DON'T STOP CAFÉ NO5"),
        ({"case": "lower"}, "MÜSLI\u0308 ½", "müslï 1 2"),
        ({"case": "keep"}, "مَرْحَبًا، يا", "مَرْحَبًا يا"),
        ({"characters": "ABC'"}, "a b'c, d", "A B'C"),
        ({"replace": {"&": " and ", "%": " per cent"}}, "R&B 5%", "R AND B 5 PER CENT"),
        ({}, "[...]", ""),
    ],
)
def test_what_stays_of_a_transcript(settings, text, expected):
    assert normalised(text, TextSettings(**settings)) == expected
    assert normalised(expected, TextSettings(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"case": "title"}, "case is 'title'"),
        ({"replace": {"no": 5}}, "replace has 'no': 5"),
        ({"characters": "A|"}, "stands for the space"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TextSettings(**settings)


def test_tokens_of_texts():
    vocabulary = vocabulary_of(TEXTS)
    assert vocabulary == ["<blank>", "<s>", "</s>", "<unk>", "|", "'", "A", "D", "N", "O", "T"]
    assert encode_text("AN AXT", vocabulary) == [6, 8, 4, 6, 3, 10]
    with pytest.raises(ValueError, match="nothing to learn"):
        vocabulary_of(["", " "])


def test_a_head_starts_at_the_frequencies():
    """11 tokens: A N | A N T D O N ' T."""
    bias = bias_start(vocabulary_of(TEXTS), TEXTS)
    torch.testing.assert_close(bias, torch.tensor([10, 0, 0, 0, *(n / 11 for n in (1, 1, 2, 1, 3, 1, 2))]))


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens of an alignment: repetitions, then blanks taken out (Graves et al. 2006)."""
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def test_texts_need_as_many_frames_as_their_shortest_alignment():
    """Against all alignments of up to five frames with a blank and two letters."""
    shortest: dict[tuple[int, ...], int] = {}
    for num_frames in range(6):
        for path in itertools.product(range(3), repeat=num_frames):
            shortest.setdefault(collapsed(path), num_frames)
    for length in range(4):
        for tokens in itertools.product((1, 2), repeat=length):
            assert frames_needed(tokens) == shortest[tokens], tokens


def test_greedy_texts_of_known_paths():
    """Every path of four frames; in a longer batch the frames behind a clip's end do not count."""
    vocabulary = [*SPECIAL, "A", "B"]
    meanings = {0: "", 3: "", 4: " ", 5: "A", 6: "B"}
    paths = list(itertools.product(meanings, repeat=4))
    logits = torch.nn.functional.one_hot(torch.tensor([[*path, 5, 6] for path in paths]), 7).float()
    for path, found in zip(paths, greedy_texts(logits, [4] * len(paths), vocabulary), strict=True):
        letters = "".join(meanings[token] for token, _ in itertools.groupby(path))
        assert found == " ".join(letters.split()), path


@pytest.mark.parametrize("family", [WavLMConfig, Wav2Vec2Config, HubertConfig])
def test_a_ctc_folder_gives_the_networks_logits_and_texts(family, tmp_path):
    torch.manual_seed(0)
    stable = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if family is Wav2Vec2Config else {}
    encoder, vocabulary = build_upstream(family(**SIZES, **stable)).eval(), vocabulary_of(TEXTS)
    head = torch.nn.Linear(16, len(vocabulary))
    with torch.no_grad():
        head.weight.mul_(5)
        head.bias[1:4] = -100.0  # what transformers' decoding leaves in a text
    save_ctc(tmp_path, encoder, head, vocabulary)
    processor, model = AutoProcessor.from_pretrained(tmp_path), AutoModelForCTC.from_pretrained(tmp_path).eval()
    waveform = np.random.default_rng(0).standard_normal(8_000, dtype=np.float32) + 0.5
    inputs = processor(waveform, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = head(encoder(torch.from_numpy((waveform - waveform.mean()) / waveform.std())[None]).last_hidden_state)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    (text,) = greedy_texts(expected, [expected.shape[1]], vocabulary)
    assert len(set(text)) > 3
    assert pipeline("automatic-speech-recognition", model=str(tmp_path))(waveform) == {"text": text}


def test_whisper_has_no_ctc_folder(tmp_path):
    encoder = build_upstream(WhisperConfig(d_model=8, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=8))
    assert not has_ctc_class(encoder.config)
    with pytest.raises(ValueError, match="no CTC model with a whisper encoder"):
        save_ctc(tmp_path, encoder, torch.nn.Linear(8, 6), vocabulary_of(TEXTS))
