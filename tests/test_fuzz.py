"""Damaged input in bulk, through the interfaces that users call: every piece is served or refused in words, none is lost.

    pytest -m fuzz -s        1,000 audio files, 300 CSV and 300 Parquet manifests, 300 recipes, 300 config.json; seeded

Each test prints how many pieces came out how. `FUZZ_SEED` draws other damage, `FUZZ_SCALE=0.1` a tenth of it.
"""

from __future__ import annotations

import collections
import copy
import csv
import faulthandler
import io
import json
import math
import os
import random
import struct
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from wavcse import WavCSEModel
from wavcse.audio_wavcse import decode, resample
from wavcse.data.cache import build_cache
from wavcse.data.corpus_pass import read_skipped
from wavcse.embed import main as embed_main
from wavcse.embed import skipped_path
from wavcse.eval.arguments import EVAL
from wavcse.finetuning.arguments import FINETUNE
from wavcse.pretraining.arguments import PRETRAIN
from wavcse.train_accelerate import main as train_main

pytestmark = pytest.mark.fuzz
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SCALE = float(os.environ.get("FUZZ_SCALE", "1"))
HANG_S = 60  # one piece of input that takes longer is a hang: the process ends and shows where
RATE = 16_000


@pytest.fixture(autouse=True)
def _no_hang():
    faulthandler.dump_traceback_later(HANG_S * 10, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def pieces(number: int, kind: str) -> Iterable[tuple[int, random.Random]]:
    """`number` seeded sources of damage, each piece its own."""
    for i in range(max(1, round(number * SCALE))):
        yield i, random.Random(f"{SEED}/{kind}/{i}")


class Outcomes:
    """What became of the pieces: counts, and what should not have happened with its first example."""

    def __init__(self, kind: str):
        self.kind = kind
        self.counts: collections.Counter = collections.Counter()
        self.faults: dict[str, str] = {}

    def add(self, piece: str, call: Callable[[], str]) -> None:
        """Count what `call` returns; any exception is a fault, told apart by where it was raised."""
        try:
            self.counts[call()] += 1
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "site-packages" not in frame.filename]
            fault = f"{type(error).__name__} at {own[-1]}: {str(error)[:200]}"
            self.counts[f"FAULT {type(error).__name__} at {own[-1]}"] += 1
            self.faults.setdefault(own[-1], f"{fault}\n    {piece}")

    def check(self) -> None:
        """Print the counts; there must be no fault."""
        print(f"\n{self.kind}: {sum(self.counts.values())} pieces")
        for outcome, count in self.counts.most_common():
            print(f"  {count:5d}  {outcome}")
        assert not self.faults, "\n".join(self.faults.values())


# ---- bytes ----

EXTREMES = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """One or several kinds of damage: flips, cuts, doubled and zeroed stretches, extreme numbers in the header, junk."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if len(data) < 8:
            break
        at = chance.randrange(len(data))
        size = chance.randrange(1, max(2, len(data) // 4))
        kind = chance.randrange(8)
        if kind == 0:
            for _ in range(chance.choice((1, 8, 64))):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at : at + size] = bytes(min(size, len(data) - at))
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif kind == 5:  # the header's numbers are in the first bytes of every format
            at = chance.randrange(min(64, len(data) - 4))
            data[at : at + 4] = struct.pack(
                chance.choice("<>") + "I", chance.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
            )
        elif kind == 6:
            data[at:at] = chance.randbytes(size)
        else:
            for position in range(chance.randrange(min(64, len(data)))):
                data[position] = chance.randrange(256) if chance.random() < 0.2 else data[position]
    return bytes(data)


def audio_originals(folder: Path) -> list[Path]:
    """A file of each kind that is read, third of a second each."""
    generator = np.random.default_rng(SEED)
    mono = (0.1 * generator.standard_normal(RATE // 3)).astype(np.float32)
    stereo = (0.1 * generator.standard_normal((44_100 // 3, 2))).astype(np.float32)
    kinds = [
        ("pcm16.wav", mono, RATE, {"subtype": "PCM_16"}),
        ("float.wav", stereo, 44_100, {"subtype": "FLOAT"}),
        ("pcm24.wav", stereo, 44_100, {"subtype": "PCM_24"}),
        ("gsm.wav", mono[: RATE // 4], 8_000, {"subtype": "GSM610"}),
        ("mulaw.wav", mono, 8_000, {"subtype": "ULAW"}),
        ("mono.flac", mono, RATE, {}),
        ("stereo.flac", stereo, 44_100, {}),
        ("vorbis.ogg", mono, RATE, {"subtype": "VORBIS"}),
        ("speech.opus", mono, RATE, {"format": "OGG", "subtype": "OPUS"}),
        ("mono.mp3", mono, RATE, {}),
        ("stereo.mp3", stereo, 44_100, {}),
        ("mono.aiff", mono, RATE, {}),
        ("mono.au", mono, RATE, {}),
    ]
    folder.mkdir()
    for name, samples, rate, options in kinds:
        soundfile.write(folder / name, samples, rate, **options)
    return [folder / kind[0] for kind in kinds]


@pytest.fixture(scope="module")
def hub(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    tiny_model().save_pretrained(folder)
    return folder


def test_audio_files(hub, tmp_path, capfd):
    originals = audio_originals(tmp_path / "originals")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, chance in pieces(1000, "audio"):
        original = chance.choice(originals)
        data = original.read_bytes()
        if chance.random() < 0.05:
            data += chance.choice(originals).read_bytes()  # another file behind it
        data = damaged_bytes(data, chance) if chance.random() < 0.97 else chance.randbytes(chance.randrange(2_000))
        (corpus / f"{i:04d}_{original.name}").write_bytes(data)
    names = sorted(path.name for path in corpus.iterdir())
    out = tmp_path / "out.parquet"
    code = embed_main([str(corpus), "--model", str(hub), "--out", str(out), "--device", "cpu"])
    captured = capfd.readouterr()
    assert code == 3
    assert "Traceback" not in captured.err
    table, skipped = pd.read_parquet(out), read_skipped(skipped_path(out))
    assert sorted([*table["id"], *(clip.clip_id for clip in skipped)]) == names  # none lost, none twice
    assert all(clip.reason.startswith(clip.clip_id) and "\n" not in clip.reason for clip in skipped)
    assert np.isfinite(np.stack(table["embedding"])).all()
    model = WavCSEModel.from_pretrained(hub).eval()
    for row in table.sample(min(40, len(table)), random_state=SEED).itertuples():  # what was embedded is what is decoded
        waveform = resample(*decode(corpus / row.id), RATE)
        assert row.seconds == pytest.approx(len(waveform) / RATE, abs=1e-3)
        np.testing.assert_allclose(row.embedding, model.encode(waveform), rtol=1e-4, atol=1e-5)
    reasons = (clip.reason.removeprefix(clip.clip_id).split("(")[0][:60] for clip in skipped)
    outcomes = Outcomes("audio files")
    outcomes.counts.update(
        ["served"] * len(table),
    )
    outcomes.counts.update(reasons)
    outcomes.check()


# ---- tables ----

CELLS = (
    *("", " ", "nan", "inf", "-inf", "-1", "1e999", "0", "1.0", "01", "0.1", "99", "None", "NA", "null", "é", "a\x00b"),
    *("train", "test ", "Train", "\u00a0yes", "\ufeffyes", "yes\nno", '"', "'", "#", "=1+1", "<script>", "x" * 5000),
    *("../../etc", "/", "."),
)
NAMES = ("file_name", "start", "end", "keyword", "speaker_id", "split", "", "file_name ", "Split", "duration", "type")


def damaged_rows(rows: list[list], chance: random.Random) -> list[list]:
    rows = copy.deepcopy(rows)
    for _ in range(chance.choice((1, 1, 2, 4))):
        row = chance.choice(rows)
        kind = chance.randrange(7)
        if kind <= 2 and row is not rows[0] and row:
            row[chance.randrange(len(row))] = chance.choice(CELLS)
        elif kind == 3 and rows[0]:
            rows[0][chance.randrange(len(rows[0]))] = chance.choice(NAMES)
        elif kind == 4 and row:
            row.insert(chance.randrange(len(row)), chance.choice(CELLS))
        elif kind == 5 and row:
            del row[chance.randrange(len(row))]
        elif kind == 6:
            rows.insert(chance.randrange(len(rows) + 1), list(chance.choice(rows)))
    return rows


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Twelve clips of a tenth of a second, and the clean manifest's rows beside them as JSON."""
    folder = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(SEED)
    rows = [["file_name", "start", "end", "keyword", "speaker_id", "split"]]
    for i in range(12):
        soundfile.write(folder / f"{i}.wav", 0.1 * generator.standard_normal(RATE // 10), RATE)
        part = ["0.01", "0.08"] if i % 4 == 3 else ["", ""]
        rows.append([f"{i}.wav", *part, ("yes", "no")[i % 2], f"s{i}", ("train", "train", "validation", "test")[i // 2 % 4]])
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def cache(clips, upstream_folder, tmp_path_factory) -> Path:
    rows = json.loads((clips / "rows.json").read_text())
    (clips / "clean.csv").write_text(as_csv(rows))
    root = tmp_path_factory.mktemp("cache")
    build_cache([clips / "clean.csv"], str(upstream_folder), root)
    return root


def as_csv(rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def as_parquet(rows: list[list], path: Path, chance: random.Random) -> None:
    """Columns of several types: text, categories, bytes, numbers where all cells are; empty cells are missing values."""
    columns = []
    for i in range(len(rows[0])):
        cells = [row[i] if i < len(row) else "" for row in rows[1:]]
        kind = chance.randrange(4)
        try:
            if kind == 0:
                array = pa.array([float(cell) if cell else None for cell in cells])
            elif kind == 1:
                array = pa.array([cell or None for cell in cells], pa.string()).dictionary_encode()
            elif kind == 2:
                array = pa.array([cell.encode() for cell in cells])
            else:
                array = pa.array([cell or None for cell in cells])
        except ValueError:
            array = pa.array(cells)
        columns.append(array)
    pq.write_table(pa.Table.from_arrays(columns, names=rows[0]), path)


def embed_manifest(manifest: Path, hub: Path, out: Path, num_rows: int | None, capfd) -> str:
    """What became of a manifest: refused in one line, or all its rows (where their number is known) served or skipped."""
    code = embed_main([str(manifest), "--model", str(hub), "--out", str(out), "--device", "cpu"])
    error = capfd.readouterr().err
    assert "Traceback" not in error
    if code == 2:
        lines = [line for line in error.splitlines() if line.startswith("wavcse embed:")]
        assert len(lines) == 1, error
        return "refused"
    table = pd.read_parquet(out)
    skipped = read_skipped(skipped_path(out))
    assert code == (3 if skipped else 0)
    assert all(clip.reason and "\n" not in clip.reason for clip in skipped)
    assert num_rows in (None, len(table) + len(skipped))
    return "some rows served" if skipped else "all rows served"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_manifests(suffix, clips, hub, capfd):
    rows, outcomes = json.loads((clips / "rows.json").read_text()), Outcomes(f"{suffix} manifests")
    for i, chance in pieces(300, suffix):
        manifest, out = clips / f"damaged_{i}{suffix}", clips / f"out_{i}{suffix}.parquet"
        damaged = damaged_rows(rows, chance)
        if suffix == ".csv":
            data = as_csv(damaged).encode(chance.choice(("utf-8",) * 8 + ("utf-16", "utf-8-sig")), errors="surrogatepass")
        else:
            as_parquet(damaged, manifest, chance)
            data = manifest.read_bytes()
        num_rows = sum(any(cell.strip("\u00a0\ufeff ") for cell in row) for row in damaged[1:])
        if chance.random() < 0.4:
            data, num_rows = damaged_bytes(data, chance), None
        manifest.write_bytes(data)
        outcomes.add(repr(data[:2000]), partial(embed_manifest, manifest, hub, out, num_rows, capfd))
    outcomes.check()


# ---- settings ----

VALUES = (
    *(None, True, False, 0, 1, -1, 2**63, 1e30, math.nan, math.inf, -math.inf, "", " ", "yes", "no", "../..", "0", "1e3", "é"),
    *([], [1], [None], ["a", "a"], [[1]], {}, {"a": 1}, {"type": "x"}, {1: 2}, "x" * 3000),
)


def damaged_settings(settings: dict, chance: random.Random, values: tuple = VALUES) -> dict:
    """The settings with one to three fields, at any depth, replaced, removed, renamed or added."""
    settings = copy.deepcopy(settings)
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = settings
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and chance.random() < 0.7:
                place = place[key]
                continue
            kind = chance.randrange(6)
            if kind <= 3:
                place[key] = copy.deepcopy(chance.choice(values))
            elif kind == 4:
                del place[key]
            elif isinstance(place, dict):
                place[chance.choice(("x", "type", "keys", "a.b", "", "0"))] = place.pop(key)
            break
    return settings


def refusal(main: Callable[[list[str]], int], argv: list[str], capfd) -> str:
    """ "done", or "refused" in one line of stderr."""
    code = main(argv)
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert code in (0, 2, 3), code
    assert code != 2 or error.strip()
    return {0: "done", 2: "refused", 3: "done, some clips skipped"}[code]


def recipes(clips: Path, cache: Path, upstream: Path) -> dict[str, dict]:
    """A good recipe of each program that reads one."""
    task = {"manifest": str(clips / "clean.csv"), "label_column": "keyword", "split_column": "split", "classes": ["yes", "no"]}
    sizes = {"selected_layers": [0, 1, 3], "layer_projection_size": 8, "embedding_size": 8, "num_epochs": 1, "batch_size": 4}
    train = {
        "tasks": {"keyword": {**task, "disjoint_by": "speaker_id", "loss_weight": 1.0}, "again": task},
        "cache_dir": str(cache),
        "upstream": str(upstream),
        "save_hub": False,
        "pooling_type": "learned_norm",
        "pooling_kwargs": {"p": 4.0},
        "layer_dropout": 0.1,
        "learning_rate": 1e-3,
        "l1": 1e-7,
        "scheduler_patience": 1,
        "seed": 0,
        **sizes,
    }
    pretrain = {
        "data": {"speech": {"manifest": str(clips / "clean.csv"), "where": {"keyword": ["yes", "no"]}}},
        "encoder": {"hidden_size": 32, "conv_dim": [16, 16], "conv_kernel": [400, 3], "conv_stride": [160, 2]},
        "mask_frames": 8,
        "label_loss": "hard_triplet",
        "label_weight": 4,
        "max_steps": 10,
        "learning_rate": 3.0e-3,
        "decay": "cosine",
    }
    finetune = {
        "upstreams": {"first": str(upstream)},
        "groups": {"O": ["yes"], "NO": ["no"]},
        "task": {"task": "language", "manifest": [str(clips / "clean.csv")], "note": "two words"},
        "batch_seconds": 4,
        "crop_s": 1.0,
        "max_steps": 2,
        "learning_rate": 6.0e-4,
    }
    evaluate = {
        "model": str(upstream),
        "manifest": str(clips / "clean.csv"),
        "tasks": {"keyword": {"label_column": "keyword", "note": "a note"}, "speaker": None},
        "baselines": ["mfcc", "majority"],
        "output_dir": "runs/eval",
        "seeds": 2,
    }
    return {"train": train, "pretrain": pretrain, "finetune": finetune, "eval": evaluate}


READERS = {"pretrain": PRETRAIN.parse, "finetune": FINETUNE.parse, "eval": EVAL.parse}


def test_recipes(clips, cache, upstream_folder, tmp_path, capfd):
    """Training recipes go through a whole run, the others as far as their settings are checked."""
    good, outcomes = recipes(clips, cache, upstream_folder), Outcomes("recipes")
    for i, chance in pieces(300, "recipes"):
        program = chance.choice(("train", "train", *READERS))
        text = yaml.safe_dump(damaged_settings(good[program], chance), allow_unicode=True)
        data = damaged_bytes(text.encode(), chance) if chance.random() < 0.3 else text.encode()
        path = tmp_path / f"recipe_{i}.yaml"
        path.write_bytes(data)
        if program == "train":
            call = partial(refusal, train_main, [str(path), "--output_dir", str(tmp_path / f"run_{i}")], capfd)
        else:
            call = partial(served_or_refused, partial(READERS[program], [str(path)]))
        outcomes.add(f"{program}: {data[:2000]!r}", lambda program=program, call=call: f"{program}: {call()}")
    outcomes.check()


def served_or_refused(call: Callable) -> str:
    try:
        call()
    except (ValueError, OSError) as error:
        return "refused" if str(error).strip() else "refused without a word"
    return "done"


def test_configurations(hub, tmp_path):
    config = json.loads((hub / "config.json").read_text())
    folder, outcomes = tmp_path / "model", Outcomes("config.json")
    folder.mkdir()
    for file in hub.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file)
    (wave,) = [0.1 * np.random.default_rng(0).standard_normal(4_000).astype(np.float32)]
    for _, chance in pieces(300, "config"):
        text = json.dumps(damaged_settings(config, chance, tuple(value for value in VALUES if value != {1: 2})))
        data = damaged_bytes(text.encode(), chance) if chance.random() < 0.2 else text.encode()
        (folder / "config.json").write_bytes(data)
        outcomes.add(repr(data[:3000]), partial(served_or_refused, partial(load_and_encode, folder, wave)))
    outcomes.check()


def load_and_encode(folder: Path, wave: np.ndarray) -> None:
    model = WavCSEModel.from_pretrained(folder).eval()
    assert np.isfinite(model.encode(wave)).all()
