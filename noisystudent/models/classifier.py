"""A timm model that takes uint8 images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError
from noisystudent.models import lora
from noisystudent.models.checkpointing import Checkpointing
from noisystudent.models.heads import classifier_path
from noisystudent.models.layers import head_prefixes, is_frozen, layers, no_weight_decay
from noisystudent.models.noise import ModelNoise


class Classifier(nn.Module):
    """A timm model that normalises uint8 images itself and returns float32 logits.

    Attributes:
        net: timm model; its state_dict has timm's names.
        noise: dropout and stochastic depth of `net`; off until `noise.draw` is called.
        mean, std: (1, 3, 1, 1) of timm's configuration, for pixels in [0, 1]; not part of the state_dict.
        name: name of the model in timm.
        num_classes: K.
        resolution: side in pixels of the images for which the model was built.
        head_kind: kind of the classifier of `net`, see `ModelConfig.head`.
        options: further arguments of timm.create_model with which the model was built.
        fell_back: True: all weights are random, because the published ones were not available.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, config: ModelConfig, num_classes: int, resolution: int) -> None:
        super().__init__()
        self.net = net
        self.noise = ModelNoise(net, config.dropout, config.stochastic_depth)
        self.name = config.name
        self.num_classes = num_classes
        self.resolution = resolution
        self.head_kind = config.head
        self.options = dict(config.options)
        self.fell_back = False
        cfg: Any = net.pretrained_cfg  # timm sets it on every model
        # Not persistent: they are constants of the model, so snapshots need not contain them.
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(cfg[key]).view(1, 3, 1, 1), persistent=False)
        self._frozen: tuple[str, ...] = ()  # names of the modules that stay in evaluation mode
        self._checkpointing: Checkpointing | None = None

    def layers(self, field: str) -> list[list[str]]:
        """Names of the parameters of the stem, of each block and of the head; see `models.layers`."""
        return [[f"net.{name}" for name in layer] for layer in layers(self.net, field)]

    def head(self) -> list[str]:
        """Names of the parameters of the classification layer."""
        prefixes = head_prefixes(self.net)
        return [f"net.{name}" for name, _ in self.net.named_parameters() if name.startswith(prefixes)]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters for which timm wants no weight decay."""
        return {f"net.{name}" for name in no_weight_decay(self.net)}

    def freeze(self, blocks: int, field: str = "train.frozen_blocks") -> None:
        """Freeze the stem and the first `blocks` blocks, as in Touvron et al. 2019 (arXiv 1906.06423).

        Their weights and batch-norm statistics do not change, and stochastic depth drops none of their
        branches.

        Args:
            blocks: number of blocks, as timm counts them for layer-wise learning rates.
            field: field of the configuration with this number.

        Raises:
            InputError: timm defines no blocks for this network, or fewer than `blocks`.
        """
        stem, *rest = layers(self.net, field)
        if blocks > len(rest) - 1:  # the last group is the head
            raise InputError(
                f"{field} is {blocks}; it must be at most {max(len(rest) - 1, 0)}, the number"
                f" of blocks of {self.name}"
            )
        for name in (name for group in (stem, *rest[:blocks]) for name in group):
            self.net.get_parameter(name).requires_grad = False
        # Not what the names of a layer have in common: a stem may have parameters of the network itself.
        modules = {name: module for name, module in self.net.named_modules() if is_frozen(module)}
        self.noise.spare(modules.values())
        self._keep_evaluating(modules)

    def add_lora(self, rank: int, seed: int) -> None:
        """Train low-rank terms and the head alone, see `lora.add`; batch-norm statistics do not change.

        Call it after `freeze`: what is frozen gets no terms.

        Raises:
            InputError: no weight is large enough.
        """
        lora.add(self.net, rank, seed)
        self._keep_evaluating(
            name for name, module in self.net.named_modules() if isinstance(module, _BatchNorm)
        )

    def merge_lora(self) -> None:
        """Replace low-rank terms by ordinary weights; nothing happens without them."""
        lora.merge(self.net)

    def checkpoint_gradients(self) -> None:
        """Store less in training, and compute it again in the backward pass; the results are the same.

        Raises:
            InputError: timm cannot do this for the network.
        """
        try:
            self._checkpointing = Checkpointing(self.net)
        except (AttributeError, AssertionError) as error:
            raise InputError(
                f"model.grad_checkpointing is true, which {self.name} does not support; set it to false"
            ) from error
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        # In training mode batch norm would update the statistics of frozen modules.
        for name in self._frozen:
            self.net.get_submodule(name).eval()
        if self._checkpointing is not None:  # without a backward pass there is nothing to save
            net: Any = self.net
            net.set_grad_checkpointing(mode)
        return self

    def _keep_evaluating(self, modules: Iterable[str]) -> None:
        self._frozen += tuple(modules)
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, in float32 under autocast too: (B, 3, S, S) uint8 -> (B, K).

        Images may have any memory format.
        """
        if self._checkpointing is not None:
            self._checkpointing.begin()
        logits: Tensor = self.net(self._normalized(images))
        if self._checkpointing is not None:
            self._checkpointing.end()
        return logits.float()

    def features(self, images: Tensor) -> Tensor:
        """Compute the input of the classifier: (B, 3, S, S) uint8 -> (B, F) float32, without dropout.

        A network without a single classifier gives timm's pooled features.
        """
        net: Any = self.net
        pixels = self._normalized(images)
        try:
            classifier = net.get_submodule(classifier_path(net))
        except InputError:
            pooled: Tensor = net.forward_head(net.forward_features(pixels), pre_logits=True)
            return pooled.float()
        # Some networks of timm have layers between their pooled features and the classifier, so all is run.
        given: list[Tensor] = []
        # The first of the hooks, because another one applies dropout.
        with classifier.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]), prepend=True):
            net(pixels)
        return given[0].float()

    def _normalized(self, images: Tensor) -> Tensor:
        """Pixels for the network; computed here, so that images are transferred to the device as bytes."""
        return (images / 255 - self.mean) / self.std
