"""Training whole encoders in steps, on crops of audio: what pre-training and fine-tuning share."""
