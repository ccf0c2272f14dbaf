"""Checks of a configuration that need no image, so that a wrong one is refused before the scan."""

from __future__ import annotations

from dataclasses import replace

import torch

from noisystudent.augment.policies import build_policy
from noisystudent.config import Config, LearnerConfig, StudentConfig, TeacherConfig
from noisystudent.config.run import learners, require_lengths, require_pool
from noisystudent.data.gpu_decode import check_gpu_decoder
from noisystudent.errors import require
from noisystudent.models.pretrained import find_source
from noisystudent.models.registry import build_model
from noisystudent.runtime import resolve_device
from noisystudent.self_training.models import prepare_training
from noisystudent.train.optim import lr_scales

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
    built: list[tuple[LearnerConfig, int]] = []
    for name, learner in learners(config).items():
        side = learner.model.resolution or config.data.resolution
        build_policy(learner.augment, side)
        find_source(learner.model.name, learner.model.pretrained)
        _check_kept_weights(config, name, learner)
        networks = [(LearnerConfig(model=learner.model, train=learner.train), side, "train.frozen_blocks")]
        if isinstance(learner, TeacherConfig) and learner.finetune is not None:
            second = replace(learner.train, frozen_blocks=learner.finetune.frozen_blocks)
            resolution = learner.finetune.resolution or side
            networks.append(
                (LearnerConfig(model=learner.model, train=second), resolution, "finetune.frozen_blocks")
            )
        for network, resolution, field in networks:
            if (network, resolution) not in built:
                built.append((network, resolution))
                with torch.device("meta"):
                    model = build_model(network.model, _CLASSES, resolution, pretrained=False)
                    prepare_training(model, network, config.seed, field=field)
                lr_scales(model, network.train)


def _check_kept_weights(config: Config, name: str, learner: LearnerConfig) -> None:
    """Raise if weights would be kept that are random."""
    model = learner.model
    published = model.pretrained and not model.pretrained_fallback
    handed = isinstance(learner, StudentConfig) and learner.init == "teacher"
    handed = handed or (name == "teacher" and config.pretrain is not None)
    kept = {"model.lora": model.lora, "train.frozen_blocks": learner.train.frozen_blocks}
    for field, value in kept.items():
        require(
            value is None or bool(published) or handed,
            f"{name}.{field} is {value}, but the weights that it keeps would be random; set"
            f" {name}.model.pretrained, and {name}.model.pretrained_fallback to false",
        )
