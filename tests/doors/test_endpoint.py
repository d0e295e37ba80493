"""`handler.py` of a model folder as Inference Endpoints call it: bytes, base64, URLs, batches, labels, limits."""

import base64
import functools
import http.server
import importlib.util
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavcse import WavCSEConfig
from wavcse.endpoint_wavcse import Limits
from wavcse.hub_repository_wavcse import HANDLER
from wavcse.tests.helpers.door_pages import link_root, run_first_block
from wavcse.tests.helpers.strangers import run_without_wavcse

RATE = 16_000


@pytest.fixture(scope="module")
def model(tiny_multi_task_model):
    return tiny_multi_task_model("wavlm", "group")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    return folder


def load_handler(folder: Path):
    """The class of `handler.py`, imported as the service imports it."""
    spec = importlib.util.spec_from_file_location("handler", folder / HANDLER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler


@pytest.fixture(scope="module")
def handler(folder):
    return load_handler(folder)(str(folder))


@pytest.fixture(scope="module")
def clips(waves) -> list[np.ndarray]:
    return waves(12_000, 5_000)


def encoded(clip: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def url(clips, tmp_path_factory):
    """Of a server on this machine, with `clip.wav`."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "clip.wav").write_bytes(encoded(clips[0]))
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def text_of(clip: np.ndarray) -> str:
    return base64.b64encode(encoded(clip)).decode()


def test_every_form_of_a_clip_gives_the_embedding(handler, model, clips, url):
    expected = model.wavcse.encode(clips[0])
    forms = {
        "bytes": encoded(clips[0]),
        "base64": text_of(clips[0]),
        "data URL": f"data:audio/wav;base64,{text_of(clips[0])}",
        "URL": f"{url}/clip.wav",
        "array": {"array": clips[0].tolist(), "sampling_rate": RATE},
    }
    for form, given in forms.items():
        answer = handler({"inputs": given})
        np.testing.assert_allclose(json.loads(json.dumps(answer)), expected, rtol=1e-5, err_msg=form)
    answer = handler({"inputs": list(forms.values())})
    np.testing.assert_allclose(answer, np.stack([expected] * len(forms)), rtol=1e-5, atol=1e-6)


def test_other_rates_are_resampled(handler, model, clips):
    at_8k = {"array": clips[0], "sampling_rate": 8_000}
    np.testing.assert_allclose(handler({"inputs": encoded(clips[0], 8_000)}), model.wavcse.encode(at_8k), rtol=1e-5)


def test_parameters(handler, model, clips):
    inputs = [text_of(clip) for clip in clips]
    ask = {"normalize_embeddings": True, "truncate_dim": 7}
    np.testing.assert_allclose(handler({"inputs": inputs, "parameters": ask}), model.wavcse.encode(clips, **ask), rtol=1e-5)
    for options in ({"task": "keyword", "top_k": 2}, {}):
        answer = handler({"inputs": inputs, "parameters": {"output": "labels", **options}})
        assert json.loads(json.dumps(answer)) == pytest_approx(model.predict(clips, **options))


def pytest_approx(value):
    """`pytest.approx` for scores inside lists and mappings."""
    if isinstance(value, list):
        return [pytest_approx(own) for own in value]
    if isinstance(value, dict):
        return {key: pytest_approx(own) for key, own in value.items()}
    return pytest.approx(value, abs=1e-6) if isinstance(value, float) else value


BAD = {
    "no inputs": ({}, '"inputs" is missing'),
    "no clips": ({"inputs": []}, "inputs: holds 0 clips; 1 to 64"),
    "too many": ({"inputs": ["x"] * 65}, "inputs: holds 65 clips; 1 to 64"),
    "a file name": ({"inputs": "/etc/passwd"}, "clip 0: is text, but neither .* Names of files are not read"),
    "a mapping with a path": ({"inputs": {"path": "/etc/hostname"}}, "clip 0: is of type dict. Give the bytes"),
    "a number": ({"inputs": [0.1, 0.2]}, "clip 0: is of type float"),
    "no audio": ({"inputs": base64.b64encode(b"no audio").decode()}, "clip 0: cannot be read as audio"),
    "output": ({"inputs": "x", "parameters": {"output": "text"}}, "output is 'text'; allowed: embeddings, labels"),
    "unknown": (
        {"inputs": "x", "parameters": {"top_k": 1}},
        "there is no 'top_k' for embeddings; allowed: normalize_embeddings",
    ),
    "kind": ({"inputs": "x", "parameters": {"scale_quiet": "no"}}, "scale_quiet is 'no'; true or false"),
    "form": ({"inputs": "x", "parameters": [1]}, "parameters: is of type list; a mapping is needed"),
    "short": ({"inputs": {"array": [0.1] * 100, "sampling_rate": RATE}}, "clip 0: has 100 samples"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_in_words(handler, case):
    data, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        handler(data)


def test_a_url_that_is_not_there(handler, url):
    with pytest.raises(ValueError, match="clip 0: cannot be downloaded .*404"):
        handler({"inputs": f"{url}/none.wav"})


def test_limits(folder, clips, url, monkeypatch):
    for variable, value in {"SECONDS": "1", "MEGABYTES": "0.06"}.items():
        monkeypatch.setenv(f"WAVCSE_MAX_{variable}", value)
    monkeypatch.setenv("WAVCSE_URLS", "0")
    limited = load_handler(folder)(str(folder))
    assert len(limited({"inputs": encoded(clips[0])})) == 20  # 0.75 s, 48 kB
    with pytest.raises(ValueError, match=r"have 1.1 s of audio up to here; a request may have 1 s \(WAVCSE_MAX_SECONDS\)"):
        limited({"inputs": [{"array": clip, "sampling_rate": RATE} for clip in (clips[0], clips[1])]})
    with pytest.raises(ValueError, match=r"have 1.5 s of audio up to here; a request may have 1 s"):
        limited({"inputs": encoded(clips[0], 8_000)})  # before it is decoded
    for given in (encoded(clips[1]), text_of(clips[1])):
        with pytest.raises(ValueError, match=r"hold more than 0.06 MB of audio files \(WAVCSE_MAX_MEGABYTES\)"):
            limited({"inputs": [encoded(clips[0]), given]})
    with pytest.raises(ValueError, match=r"clip 0: is a URL, and this endpoint does not download \(WAVCSE_URLS=0\)"):
        limited({"inputs": f"{url}/clip.wav"})
    monkeypatch.setenv("WAVCSE_URLS", "1")
    with pytest.raises(ValueError, match="clip 1: cannot be downloaded .*it is larger than 1.19e-05 GB"):
        load_handler(folder)(str(folder))({"inputs": [encoded(clips[0]), f"{url}/clip.wav"]})
    monkeypatch.setenv("WAVCSE_MAX_SECONDS", "long")
    with pytest.raises(ValueError, match="WAVCSE_MAX_SECONDS is 'long'; a number is needed"):
        load_handler(folder)(str(folder))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WAVCSE_MAX_SECONDS", "nan", "must be positive and finite"),
        ("WAVCSE_MAX_MEGABYTES", "inf", "must be positive and finite"),
        ("WAVCSE_MAX_CLIPS", "0", "must be positive and finite"),
        ("WAVCSE_URLS", "2", "allowed: 0, 1"),
    ],
)
def test_a_limit_that_would_limit_nothing_is_refused(variable, value, message, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} is '{value}'; .*{message}"):
        Limits.from_environment()


def test_a_model_without_heads_names_no_labels(tiny_model, clips, tmp_path):
    model = tiny_model("wavlm", "group", tasks={"keyword": {"labels": ["yes", "no"]}})  # named, but never trained
    model.save_pretrained(tmp_path)
    handler = load_handler(tmp_path)(str(tmp_path))
    np.testing.assert_allclose(handler({"inputs": encoded(clips[0])}), model.encode(clips[0]), rtol=1e-5)
    with pytest.raises(ValueError, match="has no heads, so it names no labels"):
        handler({"inputs": encoded(clips[0]), "parameters": {"output": "labels"}})


def test_a_handler_of_ones_own_is_kept(model, tmp_path):
    (tmp_path / HANDLER).write_text("# mine\n")
    model.save_pretrained(tmp_path)
    assert (tmp_path / HANDLER).read_text() == "# mine\n"


def test_the_page(clips, tmp_path, monkeypatch):
    link_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.wav").write_bytes(encoded(clips[0]))
    names = run_first_block("endpoints.md")
    config = WavCSEConfig.from_pretrained(tmp_path)
    assert len(names["vector"]) == config.embedding_size
    assert [{task: len(found) for task, found in own.items()} for own in names["labels"]] == 2 * [
        dict.fromkeys(config.tasks, 3)
    ]


SERVICE = """
import importlib.util, json, sys
from pathlib import Path

folder, audio = sys.argv[1:]
sys.path.insert(0, folder)  # as the service does
spec = importlib.util.spec_from_file_location("handler", Path(folder) / "handler.py")
handler = importlib.util.module_from_spec(spec)
sys.modules["handler"] = handler
spec.loader.exec_module(handler)
endpoint = handler.EndpointHandler(folder)
sound = Path(audio).read_bytes()
labels = endpoint({"inputs": sound, "parameters": {"output": "labels", "task": "keyword"}})
print(json.dumps([endpoint({"inputs": sound}), labels]))
"""


@pytest.mark.slow
def test_as_the_service_starts_it(folder, model, clips, tmp_path):
    """A fresh process without this package."""
    (tmp_path / "clip.wav").write_bytes(encoded(clips[0]))
    printed = run_without_wavcse(SERVICE, folder, tmp_path / "clip.wav", modules=tmp_path)
    embedding, labels = json.loads(printed.splitlines()[-1])
    np.testing.assert_allclose(embedding, model.wavcse.encode(clips[0]), rtol=1e-5)
    assert labels == pytest_approx(model.predict(clips[0], task="keyword"))
