"""Configuration of the labelling of the pool and of the selection of pseudo-labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisystudent.config.fields import MOST_IMAGES, check_ranges, later, number, of_student
from noisystudent.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoLabelConfig:
    """How the teacher labels the pool."""

    temperature: float = number(1.0, above=0)
    """Temperature of the teacher's softmax for the targets (paper: 1). The selection reads the confidence at
    temperature 1, so this field does not change which images are kept."""
    match_temperature: bool = of_student(False)
    """Divide the student's logits by the temperature too, and multiply that loss by its square: knowledge
    distillation (Hinton et al., 2015)."""
    hard: bool = of_student(False)
    """Train on one-hot labels of the most likely class instead of the teacher's probabilities."""
    on_the_fly: bool = of_student(False)
    """Label the pool images of each batch during the student's training. The selection still uses the stored
    labels. Together with selection.mode 'all' this is the published script."""
    teacher: Literal["stored", "ema"] = of_student("stored")
    """Who labels the pool images of a batch. stored: the teacher of the iteration, once. ema: in each step,
    the student's own moving average, without noise, from a weakly augmented view (crop and flip alone)."""
    ema_start: float = number(0.0, least=0, below=1, of_student=True)
    """Share of the student's steps with stored labels before the moving average labels. With init 'teacher',
    the moving average starts as the teacher, so 0 is right. From scratch it knows nothing at the start."""
    ema_threshold: float = number(0.95, least=0, below=1, of_student=True)
    """Smallest confidence of the moving average, at temperature 1. An image below it adds no loss in this
    step (FixMatch, arXiv 2001.07685)."""
    ema_adaptive: bool = of_student(False)
    """Replace ema_threshold by a threshold for each class, from moving averages of the confidence and of the
    predicted classes: FreeMatch (arXiv 2205.07246). They decay as the weights do (train.ema_decay)."""
    ema_fairness: float = number(0.0, least=0, most=1e6, of_student=True)
    """Weight of FreeMatch's fairness term, which needs ema_adaptive. 0: without it."""
    flip: bool = False
    """Average the probabilities over each image and its mirror image: data distillation."""
    scales: tuple[float, ...] = number((1.0,), least=0.25, most=4)
    """Average the probabilities over the image at these multiples of the teacher's resolution."""
    batch_size: int = number(512, least=1, most=MOST_IMAGES, neutral=True)
    """Batch size used when the pool is labelled, or a smaller one for large images. A GPU doubles it for a
    large pool if that is faster, unless train.execution is eager. It can change the last digits of a
    probability."""
    part_size: int = number(65_536, least=1, neutral=True)
    """Images per Parquet part, rounded up to whole batches. A killed labelling loses at most one part."""
    top_k: int = number(32, least=1)
    """Number of probabilities stored per image above 256 classes, with the sum of the others."""
    noise: bool = False
    """Keep dropout, stochastic depth and RandAugment on while labelling: the paper's 'noised teacher'."""

    def __post_init__(self) -> None:
        check_ranges(self, "pseudo_label.")
        require(bool(self.scales), "pseudo_label.scales is empty; give one or more factors, e.g. [1.0]")
        require(
            not (self.match_temperature and self.hard),
            "pseudo_label.match_temperature is true, but hard labels have no temperature; set one to false",
        )
        require(
            not (self.teacher == "ema" and self.on_the_fly),
            "pseudo_label.teacher is ema and on_the_fly is true; only one teacher can label in the step",
        )
        require(
            not self.ema_fairness or self.ema_adaptive,
            f"pseudo_label.ema_fairness is {self.ema_fairness}, but ema_adaptive is false; set it to true",
        )
        require(
            not (self.noise and self.on_the_fly),
            "pseudo_label.noise is true, but with on_the_fly the teacher has no noise; set one to false",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """Selection of pool images by their pseudo-labels."""

    mode: Literal["paper", "official", "adaptive", "threshold", "all"] = "paper"
    """paper: the most confident images of each class above the threshold (§3.1). official: a random sample of
    them, as in the published code. adaptive: as paper, with a threshold for each class that follows the
    teacher's mean confidence. threshold: all images above it, unbalanced. all: all images, once."""
    threshold: float = number(0.3, least=0, below=1)
    """Smallest confidence that is kept (paper: above 0.3; official: 0.3 or above). adaptive has its own."""
    relative: bool = False
    """Count the threshold from chance, the confidence 1/K of a teacher that knows nothing of K classes: 0 is
    1/K, and 1 is 1. With 2 classes 0.3 is then 0.65; the largest of 2 probabilities is always above 0.3."""
    strength: float = number(1.0, above=0, most=10)
    """Factor of the thresholds of adaptive, counted from chance. 1: those of FreeMatch (arXiv 2205.07246). Up
    to 1, no class that the teacher predicts loses all its images. Larger: fewer images are kept."""
    per_class: int | None = number(None, least=1, most=2**31 - 1)
    """Images per class after balancing (paper: 130,000). None: kept images / number of classes. The modes
    threshold and all do not balance."""
    duplicate: bool = True
    """Repeat images of small classes until there are per_class (§3.1)."""
    top_fraction: float | None = number(None, above=0, most=1)
    """Keep only this share of each class's images, the most confident ones, in the modes paper and adaptive.
    None: no limit. In a recipe, a list has one value for each student, and the last one is for all later
    students: [0.3, 0.5, 1.0]."""
    max_confidence: float = number(1.0, above=0, most=1)
    """Largest confidence that is kept. With the threshold, which must be smaller: a band, as in the paper's
    study of hard labels."""
    pool_fraction: float = number(1.0, above=0, most=1)
    """Use only this share of the pool. It is the same for any seed, and part of every larger share."""
    agreement: float = number(0.0, least=0, most=1, later=True)
    """Smallest share of the first teachers whose most likely class is that of their average. It needs several
    first teachers, and has no effect on the labels of a student. 1: all agree."""
    junk: Literal["off", "report", "drop"] = later("report")
    """What is done with pool images that are unlike the labelled ones: their energy, the logsumexp of the
    teacher's logits, is low. off: nothing. report: they are marked. drop: they are left out. With
    `pseudo_label.noise`, under which nearly every energy is low, none is marked."""
    junk_rejection: float = number(0.05, least=0, below=1, later=True)
    """Share of labelled images that would be junk too: it gives the limit of the energy. They are those of
    val; with fewer than 50, for the first student, those out of fold. Below one image: none is junk."""
    reassign: bool = False
    """Keep the images selected in the iteration before, with new labels of the current teacher. Not with
    `filter`, which selects for every student."""

    def __post_init__(self) -> None:
        check_ranges(self, "selection.")
        # The published code counts confidences in bins of 0.01 and stops at the bin equal to the threshold.
        on_grid = abs(self.threshold * 100 - round(self.threshold * 100)) < 1e-9
        require(
            self.mode != "official" or on_grid,
            f"selection.threshold is {self.threshold}; in official mode it must be a multiple of 0.01",
        )
        require(
            not (self.relative and self.mode == "official"),
            "selection.relative is true, but the threshold of mode official is absolute; set it to false",
        )
        require(
            self.top_fraction is None or self.mode in ("paper", "adaptive"),
            f"selection.top_fraction is {self.top_fraction}, but selection.mode is {self.mode}; it must be"
            " paper or adaptive",
        )
        require(
            self.per_class is None or self.mode in ("paper", "official", "adaptive"),
            f"selection.per_class is {self.per_class}, but selection.mode is {self.mode}, which does not"
            " balance the classes; it must be paper, official or adaptive",
        )
        # A relative threshold is this one or more.
        require(
            self.max_confidence > self.threshold or self.mode in ("adaptive", "all"),
            f"selection.max_confidence is {self.max_confidence:g}, but selection.threshold is"
            f" {self.threshold:g}, so no image is kept; it must be larger than the threshold",
        )
