"""Where images come from, and their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisystudent.config.check import require

_PILLOW_PIXELS = 178_956_970


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where images come from."""

    labeled: tuple[str, ...] = ()
    """Labelled images: a folder `<class>/<image>`, tar shards, Parquet files or an .npz (images, labels)."""
    unlabeled: tuple[str, ...] = ()
    """The pool: any nested folder, tar shards, Parquet files or an .npz (images). May be several."""
    val: tuple[str, ...] = ()
    """Labelled images every choice is made on. Empty: split off the labels, stratified."""
    test: tuple[str, ...] = ()
    """Labelled images that are looked at once, at the end."""
    val_fraction: float = 0.1
    """Share of the labels that becomes val when none is given."""
    resolution: int = 224
    """Side in pixels of the square images that are stored and, unless a model says otherwise, trained on."""
    plane: Literal["auto", "resident", "streamed"] = "auto"
    """resident: decoded once, memory-mapped. streamed: decoded by workers as needed. auto: by size."""
    resident_gib: float = 8.0
    """`auto` keeps a set resident up to this many GiB of decoded pixels."""
    workers: int | None = None
    """Decoding processes. None: one a core; 0: in the main process."""
    max_bad_fraction: float = 0.01
    """Share of unreadable images, per set, above which the run stops."""
    max_pixels: int = 100_000_000
    """An image with more pixels than this is refused as a decompression bomb; at most Pillow's own limit."""
    pool_truth: bool = False
    """Pool folder names are the hidden truth: used to score pseudo-labels, never to train."""
    pool_tags: bool = False
    """Pool folder names are noisy tags, classes or not: what `pretrain` learns."""

    def __post_init__(self) -> None:
        require(
            0.0 < self.val_fraction < 1.0,
            f"data.val_fraction is {self.val_fraction}; it lies between 0 and 1",
        )
        require(
            1 <= self.max_pixels <= _PILLOW_PIXELS,
            f"data.max_pixels is {self.max_pixels}; 1 to {_PILLOW_PIXELS}, Pillow's own limit",
        )
        require(self.resolution >= 8, f"data.resolution is {self.resolution}; at least 8 pixels")
        require(
            0.0 <= self.max_bad_fraction <= 1.0, f"data.max_bad_fraction is {self.max_bad_fraction}; 0 to 1"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Input noise. Applied after decoding, to uint8 pixels."""

    crop: Literal["none", "pad", "inception"] = "pad"
    """pad: reflect-pad by an eighth of the side, random crop. inception: random area and aspect, resized."""
    flip: bool = True
    """Mirror left and right with probability one half."""
    randaugment: str | None = "rand-m9-n2"
    """RandAugment in timm's notation: rand-m27-n2, rand-m9-n2-mstd0.5, … None switches it off."""
    cutout: int = 0
    """Side in pixels of an always-on grey square after RandAugment; 0 is off."""
    quirks: Literal["defined", "official"] = "defined"
    """defined: every operation as documented. official: the published code's behaviour, where defined."""
    labeled: bool = True
    """Noise the labelled images of a batch."""
    pool: bool = True
    """Noise the pool images of a batch (False is the paper's Table 6 ablation)."""

    def __post_init__(self) -> None:
        require(self.cutout >= 0, f"augment.cutout is {self.cutout}; pixels, 0 or more")
