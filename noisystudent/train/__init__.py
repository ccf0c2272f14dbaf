"""How a model learns: losses, optimisers, one step, checkpoints, the loop; it is handed batches and noise."""
