"""What tests of public corpora share: files of a miniature tree, its manifest, and how the command refuses one."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from wavcse.data.corpora import CORPORA
from wavcse.data.corpora.__main__ import main
from wavcse.data.corpora.corpus import write_manifest
from wavcse.data.manifest import Manifest

RATE = 16_000


def write_wav(path: Path, seconds: float = 0.01, value: float = 0.1) -> None:
    """A constant that begins with noise of its own, so that no two files are alike, in the container that the suffix names.

    `.WAV` in capitals is NIST's SPHERE, as on TIMIT's disc.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    container = {".WAV": "NIST", ".flac": "FLAC"}.get(path.suffix, "WAV")
    samples = np.full(round(seconds * RATE), value)
    samples[:8] = np.random.default_rng(zlib.crc32(str(path).encode())).random(len(samples[:8]))
    soundfile.write(path, samples, RATE, subtype="PCM_16", format=container)


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table_of(path: Path) -> pd.DataFrame:
    return Manifest(path).table.set_index("file_name")


def manifest_of(name: str, root: Path, out: Path, protocol: str, counts: dict[str, int], **arguments) -> pd.DataFrame:
    """The manifest of a miniature, whose counts stand for those of the complete corpus."""
    corpus = CORPORA[name]
    write_manifest(replace(corpus, counts=dict.fromkeys(corpus.counts, counts)), root, out, protocol, **arguments)
    return table_of(out)


def refuse(name: str, root: Path, out: Path, capsys, *options: str) -> str:
    """The one line with which the command refuses; nothing is written."""
    before = {path: path.read_bytes() for path in out.parent.glob("*.csv")}
    assert main([name, "--root", str(root), "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in out.parent.glob("*.csv")} == before
    return error
