"""An audio file from a URL: whole, of bounded size, in bounded time, or a ValueError that says why not."""

from __future__ import annotations

import http.client
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

CONNECT_TIMEOUT_S = 60  # without any answer
DOWNLOAD_TIMEOUT_S = 600  # for the whole file
MAX_DOWNLOAD_BYTES = 2**31  # six hours of 16-bit stereo at 24 kHz
CHUNK_BYTES = 1 << 16
URL_SAFE = "/:?#[]@!$&'()*+,;=%~"


def is_url(source: object) -> bool:
    """Whether a clip is given by its `http(s)://` address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def download(url: str) -> bytes:
    """The content of an `http(s)://` URL. Blanks and letters outside ASCII are quoted; redirects lead to such URLs only.

    Raises:
        ValueError: there is no such server or file, its answer is broken, not whole, larger than `MAX_DOWNLOAD_BYTES`, or
            takes longer than `DOWNLOAD_TIMEOUT_S`.
    """
    answer: list[bytes | Exception] = []
    deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S

    def fetch() -> None:
        try:
            answer.append(_fetch(quoted(url), deadline))
        except Exception as error:
            answer.append(error)

    # A server that sends its headers byte by byte never runs into a socket's timeout; so the whole is waited for from here.
    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()) + 1.0)
    content = answer[0] if answer else _too_slow()
    if isinstance(content, OSError | ValueError | http.client.HTTPException):
        raise ValueError(_words(content)) from content
    if isinstance(content, Exception):
        raise content
    return content


def quoted(url: str) -> str:
    """The URL in ASCII: blanks and other letters as %XX, a host's as IDNA. What is quoted already stays so."""
    parts = urllib.parse.urlsplit(url.strip())
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    path, query = (urllib.parse.quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", part), URL_SAFE) for part in parts[2:4])
    return urllib.parse.urlunsplit((parts.scheme.lower(), host, path, query, ""))


def _fetch(url: str, deadline: float) -> bytes:
    with _opener().open(url, timeout=min(CONNECT_TIMEOUT_S, DOWNLOAD_TIMEOUT_S)) as response:
        announced = response.length or 0
        content = bytearray()
        while announced <= MAX_DOWNLOAD_BYTES:
            if time.monotonic() > deadline:
                raise _too_slow()
            chunk = response.read1(CHUNK_BYTES)
            content += chunk
            if not chunk or len(content) > MAX_DOWNLOAD_BYTES:
                break
        if max(announced, len(content)) > MAX_DOWNLOAD_BYTES:
            raise ValueError(f"it is larger than {MAX_DOWNLOAD_BYTES / 1e9:.3g} GB, the most that is downloaded")
        if len(content) < announced:
            raise ValueError(f"the connection broke off after {len(content)} of {announced} bytes")
        return bytes(content)


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS with redirects and proxies; no files, FTP or data URLs, whatever a server redirects to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _too_slow() -> ValueError:
    return ValueError(f"the download took longer than {DOWNLOAD_TIMEOUT_S:g} s")


def _words(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return f"the connection broke off after {len(error.partial)} bytes"
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason if isinstance(error.reason, Exception) else error
    return " ".join(str(error).split()) or type(error).__name__
