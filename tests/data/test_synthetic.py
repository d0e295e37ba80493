"""The synthetic corpus: splits that do not leak, labels that are covered, bytes that depend on the seed alone."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from wavcse.data import SPLITS
from wavcse.data.synthetic import plan_corpus, write_corpus
from wavcse.data.synthetic.__main__ import main
from wavcse.data.synthetic.espeak import _data_folder, speak
from wavcse.data.synthetic.render import render
from wavcse.data.synthetic.table import ACCENTS, EMOTIONS, KEYWORDS, KNOWN_SPEAKERS, MIN_CLIPS
from wavcse.data.synthetic.voices import VARIANTS
from wavcse.tests.helpers.processes import run_python

CLIPS = MIN_CLIPS
TASKS = {"split_ks": "keyword", "split_sid": "speaker_id", "split_er": "emotion"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Folder of a small corpus, written in this process; tests must not change it."""
    return write_corpus(tmp_path_factory.mktemp("synthetic"), CLIPS, seed=0, workers=1).parent


@pytest.fixture(scope="module")
def plan():
    """The table of the default size."""
    rows = plan_corpus(4000, seed=0)
    return pd.DataFrame([vars(u.speaker) | vars(u) | u.labels | u.splits for u in rows])


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The plan


def test_paralinguistic_splits_share_no_speaker_with_training(plan):
    trained = (plan[list(TASKS)] == "train").any(axis=1)
    train_speakers = set(plan.speaker_id[trained])
    assert (plan.split_ks == plan.split_er).all()
    for split in ("validation", "test"):
        assert train_speakers.isdisjoint(plan.speaker_id[plan.split_ks == split])
    assert set(plan.speaker_id[plan.split_ks == "validation"]).isdisjoint(plan.speaker_id[plan.split_ks == "test"])


def test_no_clip_has_two_different_splits(plan):
    for row in plan[list(TASKS)].itertuples(index=False):
        used = set(row) - {""}
        assert len(used) == 1, row


def test_known_speakers_serve_speaker_identification_and_train_the_rest(plan):
    known = plan[plan.split_sid != ""]
    assert known.speaker_id.nunique() == KNOWN_SPEAKERS
    assert set(known.speaker_id).isdisjoint(plan.speaker_id[plan.split_sid == ""])
    assert (known.split_ks[known.split_sid == "train"] == "train").all()
    assert (known.split_ks[known.split_sid != "train"] == "").all()
    share = known.split_sid.value_counts(normalize=True)
    assert [share[split] for split in SPLITS] == pytest.approx([0.6, 0.2, 0.2], abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_occurs_in_every_split_of_the_smallest_corpus(seed):
    classes = defaultdict(set)
    for u in plan_corpus(MIN_CLIPS, seed):
        classes["ks", u.splits["split_ks"]].add(u.labels["keyword"])
        classes["sid", u.splits["split_sid"]].add(u.speaker.speaker_id)
        classes["er", u.splits["split_er"]].add(u.labels["emotion"])
    for split in SPLITS:
        assert classes["ks", split] == set(KEYWORDS)
        assert len(classes["sid", split]) == KNOWN_SPEAKERS
        assert classes["er", split] == set(EMOTIONS)


def test_labels_are_balanced_and_not_tied_to_each_other(plan):
    assert plan.keyword.value_counts().agg(["min", "max"]).tolist() == pytest.approx([4000 / 11] * 2, abs=3)
    assert plan.emotion.value_counts().agg(["min", "max"]).tolist() == pytest.approx([1000] * 2, abs=3)
    assert plan.gender.value_counts(normalize=True)["female"] == pytest.approx(0.5, abs=0.01)
    assert (pd.crosstab(plan.speaker_id, plan.emotion) > 0).all(axis=None)
    assert (pd.crosstab(plan.keyword, plan.emotion) > 50).all(axis=None)


def test_a_longer_plan_starts_with_the_shorter_one():
    assert plan_corpus(300, seed=3)[:200] == plan_corpus(200, seed=3)


def test_the_plan_of_folders_already_written_is_kept(corpus):
    """A folder is continued only by the plan that it was begun with, so a change here makes every old folder useless."""
    identity = json.loads((corpus / "corpus.json").read_text())
    assert identity["plan_sha256"] == "6792ab982a8da14331dc5443831d0f86583f33e883b3c4096ebe16d4f0267d58"
    assert (identity["corpus"], identity["renderer_version"]) == ("wavcse synthetic speech", 1)


def test_too_few_clips_raise():
    with pytest.raises(ValueError, match=f"minimum is {MIN_CLIPS}"):
        plan_corpus(MIN_CLIPS - 1, seed=0)


def test_emotions_differ_in_the_mean_but_overlap(plan):
    for column, order in (
        ("pitch_semitones", ["sad", "neutral", "angry", "happy"]),
        ("rate_wpm", ["sad", "neutral", "happy", "angry"]),
    ):
        groups = plan.groupby("emotion")[column]
        mean, low, high = groups.mean(), groups.quantile(0.05), groups.quantile(0.95)
        assert mean.sort_values().index.tolist() == order
        for below, above in itertools.pairwise(order):
            assert mean[below] < mean[above]
            assert high[below] > low[above], f"{below} and {above} do not overlap in {column}"


# The sound


def test_audio_is_what_metadata_says(corpus):
    metadata = pd.read_csv(corpus / "metadata.csv", keep_default_na=False)
    assert len(metadata) == CLIPS
    for row in metadata.itertuples():
        info = soundfile.info(corpus / row.file_name)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "FLAC", "PCM_16")
        assert row.duration == pytest.approx(info.frames / info.samplerate, abs=1e-4)
        assert 0.2 < row.duration < 3
        wave, _ = soundfile.read(corpus / row.file_name)
        assert np.isfinite(wave).all()
        assert 0.01 < np.abs(wave).max() < 1


def test_every_voice_and_accent_speaks():
    for accent, variant in [(a, "m1") for a in ACCENTS] + [("en-us", v) for vs in VARIANTS.values() for v in vs]:
        wave = speak("yes", accent, variant, rate_wpm=150)[0]
        assert wave.dtype == np.float32
        assert np.abs(wave).max() > 0.05


def test_unknown_voice_and_variant_raise():
    with pytest.raises(ValueError, match="no voice 'xx-yy'"):
        speak("yes", "xx-yy", "m1", rate_wpm=150)
    with pytest.raises(ValueError, match="no voice variant 'nobody'"):
        speak("yes", "en-us", "nobody", rate_wpm=150)


def test_missing_engine_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match="pip install espeakng-loader"):
        speak("yes", "en-us", "m1", rate_wpm=150)


def test_data_in_a_deep_folder_is_found(tmp_path, monkeypatch):
    import espeakng_loader

    before = speak("yes", "en-us", "f3", rate_wpm=150)[0]
    deep = tmp_path / ("x" * 120) / "espeak-ng-data"
    deep.parent.mkdir()
    deep.symlink_to(espeakng_loader.get_data_path())
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep))
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    try:
        assert np.array_equal(speak("yes", "en-us", "f3", rate_wpm=150)[0], before)
    finally:
        _data_folder().unlink()


def test_a_clip_does_not_depend_on_what_was_spoken_before():
    first, second = plan_corpus(MIN_CLIPS, seed=5)[:2]
    alone = render(second)[0]
    render(first)
    assert np.array_equal(render(second)[0], alone)


# The folder


def test_cli_with_two_workers_writes_the_same_bytes(corpus, tmp_path):
    command = ("-m", "wavcse.data.synthetic", "--out", tmp_path, "--workers", "2", "--clips", CLIPS, "--seed", "0")
    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "metadata.csv")
    assert contents(tmp_path) == contents(corpus)


def test_another_seed_gives_another_corpus(corpus):
    ours = plan_corpus(CLIPS, seed=0)
    theirs = plan_corpus(CLIPS, seed=1)
    assert all(a != b for a, b in zip(ours, theirs, strict=True))
    assert not np.array_equal(render(ours[0])[0], render(theirs[0])[0])


def test_a_broken_run_continues_to_the_same_bytes(corpus, tmp_path):
    complete = contents(corpus)
    for name, data in complete.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "metadata.csv").unlink()
    for index in (0, 7, CLIPS - 1):
        (tmp_path / f"audio/{index:06d}.flac").unlink()
    (tmp_path / "audio/000003.flac").write_bytes(b"")  # damaged
    kept = tmp_path / "audio/000001.flac"
    written_at = kept.stat().st_mtime_ns
    write_corpus(tmp_path, CLIPS, seed=0, workers=1)
    assert contents(tmp_path) == complete
    assert kept.stat().st_mtime_ns == written_at


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_worker_behind(tmp_path):
    code = f"from wavcse.data.synthetic import write_corpus; write_corpus({str(tmp_path)!r}, 4_000, 0, workers=2)"
    run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: len(list(tmp_path.glob("audio/*.flac"))) > 10)
        run.send_signal(signal.SIGKILL)
        run.wait()
        wait_until(lambda: not session_is_alive(run.pid))
    finally:
        if session_is_alive(run.pid):
            os.killpg(run.pid, signal.SIGKILL)
    assert not (tmp_path / "metadata.csv").exists()


def wait_until(condition, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def session_is_alive(session):
    """Whether any process of the session is left, zombies not counted."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == session and state != "Z":
            return True
    return False


def test_a_folder_with_another_corpus_is_refused_and_kept(corpus):
    before = contents(corpus)
    with pytest.raises(ValueError, match=r"another synthetic corpus .*seed 0 instead of 1"):
        write_corpus(corpus, CLIPS, seed=1, workers=1)
    with pytest.raises(ValueError, match=r"clips 160 instead of 161"):
        write_corpus(corpus, CLIPS + 1, seed=0, workers=1)
    assert contents(corpus) == before


def test_a_folder_with_foreign_audio_is_refused(tmp_path):
    (tmp_path / "audio").mkdir()
    with pytest.raises(ValueError, match="choose an empty folder"):
        write_corpus(tmp_path, CLIPS, seed=0, workers=1)


def test_cli_reports_errors_and_returns_2(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "new"), "--clips", "10"]) == 2
    assert f"minimum is {MIN_CLIPS}" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "new"), "--workers", "0"]) == 2
    assert "workers is 0; it must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
