"""The model at step 0 of a training, and the learning rate for what it starts from."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisystudent.config import LearnerConfig, ModelConfig, TrainConfig
from noisystudent.config.rates import BATCH_NORM, LEARNING_RATES, LORA, OTHER_NORM, SCRATCH
from noisystudent.console import Progress
from noisystudent.models.classifier import Classifier, load_trunk, load_weights
from noisystudent.models.registry import build_model
from noisystudent.run.rundir import ModelDir


def first_model(
    learner: LearnerConfig,
    num_classes: int,
    resolution: int,
    *,
    seed: int,
    initial: ModelDir | None,
    new_head: bool,
    progress: Progress,
) -> Classifier:
    """Return the model at step 0 on the CPU: random, with published or other weights; frozen and with LoRA.

    The arguments are those of `Training`.
    """
    config = learner.model
    # No download of weights that are replaced.
    pretrained = config.pretrained if initial is None else False
    model = build_model(config, num_classes, resolution, seed=seed, pretrained=pretrained, progress=progress)
    if initial is not None:
        (load_trunk if new_head else load_weights)(model, initial.weights)
    prepare_training(model, learner, seed)
    return model


def prepare_training(
    model: Classifier, learner: LearnerConfig, seed: int, *, field: str = "train.frozen_blocks"
) -> None:
    """Freeze blocks, add LoRA and switch gradient checkpointing on, as configured.

    Raises:
        InputError: the network cannot do this; `field` names the frozen blocks in the message.
    """
    if learner.train.frozen_blocks is not None:
        model.freeze(learner.train.frozen_blocks, field)
    if learner.model.lora is not None:
        model.add_lora(learner.model.lora, seed)
    if learner.model.grad_checkpointing:
        model.checkpoint_gradients()


def with_rate(learner: LearnerConfig, resolution: int, *, from_weights: bool) -> tuple[TrainConfig, str]:
    """Return `learner.train` with a learning rate, and the family it is for; "" if the recipe gives a rate.

    Args:
        learner: network and training.
        resolution: input side in pixels.
        from_weights: True: the training starts from weights of another one, published or of this run.
    """
    train = learner.train
    if train.lr is not None:
        return train, ""
    if not from_weights:
        family = SCRATCH
    elif learner.model.lora is not None:
        family = LORA
    else:
        family = _family(learner.model, resolution)
    return replace(train, lr=LEARNING_RATES[family][train.optimizer]), family


def _family(config: ModelConfig, resolution: int) -> str:
    """Networks with batch norm stand larger steps than others, such as vision transformers and ConvNeXt."""
    with torch.device("meta"):
        net: nn.Module = build_model(config, 2, resolution, pretrained=False).net
    return BATCH_NORM if any(isinstance(module, _BatchNorm) for module in net.modules()) else OTHER_NORM
