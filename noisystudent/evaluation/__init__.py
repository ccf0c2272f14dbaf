"""Evaluation of models on clean, corrupted, perturbed and attacked images, for `run` and `evaluate`."""
