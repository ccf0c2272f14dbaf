"""Dropout and stochastic depth with masks that are hashed for each image, equal on every device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from noisystudent.errors import InputError
from noisystudent.runtime import GAMMA, mix, torch_seed


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
    """The model noise of one network: on after `on`, off after `off`, in train() and in eval() mode.

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
        self._path_rates = [path.rate for path in self._paths]
        self._feature_rates: list[float] = []  # F equal numbers
        if dropout > 0:
            classifier = _linear_classifier(net)
            self._feature_rates = [dropout] * classifier.in_features
            # A bound method, because deepcopy copies its object too: a copy of the network then uses the
            # masks of the copied ModelNoise.
            classifier.register_forward_pre_hook(self._drop_features)
        self._masks: _Masks | None = None
        self._features: Tensor | None = None  # masks of dropout, if they are of some rows alone
        self._is_on = False

    def draw(self, seed: int, step: int, active: Tensor, split: int | None = None) -> None:
        """Switch the noise on and draw the masks of the next forward passes.

        They are a pure function of the arguments: a hash of (seed, part, row within the part, step, column).
        Rows before `split` (labelled images) and rows after it (pool) are the two parts. So a mask depends
        neither on the size of a part, nor on the other part or on other rows, nor on the device.

        Args:
            seed: seed of the run.
            step: training step.
            active: (B,) bool on the device of the images; rows with False get no noise.
            split: number of labelled rows. None: all rows.
        """
        self.on(seed, active, split)
        self.fill(torch.full((), step, device=active.device))

    # Tensors made in inference mode cannot be refilled outside of it.
    @torch.inference_mode(False)
    def on(
        self, seed: int, active: Tensor, split: int | None = None, first: tuple[int, int] = (0, 0)
    ) -> None:
        """Switch the noise on, with masks that the next `fill` computes; the arguments are those of `draw`.

        `first` is the number of the first row of each part, if other processes have the rows before it.

        Masks keep their memory as long as seed, split and shape stay the same, so a captured CUDA graph reads
        the new ones.
        """
        split = len(active) if split is None else split
        key = (seed, (split, len(active) - split), first, active.device)
        if self._masks is None or self._masks.key != key:
            self._masks = _Masks(key, self._feature_rates, self._path_rates)
        self._masks.active, self._features, self._is_on = active, None, True
        # Also after `restrict`: the next batch need not be computed in parts.
        for path, mask in zip(self._paths, self._masks.paths, strict=True):
            path.mask = mask

    def fill(self, step: Tensor) -> None:
        """Compute the masks of a step, given as a () int64 tensor on the device of the images.

        This only launches kernels, so a CUDA graph can capture it.
        """
        assert self._masks is not None, "call `on` first"
        self._masks.fill(step)

    def restrict(self, rows: Tensor) -> None:
        """Use the masks of some rows (b,) alone in the next forward pass, until the next call of this."""
        assert self._masks is not None, "call `on` first"
        self._features = self._masks.features[rows]
        for path, mask in zip(self._paths, self._masks.paths, strict=True):
            path.mask = mask[rows]

    def spare(self, modules: Iterable[nn.Module]) -> None:
        """Set the drop rate of every branch inside these modules to 0, from the next `draw` on."""
        inside = {id(part) for module in modules for part in module.modules()}
        for number, path in enumerate(self._paths):
            if id(path) in inside:
                self._path_rates[number] = 0.0
        self._masks = None

    def off(self) -> None:
        """Switch the noise off."""
        for path in self._paths:
            path.mask = None
        self._is_on = False

    def _drop_features(self, _classifier: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """Forward pre-hook of the classifier that applies dropout; None leaves the input unchanged."""
        if not self._is_on or self._masks is None:
            return None
        (features,) = inputs
        mask = self._masks.features if self._features is None else self._features
        if features.shape != mask.shape:
            raise InputError(
                f"dropout was drawn for features of shape {tuple(mask.shape)} but is applied "
                f"to shape {tuple(features.shape)}; call `noise.off` before another batch, or set "
                "model.dropout to 0"
            )
        return (features * mask.to(features.dtype),)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_masks": None, "_features": None, "_is_on": False}


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
    if isinstance(classifier, nn.Sequential):  # an `Mlp`: dropout of its hidden features
        classifier = classifier[-1]
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


class _Masks:
    """The masks of all features and branches in one tensor, and what their hash needs.

    A mask is 0 with probability `rate`, otherwise 1 / (1 - rate), so that its mean is 1. Rows that are not
    active are 1. The hash is that of SplitMix64: in a row, the steps are one of its sequences, and the result
    starts the sequence of the columns. Only integers are compared, so every device has the same masks.

    Attributes:
        key: seed, numbers of labelled rows and of other rows, number of the first row of each, device.
        active: (B,) bool, rows that get noise.
        features: (B, F) float32, masks of dropout.
        paths: (B,) float32 each, masks of the branches.
    """

    def __init__(
        self,
        key: tuple[int, tuple[int, int], tuple[int, int], torch.device],
        *rates: list[float],
    ) -> None:
        self.key = key
        seed, sizes, firsts, device = key
        count = sum(sizes)
        self.active = torch.ones(count, dtype=torch.bool, device=device)
        rows = [
            mix(
                torch.arange(first, first + size, device=device)
                .mul_(GAMMA)
                .add_(torch_seed(seed, f"model_noise/{part}"))
            )
            for part, size, first in zip(("labeled", "pool"), sizes, firsts, strict=True)
        ]
        self._rows = torch.cat(rows)  # (B,)
        # Each hash has 64 bits, which are the words of two columns. Features and branches have columns far
        # from each other: so the masks of one do not depend on the number of the other.
        half = [-(-len(part) // 2) for part in rates]
        place = [
            torch.arange(1, size + 1, device=device).add_(field << 40) for field, size in enumerate(half)
        ]
        self._columns = torch.cat(place).mul_(GAMMA)  # (C/2,)
        padded = [rate for part in rates for rate in (*part, *[0.0] * (len(part) % 2))]
        rate = torch.tensor(padded, dtype=torch.float64, device="cpu")  # (C,)
        self._scale = (1 / (1 - rate)).float().to(device)
        self._threshold = (rate * 2**32 - 2**31).round().clamp(max=2**31 - 1).to(torch.int32).to(device)
        self._values = torch.ones((count, len(padded)), device=device)
        self.features = self._values[:, : len(rates[0])]
        self.paths = self._values.T[2 * half[0] :][: len(rates[1])]

    def fill(self, step: Tensor) -> None:
        """Compute the masks of a step () int64, in place."""
        if not len(self._columns):  # a network without noise
            return
        state = mix(self._rows.add(step, alpha=GAMMA))
        words = mix(state[:, None] + self._columns).view(torch.int32)  # (B, C), uniform over all 2**32 values
        kept = (words >= self._threshold) * self._scale
        self._values.copy_(torch.where(self.active[:, None], kept, 1.0))
