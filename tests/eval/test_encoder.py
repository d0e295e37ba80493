"""The encoder contract's checker, and embedding the clips of a corpus in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavcse.data.corpus_pass import write_skipped
from wavcse.data.manifest import Clip
from wavcse.eval.embeddings import embed_clips
from wavcse.eval.encoder import WavCSEEncoder, candidates_of, check_encoder

SAMPLING_RATE = 16_000


class LengthAndPower:
    """A sound encoder: length in seconds and mean power of every clip; refuses clips below 400 samples."""

    name = "sound"
    sampling_rate = SAMPLING_RATE
    embedding_size = 2

    def __init__(self):
        self.batches: list[list[int]] = []

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        self.batches.append([len(waveform) for waveform in waveforms])
        for i, waveform in enumerate(waveforms):
            if len(waveform) < 400:
                raise ValueError(f"clip {i}: has {len(waveform)} samples, too few")
        return np.array([[len(w) / self.sampling_rate, np.mean(w**2)] for w in waveforms], dtype=np.float32)


class PaddingLeaks(LengthAndPower):
    def embed(self, waveforms):
        longest = max(map(len, waveforms))
        return np.array([[len(w) / self.sampling_rate, np.sum(w**2) / longest] for w in waveforms], dtype=np.float32)


class BatchStatistic(LengthAndPower):
    def embed(self, waveforms):
        embeddings = super().embed(waveforms)
        return embeddings - embeddings.mean(axis=0)


class SortsByLength(LengthAndPower):
    def embed(self, waveforms):
        return super().embed(sorted(waveforms, key=len))


class WrongShape(LengthAndPower):
    embedding_size = 3


class WrongDtype(LengthAndPower):
    def embed(self, waveforms):
        return super().embed(waveforms).astype(np.float64)


class NotFinite(LengthAndPower):
    def embed(self, waveforms):
        return super().embed(waveforms) / np.float32(0)


class NoEmbed:
    name = "broken"
    sampling_rate = SAMPLING_RATE
    embedding_size = 2


def test_check_accepts_a_sound_encoder():
    check_encoder(LengthAndPower())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (PaddingLeaks, "different vectors alone and in a batch"),
        (BatchStatistic, "different vectors alone and in a batch"),
        (SortsByLength, "different vectors alone and in a batch"),
        (WrongShape, r"float32 of shape \(5, 2\); float32 of shape \(5, 3\) is wanted"),
        (WrongDtype, "gave float64"),
        (NotFinite, "NaN or infinity"),
        (NoEmbed, "it needs name, sampling_rate, embedding_size and embed"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_check_refuses(encoder, message):
    with pytest.raises(ValueError, match=message):
        check_encoder(encoder())


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_saved_model_keeps_the_contract(norm, tiny_model, waves, embed, tmp_path):
    model = tiny_model("wavlm", norm)
    model.save_pretrained(tmp_path)
    encoder = WavCSEEncoder(str(tmp_path), name="tiny")
    check_encoder(encoder)
    clips = waves(16_000, 5000)
    np.testing.assert_allclose(encoder.embed(clips), embed(model, clips).numpy(), atol=1e-6)
    assert (encoder.name, encoder.sampling_rate, encoder.embedding_size) == ("tiny", SAMPLING_RATE, 20)
    assert len(encoder.identity["weights_sha256"]) == 64


def test_weights_hash_is_that_of_the_file_and_changes_with_the_weights(tiny_model, tmp_path):
    import hashlib

    hashes = []
    for name, sizes in (("a", {}), ("b", {"embedding_size": 24})):
        tiny_model(**sizes).save_pretrained(tmp_path / name)
        hashes.append(WavCSEEncoder(str(tmp_path / name)).identity["weights_sha256"])
    assert hashes[0] == hashlib.sha256((tmp_path / "a" / "model.safetensors").read_bytes()).hexdigest()
    assert hashes[0] != hashes[1]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded; give the folder of a saved wavCSE model"):
        WavCSEEncoder(str(tmp_path))


def test_a_model_without_an_embedding_is_refused_before_its_code_could_run(upstream_folder):
    with pytest.raises(ValueError, match="of type 'wavlm', which has no embedding"):
        WavCSEEncoder(str(upstream_folder))


def test_candidates_come_one_after_another_in_a_wider_table(tmp_path):
    class TwoCandidates(LengthAndPower):
        num_candidates = 2

        def embed(self, waveforms):
            embeddings = super().embed(waveforms)
            return np.concatenate([embeddings, -embeddings], axis=1)

    class NarrowTable(LengthAndPower):
        num_candidates = 2

    check_encoder(TwoCandidates())
    with pytest.raises(ValueError, match=r"float32 of shape \(5, 4\) is wanted"):
        check_encoder(NarrowTable())
    assert (candidates_of(TwoCandidates()), candidates_of(LengthAndPower())) == (2, 1)
    table = embed_clips([TwoCandidates()], corpus(tmp_path, [4000, 8000]), show_progress=False).tables["sound"]
    np.testing.assert_allclose(table[:, [0, 2]], [[0.25, -0.25], [0.5, -0.5]], rtol=1e-6)


def corpus(folder: Path, lengths: Sequence[int], rate: int = SAMPLING_RATE) -> list[Clip]:
    clips = []
    for i, length in enumerate(lengths):
        path = folder / f"{i}.wav"
        soundfile.write(path, np.full(length, 0.1 * (i + 1)), rate, subtype="FLOAT")
        clips.append(Clip(path.name, path))
    return clips


def test_embeddings_come_back_in_input_order(tmp_path):
    lengths = [1600, 8000, 3200, 4800]
    result = embed_clips([LengthAndPower()], corpus(tmp_path, lengths), batch_seconds=0.6, show_progress=False)
    np.testing.assert_allclose(result.tables["sound"][:, 0], np.array(lengths) / SAMPLING_RATE, rtol=1e-6)
    np.testing.assert_allclose(result.tables["sound"][:, 1], [0.01, 0.04, 0.09, 0.16], rtol=1e-5)
    assert result.embedded.all()
    assert result.skipped == []


def test_clips_are_resampled_and_parts_are_cut(tmp_path):
    (clip,) = corpus(tmp_path, [4000], rate=8000)
    part = Clip("0.wav#0.1-0.3", clip.path, 0.1, 0.3)
    result = embed_clips([LengthAndPower()], [clip, part], show_progress=False)
    np.testing.assert_allclose(result.tables["sound"][:, 0], [0.5, 0.2], rtol=1e-6)


def test_bad_clips_are_skipped_with_their_reason_and_cost_no_neighbour(tmp_path):
    clips = corpus(tmp_path, [4000, 4000, 300, 4000])
    clips[0].path.write_bytes(b"no audio")
    soundfile.write(clips[1].path, np.array([0.1, np.nan] * 2000), SAMPLING_RATE, subtype="FLOAT")
    clips.append(Clip("gone.wav", tmp_path / "gone.wav"))
    encoder = LengthAndPower()
    result = embed_clips([encoder], clips, show_progress=False)
    np.testing.assert_array_equal(result.embedded, [False, False, False, True, False])
    assert np.isnan(result.tables["sound"][[0, 1, 2, 4]]).all()
    assert result.tables["sound"][3, 0] == pytest.approx(0.25)
    assert [entry.clip_id for entry in result.skipped] == ["0.wav", "1.wav", "2.wav", "gone.wav"]
    for entry, reason in zip(result.skipped, ["cannot be read", "NaN", "2.wav: has 300 samples", "cannot be read"]):
        assert reason in entry.reason
        assert str(tmp_path) not in entry.reason
    write_skipped(tmp_path / "skipped.csv", result.skipped)
    lines = (tmp_path / "skipped.csv").read_text().splitlines()
    assert lines[0] == "clip,reason"
    assert len(lines) == 5


def test_a_clip_that_one_encoder_refuses_is_skipped_for_all(tmp_path):
    class Tolerant(LengthAndPower):
        name = "tolerant"

        def embed(self, waveforms):
            return np.ones((len(waveforms), 2), dtype=np.float32)

    result = embed_clips([Tolerant(), LengthAndPower()], corpus(tmp_path, [300, 4000]), show_progress=False)
    np.testing.assert_array_equal(result.embedded, [False, True])
    assert np.isnan(result.tables["tolerant"][0]).all()


def test_encoders_of_different_rates_share_one_pass(tmp_path):
    class AtHalfRate(LengthAndPower):
        name = "half"
        sampling_rate = 8000

    result = embed_clips([LengthAndPower(), AtHalfRate()], corpus(tmp_path, [4000, 8000]), show_progress=False)
    np.testing.assert_allclose(result.tables["half"][:, 0], result.tables["sound"][:, 0], rtol=1e-6)
