"""Heads on cached features: their first weights, their noise, and the whole network that they are part of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from noisystudent.config import LearnerConfig, ModelConfig, TrainConfig
from noisystudent.console import Progress
from noisystudent.errors import InputError, first_line
from noisystudent.models.classifier import Classifier
from noisystudent.models.heads import Head, classifier_path
from noisystudent.models.registry import build_model
from noisystudent.models.weights import load_weights, save_weights, write_tensors
from noisystudent.records import Batch
from noisystudent.run.rundir import EmbeddingsDir, ModelDir
from noisystudent.runtime import generator, initial_weights, torch_seed
from noisystudent.self_training.features import FeatureSet

_CLASSIFIER = "classifier"  # key in the metadata of a weights file: name of the module that is the head
_SAMPLE = 10_000  # images whose features are centred and scaled


def frozen(config: ModelConfig) -> ModelConfig:
    """Return the configuration of a network whose backbone is not trained: it has no noise of its own."""
    return replace(config, dropout=0.0, stochastic_depth=0.0)


def of_head(config: TrainConfig) -> TrainConfig:
    """Return the settings of the training of a head: on a batch of features nothing is left to compile."""
    return replace(config, execution="eager", precision="fp32", channels_last=False, accumulate=1)


def frozen_backbone(
    config: ModelConfig,
    folder: EmbeddingsDir,
    classes: Sequence[str],
    resolution: int,
    *,
    seed: int,
    progress: Progress,
) -> Classifier:
    """Return the network of a cache. The first call builds and saves it, with a classifier that nobody uses.

    All features and all models of the run have these weights, also if other ones are published meanwhile.

    Args:
        config: name, options and weights of the network.
        folder: folder of the cache.
        classes: class names of the run.
        resolution: side of the images in pixels.
        seed: seed of the run, for a backbone with random weights.
        progress: prints a line if weights are downloaded.

    Raises:
        InputError: the published weights are not available, or the classifier is not a linear layer.
        Stopped: a signal was received during the download.
    """
    config, first = replace(frozen(config), head="linear"), not folder.backbone.is_file()
    model = build_model(
        config,
        len(classes),
        resolution,
        seed=torch_seed(seed, "backbone"),
        pretrained=None if first else False,
        progress=progress,
    )
    path = classifier_path(model.net)
    if first:
        # Nobody uses it, and the file must not depend on the seed: its checksum says what features are of.
        for parameter in model.net.get_submodule(path).parameters():
            nn.init.zeros_(parameter)
        save_weights(model, folder.backbone, classes, {_CLASSIFIER: path})
    else:
        load_weights(model, folder.backbone)
    return model


def first_head(
    config: ModelConfig, labeled: FeatureSet, seed: int, resolution: int, initial: ModelDir | None
) -> Head:
    """Return a head with random weights, or with those of the classifier of another model.

    Args:
        config: kind of the head, its dropout and the name of the backbone.
        labeled: labelled images; features are centred and scaled by them.
        seed: seed of the training.
        resolution: side of the images in pixels.
        initial: folder of the other model. None: random weights.

    Raises:
        InputError: the other model has another head.
    """
    rows = np.arange(len(labeled))
    with initial_weights(seed):
        head = _new(config, labeled.features.layout.width, len(labeled.classes), resolution)
    head.standardize(labeled.fetch(rows[:: -(-len(rows) // _SAMPLE)], resolution))
    if initial is not None:
        _load(head, initial.weights, _read(initial.weights))
    return head


def finished_head(config: ModelConfig, weights: Path, num_classes: int, resolution: int) -> Head:
    """Return the head inside a network that `save_head` wrote, without the backbone.

    Raises:
        InputError: the file is damaged, or has another head.
    """
    state = _read(weights)
    width = next(value.shape[1] for value in state.values() if value.ndim == 2)
    head = _new(config, width, num_classes, resolution)
    _load(head, weights, state)
    return head.eval()


def save_head(
    head: Head,
    config: ModelConfig,
    cache: EmbeddingsDir,
    weights: Path,
    more: Mapping[str, str],
    *,
    alone: bool = False,
) -> None:
    """Write the frozen backbone and the head as one network, as `save_weights` writes others.

    The network is not built: its tensors are copied from file to file.

    Args:
        head: the head.
        config: the network.
        cache: folder of the backbone.
        weights: file to write.
        more: further entries of the metadata.
        alone: True: the backbone is left out; only `finished_head` can read the file.

    Raises:
        InputError: the file of the backbone is damaged.
        RunError: the file cannot be written.
    """
    with _opened(cache.backbone) as file:
        metadata = dict(file.metadata())
        prefix = f"{metadata[_CLASSIFIER]}."
        names = [] if alone else [name for name in file.keys() if not name.startswith(prefix)]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    tensors |= {prefix + name: value.cpu() for name, value in head.folded().items()}
    kind = {} if config.head == "linear" else {"head": config.head}
    write_tensors(weights, tensors, {**metadata, **kind, **more})


def _new(config: ModelConfig, width: int, num_classes: int, resolution: int) -> Head:
    return Head(
        config.head, width, num_classes, dropout=config.dropout, name=config.name, resolution=resolution
    )


def _read(weights: Path) -> dict[str, Tensor]:
    """Tensors of the classifier in a file that `save_head` wrote.

    Raises:
        InputError: the file is damaged, or has no head.
    """
    with _opened(weights) as file:
        prefix = f"{file.metadata().get(_CLASSIFIER, '')}."
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
        state = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    if not state:
        raise _another_head(weights)
    return state


def _load(head: Head, weights: Path, state: Mapping[str, Tensor]) -> None:
    """Set the weights of a head to those of a file.

    Raises:
        InputError: the file has another head.
    """
    own = head.layers.state_dict()
    shapes, expected = ({name: value.shape for name, value in one.items()} for one in (state, own))
    if shapes != expected:
        raise _another_head(weights)
    head.load_folded(state)


def _another_head(weights: Path) -> InputError:
    return InputError(f"{weights} has another head; give a model of the same head, classes and features")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({first_line(error)})") from error


def draw_views(seed: int, stream: str, step: int, sizes: NDArray[np.int32]) -> NDArray[np.float32]:
    """Draw the number of the cached view (B, 1) of each row, see `FeatureSet.fetch`.

    Args:
        seed: seed of the training.
        stream: labeled or pool.
        step: training step.
        sizes: (B, 1) numbers of views, from `FeatureSet.view_sizes`.
    """
    draws = generator(seed, f"views/{stream}", step).random(sizes.shape)
    return np.floor(draws * sizes).astype(np.float32)


class FeatureNoise:
    """Noise of a training on features, beside the choice of a view: dropout, and blends of two images.

    It depends only on the seed and the step, as `TrainingNoise` does. This implements `train.step.Noise`.

    Args:
        head: its dropout is drawn.
        learner: kinds and strength of the noise, and which rows of a batch get it.
        seed: seed of the training.
    """

    def __init__(self, head: Head, learner: LearnerConfig, seed: int) -> None:
        self._head, self._learner, self._seed = head, learner, seed

    def batches(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        """Yield the batches of the steps from `start` on, with blended rows."""
        for step, batch in enumerate(batches, start):
            yield self._blended(batch, step) if self._learner.augment.mix else batch

    def draw(self, batch: Batch, step: int) -> None:
        """Draw the dropout of a step."""
        active = torch.empty(len(batch.images), dtype=torch.bool, device=batch.images.device)
        active[: len(batch.labels)] = self._learner.model.noise_labeled
        active[len(batch.labels) :] = self._learner.model.noise_pool
        self._head.noise.draw(self._seed, step, active, split=len(batch.labels))

    def apply(self, images: Tensor) -> Tensor:
        """Return the features; `batches` has blended them."""
        return images

    def restrict(self, rows: Tensor) -> None:
        """Draw the dropout of the next forward pass for some rows; see `train.step.Noise`."""
        self._head.noise.restrict(rows)

    def views(self, batch: Batch) -> Tensor:
        """Return the features of the pool images before the blend, for an `EmaTeacher`."""
        return batch.images[len(batch.labels) :] if batch.pool_views is None else batch.pool_views

    @property
    def _noised(self) -> Mapping[str, bool]:
        return {"labeled": self._learner.augment.labeled, "pool": self._learner.augment.pool}

    def _blended(self, batch: Batch, step: int) -> Batch:
        """The batch with each row blended with another of its part (mixup, arXiv 1710.09412).

        Most of a row is itself, as in MixMatch (arXiv 1905.02249, eq. 9), so its label stays the likeliest.
        """
        partners, shares, done = [], [], 0
        for stream, count in (("labeled", len(batch.labels)), ("pool", len(batch.pool_targets))):
            draws = generator(self._seed, f"mix/{stream}", step)
            share, mix = np.ones(count), self._learner.augment.mix
            if self._noised[stream]:
                share = draws.beta(mix, mix, count)
            partners.append(done + draws.permutation(count))
            shares.append(np.maximum(share, 1 - share).astype(np.float32))
            done += count
        device = batch.images.device
        partner = torch.from_numpy(np.concatenate(partners)).to(device)
        share_of = torch.from_numpy(np.concatenate(shares)).to(device)
        images = torch.lerp(batch.images[partner], batch.images, share_of[:, None])
        unblended = batch.images[len(batch.labels) :]
        return replace(batch, images=images, pool_views=unblended, blend=(partner, share_of))
