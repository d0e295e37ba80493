"""Label-aware self-supervised pre-training of an encoder: BEST-RQ with the losses of LASR."""
