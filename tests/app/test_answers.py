"""What the page answers, by value and without Gradio; a stranger's recording is refused in words."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
import soundfile

from wavcse.app.answers import Answers
from wavcse.app.arguments import AppArguments
from wavcse.data.files import write_json
from wavcse.data.manifest import Manifest
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.embed import embed_corpus
from wavcse.retrieval.calibration import calibrate
from wavcse_cli import main


@pytest.fixture(scope="module")
def table(toy_corpus, hub, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "toy.parquet"
    embed_corpus(toy_corpus, str(hub), out)
    return out


@pytest.fixture(scope="module")
def calibration(table, toy_corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("calibrated") / "calibration.json"
    words = ["calibrate", table, "--manifest", toy_corpus, "--label", "speaker_id", "--out", out]
    assert main([str(word) for word in words]) == 0
    return out


@pytest.fixture(scope="module")
def answers(hub, table, toy_corpus, calibration):
    paths = {"table": str(table), "audio": str(toy_corpus.parent), "calibration": str(calibration)}
    return Answers(AppArguments(str(hub), device="cpu", max_seconds=2.0, max_megabytes=0.1, top=3, **paths))


@pytest.fixture(scope="module")
def clips(toy_corpus):
    return [str(clip.path) for clip in Manifest(toy_corpus).clips]


def test_labels_of_every_head_with_their_scores(answers, model, clips):
    shown = answers.labels(clips[5])
    for task, found in model.predict(clips[5]).items():
        (part,) = [own for own in shown.split("<table>") if f"<caption>{task}</caption>" in own]
        rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)%</td>', part)
        assert [label for label, _ in rows] == [entry["label"] for entry in found]
        np.testing.assert_allclose([float(score) / 100 for _, score in rows], [e["score"] for e in found], atol=5.1e-4)


def test_two_clips_are_compared_and_read_by_the_calibration(answers, model, clips):
    shown = answers.compare(clips[0], clips[9])
    wanted = model.base_model.similarity(*(model.base_model.encode(clips[row]) for row in (0, 9))).item()
    assert f"<strong>{wanted:.4f}</strong>" in shown
    known = answers.calibration
    odds = np.exp(known.offset + known.slope * wanted)
    assert f"<strong>{odds / (1 + odds):.1%}</strong> that both have the same speaker_id" in shown
    assert f"{known.same + known.different} labelled pairs" in shown


def test_the_nearest_clips_are_those_of_the_exact_search_and_play(answers, model, clips, table):
    ranked = answers.ranked(clips[17])
    own = model.base_model.similarity(model.base_model.encode(clips[17]), model.base_model.encode(clips))[0].numpy()
    np.testing.assert_allclose(ranked["similarity"], np.sort(own)[::-1][:3], atol=1e-5)
    assert ranked["id"][0] == "017.flac"
    shown = answers.nearest(clips[17])
    labels, sounds = zip(*re.findall(r'aria-label="(.*?)" src="data:audio/flac;base64,(.*?)"', shown))
    assert list(labels) == list(ranked["id"])
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0])))
    wanted, wanted_rate = soundfile.read(clips[17])
    np.testing.assert_allclose(samples, wanted, atol=1e-4)
    assert rate == wanted_rate
    assert str(pd.read_parquet(table)["path"][17]) == "017.flac"


def test_the_vector_is_that_of_encode(answers, model, clips):
    shown = answers.vector(clips[3])
    (content,) = re.findall(r'href="data:application/octet-stream;base64,(.*?)" download="003.npy"', shown)
    vector = np.load(io.BytesIO(base64.b64decode(content)))
    wanted = model.base_model.encode(clips[3])
    np.testing.assert_allclose(vector, wanted, atol=1e-5 * np.abs(wanted).max())
    assert vector.dtype == np.float32


@pytest.mark.parametrize(
    ("seconds", "level", "message"),
    [
        (2.1, 0.1, r"clip\.wav: lasts 2\.1 s; at most 2 s are taken"),
        (4.0, 0.1, r"clip\.wav: is larger than 0\.1 MB, the most that is taken"),
        (0.0, 0.1, r"clip\.wav: is empty"),
        (0.005, 0.1, r"clip\.wav: has 80 samples"),
        (1.0, 0.0, r"clip\.wav: is silent"),
    ],
)
def test_a_recording_that_cannot_be_used_is_refused_in_words(seconds, level, message, answers, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, level * np.random.default_rng(0).standard_normal(round(seconds * 16_000)), 16_000)
    for answer in (answers.labels, answers.nearest, answers.vector, lambda clip: answers.compare(clip, clip)):
        with pytest.raises(ValueError, match=message):
            answer(str(path))


def test_no_recording_and_no_audio_are_refused_in_words(answers, clips, tmp_path):
    with pytest.raises(ValueError, match=r"Second recording: there is none yet\. Record one"):
        answers.compare(clips[0], None)
    (tmp_path / "letter.wav").write_text("not audio")
    with pytest.raises(ValueError, match=r"letter\.wav: "):
        answers.labels(str(tmp_path / "letter.wav"))
    with pytest.raises(ValueError, match=r"gone\.wav: has been deleted meanwhile\. Record or choose it again"):
        answers.labels(str(tmp_path / "gone.wav"))


def test_names_of_others_are_text_and_no_html(answers, clips, tmp_path):
    path = tmp_path / '"><script>x.flac'
    path.write_bytes(open(clips[0], "rb").read())
    assert "<script>" not in answers.vector(str(path))


def test_a_calibration_of_another_model_is_refused(hub, calibration, table, toy_corpus, tmp_path):
    made = calibrate(StoredEmbeddings(table), Manifest(toy_corpus), "speaker_id")
    other = {**vars(made), "made_with": {**made.made_with, "weights_sha256": "0"}}
    write_json(tmp_path / "other.json", other)
    with pytest.raises(ValueError, match=r"other\.json: was made by another model than .*weights_sha256 '0' there"):
        Answers(AppArguments(str(hub), calibration=str(tmp_path / "other.json")))
    assert Answers(AppArguments(str(hub), calibration=str(calibration))).calibration == made
