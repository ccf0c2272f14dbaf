"""Dropout and stochastic depth whose masks are drawn ahead, image by image, so any row can go without."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from noisystudent.errors import InputError
from noisystudent.runtime import torch_seed


class MaskedDropPath(nn.Module):
    """Stochastic depth that multiplies a residual branch by a number an image; the identity without a mask.

    Attributes:
        rate: drop probability of this branch.
        mask: (B,) float32: 0 where the branch is dropped, 1 / (1 - rate) where kept, 1 without noise.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.mask: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """(B, …) -> the same shape."""
        if self.mask is None:
            return branch
        if len(self.mask) != len(branch):
            raise InputError(
                f"stochastic depth was drawn for {len(self.mask)} images but meets {len(branch)} rows; "
                "switch it off before another batch; if images are split, set model.stochastic_depth to 0"
            )
        return branch * self.mask.to(branch.dtype).view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        """The rate, as timm shows it."""
        return f"rate={self.rate:.3f}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"mask": None}


class ModelNoise:
    """The noise of one network, drawn by `draw`, gone after `off`, whatever its train() or eval() mode.

    Every timm DropPath of `net` is replaced by a `MaskedDropPath` of the same rate, so the linear rule is
    timm's: rate * i / N over the N blocks of an EfficientNet, as in the official code, rate * i / (N - 1) in
    others, as in the paper. Dropout acts on the classifier's input. Parameters keep their names, masks are no
    part of the state_dict, and a copy of the network (its moving average) starts without noise.

    Args:
        net: a timm model, made with `drop_path_rate=stochastic_depth` and `drop_rate=0`; changed in place.
        dropout: rate on each of the (B, F) features before the classifier.
        stochastic_depth: 0 switches the DropPaths off for good.

    Raises:
        InputError: a rate above 0 asks for a DropPath or a linear classifier that the network has not.
    """

    def __init__(self, net: nn.Module, dropout: float, stochastic_depth: float) -> None:
        self._paths = _replace_drop_paths(net, stochastic_depth > 0)
        if stochastic_depth > 0 and not self._paths:
            raise no_stochastic_depth(_architecture(net))
        self._path_rates = torch.tensor([path.rate for path in self._paths], device="cpu")  # (blocks,)
        self._feature_rates = torch.empty(0, device="cpu")  # (F,)
        if dropout > 0:
            classifier = _linear_classifier(net)
            self._feature_rates = torch.full((classifier.in_features,), dropout, device="cpu")
            # A bound method, so that a deep copy of the network is noised by the copy of this object.
            classifier.register_forward_pre_hook(self._drop_features)
        self._path_masks: Tensor | None = None  # (blocks, B)
        self._feature_masks: Tensor | None = None  # (B, F)
        self._drawn = False

    @torch.inference_mode(False)
    def draw(self, seed: int, step: int, active: Tensor, split: int | None = None) -> None:
        """Draw the masks of the forward passes to come: a pure function of the arguments and the device kind.

        Rows before `split` (the labelled images) and after it (the pool) have streams of their own, and a row
        that is switched off still uses up its numbers: neither the size of one part nor what is active in it
        moves the masks of the other. On a CPU a part's first rows do not depend on its size either. Masks
        keep their memory between draws of one size: a captured CUDA graph reads the new ones.

        Args:
            seed: of the run.
            step: of the training.
            active: (B,) bool on the device of the images; False rows get no noise at all.
            split: number of labelled rows. None: all.
        """
        split = len(active) if split is None else split
        self._path_rates = self._path_rates.to(active.device)
        self._feature_rates = self._feature_rates.to(active.device)
        paths = _draw(self._path_rates, seed, "stochastic_depth", step, active, split).T.contiguous()
        features = _draw(self._feature_rates, seed, "dropout", step, active, split)
        self._path_masks = _refill(self._path_masks, paths)
        self._feature_masks = _refill(self._feature_masks, features)
        for path, mask in zip(self._paths, self._path_masks, strict=True):
            path.mask = mask
        self._drawn = True

    def spare(self, modules: Iterable[nn.Module]) -> None:
        """From now on drop no branch inside these modules of the network."""
        inside = {id(part) for module in modules for part in module.modules()}
        spared = torch.tensor([id(path) in inside for path in self._paths], device=self._path_rates.device)
        self._path_rates = torch.where(spared, 0.0, self._path_rates) if self._paths else self._path_rates

    def off(self) -> None:
        """No noise until the next `draw`."""
        for path in self._paths:
            path.mask = None
        self._drawn = False

    def _drop_features(self, _classifier: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        if not self._drawn or self._feature_masks is None:
            return None
        (features,) = inputs
        if features.shape != self._feature_masks.shape:
            raise InputError(
                f"dropout was drawn for features of shape {tuple(self._feature_masks.shape)} but meets "
                f"{tuple(features.shape)}; switch it off before another batch, or set model.dropout to 0"
            )
        return (features * self._feature_masks.to(features.dtype),)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_path_masks": None, "_feature_masks": None, "_drawn": False}


def no_stochastic_depth(name: str) -> InputError:
    """The error for a model without residual branches to drop."""
    return InputError(f"model.name is {name}, which has no stochastic depth; set model.stochastic_depth to 0")


def _architecture(net: nn.Module) -> str:
    cfg = getattr(net, "pretrained_cfg", None)
    return str(cfg["architecture"]) if isinstance(cfg, dict) else type(net).__name__


def _linear_classifier(net: Any) -> nn.Linear:
    classifier = net.get_classifier()
    if isinstance(classifier, nn.Linear):
        return classifier
    kind = type(classifier).__name__
    raise InputError(
        f"model.name is {_architecture(net)}, whose classifier is no single linear layer ({kind}); "
        "set model.dropout to 0"
    )


def _replace_drop_paths(net: nn.Module, masked: bool) -> list[MaskedDropPath]:
    replaced: dict[DropPath, MaskedDropPath] = {}  # a DropPath that stands in two places stays one
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, DropPath):
            path = replaced.setdefault(module, MaskedDropPath(float(module.drop_prob)))
            net.set_submodule(name, path if masked else nn.Identity())
    return list(replaced.values()) if masked else []


def _draw(rates: Tensor, seed: int, stream: str, step: int, active: Tensor, split: int) -> Tensor:
    """(B, len(rates)) float32: 0 with probability `rates`, else 1 / (1 - rates); 1 in inactive rows."""
    generator = torch.Generator(active.device)
    uniform = []
    for part, rows in (("labeled", split), ("pool", len(active) - split)):
        generator.manual_seed(torch_seed(seed, f"model_noise/{stream}/{part}", step))
        uniform.append(torch.rand((rows, len(rates)), generator=generator, device=active.device))
    kept = torch.cat(uniform) >= rates
    return torch.where(active[:, None], kept / (1 - rates), 1.0)


def _refill(buffer: Tensor | None, values: Tensor) -> Tensor:
    if buffer is None or buffer.shape != values.shape or buffer.device != values.device:
        return values
    return buffer.copy_(values)
