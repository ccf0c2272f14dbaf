"""The model at step 0 of a training, the learning rate for what it starts from, and the trained model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisystudent.config import LearnerConfig, ModelConfig, TrainConfig
from noisystudent.config.rates import BATCH_NORM, LEARNING_RATES, LORA, OTHER_NORM, SCRATCH
from noisystudent.console import Progress
from noisystudent.distributed import group
from noisystudent.models.classifier import Classifier
from noisystudent.models.registry import build_model
from noisystudent.models.weights import load_trunk, load_weights
from noisystudent.run.files import atomic, remove
from noisystudent.run.rundir import ModelDir
from noisystudent.train import checkpoint


def may_fall_back(config: ModelConfig, initial: ModelDir | None) -> bool:
    """Return True if a training starts from published weights, or from random ones without them."""
    return bool(config.pretrained) and config.pretrained_fallback and initial is None


def fell_back(folder: ModelDir) -> bool:
    """Return True if the training in this folder started from random weights in place of published ones."""
    return _mark(folder).is_file()


def first_model(
    learner: LearnerConfig,
    num_classes: int,
    resolution: int,
    *,
    folder: ModelDir,
    seed: int,
    initial: ModelDir | None,
    new_head: bool,
    progress: Progress,
) -> Classifier:
    """Return the model at step 0 on the CPU: random, with published or other weights; frozen and with LoRA.

    A training that has fallen back to random weights goes on so, also if the published ones are available
    when it is resumed. The arguments are those of `Training`.
    """
    config, unsure, lead = learner.model, may_fall_back(learner.model, initial), group().lead
    resumed = unsure and lead(partial(checkpoint.newest, folder.checkpoints, progress)) is not None
    # No download of weights that are replaced.
    pretrained = False if initial is not None or (resumed and fell_back(folder)) else config.pretrained
    model = build_model(config, num_classes, resolution, seed=seed, pretrained=pretrained, progress=progress)
    if unsure and not resumed:
        lead(partial(_write_mark, folder, model.fell_back))
    if unsure and (rate := describe_rate(learner, resolution, from_weights=not fell_back(folder))):
        progress.say(rate)
    if initial is not None:
        (load_trunk if new_head else load_weights)(model, initial.weights)
    prepare_training(model, learner, seed)
    return model


def _mark(folder: ModelDir) -> Path:
    """Path of an empty file that is there if the training in `folder` has fallen back to random weights."""
    return folder.path / "random-weights"


def _write_mark(folder: ModelDir, present: bool) -> None:
    if not present:
        remove(_mark(folder))  # of a training that was killed before its first snapshot
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    with atomic(_mark(folder)) as partial:
        partial.touch()


def finished_model(
    learner: LearnerConfig, weights: Path, num_classes: int, resolution: int, device: torch.device
) -> Classifier:
    """Return a trained model on the device, in evaluation mode and without noise."""
    model = build_model(learner.model, num_classes, resolution, pretrained=False)
    load_weights(model, weights)
    layout = torch.channels_last if learner.train.channels_last else torch.preserve_format
    return model.to(device).to(memory_format=layout).eval()


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


def describe_rate(learner: LearnerConfig, resolution: int, *, from_weights: bool) -> str:
    """Return the rate of `with_rate` and its family in words; "" if the recipe gives the rate."""
    train, family = with_rate(learner, resolution, from_weights=from_weights)
    return f"learning rate {train.lr:g} ({family}, {train.optimizer})" if family else ""


def _family(config: ModelConfig, resolution: int) -> str:
    """Networks with batch norm stand larger steps than others, such as vision transformers and ConvNeXt."""
    with torch.device("meta"):
        net: nn.Module = build_model(config, 2, resolution, pretrained=False).net
    return BATCH_NORM if any(isinstance(module, _BatchNorm) for module in net.modules()) else OTHER_NORM
