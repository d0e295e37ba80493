"""`wavcse transcribe` with tiny recognisers: what transformers itself gives of a clip alone, resumed, with paths that hold."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from transformers import (
    AutoModelForCTC,
    AutoProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.generation import utils as generation_utils

from wavcse import transcribe
from wavcse.data.manifest import Manifest
from wavcse.transcribe import Transcriber, Transcript, main

RATE = 16_000
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|pl|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]


@pytest.fixture(scope="module")
def ctc(tmp_path_factory) -> Path:
    """A wav2vec2 of base shape, whose group norm would see padding, with a vocabulary of letters and random weights."""
    folder = tmp_path_factory.mktemp("ctc")
    (folder / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(LETTERS)}))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    stem = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(LETTERS), pad_token_id=0, **shape, **stem))
    torch.nn.init.normal_(model.lm_head.weight, std=2.0)
    model.save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> Path:
    """A Whisper of one block each, with bytes and two languages; its generation_config.json names no special tokens."""
    folder = tmp_path_factory.mktemp("whisper")
    letters = [chr(place) for place in range(ord("!"), ord("~") + 1)]
    tokenizer = WhisperTokenizer(vocab={letter: place for place, letter in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    ids = tokenizer.get_vocab()
    blocks = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in SIZES.items()}
    config = WhisperConfig(
        vocab_size=transcribe.MULTILINGUAL_VOCABULARY,
        d_model=16,
        max_source_positions=1500,
        max_target_positions=64,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ids["<|endoftext|>"]),
        **{"begin_suppress_tokens": None, "suppress_tokens": None},
        **blocks,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # only letters are written, different ones after each other
        model.proj_out.weight[len(letters) :] = 0
        model.proj_out.weight[: len(letters)] *= 50
        model.proj_out.weight[ids["<|pl|>"]] = model.proj_out.weight[0]
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Seven clips, two of them of one length, one a part of a file, one no audio."""
    rng, folder = np.random.default_rng(0), tmp_path / "corpus"
    (folder / "audio").mkdir(parents=True)
    rows = [["audio/a.wav", "0.2", "0.9", "ann"]]
    for name, samples in zip("abcdef", (16_000, 12_000, 12_000, 9_000, 20_000, 3_000)):
        soundfile.write(folder / f"audio/{name}.wav", 0.1 * rng.standard_normal(samples), RATE)
        rows += [[f"audio/{name}.wav", "", "", "bob"]] if name != "a" else []
    (folder / "audio/g.wav").write_bytes(b"RIFF, but broken")
    table = pd.DataFrame([*rows, ["audio/g.wav", "", "", "cid"]], columns=["file_name", "start", "end", "speaker_id"])
    table.to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


def run(manifest: Path, model: Path, out: Path, *options: str) -> pd.DataFrame:
    command = [str(manifest), "--model", str(model), "--out", str(out), "--workers", "1", "--device", "cpu", *options]
    assert main(command) == 3
    return pd.read_csv(out, dtype=str, keep_default_na=False)


def test_a_ctc_model_hears_in_any_batch_what_transformers_hears_of_the_clip_alone(manifest, ctc, tmp_path, capsys):
    table = run(manifest, ctc, tmp_path / "out.csv", "--language", "en")
    assert "1 clips were skipped" in capsys.readouterr().out
    assert "g.wav" in (tmp_path / "out.skipped.csv").read_text()
    processor, model = AutoProcessor.from_pretrained(ctc), AutoModelForCTC.from_pretrained(ctc).eval()
    for clip, heard in zip(Manifest(manifest).clips[:-1], table["transcript"]):
        inputs = processor(clip.load(RATE), sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            expected = processor.batch_decode(model(**inputs).logits.argmax(-1), skip_special_tokens=True)[0]
        assert heard == " ".join(expected.split()), clip.clip_id
        assert heard
    assert table["transcript_language"].tolist() == ["en"] * 6 + [""]
    assert table["transcript"].iloc[-1] == ""
    assert table["speaker_id"].tolist() == ["ann", *["bob"] * 5, "cid"]
    assert [clip.real_path for clip in Manifest(tmp_path / "out.csv").clips] == [
        clip.real_path for clip in Manifest(manifest).clips
    ]


def test_whisper_hears_in_any_batch_what_it_hears_of_a_clip_alone(whisper, monkeypatch):
    monkeypatch.setattr(transcribe, "MOST_TOKENS", 6)
    rng = np.random.default_rng(1)
    clips = [(0.1 * rng.standard_normal(samples)).astype(np.float32) for samples in (8000, 30_000, 16_000)]
    heard = Transcriber(str(whisper), "en").transcribe(clips)
    assert [transcript.language for transcript in heard] == ["en"] * 3
    model, processor = WhisperForConditionalGeneration.from_pretrained(whisper).eval(), AutoProcessor.from_pretrained(whisper)
    prompt = processor.tokenizer.convert_tokens_to_ids(
        ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    )
    for clip, found in zip(clips, heard):
        features = processor.feature_extractor(clip, sampling_rate=RATE, return_tensors="pt").input_features
        tokens = list(prompt)
        for _ in range(6):  # greedy, a step at a time
            with torch.no_grad():
                tokens.append(int(model(features, decoder_input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        assert found.text == " ".join(processor.tokenizer.decode(tokens, skip_special_tokens=True).split())
        assert found.text
    told = Transcriber(str(whisper)).transcribe(clips)
    assert {transcript.language for transcript in told} <= {"en", "pl"}
    with pytest.raises(ValueError, match="language is 'xx'; this model knows: en, pl"):
        Transcriber(str(whisper), "xx")


def test_whisper_stops_after_its_most_tokens_and_warns_of_nothing(whisper, manifest, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(transcribe, "MOST_TOKENS", 6)
    warned = []
    monkeypatch.setattr(generation_utils.logger, "warning", lambda text, *_: warned.append(text))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*max_(new_tokens|length)")
        table = run(manifest, whisper, tmp_path / "out.csv", "--language", "en")
    assert warned == []
    assert set(table["transcript"].iloc[:-1].str.len()) == {6}  # a model of letters, which never ends by itself
    bars = capfd.readouterr().err
    assert "transcribe: 100%" in bars
    assert "embed: " not in bars


def test_what_whisper_is_told_names_the_same_transcripts_as_before(whisper, monkeypatch):
    """The key of earlier versions, so that what they have transcribed need not be transcribed again."""
    said = {}
    monkeypatch.setattr(transcribe, "digest_of", lambda known: said.update(known) or "key")
    transcriber = Transcriber(str(whisper), "en")
    told = transcriber.model.generation_config
    assert (told.max_length, told.max_new_tokens) == (transcribe.MOST_TOKENS, None)
    assert (said["generation"].get("max_length"), said["generation"]["max_new_tokens"]) == (None, transcribe.MOST_TOKENS)


def test_a_killed_run_goes_on_and_more_clips_cost_only_themselves(manifest, ctc, tmp_path, monkeypatch):
    whole = run(manifest, ctc, tmp_path / "whole.csv")
    plain, seen = Transcriber.transcribe, []

    def counted(self, waveforms):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(waveforms))
        return plain(self, waveforms)

    monkeypatch.setattr(Transcriber, "transcribe", counted)
    few = ("--batch_seconds", "1")
    command = [str(manifest), "--model", str(ctc), "--out", str(tmp_path / "out.csv"), "--workers", "1", *few]
    assert main(command) == 130
    assert not (tmp_path / "out.csv").exists()
    again = []
    monkeypatch.setattr(Transcriber, "transcribe", lambda self, own: again.append(len(own)) or plain(self, own))
    assert run(manifest, ctc, tmp_path / "out.csv", *few).equals(whole)
    assert sum(seen) + sum(again) == 6
    again.clear()
    assert run(manifest, ctc, tmp_path / "out.csv", *few).equals(whole)
    assert again == []
    run(manifest, ctc, tmp_path / "out.csv", *few, "--language", "en")  # another question
    assert sum(again) == 6


def test_texts_of_one_language_stay_in_a_column_that_is_named(manifest, ctc, tmp_path, monkeypatch):
    languages = {12_000: "en", 9_000: "pl"}  # by the clip's length; others German
    monkeypatch.setattr(
        Transcriber, "transcribe", lambda self, own: [Transcript("said", languages.get(len(one), "de")) for one in own]
    )
    table = run(manifest, ctc, tmp_path / "out.csv", "--column", "text", "--only_language", "en")
    lengths = [len(clip.load(RATE)) for clip in Manifest(manifest).clips[:-1]]
    assert table["text_language"].tolist() == [*(languages.get(length, "de") for length in lengths), ""]
    assert table["text"].tolist() == [*("said" if languages.get(length) == "en" else "" for length in lengths), ""]
    assert "transcript" not in table.columns


def test_what_is_no_recogniser_is_refused(ctc, manifest, tmp_path, capsys):
    command = [str(manifest), "--out", str(tmp_path / "out.csv"), "--model"]
    Wav2Vec2Model.from_pretrained(ctc).save_pretrained(tmp_path / "bare")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "bare")
    assert main([*command, str(tmp_path / "bare")]) == 2
    assert "was not trained to recognise speech: it has no weights for lm_head" in capsys.readouterr().err
    assert main([*command, str(Path(transcribe.__file__).parent)]) == 2  # the root's own model
    assert "cannot be loaded" in capsys.readouterr().err
    assert main([str(manifest), "--model", str(ctc), "--out", str(manifest)]) == 2
    assert "is the manifest itself" in capsys.readouterr().err
