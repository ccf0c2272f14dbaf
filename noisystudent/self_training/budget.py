"""A budget of time: the ladder of smaller and smaller configurations of a recipe, and the first that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any, Protocol, TypeVar

from noisystudent.config import Config, LearnerConfig, StudentConfig, TeacherConfig
from noisystudent.config.fields import LENGTHS
from noisystudent.config.run import input_side, is_trained, learners
from noisystudent.config.training import FinetuneConfig, TrainConfig
from noisystudent.errors import InputError
from noisystudent.models.smaller import smaller, smaller_side
from noisystudent.run.estimate import RunPlan, readable_time, too_large, whole
from noisystudent.self_training.checks import check_config

Learner = TypeVar("Learner", bound=LearnerConfig)


class _Change(Protocol):
    def __call__(self, learner: Learner, /) -> Learner:
        """Return a changed section."""


_SHARES = (1.0, 0.75, 0.5)  # of the steps, before the next smaller step of the ladder
_LAST_SHARES = (0.35, 0.25, 0.18, 0.125)  # of the smallest step
# A shorter training keeps the shape of its schedule.
_TIMES = (*LENGTHS, "warmup_epochs", "decay_epochs")


def ladder(config: Config) -> Iterator[Config]:
    """Yield the configuration itself, and then smaller and smaller ones; they depend on nothing else.

    The steps of all trainings fall to a half. Then, in turns, the ratios of the students are halved, and all
    networks and resolutions become a step smaller, each time with all steps again. So no quantity falls far
    before the others. What the recipe excludes is left out.
    """
    shapes, shape = _shapes(config), config
    while True:
        yield from (_shortened(shape, share) for share in _SHARES)
        following = next(shapes, None)
        if following is None:
            yield from (_shortened(shape, share) for share in _LAST_SHARES)
            return
        shape = following


def within(config: Config, budget: float, plan: Callable[[Config], RunPlan]) -> tuple[Config, RunPlan]:
    """Return the first configuration of the ladder whose run takes at most `budget` seconds, and its plan.

    A run that does not fit into the memory is no choice. A smaller budget never gives a longer run.

    Raises:
        InputError: no run is short enough.
    """
    shortest: float | None = None
    for rung in ladder(config):
        planned = plan(rung)
        if too_large(planned) is not None:
            continue
        seconds = whole(planned.stages).seconds
        if seconds <= budget:
            return rung, planned
        shortest = seconds if shortest is None else min(shortest, seconds)
    if shortest is None:
        raise InputError(f"--budget: no smaller model, resolution or ratio helps; {too_large(planned)}")
    raise InputError(
        f"--budget is {readable_time(budget)}, and the smallest run of this recipe takes"
        f" {readable_time(shortest)}; give as much, or fewer students (--students) or images"
    )


def describe(config: Config) -> list[str]:
    """Return a line for each network of a configuration: name, resolution, length, and ratio of a student."""
    described = []
    for name, learner in learners(config).items():
        length = ", ".join(f"{value:g} {each}" for each in LENGTHS if (value := getattr(learner.train, each)))
        ratio = f", ratio {list(learner.unlabeled_ratio)}" if isinstance(learner, StudentConfig) else ""
        described.append(
            f"{name}: {learner.model.name}, {input_side(config, learner)} pixels, {length}{ratio}"
        )
    return described


def _shapes(config: Config) -> Iterator[Config]:
    """Yield the next smaller configurations with all their steps."""
    unchanged = 0
    for reduce in cycle((_halved_ratios, _smaller_networks)):
        reduced = reduce(config)
        if reduced == config or not _is_possible(reduced):
            unchanged += 1
            if unchanged == 2:
                return
            continue
        config, unchanged = reduced, 0
        yield config


def _is_possible(config: Config) -> bool:
    """False if a network cannot be built so, such as one with patches that do not divide the image."""
    try:
        check_config(config, pool=True)
    except InputError:
        return False
    return True


def _shortened(config: Config, share: float) -> Config:
    if share == 1:
        return config

    def shortened(learner: Learner) -> Learner:
        learner = replace(learner, train=replace(learner.train, **_scaled(learner.train, share)))
        finetune = learner.finetune if isinstance(learner, TeacherConfig) else None
        return (
            learner
            if finetune is None
            else _finetuned(learner, replace(finetune, **_scaled(finetune, share)))
        )

    return _each(config, shortened)


def _finetuned(learner: Learner, section: FinetuneConfig) -> Learner:
    changes: dict[str, Any] = {"finetune": section}  # which only some learners have
    return replace(learner, **changes)


def _scaled(section: TrainConfig | FinetuneConfig, share: float) -> dict[str, Any]:
    """All durations of a section, multiplied; a training has one step or more."""
    given = {name: getattr(section, name, None) for name in _TIMES}
    times = {name: share * value for name, value in given.items() if value is not None}
    return times | {name: max(1, round(value)) for name, value in times.items() if name == "steps"}


def _halved_ratios(config: Config) -> Config:
    def halved(student: StudentConfig) -> StudentConfig:
        return replace(
            student, unlabeled_ratio=tuple(max(1, ratio // 2) for ratio in student.unlabeled_ratio)
        )

    return replace(config, students=tuple(map(halved, config.students)))


def _smaller_networks(config: Config) -> Config:
    def reduced(learner: Learner) -> Learner:
        model = smaller(learner.model)
        side = None if model.resolution is None else smaller_side(model.resolution)
        learner = replace(learner, model=replace(model, resolution=side))
        finetune = learner.finetune if isinstance(learner, TeacherConfig) else None
        if finetune is None or finetune.resolution is None:
            return learner
        return _finetuned(learner, replace(finetune, resolution=smaller_side(finetune.resolution)))

    data = replace(config.data, resolution=smaller_side(config.data.resolution))
    return _each(replace(config, data=data), reduced)


def _each(config: Config, change: _Change) -> Config:
    """Change every network that is trained; a first teacher that exists stays what it is."""
    return replace(
        config,
        pretrain=None if config.pretrain is None else change(config.pretrain),
        filter=None if config.filter is None else change(config.filter),
        teacher=change(config.teacher),
        teachers=tuple(change(one) if is_trained(one) else one for one in config.teachers),
        students=tuple(change(one) for one in config.students),
    )
