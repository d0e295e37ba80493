"""Synthetic sentences: when words and phones are said, and that asking for it leaves the sound alone."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from wavcse.data import SPLITS
from wavcse.data.manifest import Manifest
from wavcse.data.synthetic import espeak as engine
from wavcse.data.synthetic import plan_corpus, plan_twin, write_plan
from wavcse.data.synthetic.__main__ import main
from wavcse.data.synthetic.espeak import ENGINE_RATE_HZ, speak
from wavcse.data.synthetic.render import render, words_of
from wavcse.data.synthetic.sentences import SENTENCES
from wavcse.data.synthetic.table import EMOTIONS, MIN_CLIPS

CLIPS = 4


@pytest.fixture(scope="module")
def few():
    """The first utterances of a corpus as a plan of their own."""
    plan = plan_twin(SENTENCES, SENTENCES.min_clips, seed=0)
    return replace(plan, utterances=plan.utterances[:CLIPS])


@pytest.fixture(scope="module")
def folder(few, tmp_path_factory):
    """Written by one process; tests must not change it."""
    return write_plan(few, tmp_path_factory.mktemp("sentences"), workers=1).parent


@pytest.mark.parametrize(
    ("text", "voice", "variant"),
    [("turn the lights on, please", "en-us", "f3"), ("el viejo médico abrió la puerta", "es", "Andrea"), ("گل", "fa", "m1")],
)
def test_asking_for_times_leaves_the_sound_as_it_was(monkeypatch, text, voice, variant):
    wave, words = speak(text, voice, variant, rate_wpm=150, seed=3)
    monkeypatch.setattr(engine, "_INITIALIZE_PHONEME_EVENTS", 0)  # as corpora were written before there were times
    without, none = speak(text, voice, variant, rate_wpm=150, seed=3)
    assert np.array_equal(wave, without)
    assert words
    assert not none


def test_words_and_phones_follow_each_other_within_the_waveform():
    wave, words = speak("the old teacher found a letter, near the garden", "en-us", "m1", rate_wpm=150)
    assert [word.text for word in words] == ["the", "old", "teacher", "found", "a", "letter", "near", "the", "garden"]
    assert [phone.symbol for phone in words[2].phones] == ["t", "'i:", "tS", "3"]
    times = [0.0, *(t for word in words for t in (word.start_s, word.end_s)), len(wave) / ENGINE_RATE_HZ]
    assert times == sorted(times)
    for word in words:
        inner = [word.start_s, *(t for phone in word.phones for t in (phone.start_s, phone.end_s))]
        assert inner == sorted(inner)
        assert inner[-1] == word.end_s
        assert all(a.end_s == b.start_s for a, b in zip(word.phones, word.phones[1:]))


@pytest.mark.parametrize("ratio", [0.93, 1.07])
def test_times_are_those_of_the_clip_whatever_the_vocal_tract(ratio):
    """Before, between and after the words nothing sounds but the noise; a shift of 20 ms would be heard."""
    utterance = plan_corpus(MIN_CLIPS, seed=0)[0]
    speaker = replace(utterance.speaker, accent="en-us", tract_ratio=ratio)
    utterance = replace(utterance, text="oh, I, aye", speaker=speaker, snr_db=60, lead_s=0.2, tail_s=0.2)
    wave, words = render(utterance)
    assert words == words_of(utterance)

    def level(start_s, end_s):
        return np.sqrt(np.mean(np.square(wave[round(16_000 * start_s) : round(16_000 * end_s)])))

    for before, word in zip([None, *words], words):
        silent_from = 0.0 if before is None else before.end_s + 0.02
        onset = level(word.start_s, word.start_s + 0.04)
        assert level(silent_from, word.start_s - 0.002) < 0.02 * level(word.start_s, word.end_s)
        assert onset > 0.1 * level(word.start_s, word.end_s)


def test_the_tables_of_words_and_phones_are_manifests(folder):
    utterances = pd.read_csv(folder / "metadata.csv", dtype=str)
    words, phones = Manifest(folder / "words.csv"), Manifest(folder / "phones.csv")
    for row in utterances.itertuples():
        own = words.table[words.table.file_name == row.file_name]
        assert " ".join(own.word) == row.text
        assert own.order.tolist() == [str(i) for i in range(len(own))]
        assert {*own.speaker_id, *own.emotion, *own.split} == {row.speaker_id, row.emotion, row.split}
        assert row.file_name == f"audio/{own.utterance_id.iloc[0]}.flac"
        said = phones.table[phones.table.file_name == row.file_name]
        assert " ".join(said.phone) == " ".join(own.phones)
    clip, row = words.clips[3], words.table.iloc[3]
    assert len(clip.load(16_000)) == pytest.approx(16_000 * (float(row.end) - float(row.start)), abs=1)


def test_workers_and_a_restart_change_no_byte(few, folder, tmp_path):
    write_plan(few, tmp_path, workers=2)
    (tmp_path / "words.csv").unlink()
    (tmp_path / few.utterances[1].file_name).unlink()
    write_plan(few, tmp_path, workers=1)
    for path in folder.rglob("*.*"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("seed", range(3))
def test_every_split_has_every_emotion_both_languages_and_speakers_of_its_own(seed):
    found, speakers = defaultdict(set), defaultdict(set)
    for utterance in plan_twin(SENTENCES, SENTENCES.min_clips, seed).utterances:
        split = utterance.splits["split"]
        found[split] |= {utterance.labels["emotion"], utterance.speaker.language}
        speakers[utterance.speaker.speaker_id].add(split)
    assert all(found[split] == {*EMOTIONS, "en", "es"} for split in SPLITS)
    assert all(len(own) == 1 for own in speakers.values())


def test_two_kinds_of_corpora_at_once_are_refused(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "new"), "--sentences", "--twins"]) == 2
    assert "--sentences and --twins are two corpora" in capsys.readouterr().err
