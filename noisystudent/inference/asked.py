"""What can be asked of a model in `measure`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ALL, FAST_SEVERITIES, FAST_IMAGES = (1, 2, 3, 4, 5), (1, 3, 5), 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is asked of `measure`.

    Attributes:
        tests: some of `stress.TESTS` and `imagenet.SETS`.
        fast: severities 1, 3 and 5 on a stratified sample of 1,000 images.
        frost: folder of the photographs for the corruption frost.
        real_labels: ReaL's JSON file.
        seed: of everything random.
        jpeg: save generated corruptions as JPEG of quality 85, as ImageNet-C was.
        source_size: side at which copies for c and p are generated, as ImageNet-C and -P are, before they are
            resized to the model's; None generates them on the model's own view.
        write: folder that gets the generated corruptions, in the layout of CIFAR-10-C below 224 pixels, of
            ImageNet-C from there on.
        t5d: JSON file of AlexNet's top-5 distance by perturbation.
    """

    tests: tuple[str, ...] = ("clean",)
    fast: bool = False
    frost: Path | None = None
    real_labels: Path | None = None
    seed: int = 0
    jpeg: bool = False
    source_size: int | None = None
    write: Path | None = None
    t5d: Path | None = None

    @property
    def severities(self) -> tuple[int, ...]:
        """Of the corruptions."""
        return FAST_SEVERITIES if self.fast else ALL
