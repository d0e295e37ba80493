"""Embeddings that survive a kill: only what is missing is computed, and the vectors are those of an undisturbed pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavcse.data.manifest import Clip
from wavcse.eval.embeddings import EmbeddingStore, embed_clips

RATE = 16_000


class Counting:
    """Length and power of a clip; stops like a killed process after a number of batches."""

    sampling_rate = RATE
    embedding_size = 2

    def __init__(self, name: str = "counting", batches: float = np.inf, identity: dict | None = None):
        self.name, self.left, self.identity = name, batches, identity or {}
        self.seen: list[int] = []

    def embed(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.seen += [len(waveform) for waveform in waveforms]
        return np.array([[len(w), np.mean(w**2)] for w in waveforms], dtype=np.float32)


@pytest.fixture
def clips(tmp_path) -> list[Clip]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.wav" for number in range(10)]
    for number, path in enumerate(paths):
        soundfile.write(path, 0.1 * rng.standard_normal(1600 * (number + 1)), RATE, subtype="FLOAT")
    return [Clip(path.name, path) for path in paths]


def embed(encoders: Sequence[Counting], clips: Sequence[Clip], store: Path | None):
    return embed_clips(encoders, clips, batch_seconds=1.5, show_progress=False, store_dir=store)


def test_a_killed_pass_goes_on_with_what_is_missing(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("wavcse.eval.embeddings.STORE_INTERVAL_S", 0.0)
    whole = embed([Counting()], clips, None)
    killed = Counting(batches=3)
    with pytest.raises(KeyboardInterrupt):
        embed([killed], clips, tmp_path / "store")
    second = Counting()
    found = embed([second], clips, tmp_path / "store")
    np.testing.assert_array_equal(found.tables["counting"], whole.tables["counting"])
    assert sorted(killed.seen + second.seen) == [1600 * (number + 1) for number in range(10)]
    assert killed.seen
    third = Counting()
    again = embed([third], clips, tmp_path / "store")
    assert third.seen == []
    np.testing.assert_array_equal(again.tables["counting"], whole.tables["counting"])


def test_two_workers_find_and_store_what_one_does(clips, tmp_path):
    clips[3].path.write_text("no audio")
    soundfile.write(clips[7].path, np.full(1600, np.nan), RATE, subtype="FLOAT")
    found, files = [], []
    for workers in (1, 2):
        encoders, store = [Counting(), Counting("other")], tmp_path / str(workers)
        how = {"batch_seconds": 1.5, "show_progress": False, "store_dir": store}
        found.append(embed_clips(encoders, clips, workers=workers, **how))
        (file,) = store.glob("other.*/*.safetensors")
        files.append(file.read_bytes())
        again = embed_clips([Counting(batches=0), Counting("other", batches=0)], clips[:3], **how)  # from the store alone
        np.testing.assert_array_equal(again.tables["other"], found[-1].tables["other"][:3])
    assert files[0] == files[1]
    one, two = found
    assert [clip.clip_id for clip in two.skipped] == ["3.wav", "7.wav"]
    assert one.skipped == two.skipped
    np.testing.assert_array_equal(one.embedded, two.embedded)
    for name in ("counting", "other"):
        np.testing.assert_array_equal(one.tables[name], two.tables[name])
        assert two.seconds[name] > 0


def test_further_clips_and_encoders_cost_only_themselves(clips, tmp_path):
    embed([Counting()], clips[:6], tmp_path)
    known, other = Counting(), Counting("other")
    found = embed([known, other], clips, tmp_path)
    assert sorted(known.seen) == [1600 * (number + 1) for number in range(6, 10)]
    assert len(other.seen) == 10
    np.testing.assert_array_equal(found.tables["counting"], found.tables["other"])


def test_other_weights_and_other_audio_are_other_embeddings(clips, tmp_path):
    embed([Counting(identity={"weights_sha256": "a"})], clips, tmp_path)
    changed = Counting(identity={"weights_sha256": "b"})
    embed([changed], clips, tmp_path)
    assert len(changed.seen) == 10
    soundfile.write(clips[3].path, np.full(800, 0.5), RATE, subtype="FLOAT")
    same = Counting(identity={"weights_sha256": "b"})
    found = embed([same], clips, tmp_path)
    assert same.seen == [800]
    assert found.tables["counting"][3, 1] == pytest.approx(0.25)


def test_a_clip_that_becomes_unreadable_is_skipped_although_it_is_stored(clips, tmp_path):
    embed([Counting()], clips, tmp_path)
    clips[0].path.unlink()
    found = embed([Counting()], clips, tmp_path)
    assert not found.embedded[0]
    assert found.embedded[1:].all()
    assert np.isnan(found.tables["counting"][0]).all()
    assert [entry.clip_id for entry in found.skipped] == ["0.wav"]


def test_a_half_written_file_is_not_read(clips, tmp_path):
    encoder = Counting()
    embed([encoder], clips[:2], tmp_path)
    store = EmbeddingStore(tmp_path, encoder)
    (store.folder / "half.partial").write_bytes(b"\0" * 10)
    assert embed([encoder], clips[:2], tmp_path).embedded.all()


def test_quiet_clips_are_named(clips):
    samples = soundfile.read(clips[3].path)[0]
    soundfile.write(clips[3].path, 1e-4 * samples, RATE, subtype="FLOAT")
    assert embed([Counting()], clips, None).quiet == ["3.wav"]


def test_the_first_seconds_are_embedded_as_clips_that_a_manifest_cuts_so(clips, tmp_path):
    """Longer clips are cut, shorter ones are the same as ever; each kind has its own place in the store."""
    whole = embed_clips([Counting()], clips, show_progress=False, store_dir=tmp_path / "store")
    cut = embed_clips([cutting := Counting()], clips, show_progress=False, store_dir=tmp_path / "store", first_s=0.45)
    assert sorted(cutting.seen) == [7200] * 6  # the four clips of up to 0.4 s are there already
    np.testing.assert_array_equal(cut.tables["counting"][:4], whole.tables["counting"][:4])
    for clip, row in zip(clips[4:], cut.tables["counting"][4:]):
        waveform, _ = soundfile.read(clip.path, stop=7200, dtype="float32")
        np.testing.assert_allclose(row, [7200, np.mean(waveform**2)], rtol=1e-6)
    listed = [Clip(clip.clip_id, clip.path, 0.0, 0.45) for clip in clips[4:]]
    again = embed_clips([nothing := Counting()], listed, show_progress=False, store_dir=tmp_path / "store")
    assert nothing.seen == []
    np.testing.assert_array_equal(again.tables["counting"], cut.tables["counting"][4:])


def test_the_first_seconds_of_a_part_begin_where_the_part_does(clips):
    part = Clip("part", clips[9].path, 0.3, 0.9)
    found = embed_clips([Counting()], [part], show_progress=False, first_s=0.2).tables["counting"]
    waveform, _ = soundfile.read(part.path, start=4800, stop=8000, dtype="float32")
    np.testing.assert_allclose(found, [[3200, np.mean(waveform**2)]], rtol=1e-6)
