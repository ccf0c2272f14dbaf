"""Configuration of the whole run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from noisystudent.config.evaluation import EvaluateConfig
from noisystudent.config.fields import LENGTHS, check_ranges, neutral, number
from noisystudent.config.images import DataConfig
from noisystudent.config.learners import FirstTeacherConfig, LearnerConfig, StudentConfig, TeacherConfig
from noisystudent.config.weights import check_weights, normalized
from noisystudent.errors import require

Control = Literal["none", "same_steps", "same_compute", "linear_probe"]
NO_CONTROL: tuple[Control, ...] = ("none",)


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
    control: tuple[Control, ...] = ()
    """What is trained on labelled images alone, to compare the last student with; the verdict 'improved'
    needs it. same_steps: the last student, with its steps. same_compute: with as many image passes as the
    whole run, labelling at a third of a pass. linear_probe: a linear layer on the features of the pretrained
    network, which is kept as it is. none, or a list. Empty: same_steps, and with pretrained weights
    linear_probe too."""
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
    teachers: tuple[FirstTeacherConfig, ...] = ()
    """First teachers of different kinds. Their probabilities are averaged. Entries inherit from `teacher`.
    ensemble is the short form for equal entries, and a list of one is that teacher. Empty: `teacher`."""
    teacher_weights: Literal["equal", "val"] | tuple[float, ...] = "equal"
    """Weights of the first teachers in the average. equal: the mean. val: those with the smallest NLL of the
    average on val (stacking, arXiv 1704.02030). Or a number for each; they are divided by their sum. 0: left
    out."""
    folds: int | None = number(None, least=2, most=100)
    """Train this many further first teachers, each without one part of the labelled images. Together they
    predict every labelled image without having seen it ("out of fold"). These predictions say how many
    pseudo-labels are right, in place of val. None: no folds."""
    choose: bool = True
    """With folds: choose selection.threshold (in mode adaptive: strength), pseudo_label.temperature and the
    weight decay of heads out of fold, once for all students, in place of the given ones. False: keep the
    given ones."""
    filter: LearnerConfig | None = None
    """A smaller model that filters and balances the pool in place of the teacher (paper: EfficientNet-B0)."""
    students: tuple[StudentConfig, ...] = ()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "")
        _check_control(self)
        require(
            self.pretrain is None or self.data.pool_tags,
            "pretrain is given, but data.pool_tags is false; set it to true to train on the folder names",
        )
        self._take_equal_teachers()
        _check_teachers(self)
        if not self.control:  # so that config.yaml says what is trained
            probe: tuple[Control, ...] = ("linear_probe",) if self.students and pretrained(self) else ()
            object.__setattr__(self, "control", ("same_steps", *probe))

    def _take_equal_teachers(self) -> None:
        """Replace a list of equal teachers by `teacher` and `ensemble`, so that both forms are one run."""
        if not self.teachers:
            return
        require(
            self.ensemble == 1, f"ensemble is {self.ensemble}, but teachers lists them; give one of the two"
        )
        first, *others = self.teachers
        if first.existing or any(other != first for other in others):
            return
        plain = TeacherConfig(**{part.name: getattr(first, part.name) for part in fields(TeacherConfig)})
        for name, value in (("teacher", plain), ("ensemble", len(self.teachers)), ("teachers", ())):
            object.__setattr__(self, name, value)


def first_teachers(config: Config) -> tuple[TeacherConfig, ...]:
    """Return the first teachers in the order of the list, or `teacher` as often as `ensemble` says."""
    return config.teachers or (config.teacher,) * config.ensemble


def is_trained(teacher: TeacherConfig) -> bool:
    """Return True if the run trains this first teacher."""
    return not isinstance(teacher, FirstTeacherConfig) or teacher.existing is None


def trained_teachers(config: Config) -> list[TeacherConfig]:
    """Return the first teachers that the run trains, in their order."""
    return [teacher for teacher in first_teachers(config) if is_trained(teacher)]


def pretrained(config: Config) -> TeacherConfig | None:
    """Return the learner whose pretrained weights the last student comes from, or the first trained teacher.

    None: neither starts from pretrained weights. Those of a student with `init` teacher, or of a teacher
    after `pretrain`, are not used.
    """
    firsts = [] if config.pretrain else trained_teachers(config)
    scratch = [student for student in config.students if student.init == "scratch"]
    return next((one for one in (*scratch[-1:], *firsts[:1]) if one.model.pretrained), None)


def control_from_teacher(config: Config) -> bool:
    """Return True if the control of the same steps starts from the weights of the first trained teacher.

    It does if the last student starts from its own teacher, and has the network of the first one. Weights of
    a teacher in between have seen the pool, so a control with another network starts from scratch.
    """
    firsts, last = trained_teachers(config), config.students[-1]
    return last.init == "teacher" and bool(firsts) and can_start_from(config, last, firsts[0])


def network(learner: LearnerConfig) -> dict[str, object]:
    """Return the fields of a model that are equal if one can start from the weights of the other.

    The tag of published weights is no part of its name.
    """
    model = learner.model
    return {"name": model.name.split(".")[0], "head": model.head, "options": model.options}


def can_start_from(config: Config, learner: LearnerConfig, teacher: TeacherConfig) -> bool:
    """Return True if a learner can start from the weights of a teacher: both have the same network.

    A head on cached features needs those of its teacher, too; a fine-tuned teacher has others.
    """
    same = network(learner) == network(teacher)
    frozen = teacher.train.features and teacher.finetune is None
    on_features = frozen and same_backbone(config, learner, teacher)
    return same and (on_features or not learner.train.features)


def same_backbone(config: Config, one: LearnerConfig, other: LearnerConfig) -> bool:
    """Return True if two learners begin with the same backbone, weights included, and have the same side."""
    fields = ("name", "pretrained", "remap", "options")
    same = all(getattr(one.model, field) == getattr(other.model, field) for field in fields)
    return same and input_side(config, one) == input_side(config, other)


def chooses_decay(config: Config) -> bool:
    """Return True if the weight decay of heads is chosen out of fold, given enough labels."""
    teacher = config.teacher
    return config.folds is not None and config.choose and teacher.train.features and teacher.finetune is None


def labeling_teachers(config: Config) -> list[int]:
    """Return the places, in `first_teachers`, of those that label the pool: not those of weight 0."""
    count = len(first_teachers(config))
    weights = normalized(config.teacher_weights, count)
    return [place for place in range(count) if weights is None or weights[place] > 0]


def _check_control(config: Config) -> None:
    """Check the kinds of control.

    Raises:
        InputError: names the field.
    """
    given = config.control
    require(
        len(set(given)) == len(given) and ("none" not in given or given == NO_CONTROL),
        f"control is {list(given)}; it must be none, or a list of same_steps, same_compute and linear_probe",
    )
    require(
        "linear_probe" not in given or pretrained(config) is not None,
        f"control is {list(given)}, but neither the last student nor the teacher starts from other weights;"
        " leave linear_probe out, or set model.pretrained",
    )


def _check_teachers(config: Config) -> None:
    """Check the list of first teachers, their weights, and what needs several or equal ones.

    Raises:
        InputError: names the field.
    """
    check_weights(config.teacher_weights, len(first_teachers(config)))
    if config.teachers:
        require(
            config.folds is None,
            f"folds is {config.folds}, but the first teachers are of different kinds, and folds train one;"
            " remove folds or teachers",
        )
    trained = [is_trained(teacher) for teacher in first_teachers(config)]
    require(
        any(trained) or bool(config.students), "teachers: none is trained, and students is 0; add a student"
    )
    require(
        any(trained) or not config.evaluate.tests,
        f"evaluate.tests is {list(config.evaluate.tests)}, but the run trains no first teacher to compare"
        " with; add one to teachers (with the weight 0 it labels nothing), or remove the tests",
    )
    several = len(labeling_teachers(config)) > 1
    for index, student in enumerate(config.students):
        name = f"student {index + 1}: "
        require(
            student.init != "teacher" or index > 0 or any(trained),
            f"{name}init is teacher, but the run trains none of the first teachers; set it to scratch",
        )
        require(
            index > 0 or not config.teachers or not student.pseudo_label.on_the_fly,
            f"{name}pseudo_label.on_the_fly is true, but the first teachers are of different kinds, and label"
            " the pool before the training; set it to false",
        )
        require(
            index > 0 or all(trained) or not student.pseudo_label.noise,
            f"{name}pseudo_label.noise is true, but a first teacher is not trained here and has no noise; set"
            " it to false",
        )
        if student.selection.agreement:
            require(
                several and config.filter is None,
                f"{name}selection.agreement is {student.selection.agreement:g}, but"
                f" {'the filter selects' if several else 'one teacher labels the pool'}; set it to 0",
            )


def learners(config: Config) -> dict[str, LearnerConfig]:
    """Return every network that the run trains: name of its section of the configuration -> the section."""
    named: dict[str, LearnerConfig | None] = {"teacher": config.teacher}
    if config.teachers:
        listed = enumerate(config.teachers)
        named = {f"teachers.{number}": teacher for number, teacher in listed if is_trained(teacher)}
    named |= {"filter": config.filter, "pretrain": config.pretrain}
    named |= {f"students.{number}": student for number, student in enumerate(config.students)}
    return {name: learner for name, learner in named.items() if learner is not None}


def input_side(config: Config, learner: LearnerConfig) -> int:
    """Return the input side in pixels of a network."""
    return learner.model.resolution or config.data.resolution


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
