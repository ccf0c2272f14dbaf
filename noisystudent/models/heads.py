"""Heads: what turns the features of a backbone into logits, as a module of its own or inside a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisystudent.errors import InputError
from noisystudent.models.noise import ModelNoise

Kind = Literal["linear", "mlp"]
"""Values of the field `model.head`."""


class Mlp(nn.Sequential):
    """A hidden layer as wide as the features, GELU, and a linear layer: (B, F) -> (B, K)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_classes))


class Head(nn.Module):
    """A head that is trained on cached features; it centres and scales them first.

    Backbones have features of different scales, and the learning rate and the weight decay of a head shall
    not depend on that. All features are divided by one number: a feature that is nearly constant on few
    labels may vary on the pool, and a number of its own would make it huge there.

    Attributes:
        layers: `nn.Linear` or `Mlp`.
        noise: dropout of the input of the last linear layer; off until `noise.draw` is called.
        centre: (F,) mean of the features.
        scale: () root mean square of the centred features.
        name: name of the backbone.
        num_classes: K.
        resolution: side in pixels of the images that the features were computed from.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self, kind: Kind, width: int, num_classes: int, *, dropout: float, name: str, resolution: int
    ) -> None:
        super().__init__()
        self.layers = nn.Linear(width, num_classes) if kind == "linear" else Mlp(width, num_classes)
        self.noise = ModelNoise(self, dropout, 0.0)
        self.name, self.num_classes, self.resolution = name, num_classes, resolution
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    def get_classifier(self) -> nn.Module:
        """Return the layers, as networks of timm do."""
        return self.layers

    def standardize(self, features: Tensor) -> None:
        """Set `centre` and `scale` from features (N, F)."""
        self.centre.copy_(features.mean(dim=0))
        scale = (features - self.centre).square().mean().sqrt()
        self.scale.copy_(torch.where(scale > 0, scale, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits: (B, F) -> (B, K) float32."""
        logits: Tensor = self.layers((features - self.centre) / self.scale)
        return logits.float()

    def folded(self) -> dict[str, Tensor]:
        """Return the weights of layers that give the same logits for features that are not standardised."""
        state = {name: value.detach().clone() for name, value in self.layers.state_dict().items()}
        weight, bias = _first(self.layers)
        scaled = state[weight].double() / self.scale.double()
        state[bias] = (state[bias].double() - scaled @ self.centre.double()).float()
        state[weight] = scaled.float()
        return state

    def load_folded(self, state: Mapping[str, Tensor]) -> None:
        """Set the weights to those whose `folded` is `state`."""
        weight, bias = _first(self.layers)
        raw = state[weight].double().to(self.centre.device)
        shifted = state[bias].double().to(self.centre.device) + raw @ self.centre.double()
        own = {weight: (raw * self.scale.double()).float(), bias: shifted.float()}
        self.layers.load_state_dict({**state, **own})


def _first(layers: nn.Module) -> tuple[str, str]:
    """Names of weight and bias of the layer that gets the features."""
    return ("0.weight", "0.bias") if isinstance(layers, Mlp) else ("weight", "bias")


def classifier_path(net: Any) -> str:
    """Name of the module of a network that turns features (B, F) into logits.

    Raises:
        InputError: it is not a single linear layer or an `Mlp`.
    """
    path = net.pretrained_cfg["classifier"]
    # A network without classes may lack the module.
    if isinstance(path, str) and isinstance(dict(net.named_modules()).get(path), nn.Linear | Mlp):
        return path
    raise InputError(
        f"model.name is {net.pretrained_cfg['architecture']}, whose classifier is not a single linear layer;"
        " set train.features to false and model.head to linear"
    )


def use_mlp(net: Any) -> None:
    """Replace the linear classifier of a network by an `Mlp` with random weights.

    Raises:
        InputError: its classifier is not a single linear layer.
    """
    path = classifier_path(net)
    linear = net.get_submodule(path)
    net.set_submodule(path, Mlp(linear.in_features, linear.out_features))
