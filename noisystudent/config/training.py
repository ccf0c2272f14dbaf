"""Configuration of a network, its training and its fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from noisystudent.config.fields import (
    LENGTHS,
    MOST_IMAGES,
    MOST_PIXELS,
    check_ranges,
    is_plain,
    later,
    neutral,
    number,
)
from noisystudent.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A network and its model noise."""

    name: str = "efficientnet_b0"
    """Any timm model name, or resnet8_16 … resnet8_64, wrn10_1 … wrn28_10, efficientnet_b0_32px."""
    pretrained: bool | str = False
    """Start from other weights: true: those that timm publishes for the name; or the tag of others, a file
    (.safetensors, .pth), the folder of a model of a run, or hf-hub:<owner>/<name>. With another number of
    classes the classification layer is new. The run stops if the weights are not available."""
    pretrained_fallback: bool = False
    """If the published weights are not available, print a line and start from scratch instead of stopping."""
    remap: Literal["names", "order"] = "names"
    """How the tensors of a file or of hf-hub are assigned. order: the first to the first, whatever the names
    are. Other networks can fit by order: choose it only if you know that it is the same network."""
    resolution: int | None = number(None, least=1, most=MOST_PIXELS)
    """Input side in pixels. None: data.resolution."""
    head: Literal["linear", "mlp"] = "linear"
    """Classifier after the backbone. linear: one linear layer. mlp: a hidden layer of the width of the
    features, GELU, and a linear layer."""
    dropout: float = number(0.2, least=0, below=1)
    """Dropout rate before the classifier."""
    stochastic_depth: float = number(0.2, least=0, below=1)
    """Drop rate of the last residual block. It falls linearly to 0 at the first (paper: survival 0.8)."""
    noise_labeled: bool = True
    """Apply dropout and stochastic depth to the labelled images of a batch."""
    noise_pool: bool = True
    """Apply dropout and stochastic depth to the pool images of a batch."""
    lora: int | None = number(None, least=1)
    """Rank of LoRA (arXiv 2106.09685): only a low-rank term of each weight is trained, and the classification
    layer. The model that is written is the ordinary network. None: train all weights."""
    grad_checkpointing: bool = neutral(False)
    """Compute the blocks again in the backward pass, in place of storing them: less memory, more time."""
    options: dict[str, object] = field(default_factory=dict)
    """Further keyword arguments of timm.create_model."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.")
        require(self.pretrained != "", "model.pretrained is empty; give true, false, a tag or a file")
        for name, value in self.options.items():
            plain = isinstance(name, str) and is_plain(value)  # type: ignore[redundant-expr]
            require(plain, f"model.options.{name} is {value!r}; it must be text, a finite number or a list")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Training of a network."""

    epochs: float | None = number(None, above=0)
    """Number of passes over the labelled images, as the paper counts. Give epochs, steps or pool_epochs."""
    steps: int | None = number(None, least=1)
    """Number of optimiser steps. Give epochs, steps or pool_epochs."""
    pool_epochs: float | None = number(None, above=0, most=1e9)
    """Number of passes of a student over the selected pool images. Give epochs, steps or pool_epochs."""
    label_tail: float = number(0.0, least=0, below=1)
    """Last share of a student's steps that is on labelled images alone. Their number then is that of all
    images in a batch, as in the training of the control."""
    batch_size: int = number(128, least=1, most=MOST_IMAGES)
    """Labelled images per step, of all processes together."""
    accumulate: int = number(1, least=1, most=MOST_IMAGES, later=True)
    """Number of parts of a batch that a process computes one after the other, in less memory; their gradients
    are added. The step is that of the whole batch, but batch norm sees only a part."""
    parallel: Literal["ddp", "fsdp"] = neutral("ddp")
    """How several processes share a training. ddp: each has all weights. fsdp: weights, their average and the
    optimiser are divided among them (FSDP2), for networks that need it; steps are then eager."""
    sync_batchnorm: bool = later(True)
    """Batch norm over the images of all processes, so that a training does not depend on their number. False:
    each process over its own, without exchanging statistics."""
    optimizer: Literal["rmsprop_tf", "sgd", "adamw"] = "sgd"
    """sgd (Nesterov), adamw, or rmsprop_tf, the paper's: decay 0.9, momentum 0.9, epsilon 1e-3 inside the
    root."""
    lr: float | None = number(None, least=0, most=1e6)
    """Learning rate for 256 labelled images per step. It is multiplied by batch_size / 256. None: by
    optimizer, initial weights and family of the network, see docs/models.md; from scratch 0.1 for sgd."""
    layer_decay: float = number(1.0, least=0, most=1)
    """Factor of the learning rate from each layer to the one before it, from the head to the stem."""
    head_lr_scale: float = number(1.0, least=0, most=1e6)
    """Learning rate of the classification layer, as a multiple of that of the last layer."""
    frozen_blocks: int | None = number(None, least=0)
    """Number of first blocks that are not trained. The stem is not trained either. 0: only the stem is not
    trained. None: train all."""
    momentum: float = number(0.9, least=0, below=1)
    """Momentum of sgd and rmsprop_tf."""
    weight_decay: float = number(5e-4, least=0, most=1e6)
    """L2 penalty (decoupled for adamw) on all parameters except those of normalisation layers and
    those that timm excludes for the network, such as position embeddings."""
    schedule: Literal["cosine", "staircase", "constant"] = "cosine"
    """Schedule of the learning rate: cosine, constant, or staircase: ×0.97 every decay_epochs, as in the
    paper."""
    decay_epochs: float = number(2.4, above=0)
    """Epochs between two decays of the staircase."""
    warmup_epochs: float = number(5.0, least=0)
    """Epochs in which the learning rate grows linearly from 0. At most a fifth of the training."""
    label_smoothing: float = number(0.1, least=0, below=1)
    """Smoothing of given labels and of hard pseudo-labels. Soft pseudo-labels are never smoothed."""
    normalization: Literal["joint", "equal", "official"] = "joint"
    """joint: batch mean (§3.1). equal: labelled mean + pool mean (Alg. 1). official: batch sum / labelled."""
    ema_decay: float = number(0.999, least=0, below=1)
    """Decay of the moving average of weights and batch-norm statistics; at step t at most (1+t)/(10+t)."""
    clip_norm: float | None = number(None, above=0)
    """Largest gradient norm. None: no clipping, as in the paper."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the forward pass. auto: bf16 on a GPU, fp32 on a CPU. A GPU below compute capability 8
    and a CPU without AMX or AVX512-BF16 only emulate bf16, and use fp32. fp32 is float32 and not TF32."""
    channels_last: bool = True
    """Keep images and weights in the channels-last memory format."""
    execution: Literal["auto", "eager", "compiled", "captured", "captured-eager"] = neutral("auto")
    """How steps are executed; the results are the same. eager: kernel by kernel. compiled: by torch.compile.
    captured: compiled, and replayed as a CUDA graph. captured-eager: a CUDA graph that is not compiled. auto:
    eager on a CPU; on a GPU captured if 10,000 steps or more are left, otherwise captured-eager, and a
    simpler form if one fails. Except with eager, a model that predicts many images is compiled (on a CPU
    500,000 or more), and captured on a GPU."""
    features: bool = False
    """Keep the backbone as it is, and train the head alone, on features that are computed once and cached.
    Stochastic depth and RandAugment then have no effect on a step; see augment.views and augment.mix."""
    log_steps: int = number(50, least=1, neutral=True)
    """Number of steps between two lines of metrics.jsonl."""
    eval_steps: int | None = number(None, least=1, neutral=True)
    """Number of steps between two evaluations on val for the learning curve. None: ten per training."""
    checkpoint_steps: int | None = number(None, least=1, neutral=True)
    """Number of steps between two snapshots. None: one a minute."""

    def __post_init__(self) -> None:
        check_ranges(self, "train.")
        lengths = {name: getattr(self, name) for name in LENGTHS if getattr(self, name) is not None}
        given = " and ".join(f"train.{name} is {value}" for name, value in lengths.items())
        require(len(lengths) <= 1, f"{given}; give only one of them")
        require(
            self.parallel == "ddp" or self.execution in ("auto", "eager"),
            f"train.parallel is fsdp and train.execution is {self.execution}; with fsdp give eager or auto",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """A second, short training on the labelled images alone, from the weights of the first (§3.1)."""

    epochs: float | None = number(None, above=0)
    """Number of passes over the labelled images (paper: 1.5). Give epochs or steps."""
    steps: int | None = number(None, least=1)
    """Number of optimiser steps. Give epochs or steps."""
    resolution: int | None = number(None, least=1, most=MOST_PIXELS)
    """Input side in pixels, usually higher than that of the first training. None: the same."""
    augment: bool = False
    """Use the input noise of the first training. False: clean centre views, as in the paper."""
    frozen_blocks: int | None = number(None, least=0)
    """Number of first blocks that are not trained. The stem is not trained either. 0: only the stem is not
    trained. None: train all."""
    lr: float | None = number(None, least=0, most=1e6)
    """Peak of a cosine schedule, for 256 labelled images. None: the end of the first schedule (paper)."""
    batch_size: int | None = number(None, least=1, most=MOST_IMAGES)
    """Labelled images per step. None: as in the first training."""

    def __post_init__(self) -> None:
        check_ranges(self, "finetune.")
        require(
            (self.epochs is None) != (self.steps is None),
            f"finetune.epochs is {self.epochs} and finetune.steps is {self.steps}; give one of the two",
        )
