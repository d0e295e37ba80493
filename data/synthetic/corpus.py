"""Writing a planned corpus: worker processes, atomic files, and a restart that continues."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import soundfile
from tqdm import tqdm

from wavcse.data.files import json_text, locked, remove_partials, replacing, write_atomically
from wavcse.settings.fields import check_range
from wavcse.settings.processes import WorkerPool, end_with_parent

from .espeak import Word, engine_version
from .plan import Plan, Utterance
from .render import SAMPLING_RATE_HZ, render, words_of
from .table import plan_multitask

RENDERER_VERSION = 1  # raise it when the same plan comes to sound different
CLIPS_PER_JOB = 16
# A forked worker starts at once, a spawned one first imports this package. A fork is safe on Linux because workers use
# neither torch nor any thread of the caller's; macOS' system libraries do not allow it.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


def write_corpus(out: str | Path, clips: int, seed: int, workers: int | None = None) -> Path:
    """Write the corpus into the folder `out`: `audio/*.flac` (16 kHz, mono, 16 bit), `metadata.csv`, `README.md`.

    The same clips and seed give the same bytes, whatever `workers` is. A killed call continues where it stopped when
    it is repeated; `metadata.csv` is written last, so a folder that has it is complete.

    Args:
        out: the folder, made if missing.
        clips: number of clips, at least 160; each is about 0.8 s long.
        seed: not negative.
        workers: number of processes, by default the number of CPUs. On macOS and Windows a script that uses more
            than 1 needs the usual `if __name__ == "__main__":`.

    Returns:
        The path of `metadata.csv`.

    Raises:
        ValueError: too few clips, a negative seed, fewer than 1 worker, or `out` holds another corpus,
            or another run writes it.
        ImportError: the package espeakng-loader is not installed.
        EspeakError: espeak-ng failed.
    """
    return write_plan(plan_multitask(clips, seed), out, workers)


def write_plan(plan: Plan, out: str | Path, workers: int | None = None) -> Path:
    """Write a planned corpus into the folder `out`; arguments, result and errors as for :func:`write_corpus`."""
    workers = (os.cpu_count() or 1) if workers is None else workers
    check_range("workers", workers, at_least=1)
    out = Path(out)
    identity = _identity(plan)
    with locked(out):
        _claim(out, identity)
        for folder in (out, out / "audio"):
            remove_partials(folder)
        write_atomically(out / "README.md", _readme(plan, identity))
        spoken = _speak_all(plan, out, workers)
        times = _time_tables(plan, [words for _, words in spoken]) if plan.has_times else {}
        for name, text in {**plan.tables, **times}.items():
            write_atomically(out / name, text)
        metadata = out / "metadata.csv"
        write_atomically(metadata, _metadata_csv(plan, [samples for samples, _ in spoken]))
    return metadata


def _identity(plan: Plan) -> dict[str, str | int]:
    """Everything that the bytes of the corpus depend on."""
    rows = "\n".join([*map(repr, plan.utterances), *plan.tables.values()])
    return {
        "corpus": plan.corpus,
        "engine": "espeak-ng",
        "engine_version": engine_version(),
        "renderer_version": RENDERER_VERSION,
        "seed": plan.seed,
        "clips": len(plan.utterances),
        "plan_sha256": hashlib.sha256(rows.encode()).hexdigest(),
    }


def _claim(out: Path, identity: dict[str, str | int]) -> None:
    """Make `out` the folder of this corpus, or make sure that it is, before any clip is kept or written."""
    record = out / "corpus.json"
    if record.exists():
        existing = json.loads(record.read_text(encoding="utf-8"))
        changed = [key for key in identity if existing.get(key) != identity[key]]
        if changed:
            details = ", ".join(f"{key} {existing.get(key)!r} instead of {identity[key]!r}" for key in changed)
            raise ValueError(f"{out} holds another synthetic corpus ({details}); choose an empty folder")
    elif (out / "audio").exists() or (out / "metadata.csv").exists():
        raise ValueError(f"{out} holds audio or metadata but no corpus.json of this generator; choose an empty folder")
    (out / "audio").mkdir(parents=True, exist_ok=True)
    write_atomically(record, json_text(identity, indent=2) + "\n")


def _speak_all(plan: Plan, out: Path, workers: int) -> list[tuple[int, list[Word]]]:
    """Number of samples of each clip, spoken now or before, and its words where the plan asks for times."""
    progress = partial(tqdm, total=len(plan.utterances), unit="clip", desc="speaking", mininterval=0.5)
    return list(progress(_spoken(plan, out, workers)))


def _spoken(plan: Plan, out: Path, workers: int) -> Iterator[tuple[int, list[Word]]]:
    job = partial(_speak_clip, out=out, has_times=plan.has_times)
    if workers == 1:
        yield from map(job, plan.utterances)
        return
    with WorkerPool(workers, mp_context=get_context(START_METHOD), initializer=end_with_parent) as pool:
        yield from pool.map(job, plan.utterances, chunksize=CLIPS_PER_JOB)


def _speak_clip(utterance: Utterance, out: Path, has_times: bool) -> tuple[int, list[Word]]:
    path = out / utterance.file_name
    try:
        samples = soundfile.info(path).frames  # files get their name only when complete
        return samples, words_of(utterance) if has_times else []
    except soundfile.LibsndfileError:  # not there, or damaged by a power failure
        pass
    wave, words = render(utterance)
    with replacing(path) as partial:
        soundfile.write(partial, wave, SAMPLING_RATE_HZ, subtype="PCM_16", format="FLAC")
    return len(wave), words if has_times else []


def _metadata_csv(plan: Plan, samples: list[int]) -> str:
    rows = []
    for u, n in zip(plan.utterances, samples, strict=True):
        clip = {"duration": _seconds(n / SAMPLING_RATE_HZ), "text": u.text}
        row = _said_of(plan, u) | clip
        rows.append([row[column] for column in plan.columns])
    return _csv(plan.columns, rows)


def _time_tables(plan: Plan, spoken: Sequence[list[Word]]) -> dict[str, str]:
    """`words.csv` and `phones.csv`: manifests whose clips are parts of the utterances."""
    shared = [column for column in plan.columns if column not in ("file_name", "duration", "text")]
    words, phones = [], []
    for utterance, own in zip(plan.utterances, spoken, strict=True):
        said = _said_of(plan, utterance)
        tail = [Path(utterance.file_name).stem, *(said[column] for column in shared)]
        for order, word in enumerate(own):
            times = _seconds(word.start_s), _seconds(word.end_s)
            text = word.text.lower()
            words.append([utterance.file_name, *times, text, order, " ".join(p.symbol for p in word.phones), *tail])
            for phone in word.phones:
                times = _seconds(phone.start_s), _seconds(phone.end_s)
                phones.append([utterance.file_name, *times, phone.symbol, text, order, *tail])
    clip = ("file_name", "start", "end")
    return {
        "words.csv": _csv([*clip, "word", "order", "phones", "utterance_id", *shared], words),
        "phones.csv": _csv([*clip, "phone", "word", "order", "utterance_id", *shared], phones),
    }


def _said_of(plan: Plan, utterance: Utterance) -> dict[str, str]:
    """All that is known of a clip before it is spoken, by column."""
    labels = utterance.labels | utterance.splits | plan.constants
    return vars(utterance.speaker) | {"file_name": utterance.file_name} | labels


def _seconds(seconds: float) -> str:
    return f"{seconds:.5f}"


def _csv(columns: Iterable[str], rows: Iterable[Sequence]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _readme(plan: Plan, identity: dict[str, str | int]) -> str:
    readme = plan.readme
    columns = "\n".join(f"| {cell} | {text} |" for cell, text in readme.columns.items())
    return f"""# {readme.title}

Every clip in this folder is **synthesised**: no human voice was recorded. It exists to test and demonstrate training
and evaluation without a download; results on it say nothing about human speech.
{readme.about}
| | |
|---|---|
| engine | {identity["engine"]} {identity["engine_version"]} (package espeakng-loader) |
| clips | {identity["clips"]}, 16 kHz, mono, 16-bit FLAC |
| seed | {identity["seed"]} |
| written by | `{readme.command.format(clips=identity["clips"], seed=identity["seed"])}` |

`metadata.csv` has one row per clip. An empty split means that the task does not use the clip.

| column | holds |
|---|---|
{columns}

{readme.closing}"""
