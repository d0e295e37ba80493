"""Files behind a URL that fsspec opens: `s3://`, `gs://`, `hf://`, `memory://` and the like. HTTP is left to `download`."""

from __future__ import annotations

from typing import Any

from wavcse.audio_wavcse import is_url


def is_remote(source: object) -> bool:
    """Whether this is a text such as `s3://bucket/clip.wav`; a path on this machine and an HTTP URL are not."""
    return isinstance(source, str) and "://" in source and not is_url(source)


def filesystem_of(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL or local path, and the path in it.

    Raises:
        ValueError: the protocol needs a library that is not installed, or does not exist.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url}: {error}.") from error  # fsspec names the library
    except ValueError as error:
        raise ValueError(f"{url}: cannot be opened ({error}).") from error


def read_remote(url: str) -> bytes:
    """The bytes of one file; ValueError where it cannot be read."""
    files, path = filesystem_of(url)
    try:
        return files.cat_file(path)
    except Exception as error:  # each file system raises what its library does
        words = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{url}: cannot be read ({words}).") from error
