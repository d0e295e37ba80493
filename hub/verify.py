"""Proof, before anything is uploaded, that a built folder works without this package and gives the run's embeddings."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.hub import reload
from wavcse.hub.source import MODELS
from wavcse.hub_repository_wavcse import hash_code_files

TOLERANCE = 1e-5  # of the largest value of the embedding: the model's own promise
CLIP_S = 1.5
TIMEOUT_S = 600
# HF_TOKEN, HUGGING_FACE_HUB_TOKEN, HF_TOKEN_PATH and HF_STORED_TOKENS_PATH, and what other services call theirs.
SECRET = re.compile(r"(^|_)(TOKENS?|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?|KEY)(_|$)", re.IGNORECASE)


def verify_repository(folder: Path, model: Path) -> float:
    """Reload the folder in a fresh process without `wavcse` and offline, and compare embeddings of a fixed clip.

    Args:
        folder: the built repository.
        model: the run's own model folder, read by this package.

    Returns:
        The largest difference, as a share of the largest value of the run's embedding.

    Raises:
        ValueError: it does not load, runs a file that the folder does not hold as it is, or embeds differently.
    """
    clip, expected = embed_fixed_clip(model)
    found, ran = _reload(folder, clip)
    listed = hash_code_files(folder)
    foreign = sorted(name for name, digest in ran.items() if listed.get(name) != digest)
    if foreign:
        raise ValueError(f"The built folder runs {', '.join(foreign)}, which is not the file that its card lists.")
    same_shape = found.shape == (2, expected.size)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max()) if same_shape else np.inf
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The built folder does not give the embeddings of {model}: largest difference {difference:.2g} of the largest "
            f"value (allowed {TOLERANCE:g}). Its config.json or weights are not those of the run."
        )
    return difference


def fixed_clip(config: WavCSEConfig) -> np.ndarray:
    """A rising tone in noise, float32 `[samples]` at the model's rate; the same on every machine."""
    time_s = np.arange(max(config.min_samples, round(CLIP_S * config.sampling_rate))) / config.sampling_rate
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    return (0.3 * np.sin(2 * np.pi * (200 + 400 * time_s) * time_s) + 0.05 * noise).astype(np.float32)


@torch.no_grad()
def embed_fixed_clip(model: Path) -> tuple[np.ndarray, np.ndarray]:
    """The clip `[samples]` and its embedding `[E]` by the model as this package reads it."""
    model_class = MODELS[json.loads((model / "config.json").read_text(encoding="utf-8"))["model_type"]]
    loaded = model_class.from_pretrained(model).eval()
    clip = fixed_clip(loaded.config)
    feature_extractor = WavCSEFeatureExtractor.from_config(loaded.config)
    inputs = feature_extractor(clip, sampling_rate=loaded.config.sampling_rate, return_tensors="pt")
    return clip, loaded(**inputs, return_dict=True).embeddings[0].float().numpy()


def _without_secrets(place: str) -> dict[str, str]:
    """The environment of the check: offline, at home in an empty folder, and without anything that is named as a secret.

    The code that runs there is what is about to be published, and needs no token; a stored one lies below the home folder.
    """
    kept = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    own = {"HOME": place, "HF_HOME": place, "XDG_CACHE_HOME": place, "HF_MODULES_CACHE": f"{place}/modules"}
    # Packages that are installed for this user alone lie below the real home.
    return kept | own | {"PYTHONUSERBASE": site.getuserbase(), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


def _reload(folder: Path, clip: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    with tempfile.TemporaryDirectory() as place:
        np.save(f"{place}/clip.npy", clip)
        environment = _without_secrets(place)
        command = [sys.executable, "-P", reload.__file__, str(folder.resolve()), f"{place}/clip.npy", f"{place}/out.npy"]
        try:
            done = subprocess.run(
                command,
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"The built folder did not load within {TIMEOUT_S} s in a fresh process.") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"The built folder does not load in a fresh process without wavcse: {reason}")
        return np.load(f"{place}/out.npy"), json.loads(done.stdout.splitlines()[-1])
