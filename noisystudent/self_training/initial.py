"""Whether a training can start from the weights of another one; found out before the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from noisystudent.config import Config, LearnerConfig, StudentConfig, TeacherConfig
from noisystudent.config.controls import trained_controls
from noisystudent.config.run import control_from_teacher, input_side, learners, network, trained_teachers
from noisystudent.errors import require
from noisystudent.models.registry import build_model
from noisystudent.models.weights import misfit

_Built = tuple[LearnerConfig, int]  # a network, and the side in pixels for which it is built
_CLASSES = 2  # of the networks that are built here; the classes of the run are not known yet


def check_initial(config: Config) -> None:
    """Check each training that starts from the weights of another one.

    Raises:
        InputError: it has another network, or one at another resolution, and the weights do not fit.
    """
    _check_networks(config)
    checked: list[object] = []
    for field, (source, before), (target, after) in _starts(config):
        pair = (network(source), before), (network(target), after)
        if pair[0] == pair[1] or pair in checked:
            continue
        checked.append(pair)
        with torch.device("meta"):
            first = build_model(source.model, _CLASSES, before, pretrained=False)
            second = build_model(target.model, _CLASSES, after, pretrained=False)
        tensor = misfit(first, second)
        require(
            tensor is None,
            f"{field}, but the weights of {first.name} at {before} pixels do not fit {second.name} at {after}"
            f" pixels: {tensor!r} cannot be converted; use the same network and resolution",
        )


def _starts(config: Config) -> Iterator[tuple[str, _Built, _Built]]:
    """Yield a field that asks for the weights of another training, that training, and the one it is for."""
    for name, learner in learners(config).items():
        first, second = (learner, input_side(config, learner)), (learner, _last_side(config, learner))
        yield f"{name}.finetune.resolution is {second[1]}", first, second
    chain = _chain(config)
    for (_, teacher), (name, student) in pairwise(chain):
        if isinstance(student, StudentConfig) and student.init == "teacher":
            last = (teacher, _last_side(config, teacher))
            yield f"{name}.init is teacher", last, (student, input_side(config, student))
    if "same_steps" in trained_controls(config) and control_from_teacher(config):
        (_, teacher), (name, student) = chain[0], chain[-1]
        last = (teacher, _last_side(config, teacher))
        yield f"{name}.init is teacher", last, (student, input_side(config, student))
    if config.pretrain is not None:
        pretraining = (config.pretrain, input_side(config, config.pretrain))
        for teacher in trained_teachers(config):
            yield "pretrain is given", pretraining, (teacher, input_side(config, teacher))


def _chain(config: Config) -> list[tuple[str, LearnerConfig]]:
    """Name and section of the first teacher that is trained and of the students: each labels for the next."""
    named = learners(config).items()
    teachers = [(name, one) for name, one in named if name.startswith("teacher")]
    return teachers[:1] + [(name, one) for name, one in named if name.startswith("students")]


def _last_side(config: Config, learner: LearnerConfig) -> int:
    """Side in pixels of the last training of a network, which is its fine-tuning if it has one."""
    finetune = learner.finetune if isinstance(learner, TeacherConfig) else None
    return (finetune and finetune.resolution) or input_side(config, learner)


def _check_networks(config: Config) -> None:
    """Raise if a student would start from the weights of a teacher with another network."""
    for (teacher_name, teacher), (name, student) in pairwise(_chain(config)):
        if not isinstance(student, StudentConfig) or student.init != "teacher":
            continue
        for field, own in network(student).items():
            other = network(teacher)[field]
            require(
                own == other,
                f"{name}.init is teacher, but {name}.model.{field} is {own} and {teacher_name}.model.{field}"
                f" is {other}; use the same network, or set {name}.init to scratch",
            )
