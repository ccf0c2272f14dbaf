"""Checks of a configuration that need no image, so that a wrong one is refused before the scan."""

from __future__ import annotations

import torch

from noisystudent.augment.policies import build_policy
from noisystudent.config import Config, ModelConfig, TeacherConfig
from noisystudent.config.run import learners, require_lengths, require_pool
from noisystudent.data.gpu_decode import check_gpu_decoder
from noisystudent.errors import require
from noisystudent.models.heads import classifier_path
from noisystudent.models.registry import build_model
from noisystudent.run.backbones import backbone_key
from noisystudent.runtime import resolve_device
from noisystudent.self_training.heads import frozen

_CLASSES = 2  # of the networks that are built here; the classes of the run are not known yet


def check_config(config: Config, *, pool: bool) -> None:
    """Check the lengths, the pool, the device, its decoder, and every network with its options and its noise.

    Each network is built once, without memory for its weights.

    Args:
        config: configuration of the run.
        pool: True if there are unlabelled images.

    Raises:
        InputError: names the field that cannot be used.
    """
    require_lengths(config)
    require_pool(config, pool)
    device = resolve_device(config.device, deterministic=config.deterministic)
    if config.data.decoder == "gpu":
        check_gpu_decoder(device)
    built: list[tuple[ModelConfig, int, int | None]] = []
    for learner in learners(config).values():
        side = learner.model.resolution or config.data.resolution
        build_policy(learner.augment, side)
        model = frozen(learner.model) if learner.train.features else learner.model
        networks: list[tuple[ModelConfig, int, int | None]] = [(model, side, None)]
        if isinstance(learner, TeacherConfig) and learner.finetune is not None:
            size = learner.finetune.resolution or side
            networks.append((learner.model, size, learner.finetune.frozen_blocks))
        for network in networks:
            if network not in built:
                built.append(network)
                _build(*network, features=learner.train.features)
    check_features(config)


def _build(config: ModelConfig, resolution: int, blocks: int | None, *, features: bool) -> None:
    """Build a network without memory for its weights, and freeze its first blocks."""
    with torch.device("meta"):
        model = build_model(config, _CLASSES, resolution, pretrained=False)
    if features:
        classifier_path(model.net)
    if blocks is not None:
        model.freeze(blocks)


def check_features(config: Config) -> None:
    """Check what trainings on cached features exclude.

    Raises:
        InputError: names the field that cannot be used.
    """
    require(
        config.pretrain is None or not (config.pretrain.train.features or config.teacher.train.features),
        "pretrain is given, and train.features is true; the backbone that pretrain trains is not cached, so"
        " leave one of them out",
    )
    labelers = [config.teacher, *config.students]
    for number, student in enumerate(config.students):
        name, labels = f"students.{number}", student.pseudo_label
        by = [labelers[number], *([config.filter] if config.filter and number == 0 else [])]
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
        same = backbone_key(config, student) == backbone_key(config, labelers[number])
        require(
            student.init != "teacher" or same,
            f"{name}.init is teacher, but {name}.train.features is true and the features of its teacher are"
            " others; set init to scratch",
        )
