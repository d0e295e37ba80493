"""Load a Hub folder as a stranger does: a script for a fresh process in which the package `wavcse` does not exist.

    python -P reload.py FOLDER CLIP.npy OUT.npy

writes the embeddings `[2, E]` of the clip through `AutoModel` and through `pipeline`, and prints as JSON the Python files that
ran, with their SHA-256.
"""

import hashlib
import json
import os
import sys
from pathlib import Path


class Blocked:
    """An import finder that refuses our package, however it is installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "wavcse":
            raise ImportError(f"{name} is blocked: the folder has to do without it")


def embeddings(folder: str, waveform):
    """Float32 `[2, E]`."""
    import numpy as np
    import torch
    from transformers import AutoFeatureExtractor, AutoModel, pipeline

    feature_extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate, return_tensors="pt")
    with torch.no_grad():
        direct = model(**inputs, return_dict=True).embeddings.numpy()
    embed = pipeline("feature-extraction", model=folder, trust_remote_code=True)
    return np.concatenate([direct, embed(waveform, return_tensors=True).numpy()])


def files_that_ran() -> dict[str, str]:
    """Name -> SHA-256 of the remote code in this process."""
    cache = Path(os.environ["HF_MODULES_CACHE"]).resolve()
    files = {Path(module.__file__).resolve() for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    remote = sorted(path for path in files if path.is_relative_to(cache) and path.name != "__init__.py")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in remote}


def main(folder: str, clip: str, out: str) -> None:
    """See the module's docstring."""
    sys.meta_path.insert(0, Blocked)
    import numpy as np

    np.save(out, embeddings(folder, np.load(clip)))
    print(json.dumps(files_that_ran()))


if __name__ == "__main__":
    main(*sys.argv[1:])
