"""Dropout and stochastic depth with masks that are drawn in advance, for each image on its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from noisystudent.errors import InputError
from noisystudent.runtime import torch_seed


class MaskedDropPath(nn.Module):
    """Stochastic depth that multiplies a residual branch by one number for each image.

    Attributes:
        rate: drop probability of this branch.
        mask: (B,) float32: 0 if the branch is dropped for the image, 1 / (1 - rate) if it is kept, 1 if the
            image gets no noise. None: the module is the identity.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.mask: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """Multiply each row of `branch` by its mask: (B, …) -> the same shape."""
        if self.mask is None:
            return branch
        if len(self.mask) != len(branch):
            raise InputError(
                f"stochastic depth was drawn for {len(self.mask)} images but is applied to {len(branch)} "
                "rows; call `noise.off` before another batch; if the model splits images into rows, set "
                "model.stochastic_depth to 0"
            )
        # Under autocast the branch may be bfloat16; a float32 mask would change the type of the result.
        return branch * self.mask.to(branch.dtype).view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        """Text that `print(module)` adds to the class name: the drop rate, as DropPath of timm does."""
        return f"rate={self.rate:.3f}"

    # Copies, such as the moving average of a model, start without masks.
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"mask": None}


class ModelNoise:
    """The model noise of one network: on after `draw`, off after `off`, in train() and in eval() mode.

    Every timm DropPath of `net` is replaced by a `MaskedDropPath` of the same rate. So the linear rule is
    that of timm: the rate of block i is rate * i / N over the N blocks of an EfficientNet, as in the official
    code, and rate * i / (N - 1) in other networks, as in the paper. Dropout acts on the input of the
    classifier. Parameters keep their names, masks are not part of the state_dict, and a copy of the network
    (its moving average) starts without noise.

    Args:
        net: timm model, built with `drop_path_rate=stochastic_depth` and `drop_rate=0`; changed in place.
        dropout: drop probability of each of the F features (B, F) before the classifier.
        stochastic_depth: drop probability of the last block. 0: every DropPath becomes the identity.

    Raises:
        InputError: `stochastic_depth` is above 0 and the network has no DropPath, or `dropout` is above 0 and
            its classifier is not a linear layer.
    """

    def __init__(self, net: nn.Module, dropout: float, stochastic_depth: float) -> None:
        self._paths = _replace_drop_paths(net, stochastic_depth > 0)
        if stochastic_depth > 0 and not self._paths:
            raise no_stochastic_depth(_architecture(net))
        # On the CPU even under `torch.device("meta")`, so that a model built there keeps its rates.
        self._path_rates = torch.tensor([path.rate for path in self._paths], device="cpu")  # (blocks,)
        self._feature_rates = torch.empty(0, device="cpu")  # (F,)
        if dropout > 0:
            classifier = _linear_classifier(net)
            self._feature_rates = torch.full((classifier.in_features,), dropout, device="cpu")
            # A bound method, because deepcopy copies its object too: a copy of the network then uses the
            # masks of the copied ModelNoise.
            classifier.register_forward_pre_hook(self._drop_features)
        self._path_masks: Tensor | None = None  # (blocks, B)
        self._feature_masks: Tensor | None = None  # (B, F)
        self._drawn = False

    # Tensors made in inference mode cannot be refilled outside of it.
    @torch.inference_mode(False)
    def draw(self, seed: int, step: int, active: Tensor, split: int | None = None) -> None:
        """Draw the masks of the next forward passes, as a pure function of the arguments and the device type.

        Rows before `split` (labelled images) and rows after it (pool) have their own random streams, and a
        row without noise uses up its numbers too. So the masks of one part do not depend on the size of the
        other part, nor on which of its rows are active. On a CPU the first rows of a part do not depend on
        the size of this part either. Masks keep their memory as long as their shape is the same, so a
        captured CUDA graph reads the new ones.

        Args:
            seed: seed of the run.
            step: training step.
            active: (B,) bool on the device of the images; rows with False get no noise.
            split: number of labelled rows. None: all rows.
        """
        split = len(active) if split is None else split
        self._path_rates = self._path_rates.to(active.device)
        self._feature_rates = self._feature_rates.to(active.device)
        paths = _draw(self._path_rates, seed, "stochastic_depth", step, active=active, split=split)
        features = _draw(self._feature_rates, seed, "dropout", step, active=active, split=split)
        self._path_masks = _refill(self._path_masks, paths.T.contiguous())  # the mask of a branch is one row
        self._feature_masks = _refill(self._feature_masks, features)
        for path, mask in zip(self._paths, self._path_masks, strict=True):
            path.mask = mask
        self._drawn = True

    def spare(self, modules: Iterable[nn.Module]) -> None:
        """Set the drop rate of every branch inside these modules to 0, from the next `draw` on."""
        inside = {id(part) for module in modules for part in module.modules()}
        if not self._paths:  # torch.tensor([]) would not be bool
            return
        spared = torch.tensor([id(path) in inside for path in self._paths], device=self._path_rates.device)
        self._path_rates = torch.where(spared, 0.0, self._path_rates)

    def off(self) -> None:
        """Switch the noise off until the next `draw`."""
        for path in self._paths:
            path.mask = None
        self._drawn = False

    def _drop_features(self, _classifier: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Forward pre-hook of the classifier that applies dropout; None leaves the input unchanged."""
        if not self._drawn or self._feature_masks is None:
            return None
        (features,) = inputs
        if features.shape != self._feature_masks.shape:
            raise InputError(
                f"dropout was drawn for features of shape {tuple(self._feature_masks.shape)} but is applied "
                f"to shape {tuple(features.shape)}; call `noise.off` before another batch, or set "
                "model.dropout to 0"
            )
        return (features * self._feature_masks.to(features.dtype),)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_path_masks": None, "_feature_masks": None, "_drawn": False}


def no_stochastic_depth(name: str) -> InputError:
    """Error for a model without residual branches that stochastic depth could drop."""
    return InputError(f"model.name is {name}, which has no stochastic depth; set model.stochastic_depth to 0")


def _architecture(net: nn.Module) -> str:
    """Name of a network for error messages."""
    cfg = getattr(net, "pretrained_cfg", None)
    return str(cfg["architecture"]) if isinstance(cfg, dict) else type(net).__name__


def _linear_classifier(net: Any) -> nn.Linear:
    """Classifier of a network; raise if it is not a single linear layer."""
    classifier = net.get_classifier()
    if isinstance(classifier, nn.Linear):
        return classifier
    kind = type(classifier).__name__
    raise InputError(
        f"model.name is {_architecture(net)}, whose classifier is not a single linear layer ({kind}); "
        "set model.dropout to 0"
    )


def _replace_drop_paths(net: nn.Module, masked: bool) -> list[MaskedDropPath]:
    """Replace every DropPath in place, by a `MaskedDropPath` if `masked`, otherwise by the identity.

    Returns:
        The new `MaskedDropPath` modules, in the order of the network.
    """
    replaced: dict[DropPath, MaskedDropPath] = {}  # a module that is used in two places stays one module
    # A list, because set_submodule changes the network during the loop. All places of a shared module.
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, DropPath):
            path = replaced.setdefault(module, MaskedDropPath(float(module.drop_prob)))
            net.set_submodule(name, path if masked else nn.Identity())
    return list(replaced.values()) if masked else []


def _draw(rates: Tensor, seed: int, stream: str, step: int, *, active: Tensor, split: int) -> Tensor:
    """Masks (B, len(rates)) float32: 0 with probability `rates`, otherwise 1 / (1 - rates).

    Rows that are not active are 1.
    """
    generator = torch.Generator(active.device)
    uniform = []
    for part, rows in (("labeled", split), ("pool", len(active) - split)):
        generator.manual_seed(torch_seed(seed, f"model_noise/{stream}/{part}", step))
        uniform.append(torch.rand((rows, len(rates)), generator=generator, device=active.device))
    kept = torch.cat(uniform) >= rates
    # The kept values are scaled up, so that the mean over many draws is that without noise.
    return torch.where(active[:, None], kept / (1 - rates), 1.0)


def _refill(buffer: Tensor | None, values: Tensor) -> Tensor:
    """Copy `values` into `buffer` and return it; return `values` if the buffer does not fit."""
    if buffer is None or buffer.shape != values.shape or buffer.device != values.device:
        return values
    return buffer.copy_(values)
