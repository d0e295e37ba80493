"""Fine-tuning of whole upstreams on a classification task, and its figures as ordinary result records."""
