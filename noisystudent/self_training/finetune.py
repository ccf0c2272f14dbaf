"""The fine-tuning after a training: its settings are those of the training with a few differences."""

from __future__ import annotations

from dataclasses import replace

from noisystudent.config import AugmentConfig, FinetuneConfig
from noisystudent.self_training.training import Training
from noisystudent.train.optim import lr_at

# No input noise: centre views.
_CLEAN = AugmentConfig(crop="none", flip=False, randaugment=None, labeled=False, pool=False)


def finetuning(training: Training, config: FinetuneConfig) -> Training:
    """Return the fine-tuning after `training`: labelled images alone, by default without input noise (§3.1).

    The learning rate is that of the last steps of the first training, as in the published code (main.py:582).
    With `config.lr` it is a cosine from this peak.
    """
    first = training.config
    batch_size = config.batch_size or first.batch_size
    train = replace(
        first,
        batch_size=batch_size,
        steps=config.steps,
        epochs=config.epochs,
        pool_epochs=None,
        frozen_blocks=config.frozen_blocks,
        features=False,  # after a head alone, the whole network
    )
    if config.lr is not None:
        train = replace(train, lr=config.lr, schedule="cosine", warmup_epochs=0.0)
    augment = training.learner.augment if config.augment else _CLEAN
    second = replace(
        training,
        learner=replace(training.learner, train=train, augment=augment),
        folder=training.folder.finetune,
        resolution=config.resolution or training.resolution,
        read_pool=None,
        ratios=(0,),
        ema=None,
        cache=None,
        initial=training.folder,
        new_head=False,
    )
    if config.lr is not None:
        return second
    skipped = max(0, training.total_steps - second.total_steps)
    scaled = replace(first, batch_size=batch_size)  # the rate is proportional to the batch size

    def tail(step: int) -> float:
        # A fine-tuning that is longer than the first training keeps the last rate.
        at = min(skipped + step, training.total_steps - 1)
        return lr_at(at, scaled, training.steps_per_epoch, training.total_steps)

    return replace(second, lr=tail)
