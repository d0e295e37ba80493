"""The model that a run will be saved as, on the upstream that made its cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from wavcse.data.features import FeatureCache
from wavcse.data.manifest import Clip
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.modeling_wavcse import WavCSEForMultiTask


def model_on_upstream(
    upstream: str, revision: str | None, fields: Mapping[str, Any], cache: FeatureCache, clip: Clip, digest: str
) -> WavCSEForMultiTask:
    """A new model on its upstream, which is proven to be the one that made the cache: by one clip's pooled layers.

    Args:
        upstream, revision: Hub id or folder, and commit.
        fields: of its configuration, those of the cache (`CacheKey.layer_fields`) among them.
        clip, digest: one that the cache holds.

    Raises:
        ValueError: it is another upstream.
    """
    model = WavCSEForMultiTask.from_upstream(upstream, **fields, revision=revision)
    feature_extractor = WavCSEFeatureExtractor.from_config(model.config)
    rate = model.config.sampling_rate
    inputs = feature_extractor(clip.load(rate), sampling_rate=rate, return_tensors="pt")
    layers = model.config.selected_layers
    with torch.no_grad():
        pooled = model.wavcse(**inputs).pooled_layers[0].numpy()
    cached = cache.read([digest], layers)[0]
    if not np.allclose(pooled, cached, rtol=1e-2, atol=1e-2 * np.abs(cached).max()):
        raise ValueError(
            f"upstream {upstream!r} is not the one that made the cache {cache.folder} ({cache.key.upstream}): it gives "
            f"other numbers for {clip.clip_id}. Name that upstream, or build a cache with this one."
        )
    return model
