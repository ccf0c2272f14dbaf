"""Which controls are trained, and the network and training of the linear probe."""

from __future__ import annotations

from dataclasses import replace

from noisystudent.config.learners import TeacherConfig
from noisystudent.config.run import (
    Config,
    Control,
    first_teachers,
    pretrained,
    same_backbone,
    trained_teachers,
)
from noisystudent.config.training import TrainConfig

# Of a probe whose network no teacher has as a frozen one. Features have a mean square of 1 for every network
# (`models.heads`), so one rate is right for all. Nothing is smoothed: the probe is logistic regression.
_TRAIN = TrainConfig(
    features=True,
    steps=1000,
    batch_size=256,
    optimizer="sgd",
    lr=0.05,
    weight_decay=1e-2,
    warmup_epochs=0.0,
    label_smoothing=0.0,
    ema_decay=0.99,
)


def linear_probe(config: Config) -> TeacherConfig | None:
    """Return the linear probe that is trained as a control, a head on the features of the pretrained network.

    None: none is wanted, or `probe_is_teacher`.
    """
    return _probe(config) if _is_wanted(config) and not probe_is_teacher(config) else None


def probe_is_teacher(config: Config) -> bool:
    """Return True if a linear probe is wanted, and the first teacher is one: it is not trained twice."""
    return _is_wanted(config) and first_teachers(config) == (_probe(config),)


def followed_by_probe(config: Config) -> TeacherConfig | None:
    """Return the first teacher if it is a head on the network of the probe, which then has its settings."""
    probed, heads = pretrained(config), [one for one in trained_teachers(config)[:1] if one.train.features]
    return heads[0] if probed and heads and same_backbone(config, heads[0], probed) else None


def trained_controls(config: Config) -> tuple[Control, ...]:
    """Return the kinds of control that are trained after the last student; none without students."""
    kinds = config.control if config.students else ()
    return tuple(kind for kind in kinds if kind != "linear_probe" or linear_probe(config))


def _is_wanted(config: Config) -> bool:
    return "linear_probe" in config.control and bool(config.students)


def _probe(config: Config) -> TeacherConfig:
    """The settings of the first teacher if it is a head on the same network, and otherwise `_TRAIN`."""
    network, first = pretrained(config), followed_by_probe(config)
    assert network is not None  # `Config` has checked it
    if first is not None:
        return TeacherConfig(
            model=replace(first.model, head="linear"), augment=first.augment, train=first.train
        )
    model = replace(
        network.model, head="linear", dropout=0.0, stochastic_depth=0.0, lora=None, grad_checkpointing=False
    )
    # Cached views are used where they are there, and are not made for the probe alone.
    augment = network.augment if network.train.features else replace(network.augment, views=0, mix=0.0)
    return TeacherConfig(model=model, augment=augment, train=_TRAIN)
