"""Audio from URLs: quoted, whole, bounded in size and time, or refused in words."""

import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from wavcse import audio_wavcse
from wavcse.audio_wavcse import is_url, load_waveform, quoted

RATE = 16_000
CLIP = np.random.default_rng(0).uniform(-0.3, 0.3, RATE).astype(np.float32)


def wav() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, CLIP, RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


class Answers(BaseHTTPRequestHandler):
    """What a path asks for: good, cut, endless, slow and broken answers, and redirects."""

    seen: list[str] = []  # noqa: RUF012 (of the one server of a test)

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.seen.append(self.path)
        name = self.path.partition("?")[0].strip("/")
        getattr(self, name.partition(".")[0].partition("%")[0], self.good)()

    def start(self, length: int | None = None, status: int = 200, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def good(self):
        self.start(len(wav()))
        self.wfile.write(wav())

    def short(self):
        self.start(len(wav()))
        self.wfile.write(wav()[:5000])

    def chunked(self):
        self.protocol_version = "HTTP/1.1"
        self.start(**{"Transfer-Encoding": "chunked"})
        self.wfile.write(b"fff0\r\n" + wav()[:5000])
        self.close_connection = True

    def status(self):
        self.wfile.write(b"ICY 200 OK\r\n\r\n")

    def silent(self):
        pass

    def headers_by_bytes(self):
        while True:
            self.wfile.write(b"H")
            self.wfile.flush()
            time.sleep(0.02)

    def trickle(self):
        self.start(len(wav()))
        while True:
            self.wfile.write(b"R")
            self.wfile.flush()
            time.sleep(0.02)

    def large(self):
        self.start(10**12)

    def endless(self):
        self.start()
        while True:
            self.wfile.write(bytes(1 << 16))

    def moved(self):
        self.start(0, 302, Location="/good.wav")

    def to_file(self):
        self.start(0, 302, Location="file:///etc/hostname")

    def to_ftp(self):
        self.start(0, 302, Location="ftp://127.0.0.1/clip.wav")

    def in_circles(self):
        self.start(0, 302, Location="/in_circles")


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # clients that hang up are what these tests are about


@pytest.fixture
def address() -> Iterator[str]:
    Answers.seen.clear()
    with Server(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("good.wav", "/good.wav"),
        ("my clip.wav", "/my%20clip.wav"),
        ("my%20clip.wav", "/my%20clip.wav"),  # quoted already
        ("Grüße/100%.wav", "/Gr%C3%BC%C3%9Fe/100%25.wav"),
        ("clip.wav?name=a b&key=%2F", "/clip.wav?name=a%20b&key=%2F"),
        ("clip.wav#t=3", "/clip.wav"),
        ("moved", "/moved"),
    ],
)
def test_what_is_asked_for(address, path, asked):
    np.testing.assert_array_equal(load_waveform(f"{address}/{path}", RATE), CLIP)
    assert Answers.seen[0] == asked


def test_urls_are_known_and_hosts_are_named_in_ascii():
    assert quoted("http://bücher.example:81/ä") == "http://xn--bcher-kva.example:81/%C3%A4"
    assert quoted(quoted("https://a.example/ü ö?x=ß")) == quoted("https://a.example/ü ö?x=ß")
    assert is_url("HTTPS://a.example/x.wav")
    assert not is_url("ftp://a.example/x.wav")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("short", r"the connection broke off after 5000 of \d+ bytes"),
        ("chunked", "the connection broke off after"),
        ("status", "ICY 200 OK"),
        ("silent", "closed connection without response|reset"),
        ("large", r"it is larger than 2\.15 GB, the most that is downloaded"),
        ("to_file", "Redirection to url .* is not allowed"),
        ("to_ftp", "unknown url type: ftp"),
        ("in_circles", "infinite loop"),
    ],
)
def test_an_answer_that_is_no_file_is_refused(address, path, reason):
    with pytest.raises(ValueError, match=rf"{address}/{path}: cannot be read as audio \(.*({reason})"):
        load_waveform(f"{address}/{path}")


@pytest.mark.parametrize("path", ["headers_by_bytes", "trickle"])
def test_a_slow_server_is_left(address, path, monkeypatch):
    monkeypatch.setattr(audio_wavcse, "DOWNLOAD_TIMEOUT_S", 0.3)
    with pytest.raises(ValueError, match=r"the download took longer than 0\.3 s"):
        load_waveform(f"{address}/{path}")


def test_an_endless_file_is_left(address, monkeypatch):
    monkeypatch.setattr(audio_wavcse, "MAX_DOWNLOAD_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=r"it is larger than 0\.001 GB"):
        load_waveform(f"{address}/endless")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/a.wav", "http://[bad/a.wav", "http://127.0.0.1:port/a.wav", "http:///a.wav"]
)
def test_an_address_without_a_server_is_refused(url):
    with pytest.raises(ValueError, match=r"a\.wav: cannot be read as audio \("):
        load_waveform(url)
