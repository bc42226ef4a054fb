"""Training loops independent of models and data: trainer, checkpoints, runs, devices."""
