"""From a table of embeddings to an answer: nearest clips, two clips side by side, a map of all."""
