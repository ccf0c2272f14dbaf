"""What a run is: frozen dataclasses in pipeline order; the string under a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from noisystudent.errors import InputError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


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
    """An image with more pixels than this is refused as a decompression bomb."""
    pool_truth: bool = False
    """Pool folder names are the hidden truth: used to score pseudo-labels, never to train."""

    def __post_init__(self) -> None:
        _require(
            0.0 < self.val_fraction < 1.0,
            f"data.val_fraction is {self.val_fraction}; it lies between 0 and 1",
        )
        _require(self.resolution >= 8, f"data.resolution is {self.resolution}; at least 8 pixels")
        _require(
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
        _require(self.cutout >= 0, f"augment.cutout is {self.cutout}; pixels, 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What learns, and its noise."""

    name: str = "efficientnet_b0"
    """Any timm model name, or wrn28_2 … wrn28_10, efficientnet_b0_32px."""
    pretrained: bool = False
    """Start from timm's published weights (downloaded by timm). A clear error if they cannot be had."""
    pretrained_fallback: bool = False
    """Where the published weights cannot be had, say so and start from scratch instead of stopping."""
    resolution: int | None = None
    """Input side in pixels. None: data.resolution."""
    dropout: float = 0.2
    """Dropout rate before the classifier."""
    stochastic_depth: float = 0.2
    """Drop rate of the last residual block, falling linearly to 0 at the first (paper: survival 0.8)."""
    noise_labeled: bool = True
    """Dropout and stochastic depth on the labelled images of a batch."""
    noise_pool: bool = True
    """Dropout and stochastic depth on the pool images of a batch."""
    options: dict[str, object] = field(default_factory=dict)
    """Further keyword arguments for timm.create_model."""

    def __post_init__(self) -> None:
        for name in ("dropout", "stochastic_depth"):
            value = getattr(self, name)
            _require(0.0 <= value < 1.0, f"model.{name} is {value}; it lies in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How it learns."""

    epochs: float | None = None
    """Passes over the labelled images, as in the paper. Give epochs or steps."""
    steps: int | None = None
    """Optimiser steps. Give epochs or steps."""
    batch_size: int = 128
    """Labelled images a step."""
    optimizer: Literal["rmsprop_tf", "sgd", "adamw"] = "sgd"
    """rmsprop_tf is the paper's: decay 0.9, momentum 0.9, epsilon 1e-3 inside the root. sgd is Nesterov."""
    lr: float = 0.1
    """Learning rate per 256 labelled images; scaled linearly by batch_size."""
    momentum: float = 0.9
    """Momentum of sgd and rmsprop_tf."""
    weight_decay: float = 5e-4
    """L2 (decoupled for adamw) on every parameter but those of normalisation layers."""
    schedule: Literal["cosine", "staircase", "constant"] = "cosine"
    """staircase: ×0.97 every decay_epochs, the paper's."""
    decay_epochs: float = 2.4
    """Labelled epochs between two stairs of the staircase."""
    warmup_epochs: float = 5.0
    """Labelled epochs of linear warm-up from 0; never more than a fifth of the training."""
    label_smoothing: float = 0.1
    """Smoothing of given labels and of hard pseudo-labels; soft ones are never smoothed."""
    normalization: Literal["joint", "equal", "official"] = "joint"
    """joint: batch mean (§3.1). equal: labelled mean + pool mean (Alg. 1). official: batch sum / labelled."""
    ema_decay: float = 0.999
    """Decay of the moving average of weights and batch-norm statistics; warmed up as (1+t)/(10+t)."""
    clip_norm: float | None = None
    """Largest gradient norm. None: no clipping, as in the paper."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    channels_last: bool = True
    """Memory format of images and weights."""
    execution: Literal["auto", "eager", "compiled", "captured"] = "auto"
    """How steps run, with the same numbers. captured: compiled, and replayed as one CUDA graph. auto: the
    fastest that works; on a CPU eager."""
    log_steps: int = 50
    """Steps between two lines of metrics.jsonl."""
    eval_steps: int | None = None
    """Steps between two looks at val for the learning curve. None: ten looks a training."""
    checkpoint_steps: int = 500
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        _require(
            self.epochs is None or self.steps is None,
            f"train.epochs is {self.epochs} and train.steps is {self.steps}; give one of the two",
        )
        _require(self.batch_size >= 1, f"train.batch_size is {self.batch_size}; at least 1")
        _require(0.0 <= self.ema_decay < 1.0, f"train.ema_decay is {self.ema_decay}; it lies in [0, 1)")
        _require(
            0.0 <= self.label_smoothing < 1.0, f"train.label_smoothing is {self.label_smoothing}; in [0, 1)"
        )
        for name in ("log_steps", "checkpoint_steps"):
            _require(getattr(self, name) >= 1, f"train.{name} is {getattr(self, name)}; at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoLabelConfig:
    """How the teacher speaks."""

    temperature: float = 1.0
    """Softmax temperature; 1 is the paper's."""
    hard: bool = False
    """One-hot labels of the most likely class instead of the teacher's probabilities."""
    batch_size: int = 512
    """Images a forward pass when labelling and evaluating."""
    part_size: int = 65_536
    """Images a Parquet part; a killed labelling run loses at most one part."""
    top_k: int = 32
    """Above 256 classes only this many probabilities are stored, with the mass of the rest."""
    noise: bool = False
    """Leave dropout, stochastic depth and RandAugment on while labelling: the paper's 'noised teacher'."""

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"pseudo_label.temperature is {self.temperature}; above 0")
        _require(self.batch_size >= 1, f"pseudo_label.batch_size is {self.batch_size}; at least 1")
        _require(self.top_k >= 1, f"pseudo_label.top_k is {self.top_k}; at least 1")
        _require(self.part_size >= 1, f"pseudo_label.part_size is {self.part_size}; at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionConfig:
    """What to trust."""

    mode: Literal["paper", "official", "all"] = "paper"
    """paper: strict top-K above the threshold. official: the published code's random rule. all: all, once."""
    threshold: float = 0.3
    """Smallest confidence that is kept (paper: above 0.3; official: 0.3 or above)."""
    per_class: int | None = None
    """Images a class after balancing (paper: 130,000). None: kept images / classes."""
    duplicate: bool = True
    """Repeat the images of small classes up to per_class."""
    top_fraction: float | None = None
    """Keep only this share of each class's predicted images, the most confident. None: no such limit."""
    reassign: bool = False
    """Keep the images selected in the iteration before, under this teacher's labels."""

    def __post_init__(self) -> None:
        _require(0.0 <= self.threshold < 1.0, f"selection.threshold is {self.threshold}; it lies in [0, 1)")
        _require(
            self.per_class is None or self.per_class >= 1,
            f"selection.per_class is {self.per_class}; at least 1",
        )
        _require(
            self.top_fraction is None or 0.0 < self.top_fraction <= 1.0,
            f"selection.top_fraction is {self.top_fraction}; in (0, 1]",
        )
        on_grid = abs(self.threshold * 100 - round(self.threshold * 100)) < 1e-9
        _require(
            self.mode != "official" or on_grid,
            f"selection.threshold is {self.threshold}; a multiple of 0.01 in official mode",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How good."""

    ece_bins: int = 15
    """Bins of the expected calibration error."""
    resamples: int = 10_000
    """Bootstrap resamples of the verdict."""
    level: float = 0.95
    """Confidence level of every interval."""
    tests: tuple[Literal["c", "p", "fgsm", "pgd", "calibration"], ...] = ()
    """Robustness of every model, beside its accuracy: corruptions, perturbations, attacks, calibration."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Of the corruptions."""
    sample: int | None = None
    """These tests take at most so many images, of each class its share. None: all."""
    frost: str | None = None
    """Folder of the photographs that the corruption frost needs. None: those of an installed imagecorruptions
    package, else 14 corruptions are done."""

    def __post_init__(self) -> None:
        _require(self.ece_bins >= 1, f"evaluate.ece_bins is {self.ece_bins}; at least 1")
        _require(self.resamples >= 1, f"evaluate.resamples is {self.resamples}; at least 1")
        _require(0.0 < self.level < 1.0, f"evaluate.level is {self.level}; it lies between 0 and 1")
        chosen = self.severities
        _require(
            bool(chosen) and set(chosen) <= {1, 2, 3, 4, 5} and list(chosen) == sorted(set(chosen)),
            f"evaluate.severities is {list(chosen)}; some of 1, 2, 3, 4, 5 in this order",
        )
        _require(self.sample is None or self.sample >= 1, f"evaluate.sample is {self.sample}; at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """One network and how it is trained: the teacher, the filter, and the base of every student."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig(LearnerConfig):
    """A learner, the pseudo-labels it learns from, and how many of them a step."""

    unlabeled_ratio: int = 1
    """Pool images for each labelled image of a batch."""
    init: Literal["scratch", "teacher"] = "scratch"
    """Where the weights start: scratch is the paper's; teacher needs the same model."""
    pseudo_label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        _require(self.unlabeled_ratio >= 1, f"student.unlabeled_ratio is {self.unlabeled_ratio}; at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    name: str = "run"
    """Names the run directory when --out is not given."""
    seed: int = 0
    """Everything random is a pure function of this, the stream and the step."""
    device: str = "auto"
    """auto, or a torch device."""
    control: bool = True
    """Train the last student's twin on labels alone. Without it the verdict never says 'improved'."""
    data: DataConfig = field(default_factory=DataConfig)
    teacher: LearnerConfig = field(default_factory=LearnerConfig)
    filter: LearnerConfig | None = None
    """A smaller model that filters and balances the pool in the teacher's place (paper: EfficientNet-B0)."""
    students: tuple[StudentConfig, ...] = ()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
