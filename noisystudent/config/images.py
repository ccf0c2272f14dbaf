"""Configuration of the images of a run and of their input noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisystudent.config.fields import MOST_PIXELS, check_ranges, later, neutral, number
from noisystudent.errors import require

# Twice Pillow's MAX_IMAGE_PIXELS: above it Pillow itself raises DecompressionBombError.
_PILLOW_PIXELS = 178_956_970


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Images of a run and how they are read."""

    labeled: tuple[str, ...] = neutral(())
    """Labelled images: a folder `<class>/<image>`, tar shards, Parquet files or an .npz (images, labels).
    Tar and Parquet also by URL: s3, gs, az, https, hf. Patterns, {000..999} and lists (@FILE) of them."""
    unlabeled: tuple[str, ...] = neutral(())
    """The pool, unlabelled images: nested folders, or as for `labeled`."""
    val: tuple[str, ...] = neutral(())
    """Labelled images for all checks during the run. Empty: a stratified share of the labelled images."""
    test: tuple[str, ...] = neutral(())
    """Labelled images that are used only for the evaluation at the end. Empty: val is used."""
    given_labels: tuple[str, ...] = neutral(())
    """CSV files with labels that a person gives, with the columns key or filepath, and label. They replace
    those of labelled images (empty: the image is left out) and label images of the pool."""
    val_fraction: float = number(0.1, above=0, below=1)
    """Share of the labelled images that is used as val if `val` is empty."""
    resolution: int = number(224, least=8, most=MOST_PIXELS)
    """Side in pixels of the stored square images, and default input side of the models. For a larger model
    the images are decoded anew."""
    plane: Literal["auto", "resident", "streamed"] = "auto"
    """resident: images are decoded once into a memory-mapped file. streamed: workers decode them as needed.
    auto: resident if the images are small enough."""
    resident_gib: float = number(8.0, least=0)
    """With `auto`, a set of at most this many GiB of decoded pixels is resident."""
    workers: int | None = number(None, least=0, most=1_000, neutral=True)
    """Number of decoding processes. None: one per core. 0: the main process decodes."""
    cache_gb: float = number(10.0, least=0, neutral=True)
    """Largest size in GB of the local cache of remote shards. It is in the folder NOISYSTUDENT_CACHE (an
    environment variable), or in ~/.cache/noisystudent. 0: nothing but the listings of shards is kept."""
    decoder: Literal["cpu", "gpu"] = "cpu"
    """cpu, or gpu: the GPU decodes JPEGs that are not resident, with nvImageCodec. Pixels differ by rounding.
    The scan and all other images use the CPU. Not measured on a GPU."""
    max_bad_fraction: float = number(0.01, least=0, most=1, neutral=True)
    """The run stops if a larger share of the images of a set cannot be read. It also stops at a shard that
    cannot be read, whose images nobody can count, unless this is above the default."""
    max_pixels: int = number(100_000_000, least=1, most=_PILLOW_PIXELS)
    """An image with more pixels is refused as a decompression bomb. The largest value is Pillow's limit."""
    near_duplicates: Literal["auto", "all", "off"] = later("auto")
    """auto: pool images that are near copies of val or test images are removed, if those have sides of at
    least 64 pixels; labelled ones are listed. all: near copies of smaller images too. off: only exact
    copies are removed."""
    pool_near_duplicates: Literal["report", "remove"] = later("report")
    """What happens to pool images that are near copies of an earlier pool image, by the same search. report:
    they are listed in leaks.csv. remove: they are left out, too."""
    pool_truth: bool = neutral(False)
    """Folder names of the pool are the true classes. They evaluate pseudo-labels and never train a model."""
    pool_tags: bool = False
    """Folder names of the pool are noisy tags, which `pretrain` trains on. They need not be classes."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.")
        for name in ("labeled", "unlabeled", "val", "test", "given_labels"):
            require(all(getattr(self, name)), f"data.{name} has an empty name; name a folder or a file")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Input noise, applied to uint8 pixels after decoding."""

    crop: Literal["none", "pad", "inception"] = "pad"
    """pad: reflect-pad by an eighth of the side, random crop. inception: random area and aspect, resized.
    none: no crop."""
    flip: bool = True
    """Mirror left and right with probability one half."""
    randaugment: str | None = "rand-m9-n2"
    """RandAugment in timm's notation: rand-m27-n2, rand-m9-n2-mstd0.5, … None: no RandAugment."""
    cutout: int = number(0, least=0, most=MOST_PIXELS)
    """Side in pixels of a grey square, drawn on every image after RandAugment. 0: no square."""
    quirks: Literal["defined", "official"] = "defined"
    """defined: every operation as documented. official: as in the published code, where that is defined."""
    views: int = number(0, least=0, most=1_000)
    """Number of views with this noise that are cached of each image, beside the clean one and with `flip` the
    mirrored one. A step draws one of them. Only for train.features."""
    mix: float = number(0.0, least=0, most=1_000)
    """Blend the features of two images and their targets (mixup, arXiv 1710.09412), with a share from
    Beta(mix, mix). 0: no blend. Only for train.features."""
    labeled: bool = True
    """Apply the noise to the labelled images of a batch."""
    pool: bool = True
    """Apply the noise to the pool images of a batch. False: the paper's ablation (Table 6)."""

    def __post_init__(self) -> None:
        check_ranges(self, "augment.")
