"""From corpora to features: audio, manifests, composite multi-task sets, the synthetic corpus and the feature cache."""

SPLITS = ("train", "validation", "test")  # of every manifest
SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "eval": "test"}  # other spellings of these
