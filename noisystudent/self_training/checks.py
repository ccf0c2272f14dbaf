"""Checks of a configuration that need no image, so that a wrong one is refused before the scan."""

from __future__ import annotations

import torch

from noisystudent.augment.policies import build_policy
from noisystudent.config import Config, ModelConfig, TeacherConfig
from noisystudent.config.run import learners, require_lengths, require_pool
from noisystudent.data.gpu_decode import check_gpu_decoder
from noisystudent.models.registry import build_model
from noisystudent.runtime import resolve_device

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
        networks: list[tuple[int, int | None]] = [(side, None)]
        if isinstance(learner, TeacherConfig) and learner.finetune is not None:
            networks.append((learner.finetune.resolution or side, learner.finetune.frozen_blocks))
        for resolution, frozen in networks:
            if (learner.model, resolution, frozen) not in built:
                built.append((learner.model, resolution, frozen))
                with torch.device("meta"):
                    model = build_model(learner.model, _CLASSES, resolution, pretrained=False)
                if frozen is not None:
                    model.freeze(frozen)
