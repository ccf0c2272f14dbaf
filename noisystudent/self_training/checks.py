"""Checks of a configuration that need no image, so that a wrong one is refused before the scan."""

from __future__ import annotations

from dataclasses import replace

import torch

from noisystudent.augment.policies import build_policy
from noisystudent.config import Config, LearnerConfig, StudentConfig, TeacherConfig
from noisystudent.config.controls import linear_probe, trained_controls
from noisystudent.config.run import (
    control_from_teacher,
    input_side,
    learners,
    require_lengths,
    require_pool,
    trained_teachers,
)
from noisystudent.data.gpu_decode import check_gpu_decoder
from noisystudent.errors import InputError, RunError, require
from noisystudent.models.heads import classifier_path
from noisystudent.models.pretrained import find_source
from noisystudent.models.registry import build_model
from noisystudent.run.backbones import backbone_key
from noisystudent.runtime import resolve_device
from noisystudent.self_training.heads import frozen
from noisystudent.self_training.initial import check_initial
from noisystudent.self_training.models import prepare_training
from noisystudent.train.execution import forms_to_try
from noisystudent.train.optim import lr_scales

_CLASSES = 2  # of the networks that are built here; the classes of the run are not known yet


def check_config(config: Config, *, pool: bool, processes: int = 1) -> None:
    """Check the lengths, the pool, the device, its decoder, and every network with its options and its noise.

    A field that would have no effect is refused, too.

    Each network is built once, without memory for its weights.

    Args:
        config: configuration of the run.
        pool: True if there are unlabelled images.
        processes: number of processes that share the run.

    Raises:
        InputError: names the field that cannot be used.
    """
    require_lengths(config)
    require_pool(config, pool)
    device = resolve_device(config.device, deterministic=config.deterministic)
    if config.data.decoder == "gpu":
        check_gpu_decoder(device)
    built: list[tuple[LearnerConfig, int]] = []
    for name, learner in learners(config).items():
        side = input_side(config, learner)
        build_policy(learner.augment, side)
        find_source(learner.model.name, learner.model.pretrained)
        _check_kept_weights(config, name, learner)
        _check_parts(name, learner, processes)
        _check_execution(name, learner, device)
        _check_effects(config, name, learner)
        features = learner.train.features
        model = frozen(learner.model) if features else learner.model
        networks = [(LearnerConfig(model=model, train=learner.train), side, "train.frozen_blocks")]
        if isinstance(learner, TeacherConfig) and learner.finetune is not None:
            second = replace(learner.train, frozen_blocks=learner.finetune.frozen_blocks, features=False)
            size = learner.finetune.resolution or side
            networks.append(
                (LearnerConfig(model=learner.model, train=second), size, "finetune.frozen_blocks")
            )
        for one, resolution, field in networks:
            if (one, resolution) not in built:
                built.append((one, resolution))
                _build(one, resolution, config.seed, field)
    check_features(config)
    check_initial(config)
    _check_probe(config)
    _check_kept_weights_of_controls(config)


def _check_execution(name: str, learner: LearnerConfig, device: torch.device) -> None:
    """Raise if the steps of a training cannot be executed on the device as configured."""
    second = isinstance(learner, TeacherConfig) and learner.finetune is not None
    if learner.train.features and not second:  # the steps of a head are always eager
        return
    try:
        forms_to_try(learner.train.execution, device.type == "cuda", steps=1)
    except RunError as error:
        raise InputError(f"{name}.{error}") from error


def _check_effects(config: Config, name: str, learner: LearnerConfig) -> None:
    """Raise if a field is set that would have no effect."""
    augment, train = learner.augment, learner.train
    for field, value in {"mix": augment.mix, "views": augment.views}.items():
        require(
            train.features or not value,
            f"{name}.augment.{field} is {value:g}, but {name}.train.features is false, and only heads on"
            f" cached features are trained with it; set {name}.augment.{field} to 0",
        )
    if not isinstance(learner, StudentConfig):
        return
    require(
        not learner.selection.reassign or config.filter is None,
        f"{name}.selection.reassign is true, but the filter selects the images of every student, so it has no"
        " effect; set it to false",
    )
    labels, tail = learner.pseudo_label, train.label_tail
    steps = train.steps or 1_000_000  # if the images give the length, the shares alone decide
    require(
        labels.teacher != "ema" or round(labels.ema_start * steps) < steps - round(tail * steps),
        f"{name}.pseudo_label.ema_start is {labels.ema_start:g} and {name}.train.label_tail is {tail:g}, so"
        " the moving average labels no step; together they must be below 1",
    )


def _check_probe(config: Config) -> None:
    """Raise if the network of the linear probe has no linear classifier."""
    probe = linear_probe(config)
    if probe is None:
        return
    with torch.device("meta"):
        model = build_model(probe.model, _CLASSES, input_side(config, probe), pretrained=False)
    try:
        classifier_path(model.net)
    except InputError as error:
        raise InputError(
            f"control is {list(config.control)}, but the classifier of {probe.model.name} is not a single"
            " linear layer; leave linear_probe out"
        ) from error


def _build(learner: LearnerConfig, resolution: int, seed: int, field: str) -> None:
    """Build a network without memory for its weights, and prepare its training."""
    with torch.device("meta"):
        model = build_model(learner.model, _CLASSES, resolution, pretrained=False)
        prepare_training(model, learner, seed, field=field)
    if learner.train.features:
        classifier_path(model.net)
    else:
        lr_scales(model, learner.train)


def check_features(config: Config) -> None:
    """Check what trainings on cached features exclude.

    Raises:
        InputError: names the field that cannot be used.
    """
    firsts = trained_teachers(config)
    of_pretraining = [] if config.pretrain is None else [config.pretrain, *firsts]
    require(
        not any(learner.train.features for learner in of_pretraining),
        "pretrain is given, and train.features is true; the backbone that pretrain trains is not cached, so"
        " leave one of them out",
    )
    for name, learner in learners(config).items():
        if learner.train.features:
            _check_no_option_of_blocks(name, learner)
    for number, student in enumerate(config.students):
        name, labels = f"students.{number}", student.pseudo_label
        teachers: list[TeacherConfig] = [*firsts] if number == 0 else [config.students[number - 1]]
        by = [*teachers, *([config.filter] if config.filter and number == 0 else [])]
        for labeler in (learner for learner in by if learner.train.features):
            why = "but its teacher is a head on cached features"
            require(not labels.noise, f"{name}.pseudo_label.noise is true, {why}; set it to false")
            scales = list(labels.scales)
            require(scales == [1.0], f"{name}.pseudo_label.scales is {scales}, {why}; set it to [1.0]")
            require(
                labeler.augment.flip or not labels.flip,
                f"{name}.pseudo_label.flip is true, {why} without mirrored views; set augment.flip to true",
            )
        if not student.train.features:
            continue
        require(
            not labels.on_the_fly,
            f"{name}.pseudo_label.on_the_fly is true, but {name}.train.features is true; set one to false",
        )
        same = [backbone_key(config, student)] == [backbone_key(config, one) for one in teachers[:1]]
        require(
            student.init != "teacher" or same,
            f"{name}.init is teacher, but {name}.train.features is true and the features of its teacher are"
            " others; set init to scratch",
        )
        tuned = any(one.finetune is not None for one in teachers[:1])
        require(
            student.init != "teacher" or not tuned,
            f"{name}.init is teacher, but {name}.train.features is true and its teacher is fine-tuned, so the"
            " head of its teacher is not for the cached features; set init to scratch",
        )


def _check_parts(name: str, learner: LearnerConfig, processes: int) -> None:
    """Raise if a process would have no labelled image of a part of a batch, or a loss cannot be divided.

    Parts of different sizes are no problem: each image counts the same.
    """
    train, sizes = learner.train, {"train.batch_size": learner.train.batch_size}
    if train.features:
        return
    if isinstance(learner, TeacherConfig) and learner.finetune is not None:
        sizes["finetune.batch_size"] = learner.finetune.batch_size or train.batch_size
    least = processes * train.accumulate
    for field, size in sizes.items():
        require(
            size >= least,
            f"{name}.{field} is {size}, and train.accumulate {train.accumulate} with {processes} processes"
            f" divides it into {least} parts; give {least} or more images, or fewer parts",
        )
    fairness = learner.pseudo_label.ema_fairness if isinstance(learner, StudentConfig) else 0.0
    require(
        not fairness or train.accumulate == 1,
        f"{name}.train.accumulate is {train.accumulate}, but pseudo_label.ema_fairness is {fairness:g}, which"
        " is a loss of the whole batch; set one of them to its default",
    )


def _check_no_option_of_blocks(name: str, learner: LearnerConfig) -> None:
    """Raise if the blocks of a backbone that is not trained would be trained in a special way."""
    model, train = learner.model, learner.train
    given = {
        "model.lora": model.lora is not None,
        "model.grad_checkpointing": model.grad_checkpointing,
        "train.frozen_blocks": train.frozen_blocks is not None,
        "train.layer_decay": train.layer_decay != 1,
        "train.head_lr_scale": train.head_lr_scale != 1,
    }
    for field, present in given.items():
        require(
            not present,
            f"{name}.{field} is given, but {name}.train.features is true, which trains the head alone; leave"
            " one of them out",
        )


def _check_kept_weights(config: Config, name: str, learner: LearnerConfig) -> None:
    """Raise if a network would keep random weights."""
    handed = isinstance(learner, StudentConfig) and learner.init == "teacher"
    handed = handed or (name.startswith("teacher") and config.pretrain is not None)  # also teachers.0
    for field, value in [] if handed else _kept_random(learner):
        raise InputError(
            f"{name}.{field} is {value}, but the weights that it keeps would be random; set"
            f" {name}.model.pretrained, and {name}.model.pretrained_fallback to false"
        )


def _check_kept_weights_of_controls(config: Config) -> None:
    """Raise if a control of the last student would keep random weights, because it starts from scratch."""
    for kind in trained_controls(config):
        if kind == "linear_probe" or (kind == "same_steps" and control_from_teacher(config)):
            continue
        for field, value in _kept_random(config.students[-1]):
            raise InputError(
                f"{field} of the last student is {value}, and its control {kind} starts from scratch, so the"
                " weights that it keeps would be random; leave this control out, or set model.pretrained, and"
                " model.pretrained_fallback to false"
            )


def _kept_random(learner: LearnerConfig) -> list[tuple[str, int]]:
    """Fields that keep weights, with their values, if a network from scratch has no published ones."""
    model = learner.model
    if model.pretrained and not model.pretrained_fallback:
        return []
    kept = {"model.lora": model.lora, "train.frozen_blocks": learner.train.frozen_blocks}
    return [(field, value) for field, value in kept.items() if value is not None]
