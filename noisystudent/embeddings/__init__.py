"""Compute the features of images once, with a frozen backbone, and store them in memory-mapped files."""

from noisystudent.embeddings.embed import embed_images
from noisystudent.embeddings.parts import Features

__all__ = ["Features", "embed_images"]
