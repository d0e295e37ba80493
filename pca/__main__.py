"""An embedding without labels, from a feature cache and manifests (`wavcse pca`)."""

from __future__ import annotations

from wavcse.pca.arguments import PCA, PcaArguments

if __name__ == "__main__":
    PCA.answer()  # before the imports below, which take seconds

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wavcse.configuration_wavcse import WavCSEConfig
from wavcse.data.composite import CompositeSet
from wavcse.data.features import FeatureCache, open_cache
from wavcse.data.files import json_text, locked, named_errors, write_atomically
from wavcse.data.inspection import Inspector
from wavcse.data.manifest import Clip, Manifest
from wavcse.data.pca import PrincipalComponents
from wavcse.hub_repository_wavcse import write_card
from wavcse.pca.report import card_section, write_report
from wavcse.settings.command import DONE
from wavcse.training.features import DiskTable, MemoryTable, cached_digests, open_table
from wavcse.training.heads import EVALUATION_BATCH
from wavcse.training.hub_model import model_on_upstream
from wavcse.training.run import versions
from wavcse.training.start import layer_components, layer_scaling, set_linear


def make_pca(args: PcaArguments) -> dict:
    """Fit the components, save the model and the report; returns what is written to results/pca.json.

    Raises:
        ValueError: manifests, cache and upstream do not fit together, layers are not in the cache, or the clips vary in fewer
            directions than `embedding_size`.
    """
    folder, cache = Path(args.output_dir), open_cache(args.cache_dir)
    clips, digests = training_clips(args, cache)
    config = _config(args, cache)
    options = {name: getattr(config, name) for name in _FIELDS}
    model = model_on_upstream(args.upstream, args.revision, {**options, **cache.key.layer_fields}, cache, clips[0], digests[0])
    table = open_table("auto", cache, digests, config.selected_layers, torch.device("cpu"))
    downstream = model.wavcse.downstream
    mean, scale = layer_scaling(_blocks(table, len(digests)))
    downstream.layer_mean.copy_(mean)
    downstream.layer_scale.copy_(scale)
    found = layer_components(downstream, _blocks(table, len(digests)), args.embedding_size)
    set_linear(downstream.embedding_projection, found.encoder(args.pca_whiten, args.pca_rotate))
    result = _result(args, cache, config, found)
    with named_errors(folder / "hub"):
        model.wavcse.save_pretrained(folder / "hub")
        write_card(folder / "hub", model.wavcse.config, sections={"Training details": card_section(result)})
    (folder / "results").mkdir(exist_ok=True)
    write_atomically(folder / "results/pca.json", json_text(result, indent=1))
    write_report(result, folder)
    return result


_FIELDS = (
    *("selected_layers", "layer_scaling", "layer_projection_size", "pooling_type", "embedding_size"),
    *("layer_dropout", "embedding_dropout"),
)


def _config(args: PcaArguments, cache: FeatureCache) -> WavCSEConfig:
    num_layers = cache.shards[0].shape[1]
    layers = list(range(num_layers)) if args.selected_layers is None else args.selected_layers
    if max(layers) >= num_layers:
        raise ValueError(f"selected_layers is {layers}; the cache has layers 0 to {num_layers - 1}.")
    return WavCSEConfig(
        upstream_config=cache.key.upstream_config,
        **cache.key.layer_fields,
        selected_layers=layers,
        layer_scaling="standard",
        layer_projection_size=None,
        pooling_type="concat",
        embedding_size=args.embedding_size,
        layer_dropout=0.0,
        embedding_dropout=0.0,
    )


def training_clips(args: PcaArguments, cache: FeatureCache) -> tuple[list[Clip], list[str]]:
    """The clips to learn from and their digests, every audio content once.

    Raises:
        ValueError: there are none, or some are not in the cache.
    """
    clips: list[Clip] = []
    for manifest in map(Manifest, args.manifest):
        is_taken = np.ones(len(manifest), dtype=bool)
        if args.split_column in manifest.table.columns:
            is_taken = manifest.split(args.split_column) == "train"
        clips += [manifest.clips[row] for row in np.flatnonzero(is_taken)]
    if not clips:
        raise ValueError(f"no clip of {', '.join(args.manifest)} has train in its column {args.split_column!r}.")
    digests = [fact.digest for fact in Inspector(cache.folder.parent).inspect(clips)]
    digests = cached_digests(cache, CompositeSet(clips, {}, {}, digests))
    first = {digest: place for place, digest in reversed(list(enumerate(digests)))}
    kept = sorted(first.values())
    return [clips[place] for place in kept], [digests[place] for place in kept]


def _blocks(table: MemoryTable | DiskTable, num_clips: int) -> Iterator[Tensor]:
    """Layers `[n, K, D]` of all clips, block by block."""
    return (table.take(rows).stacked() for rows in torch.arange(num_clips).split(EVALUATION_BATCH))


def _result(args: PcaArguments, cache: FeatureCache, config: WavCSEConfig, found: PrincipalComponents) -> dict:
    shares: Sequence[float] = (found.variances / found.total_variance).tolist()
    return {
        "num_clips": found.num_vectors,
        "layers": config.selected_layers,
        "numbers": len(found.mean),
        "embedding_size": args.embedding_size,
        "rank": found.rank,
        "pca_whiten": args.pca_whiten,
        "pca_rotate": args.pca_rotate,
        "explained": shares,
        "explained_in_all": float(np.sum(shares)),
        "upstream": cache.key.upstream,
        "cache": cache.key.digest(),
        "versions": versions(),
    }


@PCA.main
def main(args: PcaArguments) -> int:
    """The command line."""
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    with locked(Path(args.output_dir)):
        result = make_pca(args)
    print(
        f"{args.output_dir}/hub: {result['embedding_size']} of {result['rank']} principal components of {result['num_clips']} "
        f"clips, {result['explained_in_all']:.1%} of the variance of their {len(result['layers'])} layers."
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
