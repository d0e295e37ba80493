"""Reading audio, corpora, manifests, multi-task sets, the synthetic corpus and the feature cache."""
