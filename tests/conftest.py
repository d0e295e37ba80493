"""Shared fixtures: small models with random weights, made in milliseconds, and seeded synthetic waveforms."""

from __future__ import annotations

import os
import platform
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import AutoModel, Wav2Vec2FeatureExtractor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

os.environ.setdefault("WAVCSE_KERNELS", "onednn")  # else a busy machine could choose otherwise in two processes of a test

from wavcse import WavCSEConfig, WavCSEFeatureExtractor, WavCSEForMultiTask, WavCSEModel
from wavcse.data.cache import build_cache
from wavcse.eval.probe import ProbeSettings
from wavcse.reports import figures
from wavcse.settings.processes import processor_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TESTS = Path(__file__).parent
SAMPLING_RATE = 16_000
NO_PIXELS = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="
)  # 1 x 1, black
# The shape of the real encoders (same stem, so 400 samples per frame and a hop of 320), 1/32 of their width.
TINY_UPSTREAM = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TINY_CONFIG = {"selected_layers": [0, 1, 3], "layer_projection_size": 8, "embedding_size": 20}
TASKS = {
    "keyword": {"labels": ["yes", "no", "stop"]},
    "emotion": {"labels": ["calm", "angry"], "loss_weight": 0.5},
}


# Files of tests that take longest, in this folder, the longest first (CONTRIBUTING.md).
LONGEST = (
    "root/test_packed.py",
    "search/test_phase1.py",
    "pretraining/test_study.py",
    "pretraining/test_pretrain.py",
    "finetuning/test_finetune.py",
    "search/test_search.py",
    "search/test_hparams.py",
    "eval/test_cli.py",
    "root/test_code_of_folders.py",
    "tools/test_readme.py",
    "benchmarks/test_benchmarks.py",
    "hub/test_push.py",
    "root/test_remote_code.py",
    "training/test_train.py",
    "training/test_loop.py",
    "search/test_poolings.py",
    "data/test_synthetic_twins.py",
    "data/test_synthetic.py",
    "data/test_cache.py",
    "test_embed.py",
)
# Marks inside transformers' common suites (tests/transformers_common), which a strict run must know.
TRANSFORMERS_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
)


class RootIsNoTestPackage:
    """Keeps pytest from importing the root a second time, under the name of its folder.

    The root is the package `wavcse` and has an `__init__.py`, so pytest would take it for a package of tests.
    """

    @pytest.hookimpl
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == TESTS.parent else None


def pytest_configure(config: pytest.Config) -> None:
    # Tiny models lose time in threads. The variable is for the processes that tests start.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    config.pluginmanager.register(RootIsNoTestPackage())
    for mark in TRANSFORMERS_MARKS:
        config.addinivalue_line("markers", f"{mark}: used by transformers' common test suites")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that the processes of a run end at about the same time."""
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says which processor ran the tests: what they see, and how long they take, depends on it."""
    terminalreporter.write_line(processor_line(getattr(config.option, "numprocesses", None) or 1))


def processor_line(num_processes: int) -> str:
    """Name, cores and the instructions that PyTorch sees; limits that the environment sets on them, if any."""
    names = ("avx2", "avx512", "avx512_bf16", "vnni", "amx_tile", "amx_fp16")
    is_supported = {name: getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in names}
    instructions = [name for name in names if is_supported[name]()]
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        instructions.append("oneDNN's bfloat16")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [f"{name}={os.environ[name]}" for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA") if name in os.environ]
    return (
        f"processor: {processor_name()} ({platform.machine()}), {cores} cores, {num_processes} test processes; "
        f"PyTorch {torch.__version__} with {torch.backends.cpu.get_cpu_capability()} kernels; "
        f"instructions: {', '.join([*instructions, *limits]) or 'none beyond the base'}"
    )


def make_upstream_config(family: str = "wavlm", norm: str = "layer", **changes) -> dict:
    """Fields of a tiny upstream: `norm="group"` is the base shape, `norm="layer"` the large one."""
    shape = {"model_type": family, "feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    return {**TINY_UPSTREAM, **shape, **changes}


def make_config(family: str = "wavlm", norm: str = "layer", upstream: dict | None = None, **fields) -> WavCSEConfig:
    """A tiny `WavCSEConfig`; `upstream` changes fields of the upstream, the rest are fields of the configuration."""
    return WavCSEConfig(make_upstream_config(family, norm, **(upstream or {})), **{**TINY_CONFIG, **fields})


@pytest.fixture(scope="session")
def upstream_config() -> Callable[..., dict]:
    """Factory: `upstream_config(family, norm, **changes)` -> fields of a tiny upstream."""
    return make_upstream_config


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., WavCSEConfig]:
    """Factory: `tiny_config(family, norm, upstream={...}, **fields)`."""
    return make_config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., WavCSEModel]:
    """Factory: `tiny_model(family, norm, upstream={...}, **fields)` in eval mode, the same weights every time."""

    def make(*args, **fields) -> WavCSEModel:
        torch.manual_seed(0)
        return WavCSEModel(make_config(*args, **fields)).eval()

    return make


@pytest.fixture(scope="session")
def tiny_multi_task_model() -> Callable[..., WavCSEForMultiTask]:
    """Factory like `tiny_model`, with a three-class and a two-class task on top."""

    def make(*args, **fields) -> WavCSEForMultiTask:
        torch.manual_seed(0)
        return WavCSEForMultiTask(make_config(*args, **{"tasks": TASKS, **fields})).eval()

    return make


@pytest.fixture(scope="session")
def tiny_upstream() -> Callable[..., PreTrainedModel]:
    """Factory: `tiny_upstream(family, norm, **changes)`, the plain transformers encoder in eval mode.

    Weights are spread wider than at initialisation, so that attention and gates are far from uniform and a wrong layer,
    mask or position shows.
    """

    def make(family: str = "wavlm", norm: str = "layer", **changes) -> PreTrainedModel:
        torch.manual_seed(0)
        config = WavCSEConfig(make_upstream_config(family, norm), selected_layers=[0]).upstream_config
        for name, value in {**TINY_UPSTREAM, **changes}.items():
            setattr(config, name, value)
        upstream = AutoModel.from_config(config).eval()
        with torch.no_grad():
            for parameter in upstream.encoder.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return upstream

    return make


@pytest.fixture(scope="session", autouse=True)
def save_figure() -> Iterator[Callable[..., list[Path]]]:
    """What saves a figure; in tests that do not ask for it (`real_pictures`) figures are drawn, but saved without content.

    To lay one out and write it takes the better part of a second, and most searches and evaluations make several.
    """

    def without_content(figure: Figure, stem: Path) -> list[Path]:
        assert figure.axes
        files = {".svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", ".png": NO_PIXELS}
        paths = [stem.with_name(stem.name + suffix) for suffix in files]
        for path, content in zip(paths, files.values()):
            path.write_bytes(content)
        return paths

    with pytest.MonkeyPatch.context() as patch:
        real = figures.save_figure
        patch.setattr(figures, "save_figure", without_content)
        yield real


@pytest.fixture
def real_pictures(save_figure, monkeypatch) -> None:
    """Pictures as users get them."""
    monkeypatch.setattr(figures, "save_figure", save_figure)


@pytest.fixture(scope="module")
def real_pictures_in_module(save_figure) -> Iterator[None]:
    """The same from here to the module's end, for what a module's fixtures make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_figure", save_figure)
        yield


@pytest.fixture(scope="module")
def quick_probes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Probes of evaluations with two learning rates and a few epochs by default: enough for what toy corpora hold.

    A module may have less than that, by its `PROBES`.
    """
    quick = {"learning_rates": (1e-2, 2.5e-3), "max_epochs": 30, **getattr(request.module, "PROBES", {})}
    defaults = tuple({**asdict(ProbeSettings()), **quick}.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProbeSettings.__init__, "__defaults__", defaults)
        yield


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """`caplog` that sees what transformers logs too, and one-time warnings every time."""
    logging.enable_propagation()
    logging.warning_once.cache_clear()
    yield caplog
    logging.disable_propagation()


@pytest.fixture(scope="session")
def waves() -> Callable[..., list[np.ndarray]]:
    """Factory: `waves(400, 16_000, seed=0)` -> one float32 noise clip per length, 0.1 RMS with an offset."""

    def make(*lengths: int, seed: int = 0) -> list[np.ndarray]:
        generator = np.random.default_rng(seed)
        return [(0.1 * generator.standard_normal(n) + 0.02).astype(np.float32) for n in lengths]

    return make


@pytest.fixture(scope="session")
def embed() -> Callable[..., torch.Tensor]:
    """`embed(model, clips)`: `[B, E]` through the model's own feature extractor, padded together."""

    def make(model: WavCSEModel, clips: list[np.ndarray]) -> torch.Tensor:
        feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
        with torch.no_grad():
            return model(**feature_extractor(clips, sampling_rate=SAMPLING_RATE, return_tensors="pt")).embeddings

    return make


@pytest.fixture(scope="session")
def upstream_folder(tiny_upstream, tmp_path_factory) -> Path:
    """A tiny WavLM of 3 blocks with random weights, saved in the transformers format with its preprocessor."""
    folder = tmp_path_factory.mktemp("upstream")
    tiny_upstream(num_hidden_layers=3).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory) -> Path:
    """Manifest of 96 short clips of tones: pitch tells the `keyword`, a click rate the `speaker_id`; splits per task."""
    folder = tmp_path_factory.mktemp("toy")
    generator = np.random.default_rng(0)
    rows = ["file_name,duration,keyword,speaker_id,split_ks,split_sid"]
    for i in range(96):
        speaker, word, take = i % 8, (i // 8) % 3, i // 24
        samples = tone(generator, pitch_hz=300 * (word + 1), clicks_hz=8 + 6 * speaker, duration_s=0.2 + 0.05 * take)
        soundfile.write(folder / f"{i:03d}.flac", samples, SAMPLING_RATE)
        if speaker < 4:  # known speakers: identification
            splits = ["", ("train", "train", "validation", "test")[take]]
        else:  # open speakers: keywords, disjoint
            splits = [{4: "train", 5: "train", 6: "validation", 7: "test"}[speaker], ""]
        rows.append(
            ",".join([f"{i:03d}.flac", f"{len(samples) / SAMPLING_RATE}", f"word{word}", f"speaker{speaker}", *splits])
        )
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "metadata.csv"


@pytest.fixture(scope="session")
def search_recipe(toy_corpus, upstream_folder, tmp_path_factory) -> dict:
    """A small training recipe with its cache of four layers."""
    cache_dir = tmp_path_factory.mktemp("caches")
    build_cache([toy_corpus], str(upstream_folder), cache_dir)
    task = {"manifest": str(toy_corpus), "label_column": "keyword", "split_column": "split_ks", "disjoint_by": "speaker_id"}
    speaker = {"manifest": str(toy_corpus), "label_column": "speaker_id", "split_column": "split_sid"}
    return {
        "tasks": {"keyword": task, "speaker": speaker},
        "cache_dir": str(cache_dir),
        "upstream": str(upstream_folder),
        "selected_layers": [0, 1, 3],
        "layer_projection_size": 24,
        "embedding_size": 40,
        "batch_size": 16,
        "num_epochs": 3,
    }


@pytest.fixture
def search_config(search_recipe, tmp_path) -> Path:
    """The recipe as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(search_recipe))
    return path


def tone(generator: np.random.Generator, pitch_hz: float, clicks_hz: float, duration_s: float) -> np.ndarray:
    """A sine with periodic clicks and a little noise, float32 `[samples]`."""
    time_s = np.arange(int(duration_s * SAMPLING_RATE)) / SAMPLING_RATE
    clicks = (time_s * clicks_hz % 1.0 < 0.05).astype(np.float64)
    noise = 0.02 * generator.standard_normal(len(time_s))
    return (0.3 * np.sin(2 * np.pi * pitch_hz * time_s) + 0.3 * clicks + noise).astype(np.float32)
