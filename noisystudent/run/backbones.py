"""The frozen backbones of a configuration, whose features are computed once and cached."""

from __future__ import annotations

from noisystudent.config import Config, LearnerConfig, TrainConfig
from noisystudent.config.controls import linear_probe
from noisystudent.config.run import input_side, learners
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.inputs import inputs_of, make_stage
from noisystudent.run.rundir import RunDir
from noisystudent.run.stages import Stage

# Fields of a model that change the training of a head, but not the features.
_OF_HEAD = ("head", "dropout", "stochastic_depth", "noise_labeled", "noise_pool")

# Fields of a training that change the last digits of the features.
_OF_FORWARD = ("precision", "channels_last")

# Fields of the input noise that say which rows of a batch get it, and how features are blended.
_OF_STEP = ("labeled", "pool", "mix")


def backbone_key(config: Config, learner: LearnerConfig) -> str | None:
    """Return a digest of what the cached features of a network depend on; None if it is trained on images.

    Networks with the same key share a cache. The seed is part of it: of a backbone with random weights, and
    of the cached views.
    """
    if not learner.train.features:
        return None
    model = {name: value for name, value in inputs_of(learner.model).items() if name not in _OF_HEAD}
    model["resolution"] = input_side(config, learner)
    noise = {name: value for name, value in inputs_of(learner.augment).items() if name not in _OF_STEP}
    # Without cached views only the mirrored one is left of the noise.
    views = noise if learner.augment.views else {"flip": learner.augment.flip}
    given, plain = learner.train, TrainConfig()
    form = {
        name: getattr(given, name) for name in _OF_FORWARD if getattr(given, name) != getattr(plain, name)
    }
    return fingerprint(model, views, config.seed, *([form] if form else []))


def backbones(config: Config) -> dict[str, LearnerConfig]:
    """Return a network for each cache: `backbone_key` -> the last one with this key."""
    keyed = {backbone_key(config, learner): learner for learner in learners(config).values()}
    return {key: learner for key, learner in keyed.items() if key is not None}


def embedded(config: Config) -> dict[str, tuple[LearnerConfig, bool]]:
    """Return the networks whose features are computed, and True if those of the pool are.

    `backbone_key` -> network. The last one may be that of the linear probe, which needs no pool.
    """
    networks = {key: (learner, True) for key, learner in backbones(config).items()}
    probe = linear_probe(config)
    key = None if probe is None else backbone_key(config, probe)
    if probe is not None and key is not None:
        networks.setdefault(key, (probe, False))
    return networks


def embedding_stages(config: Config, run: RunDir, data: Stage) -> dict[str, Stage]:
    """Return the stages that compute features: `backbone_key` -> stage, one for each different backbone.

    Args:
        config: configuration of the run.
        run: run directory.
        data: scan of the images.
    """
    stages: dict[str, Stage] = {}
    for number, (key, (_, pool)) in enumerate(embedded(config).items(), start=1):
        path = run.embeddings(number).path
        without: dict[str, object] = {} if pool else {"pool": False}
        stages[key] = make_stage(path.name, path, data=data.fingerprint, backbone=key, **without)
    return stages
