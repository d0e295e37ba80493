"""`wavcse words` from a manifest to an encoder: the same bytes after a stop, what is refused, what records say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from wavcse.analysis.arguments import EncoderSettings
from wavcse.analysis.encoders import build_encoder
from wavcse.data.files import read_json
from wavcse.data.manifest import Clip, Manifest
from wavcse.eval.baselines.mfcc import PAPER_FRAMES, MFCCEncoder
from wavcse.eval.encoder import check_encoder
from wavcse.tests.helpers.killed import run_killed, started
from wavcse.words import __main__ as program
from wavcse.words.__main__ import main
from wavcse.words.encoder import SavedWordEncoder, WordEncoder, word_frames

RATE = 16_000
TONES = {"low": (300, 400), "high": (1500, 1200), "rising": (400, 2500)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Utterances of four tones; tests must not change it."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    lines = ["file_name,start,end,word,order,utterance_id,split"]
    for utterance in range(6):
        words = [*rng.permutation(list(TONES)), "low"]
        waves = [rng.normal(0, 0.01, 1600)]
        for order, word in enumerate(words):
            start = sum(map(len, waves)) / RATE
            samples = int(rng.integers(1200, 2400))
            hz = np.linspace(*TONES[word], samples) * rng.uniform(0.9, 1.1)
            waves.append(0.3 * np.sin(2 * np.pi * np.cumsum(hz) / RATE) + rng.normal(0, 0.01, samples))
            split = "validation" if utterance > 3 else "train"
            lines.append(f"{utterance}.wav,{start:.5f},{start + samples / RATE:.5f},{word},{order},u{utterance},{split}")
        soundfile.write(folder / f"{utterance}.wav", np.concatenate(waves), RATE)
    (folder / "words.csv").write_text("\n".join(lines) + "\n")
    return folder / "words.csv"


def run(manifest, out, *more):
    line = ["--manifest", manifest, "--out", out, "--hidden_size", 8, "--batch_size", 8, "--num_epochs", 3, *more]
    return main([str(word) for word in line])


def losses_of(folder):
    return [json.loads(line)["validation_loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["audio_word2vec", "speech2vec", "siamese", "lee"])
def test_a_stopped_run_ends_with_the_same_bytes(kind, manifest, tmp_path, monkeypatch, capsys):
    assert run(manifest, tmp_path / "whole", "--kind", kind) == 0
    own_epoch = program.train_epoch

    def stopped(run, tokens):
        if run.learner.progress.epoch == 2:
            raise KeyboardInterrupt
        return own_epoch(run, tokens)

    monkeypatch.setattr(program, "train_epoch", stopped)
    assert run(manifest, tmp_path / "stopped", "--kind", kind, "--checkpoint_every_s", 0) == 130
    assert not (tmp_path / "stopped/model").exists()
    monkeypatch.setattr(program, "train_epoch", own_epoch)
    assert run(manifest, tmp_path / "stopped", "--kind", kind, "--checkpoint_every_s", 0) == 0
    whole, stopped = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    losses = losses_of(tmp_path / "whole")
    assert losses == losses_of(tmp_path / "stopped")
    assert len(losses) == 3
    result = read_json(tmp_path / "whole/results/words.json")
    assert result["best_loss"] == min(losses)
    assert (result["kind"], result["num_words"]) == (kind, {"train": 16, "validation": 8})
    assert result["targets"] == ("spelling" if kind == "lee" else None)
    if kind == "lee":
        assert "not what it means" in result["targets_are"]


@pytest.mark.kill
def test_killed_ten_times_it_ends_with_the_same_bytes(manifest, tmp_path):
    line = ["--manifest", manifest, "--hidden_size", 8, "--batch_size", 8, "--num_epochs", 60, "--checkpoint_every_s", 0]

    def check(folder):
        whole = tmp_path / "undisturbed"
        assert losses_of(folder) == losses_of(whole)
        weights = [(place / "model/model.safetensors").read_bytes() for place in (whole, folder)]
        assert weights[0] == weights[1]
        assert not list(folder.rglob("*.partial"))

    print(run_killed(lambda folder: started(main, list(map(str, [*line, "--out", folder]))), tmp_path, check))


def test_siamese_learns_tones_and_stops_when_validation_does(manifest, tmp_path):
    assert run(manifest, tmp_path / "r", "--num_epochs", 60, "--learning_rate", 0.02, "--patience", 8) == 0
    result = read_json(tmp_path / "r/results/words.json")
    first = json.loads((tmp_path / "r/log.jsonl").read_text().splitlines()[0])
    assert result["best_loss"] < 0.3 * first["validation_loss"]
    assert result["num_epochs"] in (60, result["best_epoch"] + 8)


def test_a_saved_folder_is_an_encoder_of_the_evaluation_and_of_analyses(manifest, tmp_path):
    assert run(manifest, tmp_path / "r", "--num_epochs", 1, "--max_frames", 6) == 0
    encoder = SavedWordEncoder(tmp_path / "r/model")
    check_encoder(encoder)
    wave, _ = soundfile.read(manifest.parent / "0.wav", dtype="float32")
    times = [(0.1, 0.2), (0.25, 0.4), (0.4, 0.41)]
    found = encoder.sequence(wave, times)
    frames = word_frames(wave[1600:3200], 13, 6)
    scaled = encoder.module.scaled(frames[None])
    plain = torch.nn.LSTM(13, 8, bidirectional=True, batch_first=True)
    plain.load_state_dict(encoder.module.lstm.state_dict())
    np.testing.assert_allclose(found[0], plain(scaled)[1][0].sum(dim=0)[0].detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1:], encoder.embed([wave[4000:6400], wave[6400:6560]]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="does not lie in an utterance"):
        encoder.sequence(wave, [(0.1, 99.0)])
    analysed = build_encoder("tones", EncoderSettings(model=str(tmp_path / "r/model")), 1, 0, "cpu")
    np.testing.assert_array_equal(analysed.readers[0].embed([wave]), encoder.embed([wave]))
    untrained = build_encoder("tones", EncoderSettings(model=str(tmp_path / "r/model"), untrained=True), 1, 0, "cpu")
    assert untrained.record()["weights_sha256"] == "random, seed 0"
    assert np.abs(untrained.readers[0].embed([wave]) - encoder.embed([wave])).max() > 1e-3
    with pytest.raises(ValueError, match="holds no model of `wavcse words`"):
        SavedWordEncoder(tmp_path)
    (tmp_path / "r/model/model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be loaded"):
        SavedWordEncoder(tmp_path / "r/model")


def test_an_utterance_is_its_words_in_order(manifest, tmp_path):
    assert run(manifest, tmp_path / "r", "--num_epochs", 1) == 0
    settings = EncoderSettings(model=str(tmp_path / "r/model"), words=str(manifest))
    encoder, alone = build_encoder("tones", settings, 1, 0, "cpu"), SavedWordEncoder(tmp_path / "r/model")
    check_encoder(encoder.readers[0])
    whole = [Clip(f"{number}.wav", manifest.parent / f"{number}.wav") for number in (3, 0)]
    waves = [clip.load(RATE) for clip in whole]
    word = Manifest(manifest).clips[5]
    frames = encoder.frames([*waves, word.load(RATE)], encoder.view("embedding"))
    assert [len(own) for own in frames] == [4, 4, 1]
    of_three = [clip for clip in Manifest(manifest).clips if clip.path.name == "3.wav"]
    np.testing.assert_allclose(frames[0], alone.embed([clip.load(RATE) for clip in of_three]), rtol=0, atol=1e-5)
    vectors = encoder.readers[0].embed([*waves, word.load(RATE)])
    np.testing.assert_allclose(vectors, [own.mean(axis=0) for own in frames], rtol=1e-5, atol=1e-6)
    assert encoder.source.is_utterance(whole[0])
    assert not encoder.source.is_utterance(word)
    with pytest.raises(ValueError, match=r"words is for models of `wavcse words`; mfcc is none\."):
        build_encoder("mfcc", EncoderSettings(model="mfcc", words=str(manifest)), 1, 0, "cpu")
    (manifest.parent / "utterances.csv").write_text("file_name\n0.wav\n")
    with pytest.raises(ValueError, match="0.wav has no start and end; a row per word is needed"):
        build_encoder("tones", replace(settings, words=str(manifest.parent / "utterances.csv")), 1, 0, "cpu")


def test_the_papers_mfcc_frames_are_an_encoder_of_analyses():
    encoder = build_encoder("mfcc_paper", EncoderSettings(model="mfcc_paper"), 1, 0, "cpu")
    wave = np.random.default_rng(0).normal(0, 0.1, RATE // 2).astype(np.float32)
    (frames,) = encoder.frames([wave], encoder.view("statistics"))
    assert frames.shape == (48, 23 * 3 * 11)
    np.testing.assert_allclose(frames, MFCCEncoder(**PAPER_FRAMES).frames([wave])[0][:, 0])
    assert build_encoder("mfcc", EncoderSettings(model="mfcc"), 1, 0, "cpu").readers[0].embedding_size == 78


def test_frames_are_scaled_by_the_training_words(manifest, tmp_path):
    assert run(manifest, tmp_path / "r", "--num_epochs", 1) == 0
    assert run(manifest, tmp_path / "raw", "--num_epochs", 1, "--scaling", "none") == 0
    module = SavedWordEncoder(tmp_path / "r/model").module
    frames = []
    for line in manifest.read_text().splitlines()[1:17]:
        name, start, end = line.split(",")[:3]
        wave, _ = soundfile.read(manifest.parent / name, dtype="float32")
        frames.append(word_frames(wave[round(float(start) * RATE) : round(float(end) * RATE)], 13, 80))
    scaled = module.scaled(torch.cat(frames))
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(13), atol=0.02, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0), torch.ones(13), atol=0.02, rtol=0)
    raw = SavedWordEncoder(tmp_path / "raw/model").module
    assert raw.mean.tolist() == WordEncoder(13, 8).mean.tolist()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split_column", "order"], "column 'order' holds"),
        (["--word_column", "wrd"], "has no column 'wrd'"),
        (["--kind", "lee", "--targets", "file"], "name the .vec file in targets_from"),
        (["--kind", "speech2vec", "--order_column", "word"], "column 'word' holds"),
        (["--word_column", "end"], "siamese: train has no word that is said twice"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(more, message, manifest, tmp_path, capsys):
    assert run(manifest, tmp_path / "r", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r/log.jsonl").exists()
