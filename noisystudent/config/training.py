"""What learns, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from noisystudent.config.check import require


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What learns, and its noise."""

    name: str = "efficientnet_b0"
    """Any timm model name, or resnet8_16 … resnet8_64, wrn10_1 … wrn28_10, efficientnet_b0_32px."""
    pretrained: bool = False
    """Start from timm's published weights (downloaded by timm). A clear error if they cannot be had."""
    pretrained_fallback: bool = False
    """Where the published weights cannot be had, say so and start from scratch instead of stopping."""
    resolution: int | None = None
    """Input side in pixels. None: data.resolution."""
    dropout: float = 0.2
    """Dropout rate before the classifier."""
    stochastic_depth: float = 0.2
    """Drop rate of the last residual block, falling linearly to 0 at the first (paper: survival 0.8)."""
    noise_labeled: bool = True
    """Dropout and stochastic depth on the labelled images of a batch."""
    noise_pool: bool = True
    """Dropout and stochastic depth on the pool images of a batch."""
    options: dict[str, object] = field(default_factory=dict)
    """Further keyword arguments for timm.create_model."""

    def __post_init__(self) -> None:
        for name in ("dropout", "stochastic_depth"):
            value = getattr(self, name)
            require(0.0 <= value < 1.0, f"model.{name} is {value}; it lies in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How it learns."""

    epochs: float | None = None
    """Passes over the labelled images, as in the paper. Give epochs or steps."""
    steps: int | None = None
    """Optimiser steps. Give epochs or steps."""
    batch_size: int = 128
    """Labelled images a step."""
    optimizer: Literal["rmsprop_tf", "sgd", "adamw"] = "sgd"
    """rmsprop_tf is the paper's: decay 0.9, momentum 0.9, epsilon 1e-3 inside the root. sgd is Nesterov."""
    lr: float = 0.1
    """Learning rate per 256 labelled images; scaled linearly by batch_size."""
    momentum: float = 0.9
    """Momentum of sgd and rmsprop_tf."""
    weight_decay: float = 5e-4
    """L2 (decoupled for adamw) on every parameter but those of normalisation layers."""
    schedule: Literal["cosine", "staircase", "constant"] = "cosine"
    """staircase: ×0.97 every decay_epochs, the paper's."""
    decay_epochs: float = 2.4
    """Labelled epochs between two stairs of the staircase."""
    warmup_epochs: float = 5.0
    """Labelled epochs of linear warm-up from 0; never more than a fifth of the training."""
    label_smoothing: float = 0.1
    """Smoothing of given labels and of hard pseudo-labels; soft ones are never smoothed."""
    normalization: Literal["joint", "equal", "official"] = "joint"
    """joint: batch mean (§3.1). equal: labelled mean + pool mean (Alg. 1). official: batch sum / labelled."""
    ema_decay: float = 0.999
    """Decay of the moving average of weights and batch-norm statistics; warmed up as (1+t)/(10+t)."""
    clip_norm: float | None = None
    """Largest gradient norm. None: no clipping, as in the paper."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    channels_last: bool = True
    """Memory format of images and weights."""
    execution: Literal["auto", "eager", "compiled", "captured"] = "auto"
    """How steps run, with the same numbers. captured: compiled, and replayed as one CUDA graph. auto: the
    fastest that works; on a CPU eager. Pools from 500,000 images on are labelled compiled, unless eager."""
    log_steps: int = 50
    """Steps between two lines of metrics.jsonl."""
    eval_steps: int | None = None
    """Steps between two looks at val for the learning curve. None: ten looks a training."""
    checkpoint_steps: int = 500
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        require(
            self.epochs is None or self.steps is None,
            f"train.epochs is {self.epochs} and train.steps is {self.steps}; give one of the two",
        )
        require(self.epochs is None or self.epochs > 0, f"train.epochs is {self.epochs}; above 0")
        require(self.lr >= 0, f"train.lr is {self.lr}; 0 or more")
        require(self.decay_epochs > 0, f"train.decay_epochs is {self.decay_epochs}; above 0")
        require(0.0 <= self.ema_decay < 1.0, f"train.ema_decay is {self.ema_decay}; it lies in [0, 1)")
        require(
            0.0 <= self.label_smoothing < 1.0, f"train.label_smoothing is {self.label_smoothing}; in [0, 1)"
        )
        for name in ("steps", "batch_size", "log_steps", "eval_steps", "checkpoint_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"train.{name} is {value}; at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """A second, short training on the labelled images alone, from the weights of the first."""

    epochs: float | None = None
    """Passes over the labelled images (paper: 1.5). Give epochs or steps."""
    steps: int | None = None
    """Optimiser steps. Give epochs or steps."""
    resolution: int | None = None
    """Input side in pixels: train low, test high. None: the training's."""
    augment: bool = False
    """Keep the training's input noise. False: clean centre views, the paper's."""
    frozen_blocks: int | None = None
    """The stem and so many first blocks keep weights and statistics; 0 is the stem alone. None: all learn."""
    lr: float | None = None
    """Peak of a cosine, per 256 labelled images. None: the tail of the training's schedule, the paper's."""
    batch_size: int | None = None
    """Labelled images a step. None: the training's."""

    def __post_init__(self) -> None:
        require(
            (self.epochs is None) != (self.steps is None),
            f"finetune.epochs is {self.epochs} and finetune.steps is {self.steps}; give one of the two",
        )
        require(
            self.frozen_blocks is None or self.frozen_blocks >= 0,
            f"finetune.frozen_blocks is {self.frozen_blocks}; 0 or more",
        )
        require(self.epochs is None or self.epochs > 0, f"finetune.epochs is {self.epochs}; above 0")
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"finetune.{name} is {value}; at least 1")
