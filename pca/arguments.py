"""The options of `wavcse pca`. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass

from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, option

PCA_ABOUT = """\
Make an embedding without labels: the principal components of an upstream's layers.

The layers of a feature cache are standardised by the clips of the manifests (their training split, where they have one), put
side by side and projected on the directions in which these clips vary most: one affine map of the layers, exact, without a
training loop. Left in the folder: `hub/`, a model without tasks that loads as any other; `pca.md` and `pca.html`;
`results/pca.json` and `pictures/`, how much of the variance the components hold.
"""


@dataclass
class PcaArguments(CheckedFields):
    """What the components are of, and how many there are."""

    manifest: list[str] = option(NEEDED, "CSV or Parquet manifests, one row per clip.", group="input and output")
    cache_dir: str = option(NEEDED, "Folder of the feature cache (wavcse cache).", flag="cache", value="DIR")
    upstream: str = option(NEEDED, "Hub id or folder of the upstream that made the cache.")
    output_dir: str = option(NEEDED, "Folder to write: the model in hub/, figures, pictures.", flag="out", value="DIR")
    revision: str | None = option(None, "Commit of the upstream on the Hub.")
    split_column: str = option("split", "Its training clips are taken; all clips of a manifest that has no such column.")
    embedding_size: int = option(256, "Number of components = size of the embedding.", at_least=1, group="the embedding")
    selected_layers: list[int] | None = option(
        None, "Layers: 0 = input of the first block.", "all of the cache", value="N", at_least=0
    )
    pca_whiten: float = option(
        0.0, "Exponent of whitening: 0 none, 1 unit variance in every direction.", at_least=0, at_most=1
    )
    pca_rotate: bool = option(
        False, "Turn the components by a fixed rotation, so that all numbers vary alike: for probes that standardise."
    )


PCA = Program(
    "wavcse pca",
    PcaArguments,
    PCA_ABOUT,
    "wavcse pca --manifest corpus/metadata.csv --cache caches --upstream openai/whisper-tiny.en --out runs/pca",
)
