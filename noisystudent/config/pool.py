"""What becomes of the pool: how the teacher speaks, and what is trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisystudent.config.check import require


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoLabelConfig:
    """How the teacher speaks."""

    temperature: float = 1.0
    """Softmax temperature; 1 is the paper's."""
    match_temperature: bool = False
    """Divide the student's logits by the temperature too, and multiply that loss by its square: knowledge
    distillation (Hinton et al., 2015)."""
    hard: bool = False
    """One-hot labels of the most likely class instead of the teacher's probabilities."""
    on_the_fly: bool = False
    """The teacher answers in the student's step instead of from stored labels, which still decide the
    selection; with selection.mode all this is the published script."""
    flip: bool = False
    """Average the teacher's probabilities over each image and its mirror image: data distillation."""
    scales: tuple[float, ...] = (1.0,)
    """Average them over the image at these multiples of the teacher's resolution as well."""
    batch_size: int = 512
    """Images a forward pass when labelling."""
    part_size: int = 65_536
    """Images a Parquet part; a killed labelling run loses at most one part."""
    top_k: int = 32
    """Above 256 classes only this many probabilities are stored, with the mass of the rest."""
    noise: bool = False
    """Leave dropout, stochastic depth and RandAugment on while labelling: the paper's 'noised teacher'."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"pseudo_label.temperature is {self.temperature}; above 0")
        require(
            bool(self.scales) and all(0.25 <= scale <= 4 for scale in self.scales),
            f"pseudo_label.scales is {list(self.scales)}; some numbers from 0.25 to 4",
        )
        require(
            not (self.match_temperature and self.hard),
            "pseudo_label.match_temperature is true, but hard labels have no temperature",
        )
        require(
            not (self.noise and self.on_the_fly),
            "pseudo_label.noise is true, but a teacher that speaks in the student's step has none",
        )
        require(self.batch_size >= 1, f"pseudo_label.batch_size is {self.batch_size}; at least 1")
        require(self.top_k >= 1, f"pseudo_label.top_k is {self.top_k}; at least 1")
        require(self.part_size >= 1, f"pseudo_label.part_size is {self.part_size}; at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """What to trust."""

    mode: Literal["paper", "official", "threshold", "all"] = "paper"
    """paper: strict top-K above the threshold. official: the published code's random rule. threshold: all
    above it, once, unbalanced. all: all, once."""
    threshold: float = 0.3
    """Smallest confidence that is kept (paper: above 0.3; official: 0.3 or above)."""
    per_class: int | None = None
    """Images a class after balancing (paper: 130,000). None: kept images / classes."""
    duplicate: bool = True
    """Repeat the images of small classes up to per_class."""
    top_fraction: float | None = None
    """Keep only this share of each class's predicted images, the most confident. None: no such limit."""
    max_confidence: float = 1.0
    """Largest confidence that is kept: with the threshold a band, as in the study of soft and hard labels."""
    pool_fraction: float = 1.0
    """Look at this share of the pool only: the same images for any seed, and part of every larger share."""
    reassign: bool = False
    """Keep the images selected in the iteration before, under this teacher's labels."""

    def __post_init__(self) -> None:
        require(0.0 <= self.threshold < 1.0, f"selection.threshold is {self.threshold}; it lies in [0, 1)")
        require(
            self.per_class is None or self.per_class >= 1,
            f"selection.per_class is {self.per_class}; at least 1",
        )
        require(
            self.top_fraction is None or 0.0 < self.top_fraction <= 1.0,
            f"selection.top_fraction is {self.top_fraction}; in (0, 1]",
        )
        for name in ("max_confidence", "pool_fraction"):
            value = getattr(self, name)
            require(0.0 < value <= 1.0, f"selection.{name} is {value}; in (0, 1]")
        on_grid = abs(self.threshold * 100 - round(self.threshold * 100)) < 1e-9
        require(
            self.mode != "official" or on_grid,
            f"selection.threshold is {self.threshold}; a multiple of 0.01 in official mode",
        )
