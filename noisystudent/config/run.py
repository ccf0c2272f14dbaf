"""Configuration of teachers, students, the evaluation and the whole run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from noisystudent.config.fields import LENGTHS, MOST_IMAGES, check_ranges, neutral, number
from noisystudent.config.images import AugmentConfig, DataConfig
from noisystudent.config.pool import PseudoLabelConfig, SelectionConfig
from noisystudent.config.training import FinetuneConfig, ModelConfig, TrainConfig
from noisystudent.errors import require

Control = Literal["none", "same_steps", "same_compute"]
NO_CONTROL: tuple[Control, ...] = ("none",)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Evaluation of the models and the verdict."""

    batch_size: int = number(512, least=1, most=MOST_IMAGES, neutral=True)
    """Batch size used when a model is evaluated. A GPU doubles it for a large set if that is faster, unless
    train.execution is eager. It can change the last digits of a probability."""
    ece_bins: int = number(15, least=1, most=10_000)
    """Number of bins of the expected calibration error."""
    resamples: int = number(10_000, least=1, most=1_000_000)
    """Number of bootstrap resamples for the intervals of the verdict."""
    level: float = number(0.95, above=0, below=1)
    """Confidence level of every interval."""
    tests: tuple[Literal["c", "p", "fgsm", "pgd", "calibration"], ...] = ()
    """Robustness tests of every model. c: corruptions, p: perturbations, fgsm and pgd: attacks."""
    severities: tuple[int, ...] = number((1, 2, 3, 4, 5), least=1, most=5)
    """Severities of the corruptions, 1 (weak) to 5 (strong)."""
    sample: int | None = number(None, least=1)
    """Number of images for the robustness tests, a stratified sample. None: all images."""
    frost: str | None = None
    """Folder of the photographs for the corruption frost. None: those of the package imagecorruptions.
    Without that package, only the 14 other corruptions are measured."""

    def __post_init__(self) -> None:
        check_ranges(self, "evaluate.")
        ascending = list(self.severities) == sorted(set(self.severities))
        require(
            bool(self.severities) and ascending,
            f"evaluate.severities is {list(self.severities)}; give some of 1, 2, 3, 4, 5, in this order",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerConfig:
    """A network, its input noise and its training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig(LearnerConfig):
    """A network that labels the pool."""

    finetune: FinetuneConfig | None = None
    """A second, short training on clean labelled images, e.g. at a higher resolution. None: omit it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig(TeacherConfig):
    """A student, its pseudo-labels, and how it is trained on them. It is the next teacher."""

    unlabeled_ratio: tuple[int, ...] = number((1,), least=1, most=1_000)
    """Pool images for each labelled image of a batch. Two numbers, e.g. [1, 7]: the first and the last; it
    grows linearly over the training, in whole numbers (Fast FixMatch, arXiv 2309.03469)."""
    joint: bool = True
    """Train on labelled and pool images in the same batch. False: on pool images alone, then in
    `finetune` on labelled images, which the paper found to be worse (Finding 6)."""
    init: Literal["scratch", "teacher"] = "scratch"
    """Initial weights. scratch: random, as in the paper. teacher: the teacher's, for the same network."""
    pseudo_label: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "student.")
        growing = len(self.unlabeled_ratio) in (1, 2) and list(self.unlabeled_ratio) == sorted(
            self.unlabeled_ratio
        )
        require(
            growing,
            f"student.unlabeled_ratio is {list(self.unlabeled_ratio)}; give one number, or the first and a"
            " larger last one",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    name: str = "run"
    """Name of the run directory when --out is not given."""
    seed: int = 0
    """Seed of the run. Every random number depends only on it, the name of a stream and the step."""
    device: str = "auto"
    """auto, or a torch device such as cpu or cuda:0. auto: a GPU if there is one."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same bits each time, so that a resumed run ends with the same
    weights as an uninterrupted one. They are slower. A CPU is always deterministic."""
    control: tuple[Control, ...] = ("same_steps",)
    """Also train the last student on labelled images alone. The verdict 'improved' needs such a control.
    same_steps: with the student's steps. same_compute: with as many image passes as the whole run, labelling
    at a third of a pass. A list of both trains both."""
    keep_going: bool = neutral(False)
    """Take a student as the next teacher although it is significantly worse on val than its own teacher.
    False: the run stops there."""
    data: DataConfig = field(default_factory=DataConfig)
    pretrain: LearnerConfig | None = None
    """Train a model on the folder names of the pool (data.pool_tags), and start the teacher from its weights:
    weakly labelled pretraining. None: no pretraining."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    ensemble: int = number(1, least=1, most=100)
    """Number of first teachers that differ only in their seed. Their probabilities are averaged."""
    folds: int | None = number(None, least=2, most=100)
    """Train this many further first teachers, each without one part of the labelled images. Together they
    predict every labelled image without having seen it ("out of fold"). These predictions say how many
    pseudo-labels are right, in place of val. None: no folds."""
    choose: bool = True
    """With folds: choose selection.threshold (in mode adaptive: strength) and pseudo_label.temperature out of
    fold, once for all students, in place of the given ones. False: keep the given ones."""
    filter: LearnerConfig | None = None
    """A smaller model that filters and balances the pool in place of the teacher (paper: EfficientNet-B0)."""
    students: tuple[StudentConfig, ...] = ()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "")
        different = len(set(self.control)) == len(self.control) > 0
        require(
            different and ("none" not in self.control or self.control == NO_CONTROL),
            f"control is {list(self.control)}; it must be none, same_steps or same_compute, or a list of the"
            " last two",
        )
        require(
            self.pretrain is None or self.data.pool_tags,
            "pretrain is given, but data.pool_tags is false; set it to true to train on the folder names",
        )


def learners(config: Config) -> dict[str, LearnerConfig]:
    """Return every network that the run trains: name of its section of the configuration -> the section."""
    named = {"teacher": config.teacher, "filter": config.filter, "pretrain": config.pretrain}
    named |= {f"students.{number}": student for number, student in enumerate(config.students)}
    return {name: learner for name, learner in named.items() if learner is not None}


def require_lengths(config: Config) -> None:
    """Check that every training has a length; only students may have one in passes over the pool.

    Raises:
        InputError: names the training.
    """
    for name, learner in learners(config).items():
        lengths = [length for length in LENGTHS if getattr(learner.train, length) is not None]
        require(bool(lengths), f"{name}.train has neither epochs nor steps; give one of the two")
        pool = isinstance(learner, StudentConfig) or lengths != ["pool_epochs"]
        require(pool, f"{name}.train has pool_epochs, but only students have a pool; give epochs or steps")


def require_pool(config: Config, pool: bool) -> None:
    """Check that there are unlabelled images if a student, or the pretraining, is trained on them.

    Raises:
        InputError: there are none.
    """
    require(
        pool or not (config.students or config.pretrain),
        "data.unlabeled is empty; give --unlabeled, the images on which students are trained, or train the"
        " teacher alone with `noisystudent train` (in Python: students=0)",
    )
