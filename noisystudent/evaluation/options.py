"""The options of an evaluation, from which the command line also makes the flags of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ALL_SEVERITIES, FAST_SEVERITIES = (1, 2, 3, 4, 5), (1, 3, 5)


# The command line prints the docstring of a field as the help text of its flag, so each is a single line.
# This module must not import torch, because then every command would start seconds later.
@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Tests to run, and their options."""

    tests: tuple[str, ...] = ("clean",)
    """Separated by commas: clean, calibration, c, p, c-extra, p-extra, fgsm, pgd, a, r, v2, sketch, real."""
    fast: bool = False
    """Use severities 1, 3 and 5 only, and a stratified sample of 1,000 images."""
    frost: Path | None = None
    """Folder of frost1.png … frost5.jpg for the corruption frost. Default: of imagecorruptions-imaug."""
    real_labels: Path | None = None
    """real.json with the ReaL labels of ImageNet. Default: the copy in timm."""
    t5d: Path | None = None
    """JSON file with AlexNet's top-5 distance for each perturbation, to normalise p; none is published."""
    jpeg: bool = False
    """Compress generated corruptions as JPEG of quality 85, as the published ImageNet-C was."""
    source_size: int | None = None
    """Generate c and p at 32, 64, 224 or 299 pixels, then resize. Default: on the model's input."""
    write: Path | None = None
    """Folder to write generated corruptions to: below 224 pixels as CIFAR-10-C, otherwise as ImageNet-C."""
    seed: int = 0
    """Seed of all random numbers."""

    @property
    def severities(self) -> tuple[int, ...]:
        """Severities of the corruptions."""
        return FAST_SEVERITIES if self.fast else ALL_SEVERITIES
