"""Configuration of teachers and students."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from noisystudent.config.fields import check_ranges, number
from noisystudent.config.images import AugmentConfig
from noisystudent.config.pool import PseudoLabelConfig, SelectionConfig
from noisystudent.config.training import FinetuneConfig, ModelConfig, TrainConfig
from noisystudent.errors import require


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
class FirstTeacherConfig(TeacherConfig):
    """An entry of `teachers`: a network that the run trains, or a teacher that exists and is not trained."""

    model_from: str | None = None
    """A model that exists: a run, a model folder, a .safetensors or .onnx file, a checkpoint of the network
    in `model`, or a name of timm with published weights. It has the classes of the run, in any order."""
    labels_from: str | None = None
    """Probabilities that were made elsewhere: a Parquet file, or a folder of them, with a column `id` or
    `content_hash`, and a column for each class or a list column `probs`."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the outputs, or of the list, if the file has no names."""

    @property
    def existing(self) -> str | None:
        """File, folder or name of a teacher that is not trained; None: the run trains it."""
        return self.model_from or self.labels_from

    def __post_init__(self) -> None:
        if self.existing is None:
            require(
                not self.classes, "teachers: an entry has classes, but neither model_from nor labels_from"
            )
            return
        name = "model_from" if self.model_from else "labels_from"
        require(
            not (self.model_from and self.labels_from),
            f"teachers: an entry has model_from {self.model_from} and labels_from {self.labels_from}; give"
            " one of the two",
        )
        default = TeacherConfig()
        parts = ["augment", "train", "finetune", *(["model"] if self.labels_from else [])]
        extra = [part for part in parts if getattr(self, part) != getattr(default, part)]
        require(
            not extra,
            f"teachers: the entry {name} {self.existing} has {' and '.join(extra)}, but it is not trained;"
            f" remove {'it' if len(extra) == 1 else 'them'}",
        )
        require(
            len(set(self.classes)) == len(self.classes),
            f"teachers: the entry {name} {self.existing} names a class twice; each output has its own class",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig(TeacherConfig):
    """A student, its pseudo-labels, and how it is trained on them. It is the next teacher."""

    unlabeled_ratio: tuple[int, ...] = number((1,), least=1, most=1_000)
    """Pool images for each labelled image of a batch. Two numbers, e.g. [1, 7]: the first and the last; it
    grows linearly over the training, in whole numbers (Fast FixMatch, arXiv 2309.03469)."""
    pool_window: int | None = number(None, least=1)
    """Pool images that are shuffled among themselves, for shards in a store: blocks of 256 neighbours are
    shuffled first, then every `pool_window` images. None: all images are."""
    joint: bool = True
    """Train on labelled and pool images in the same batch. False: on pool images alone, then in
    `finetune` on labelled images, which the paper found to be worse (Finding 6)."""
    init: Literal["scratch", "teacher"] = "scratch"
    """Initial weights. scratch: those of model.pretrained; without it random, as in the paper. teacher: the
    teacher's, for the same network."""
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
        require(
            self.selection.junk != "drop" or not self.pseudo_label.noise,
            "student.selection.junk is drop, but student.pseudo_label.noise is true, and energies of noised"
            " images cannot be compared with those of labelled ones; set junk to off, or noise to false",
        )
