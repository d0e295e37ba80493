"""Publishing: a run folder with its results becomes a Hub repository with a model card."""
