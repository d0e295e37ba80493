"""Synthetic twins: columns and splits of the contract, labels that the voice carries, trials that are sound, equal bytes."""

import csv
import hashlib
import re
import unicodedata
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy.stats import spearmanr

from wavcse.data import SPLITS
from wavcse.data.composite import TaskSource, load_task_clips
from wavcse.data.manifest import Manifest
from wavcse.data.synthetic import TWINS, corpus, plan_twin, write_plan
from wavcse.data.synthetic import __main__ as cli
from wavcse.data.synthetic.espeak import speak
from wavcse.data.synthetic.render import render
from wavcse.data.synthetic.table import plan_multitask
from wavcse.data.synthetic.twins.dyads import FILLERS, FIXED_HINTS, FIXED_LINES, LOOSE_HINTS
from wavcse.data.synthetic.twins.fluent import INTENTS
from wavcse.tests.helpers.processes import Child, run_python

# twin -> (label column, split column) of the tasks that it serves
TASKS = {
    "football": [("keyword", "split_ks")],
    "voxforge": [("language", "split_sli")],
    "kathbath": [("speaker_id", "split_sid")],
    "cnceleb1": [("speaker_id", "split_sv")],
    "timit": [("gender", "split_sgr"), ("age", "split_sar"), ("dialect", "split_sdr")],
    "aesdd": [("emotion", "split_er")],
    "iemocap": [("valence", "split_vad"), ("activation", "split_vad"), ("dominance", "split_vad")],
    "fluent": [("intent", "split_ic")],
    "librispeech": [("text", "split_asr"), ("speaker_id", "split_sv")],
    "dyads": [("emotion", "split_er"), ("style", "split_er"), ("gender", "split_er")],
}
NUM_CLASSES = {
    **{
        "football": {"keyword": 18},
        "voxforge": {"language": 6},
        "timit": {"gender": 2, "dialect": 8},
        "aesdd": {"emotion": 5},
    },
    **{"fluent": {"intent": 31}, "dyads": {"emotion": 4, "style": 2, "gender": 2}},
}
PLANS = {  # "" is the corpus of Phase 1
    **{"": "2bba7119cc7c", "football": "ee51bf564952", "voxforge": "877a936ff92d", "kathbath": "7cbb80bbb7a4"},
    **{"cnceleb1": "63826e33bc47", "timit": "4dee38f917f8", "aesdd": "257b38a57296", "iemocap": "d963402689e2"},
    **{"fluent": "ef79f2c4be9a", "librispeech": "6ad318a5ce8b", "dyads": "e0d182694eaa"},
}
SCRIPTS = {
    **{"bn": "BENGALI", "gu": "GUJARATI", "hi": "DEVANAGARI", "kn": "KANNADA", "ml": "MALAYALAM", "mr": "DEVANAGARI"},
    **{"or": "ORIYA", "pa": "GURMUKHI", "ta": "TAMIL", "te": "TELUGU", "ur": "ARABIC", "fa": "ARABIC"},
    **{"ru": "CYRILLIC", "el": "GREEK", "cmn": "CJK"},
    **dict.fromkeys(("de", "en", "es", "fr", "it"), "LATIN"),
}


def rows(plan):
    """The plan as a table: labels, splits, delivery and speaker of every clip (`own_` before what the speaker has too)."""
    return pd.DataFrame(
        [{f"own_{k}": v for k, v in vars(u.speaker).items()} | vars(u.speaker) | vars(u) | u.labels | u.splits
         for u in plan.utterances]
    )  # fmt: skip


@pytest.fixture(scope="module")
def tables():
    """Every twin's plan of default size, as a table."""
    return {name: rows(plan_twin(twin, None, seed=0)) for name, twin in TWINS.items()}


@pytest.fixture
def silent(monkeypatch):
    """Write clips of noise without speaking them, no two alike: for what depends on the manifest alone."""

    def noise(utterance):
        rng = np.random.default_rng(zlib.crc32(repr(utterance).encode()))
        return (0.1 * rng.random(800)).astype(np.float32), []

    monkeypatch.setattr(corpus, "render", noise)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Folder of a small twin, spoken in this process by one worker; tests must not change it."""
    return write_plan(plan_twin(TWINS["football"], 240, seed=0), tmp_path_factory.mktemp("twin"), workers=1).parent


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Splits and labels


@pytest.mark.parametrize("name", TWINS)
def test_splits_are_disjoint_by_speaker_or_all_speakers_are_known(name, tables):
    table = tables[name]
    for _, column in TASKS[name]:
        speakers = {split: set(table.speaker_id[table[column] == split]) for split in SPLITS}
        share = table[column].value_counts(normalize=True)
        if name == "kathbath":
            assert speakers["train"] == speakers["validation"] == speakers["test"]
            assert table.groupby("language").speaker_id.nunique().tolist() == [4] * 11
        else:
            assert sum(map(len, speakers.values())) == table.speaker_id.nunique()
            assert min(map(len, speakers.values())) >= (2 if name == "dyads" else 12)
        assert share["train"] == pytest.approx(0.6, abs=0.08)
        assert share["validation"] > 0.15
        assert share["test"] > 0.15


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TWINS)
def test_every_class_occurs_in_every_split_of_the_smallest_twin(name, seed):
    table = rows(plan_twin(TWINS[name], TWINS[name].min_clips, seed))
    for label, split in TASKS[name]:
        if label in NUM_CLASSES.get(name, ()):
            assert table[label].nunique() == NUM_CLASSES[name][label]
            assert (pd.crosstab(table[label], table[split]).reindex(columns=SPLITS, fill_value=0) > 0).all(axis=None)


def test_known_speakers_have_clips_in_every_split_of_the_smallest_twin():
    table = rows(plan_twin(TWINS["kathbath"], TWINS["kathbath"].min_clips, seed=0))
    assert (pd.crosstab(table.speaker_id, table.split_sid)[list(SPLITS)] == 1).all(axis=None)


@pytest.mark.parametrize("name", TWINS)
def test_too_few_clips_raise_and_a_longer_plan_starts_with_the_shorter_one(name):
    twin = TWINS[name]
    with pytest.raises(ValueError, match=f"minimum is {twin.min_clips}"):
        plan_twin(twin, twin.min_clips - 1, seed=0)
    with pytest.raises(ValueError, match="seed is -1; it must not be negative"):
        plan_twin(twin, None, seed=-1)
    short, long = (plan_twin(twin, twin.min_clips + more, seed=3).utterances for more in (0, 40))
    assert long[: len(short)] == short
    assert plan_twin(twin, None, seed=4).utterances[0] != short[0]


@pytest.mark.parametrize("name", TWINS)
def test_the_manifest_is_what_a_task_reads(name, silent, tmp_path):
    twin = TWINS[name]
    manifest = write_plan(plan_twin(twin, twin.min_clips, seed=0), tmp_path, workers=1)
    table = Manifest(manifest).table
    assert set(table.corpus) == {f"synthetic-{name}"}
    assert Manifest(manifest).protocol == twin.protocol
    assert (table.file_name.map(lambda f: soundfile.info(tmp_path / f).duration) == table.duration.astype(float)).all()
    readme = (tmp_path / "README.md").read_text()
    assert "synthesised" in readme
    assert "espeak-ng 1." in readme
    assert f"--twins {name} --clips {twin.min_clips} --seed 0" in readme
    assert set(table.columns) <= set(re.findall(r"`(\w+)`", readme))
    for label, split in TASKS[name]:
        assert (table[label] != "").all()
        if label in NUM_CLASSES.get(name, ()) or name == "kathbath":
            disjoint_by = None if name == "kathbath" else "speaker_id"
            task = load_task_clips(name, TaskSource((str(manifest),), label, (split,), disjoint_by))
            assert len(task.clips) == twin.min_clips


# What is said


def test_every_text_is_in_the_script_of_its_language(tables):
    for name, table in tables.items():
        for text, language in set(zip(table.text, table.language, strict=True)):
            scripts = {unicodedata.name(c).split()[0] for c in text if c.isalpha()}
            assert scripts == {SCRIPTS[language]}, f"{name}: {text}"
            assert unicodedata.is_normalized("NFC", text)


@pytest.mark.slow
def test_espeak_reads_every_word_of_every_language(tables):
    """Different words sound different, so espeak-ng reads them and does not replace what it cannot read by a phrase."""
    words = {}
    for table in tables.values():
        for text, language in set(zip(table.text, table.language, strict=True)):
            said = [text] if language in ("cmn", "fa") else re.findall(r"[^\s.,]+", text.casefold())
            words.setdefault(language, set()).update(said)
    for language, of_language in words.items():
        waves = {word: speak(word, language, "m1", rate_wpm=400)[0] for word in sorted(of_language)}
        assert all(np.abs(wave).max() > 0.05 for wave in waves.values()), language
        assert len({wave.tobytes() for wave in waves.values()}) > 0.9 * len(waves), language


def test_every_voice_exists(tables):
    for table in tables.values():
        for accent, variant in set(zip(table.accent, table.variant, strict=True)):
            assert len(speak("a", accent, variant, rate_wpm=400)[0]) > 0
    dialects = tables["timit"].drop_duplicates("dialect")
    said = {speak("Ask her to park the car", accent, "m1", rate_wpm=400)[0].tobytes() for accent in dialects.accent}
    assert len(said) == 8  # no accent falls back to another


def test_keywords_and_intents_are_what_the_text_says(tables):
    football, fluent = tables["football"], tables["fluent"]
    assert football.groupby("keyword").text.nunique().max() == 1
    assert football.groupby("text").keyword.nunique().max() == 1
    verbs = {
        "activate": r"(turn|switch) .*\bon\b",
        "deactivate": r"(turn|switch) .*\boff\b",
        "increase": r"increase|turn .*\bup\b",
        "decrease": r"decrease|turn .*\bdown\b",
        "bring": r"bring|get|fetch",
        "change language": r"language|switch to",
    }
    assert len(INTENTS) == fluent.intent.nunique() == 31
    for row in fluent.itertuples():
        assert [a for a, pattern in verbs.items() if re.search(pattern, row.text)] == [row.action], row.text
        assert row.object == "none" or row.object in row.text
        assert re.findall(r" in the (\w+)", row.text) == [row.location] * (row.location != "none")
        assert row.intent == "_".join(s for s in (row.action, row.object, row.location) if s != "none")
    assert fluent.groupby("intent").text.nunique().min() == 3


# Labels are in the voice


def rank_correlation(x, y):
    return spearmanr(pd.to_numeric(x), pd.to_numeric(y)).statistic


def test_age_changes_the_voice_and_is_independent_of_gender_and_dialect(tables):
    speakers = tables["timit"].drop_duplicates("speaker_id")
    age = speakers.age.astype(float)
    assert age.between(20, 75).all()
    assert 25 < age.median() < 45
    assert rank_correlation(age, speakers.own_rate_wpm) < -0.4
    assert rank_correlation(age, speakers.own_tract_ratio) < -0.15
    assert rank_correlation(age, speakers.breath_db) > 0.6
    assert rank_correlation(age, speakers.own_pitch_semitones) < -0.2
    assert tables["timit"].groupby("speaker_id").age.nunique().max() == 1
    assert age.groupby(speakers.gender).mean().diff().abs().max() < 5
    counts = pd.crosstab(speakers.split_sdr, [speakers.dialect, speakers.gender])
    assert (counts.nunique(axis=1) == 1).all()  # all 16 pairs alike in each split


def test_affect_moves_the_prosody_and_ratings_are_means_of_three(tables):
    table = tables["iemocap"]
    ratings = table[["valence", "activation", "dominance"]].astype(float)
    assert ratings.min().min() >= 1
    assert ratings.max().max() <= 5
    assert np.allclose(ratings * 3, (ratings * 3).round(), atol=1e-3)
    own_pitch = table.pitch_semitones - table.own_pitch_semitones
    assert rank_correlation(ratings.activation, table.rate_wpm / table.own_rate_wpm) > 0.5
    assert rank_correlation(ratings.activation, own_pitch) > 0.2
    assert rank_correlation(ratings.valence, table.pitch_range) > 0.4
    assert rank_correlation(ratings.dominance, table.level_dbfs) > 0.4
    assert rank_correlation(ratings.dominance, ratings.activation) > 0.2
    assert abs(rank_correlation(ratings.valence, ratings.activation)) < 0.15


def test_greek_emotions_differ_but_overlap(tables):
    table = tables["aesdd"]
    rate = (table.rate_wpm / table.own_rate_wpm).groupby(table.emotion)
    assert rate.mean().sort_values().index.tolist() == ["sadness", "disgust", "happiness", "fear", "anger"]
    assert rate.quantile(0.95)["disgust"] > rate.quantile(0.05)["happiness"]
    assert pd.crosstab(table.emotion, table.text).gt(0).all(axis=None)


def test_breath_is_noise_that_follows_the_voice():
    spoken = plan_twin(TWINS["timit"], None, seed=0).utterances[0]
    plain, faint, hoarse = (render(replace(spoken, snr_db=90.0, breath_db=db))[0] for db in (None, -60.0, -6.0))
    assert len(plain) == len(hoarse)
    rms = [np.sqrt(np.mean((breathy - plain) ** 2)) / np.sqrt(np.mean(plain**2)) for breathy in (faint, hoarse)]
    assert rms[0] < 0.005
    assert 0.2 < rms[1] < 0.9
    lead = int(0.8 * spoken.lead_s * 16000)
    assert np.abs(hoarse[:lead]).max() < 1e-3  # none in the silence before


# Trials


def test_trials_are_sound(silent, tmp_path):
    manifest = write_plan(plan_twin(TWINS["cnceleb1"], TWINS["cnceleb1"].min_clips, seed=0), tmp_path, workers=1)
    table = Manifest(manifest).table.set_index("file_name")
    trials = list(csv.DictReader((tmp_path / "trials.csv").open(encoding="utf-8")))
    enrolment = table[table.enrolment_id != ""]
    test = table[(table.split_sv == "test") & (table.enrolment_id == "")]
    assert set(enrolment.split_sv) == {"test"}
    assert set(enrolment.speaker_id) == set(table.speaker_id[table.split_sv == "test"]) == set(test.speaker_id)
    assert enrolment.groupby("enrolment_id").speaker_id.nunique().max() == 1
    assert sorted(set(enrolment.groupby("enrolment_id").size())) == [1, 2, 3]
    assert len({(t["enrolment"], t["test"]) for t in trials}) == len(trials) == enrolment.enrolment_id.nunique() * len(test)
    speaker_of = enrolment.groupby("enrolment_id").speaker_id.first()
    for trial in trials:
        assert trial["test"] in test.index  # so no clip is tested against itself
        assert int(trial["label"]) == (speaker_of[trial["enrolment"]] == test.speaker_id[trial["test"]])
    assert 0.01 < np.mean([int(t["label"]) for t in trials]) < 0.1
    assert table["style"].nunique() == 5


# Read sentences in two sessions


def test_no_sentence_is_said_in_two_splits(tables):
    table = tables["librispeech"]
    assert len(table) >= 1200
    owners = table.groupby("text").split_asr.nunique()
    assert owners.max() == 1
    assert len(owners) > 0.99 * len(table)
    words = {
        split: {word for text in of_split for word in text.split()} for split, of_split in table.groupby("split_asr").text
    }
    assert len(set().union(*words.values())) >= 300
    assert words["test"] <= words["train"]  # sentences are new, words are not
    assert re.fullmatch("[a-z ]+", " ".join(table.text))


def test_speakers_are_recorded_in_two_sessions_that_sound_different(tables):
    table = tables["librispeech"]
    assert table.speaker_id.nunique() >= 40
    assert (table.groupby("speaker_id").session.nunique() == 2).all()
    recorded = table.groupby("session")
    for column in ("session_eq_db", "noise_tilt_db_per_octave"):
        assert (recorded[column].nunique() == 1).all()
    assert table.session_eq_db.nunique() == table.session.nunique()
    levels = recorded.snr_db.mean()
    assert recorded.snr_db.std().max() < 2 < levels.std()  # clips of a session are alike, sessions are not


def test_the_length_of_read_sentences_and_what_a_session_does_to_a_clip():
    utterances = plan_twin(TWINS["librispeech"], TWINS["librispeech"].min_clips, seed=0).utterances
    lengths = [len(render(u)[0]) / 16_000 for u in utterances[::16]]
    assert 3 <= min(lengths)
    assert max(lengths) <= 8
    one = replace(utterances[0], snr_db=90.0, noise_tilt_db_per_octave=0.0)
    plain, louder = (render(replace(one, session_eq_db=own))[0] for own in (None, (0.0,) * 3 + (-6.0,) * 4))
    spectra = [np.abs(np.fft.rfft(wave)) for wave in (plain, louder)]
    above = np.fft.rfftfreq(len(plain), 1 / 16_000) > 1000
    assert 20 * np.log10(np.linalg.norm(spectra[1][above]) / np.linalg.norm(spectra[0][above])) == pytest.approx(-6, abs=0.1)


def test_trials_of_read_sentences_are_across_sessions_and_within_genders(silent, tmp_path):
    manifest = write_plan(plan_twin(TWINS["librispeech"], TWINS["librispeech"].min_clips, seed=0), tmp_path, workers=1)
    table = Manifest(manifest).table.set_index("file_name")
    trials = pd.read_csv(tmp_path / "trials.csv")
    one, other = table.loc[trials.enrolment], table.loc[trials.test]
    is_same = one.speaker_id.to_numpy() == other.speaker_id.to_numpy()
    assert (trials.label == is_same).all()
    assert trials.label.sum() == 16  # a pair of each of 16 speakers, who have a clip in each session here
    assert (one.session.to_numpy() != other.session.to_numpy()).all()
    assert (one.gender.to_numpy() == other.gender.to_numpy()).all()
    assert {*one.split_sv, *other.split_sv} == {"test"}


# Dyads


def test_dyads_are_five_women_and_five_men_who_show_everything_alike(tables):
    table = tables["dyads"]
    assert len(table) >= 1000
    speakers = table.groupby("session").agg({"speaker_id": "nunique", "gender": "nunique", "split_er": "nunique"})
    assert speakers.to_numpy().tolist() == [[2, 2, 1]] * 5
    assert table.speaker_id.nunique() == 10
    counts = table.groupby(["session", "emotion"]).size()
    assert len(counts) == 20
    assert counts.min() > 0.8 * len(table) / 20
    counts = pd.crosstab(table.emotion, table["style"])
    assert counts.max(axis=None) - counts.min(axis=None) <= 2


def test_emotions_of_dyads_are_in_the_prosody_and_hinted_at_by_a_third_of_the_words(tables):
    table = tables["dyads"]
    pitch = (table.pitch_semitones - table.own_pitch_semitones).groupby(table.emotion).mean()
    assert pitch.sort_values().index.tolist() == ["sad", "neutral", "angry", "happy"]
    rate = (table.rate_wpm / table.own_rate_wpm).groupby(table.emotion).mean()
    assert rate.sort_values().index.tolist() == ["sad", "neutral", "happy", "angry"]
    emotions_of = table.groupby("text").emotion.agg(set)
    says_it = table.text.map(emotions_of).map(len) == 1
    hints = {line for lines in (*FIXED_HINTS.values(), *LOOSE_HINTS.values()) for line in lines}
    has_hint = table.text.map(lambda text: any(text.removesuffix(".").endswith(line.removesuffix(".")) for line in hints))
    assert has_hint.mean() == pytest.approx(1 / 3, abs=0.005)
    assert says_it[has_hint].all()  # such a line comes with one emotion only
    assert emotions_of[[*FIXED_LINES]].map(len).eq(4).all()


def test_improvised_lines_have_a_filler_and_scripted_ones_are_the_same_for_all(tables):
    table = tables["dyads"]
    scripted, improvised = (table.text[table["style"] == name] for name in ("scripted", "improvised"))
    assert set(scripted) == {*FIXED_LINES, *(line for lines in FIXED_HINTS.values() for line in lines)}
    assert improvised.str.partition(",")[0].isin(FILLERS).all()
    assert not scripted.str.partition(",")[0].isin(FILLERS).any()
    assert improvised.nunique() > 4 * scripted.nunique()


@pytest.mark.slow
def test_clips_of_dyads_have_two_to_four_seconds():
    lengths = [len(render(one)[0]) / 16_000 for one in plan_twin(TWINS["dyads"], None, seed=0).utterances]
    assert 2 <= min(lengths)
    assert max(lengths) <= 4


# The folders


def test_corpora_that_were_written_before_are_still_the_same():
    """Digests of the plans as they were when `dyads` was added: what folders of earlier versions hold, and go on from."""
    plans = {"": plan_multitask(4000, 0), **{name: plan_twin(TWINS[name], None, seed=0) for name in PLANS if name}}
    rows_of = {name: "\n".join([*map(repr, plan.utterances), *plan.tables.values()]) for name, plan in plans.items()}
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in rows_of.items()} == PLANS


def test_cli_plans_all_twins_or_those_that_are_named(monkeypatch, tmp_path, capsys):
    written = []
    monkeypatch.setattr(cli, "write_plan", lambda plan, out, workers: written.append((plan, out)) or out)
    assert cli.main(["--out", str(tmp_path), "--twins"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in TWINS]
    assert [len(plan.utterances) for plan, _ in written] == [twin.clips for twin in TWINS.values()]
    written.clear()
    assert cli.main(["--out", str(tmp_path), "--twins", "timit", "aesdd", "--clips", "170", "--seed", "2"]) == 0
    assert [(plan.corpus, plan.seed, len(plan.utterances)) for plan, _ in written] == [
        ("synthetic-timit", 2, 170),
        ("synthetic-aesdd", 2, 170),
    ]


@pytest.mark.slow
def test_two_workers_and_a_kill_give_the_same_bytes(spoken, tmp_path):
    command = ("-m", "wavcse.data.synthetic", "--out", tmp_path, "--workers", "2", "--clips", "240", "--twins", "football")
    Child(*command).kill_when(lambda: len(list(tmp_path.glob("football/audio/*.flac"))) >= 20, interval_s=0.02)
    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "football") == contents(spoken)


def test_another_seed_or_size_is_refused(spoken):
    before = contents(spoken)
    with pytest.raises(ValueError, match=r"another synthetic corpus .*seed 0 instead of 1"):
        write_plan(plan_twin(TWINS["football"], 240, seed=1), spoken, workers=1)
    with pytest.raises(ValueError, match=r"corpus 'synthetic-football' instead of 'synthetic-aesdd'"):
        write_plan(plan_twin(TWINS["aesdd"], 240, seed=0), spoken, workers=1)
    assert contents(spoken) == before


def test_cli_refuses_before_it_writes(tmp_path, capsys):
    assert cli.main(["--out", str(tmp_path / "new"), "--twins", "--clips", "100"]) == 2
    assert "100 clips are too few" in capsys.readouterr().err
    assert cli.main(["--out", str(tmp_path / "new"), "--twins", "switchboard"]) == 2
    assert "twins is 'switchboard'; allowed: football" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
