"""Where images come from: the user's files become uint8 batches that are the same in every run."""
