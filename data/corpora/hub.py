"""From a copy of a corpus on the Hub (Parquet) to its official layout on disk, which is then read like the corpus itself.

Audio is decoded by this package, not by `datasets`, which would need torchcodec and FFmpeg.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from tqdm.auto import tqdm

from wavcse.audio_wavcse import decode
from wavcse.data.files import replacing, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from wavcse.data.corpora.corpus import Corpus


def write_hub_copy(
    corpus: Corpus,
    hub_id: str,
    root: str | Path,
    protocol: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> int:
    """Write the audio of a Hub copy below `root` where the corpus has it, and the lists that it implies.

    Files that are there already are kept (an official list wins, and a killed run goes on). The lists come last.

    Args:
        hub_id: data set on the Hub with a column `audio` (or one other column of audio), or a folder of Parquet files.
        config: name of its configuration, where it has several.
        revision: branch or commit.

    Returns:
        How many clips the copy has.

    Raises:
        ValueError: the adapter knows no copy, `datasets` is not installed, the copy cannot be loaded, or a row does not say
            which clip it is.
    """
    if corpus.from_hub is None:
        facts = corpus.facts
        raise ValueError(f"{facts.name}: no copy with its audio is known on the Hub; get it from {facts.source}.")
    root, protocol = Path(root), corpus.protocol(protocol)
    lists: dict[str, set[str]] = {}
    clips = 0
    for split, rows in _load(hub_id, config, revision).items():
        for number, row in enumerate(tqdm(rows, f"write {split}", unit="clip")):
            try:
                place = corpus.from_hub(_readable(row, rows), split, protocol)
                _write_audio(row["audio"], root / place.file_name)
            except ValueError as error:
                raise ValueError(f"{hub_id}, split {split}, row {number}: {error}") from error
            for name, line in [(place.list_name, place.line), *place.others.items()]:
                if name:
                    lists.setdefault(name, set()).add(line)
            clips += 1
    for name, lines in lists.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if not (root / name).exists():
            write_atomically(root / name, "\n".join(sorted(lines)) + "\n")
    return clips


def _load(hub_id: str, config: str | None, revision: str | None) -> DatasetDict:
    try:
        from datasets import Audio, load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise ValueError("--hub_id needs the library datasets: pip install 'datasets>=4'.") from error
    try:
        splits = load_dataset(hub_id, config, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{hub_id}: cannot be loaded as a data set ({error}).") from error
    rows = next(iter(splits.values()))  # the splits have the same columns
    audio = [name for name, feature in rows.features.items() if name == "audio" or isinstance(feature, Audio)]
    column = "audio" if "audio" in audio else audio[0] if len(audio) == 1 else None
    if column is None:
        raise ValueError(f"{hub_id}: has no column 'audio' and not one other of audio; its columns are {rows.column_names}.")
    return splits.rename_columns({column: "audio"} if column != "audio" else {}).cast_column("audio", Audio(decode=False))


def _readable(row: Mapping[str, Any], rows: Dataset) -> dict[str, Any]:
    """The row with the names of its class labels instead of their numbers."""
    labels = {name: feature for name, feature in rows.features.items() if hasattr(feature, "int2str")}
    return {name: labels[name].int2str(value) if name in labels else value for name, value in row.items()}


def _write_audio(audio: Mapping[str, Any], path: Path) -> None:
    if path.exists():
        return
    encoded = audio["bytes"] or Path(audio["path"]).read_bytes()
    if not encoded.startswith(b"RIFF"):
        encoded = _as_wav(encoded, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(encoded)


def _as_wav(encoded: bytes, name: str) -> bytes:
    """The same samples as 16-bit wav."""
    waveform, rate = decode(encoded, name=name)
    buffer = io.BytesIO()
    samples = np.clip(np.rint(waveform * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
