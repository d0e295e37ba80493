"""From corpora to features: audio, manifests, composite multi-task sets, the synthetic corpus and the feature cache."""

SPLITS = ("train", "validation", "test")  # of every manifest
