"""Learners, students, and the whole run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from noisystudent.config.check import require
from noisystudent.config.images import AugmentConfig, DataConfig
from noisystudent.config.pool import PseudoLabelConfig, SelectionConfig
from noisystudent.config.training import FinetuneConfig, ModelConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How good."""

    batch_size: int = 512
    """Images a forward pass when a model is scored."""
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
        require(self.batch_size >= 1, f"evaluate.batch_size is {self.batch_size}; at least 1")
        require(self.ece_bins >= 1, f"evaluate.ece_bins is {self.ece_bins}; at least 1")
        require(self.resamples >= 1, f"evaluate.resamples is {self.resamples}; at least 1")
        require(0.0 < self.level < 1.0, f"evaluate.level is {self.level}; it lies between 0 and 1")
        chosen = self.severities
        require(
            bool(chosen) and set(chosen) <= {1, 2, 3, 4, 5} and list(chosen) == sorted(set(chosen)),
            f"evaluate.severities is {list(chosen)}; some of 1, 2, 3, 4, 5 in this order",
        )
        require(self.sample is None or self.sample >= 1, f"evaluate.sample is {self.sample}; at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """One network and how it is trained."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig(LearnerConfig):
    """A learner whose word counts."""

    finetune: FinetuneConfig | None = None
    """A second, short training on clean labelled images, as for a higher resolution. None: there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig(TeacherConfig):
    """A teacher to be, the pseudo-labels it learns from, and how many of them a step."""

    unlabeled_ratio: int = 1
    """Pool images for each labelled image of a batch."""
    joint: bool = True
    """False: the pool alone, and the labels in `finetune`: pretraining, which the paper found to be worse."""
    init: Literal["scratch", "teacher"] = "scratch"
    """Where the weights start: scratch is the paper's; teacher needs the same model."""
    pseudo_label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        require(self.unlabeled_ratio >= 1, f"student.unlabeled_ratio is {self.unlabeled_ratio}; at least 1")


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
    pretrain: LearnerConfig | None = None
    """Learn the pool's folder names first (data.pool_tags), and let the teacher start from those weights:
    weakly labelled pretraining."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    ensemble: int = 1
    """First teachers, alike but for their seed, whose probabilities are averaged: data distillation."""
    filter: LearnerConfig | None = None
    """A smaller model that filters and balances the pool in the teacher's place (paper: EfficientNet-B0)."""
    students: tuple[StudentConfig, ...] = ()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        require(self.ensemble >= 1, f"ensemble is {self.ensemble}; at least 1")
        require(
            self.pretrain is None or self.data.pool_tags,
            "pretrain is given, but data.pool_tags is false: pretraining learns the pool's folder names",
        )
