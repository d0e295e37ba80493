"""Which layers, which pooling, which sizes: many models trained on one feature table in memory."""
