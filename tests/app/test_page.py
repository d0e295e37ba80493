"""The page of the real Gradio: through its API on loopback, and clicked through in a headless Chromium where there is one."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
import soundfile

from wavcse.app import page as app
from wavcse.app.arguments import AppArguments
from wavcse.app.page import served
from wavcse.data.manifest import Manifest
from wavcse.embed import embed_corpus
from wavcse.tests.helpers.door_pages import run_first_block

pytestmark = [pytest.mark.doors, pytest.mark.filterwarnings("ignore")]
# Of a player, in seconds, as soon as it knows.
DURATION = "a => new Promise(done => a.duration ? done(a.duration) : a.onloadedmetadata = () => done(a.duration))"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def clips(toy_corpus):
    return [str(clip.path) for clip in Manifest(toy_corpus).clips]


@pytest.fixture(scope="module")
def address(hub, toy_corpus, tmp_path_factory):
    pytest.importorskip("gradio")
    table = tmp_path_factory.mktemp("embedded") / "toy.parquet"
    embed_corpus(toy_corpus, str(hub), table)
    args = AppArguments(str(hub), str(table), str(toy_corpus.parent), device="cpu", max_megabytes=0.1, top=3)
    with served(args) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return pytest.importorskip("gradio_client").Client(address, verbose=False)


def upload(path):
    from gradio_client import handle_file

    return handle_file(path)


def vector_in(shown):
    (content,) = re.findall(r'href="data:application/octet-stream;base64,(.*?)"', shown)
    return np.load(io.BytesIO(base64.b64decode(content)))


def test_every_tab_answers_over_the_api(client, model, clips):
    one, other = (model.base_model.encode(clips[row]) for row in (2, 40))
    np.testing.assert_allclose(
        vector_in(client.predict(upload(clips[2]), api_name="/vector")), one, atol=1e-5 * abs(one).max()
    )
    shown = client.predict(upload(clips[2]), upload(clips[40]), api_name="/compare")
    assert f"<strong>{model.base_model.similarity(one, other).item():.4f}</strong>" in shown
    shown = client.predict(upload(clips[2]), api_name="/labels")
    assert all(f"<caption>{task}</caption>" in shown for task in model.config.tasks)
    shown = client.predict(upload(clips[2]), api_name="/nearest")
    assert shown.count("<audio controls") == 3
    assert shown.index("002.flac") < shown.index("<audio")


def test_mistakes_come_back_in_words(client, clips, tmp_path):
    with pytest.raises(Exception, match="Second recording: there is none yet"):
        client.predict(upload(clips[0]), None, api_name="/compare")
    (tmp_path / "letter.wav").write_text("not audio")
    with pytest.raises(Exception, match=r"letter\.wav: "):
        client.predict(upload(tmp_path / "letter.wav"), api_name="/labels")


def test_a_file_that_is_too_large_is_not_taken(client, tmp_path):
    soundfile.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(80_000), 16_000)
    with pytest.raises(Exception, match=r"(?i)413|exceeds|larger|too large"):
        client.predict(upload(tmp_path / "long.wav"), api_name="/labels")


def test_uploads_end_with_the_page(hub, clips, tmp_path, monkeypatch):
    """Gradio's folder of uploads is one of ours, which is gone when the page is."""
    client_of = pytest.importorskip("gradio_client").Client
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with served(AppArguments(str(hub), device="cpu")) as address:
        client_of(address, verbose=False).predict(upload(clips[0]), api_name="/vector")
        assert [path for path in tmp_path.rglob("000.flac") if path.is_file()]
    assert not list(tmp_path.rglob("000.flac"))


def test_the_page_of_the_docs(hub, toy_corpus, clips, tmp_path, monkeypatch, capsys):
    client_of = pytest.importorskip("gradio_client").Client
    monkeypatch.chdir(tmp_path)
    for path in hub.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "recordings").symlink_to(toy_corpus.parent)
    answered = []

    def look() -> None:
        address = re.findall(r"http://\S+", capsys.readouterr().out)[-1]
        answered.append(client_of(address, verbose=False).predict(upload(clips[0]), upload(clips[8]), api_name="/compare"))

    monkeypatch.setattr(app, "wait_for_signal", look)
    run_first_block("app.md")
    assert "that both have the same speaker_id" in answered[0]


@pytest.fixture(scope="module")
def browser(address):
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page as somebody sees it who has just come; no request leaves this machine, and the console has no errors."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.set_default_timeout(120_000)  # ms; a processor that others use too may take long for an answer
    strangers, errors = [], []
    page.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:", "blob:")) else strangers.append(request.url),
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_role("tab", name="Labels").wait_for()
    yield page
    page.close()
    assert not strangers
    assert not errors


def click_through(page, tab, verb, recordings):
    """Open a tab, upload its recordings (label -> path), press its button; the place of the answer."""
    page.get_by_role("tab", name=tab).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    for label, path in recordings.items():
        recording = panel.get_by_test_id(f"waveform-{label}")
        recording.locator("input[type=file]").set_input_files(path)
        recording.get_by_role("button", name="Play", exact=True).wait_for()  # its waveform is drawn
    panel.get_by_role("button", name=verb).click()
    return panel.locator(f"#{tab.lower()}-answer")


def test_a_person_clicks_through_every_tab(page, model, clips):
    answer = click_through(page, "Labels", "Name labels", {"Recording": clips[2]})
    answer.locator("table").first.wait_for()
    assert all(task in answer.inner_text() for task in model.config.tasks)
    answer = click_through(page, "Compare", "Compare", {"First recording": clips[2], "Second recording": clips[40]})
    answer.get_by_text("Cosine similarity").wait_for()
    wanted = model.base_model.similarity(*(model.base_model.encode(clips[row]) for row in (2, 40))).item()
    assert f"{wanted:.4f}" in answer.inner_text()
    answer = click_through(page, "Nearest", "Find the nearest clips", {"Recording": clips[2]})
    answer.locator("audio").first.wait_for()
    assert answer.locator("audio").first.evaluate(DURATION) == pytest.approx(soundfile.info(clips[2]).duration, abs=0.01)
    answer = click_through(page, "Vector", "Make the vector", {"Recording": clips[2]})
    with page.expect_download() as download:
        answer.get_by_role("link", name="Download 002.npy").click()
    own = model.base_model.encode(clips[2])
    np.testing.assert_allclose(np.load(download.value.path()), own, atol=1e-5 * abs(own).max())


def test_a_button_without_a_recording_says_what_is_missing(page):
    page.get_by_role("tab", name="Labels").click()
    page.get_by_role("button", name="Name labels").click()
    page.get_by_text("Recording: there is none yet. Record one, or choose an audio file.").wait_for()
