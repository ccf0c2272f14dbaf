"""Training of a model on given batches and noise: losses, optimisers, one step, checkpoints, the loop."""
