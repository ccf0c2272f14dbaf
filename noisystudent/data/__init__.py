"""Where images come from: files to uint8 batches, the same ones every time."""
