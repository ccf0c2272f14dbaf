"""Use of trained models: load them, predict classes of images, and write or export the result."""
