"""What only training needs: run settings, feature tables, checkpoints and the run folder."""
