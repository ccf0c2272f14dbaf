"""Noise policies: timm's RandAugment notation, and the published table from magnitude to argument."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from noisystudent.config import AugmentConfig
from noisystudent.errors import InputError

Floats = NDArray[np.float64]


class Op(IntEnum):
    """The 16 operations of RandAugment v1 and the identity; neighbours share a kernel in `ops`."""

    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    POSTERIZE = 3
    SOLARIZE = 4
    SOLARIZE_ADD = 5
    BRIGHTNESS = 6
    CONTRAST = 7
    COLOR = 8
    SHARPNESS = 9
    ROTATE = 10
    SHEAR_X = 11
    SHEAR_Y = 12
    TRANSLATE_X = 13
    TRANSLATE_Y = 14
    CUTOUT = 15
    IDENTITY = 16


DRAWN = (
    *(Op.AUTO_CONTRAST, Op.EQUALIZE, Op.CONTRAST, Op.INVERT, Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD),
    *(Op.BRIGHTNESS, Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.COLOR),
    *(Op.SHARPNESS, Op.CUTOUT),
)
"""Operations that RandAugment draws, with equal probability.

Do not change the order: it determines the noise of a seed.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandAugment:
    """RandAugment: operations drawn with replacement for each image (Cubuk et al., arXiv:1909.13719).

    Attributes:
        num_ops: N, number of operations for each image.
        magnitude: M. Arguments are linear in M/10 and extrapolate above 10, as in the paper (M = 27).
        magnitude_std: standard deviation of a Gaussian jitter of M, drawn for each operation. inf: the
            magnitude is uniform from 0 to M.
        magnitude_max: magnitudes are clipped to 0 … this value. None: a fixed M is not clipped (timm clips it
            to 10), a jittered M is clipped to 0 … max(10, M).
        increasing: timm's `inc1`: the effect of posterize and solarize grows with M, and so does the effect
            of brightness, contrast, colour and sharpness, in both directions.
        prob: probability that a drawn operation is applied; 1 in the paper (timm's default is 0.5).
    """

    num_ops: int = 2
    magnitude: float = 10.0
    magnitude_std: float = 0.0
    magnitude_max: float | None = None
    increasing: bool = False
    prob: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """All input noise of one set of images; `build_policy` builds it.

    Attributes:
        crop: 'none'; 'pad': reflect-pad by an eighth of the side, then crop at random; 'inception': see
            `plan.crop_boxes`.
        flip: mirror left and right with probability 1/2.
        randaugment: None: no RandAugment.
        cutout: side in pixels of the grey square that every image gets after RandAugment; 0: no square.
        quirks: 'defined' gives every operation its documented meaning. 'official' reproduces the published
            code where its behaviour is defined: Contrast blends with the grey level H·W/256 (at most 255)
            instead of the mean of the image. Where the published code is undefined (posterize to fewer than
            1 or more than 8 bits, solarize thresholds above 255), both values clip the bits to 1 … 8, and
            such a threshold changes no pixel.
        translate_const: distance in pixels of a translation at M = 10.
        cutout_const: half the side in pixels of RandAugment's own Cutout at M = 10.
        crop_last: True: crop and flip after RandAugment and cutout, the published order on 32 pixels.
            False: crop and flip first.
    """

    crop: Literal["none", "pad", "inception"] = "none"
    flip: bool = False
    randaugment: RandAugment | None = None
    cutout: int = 0
    quirks: Literal["defined", "official"] = "defined"
    translate_const: int = 100
    cutout_const: int = 40
    crop_last: bool = False

    @property
    def moves(self) -> bool:
        """True if the kernels crop or flip. Crop 'inception' is done when images are decoded."""
        return self.crop == "pad" or self.flip


def build_policy(config: AugmentConfig, resolution: int) -> Policy:
    """Build the policy of `config` for square images.

    At M = 10 the published code translates by 100 pixels and cuts out 40 pixels on ImageNet, at every
    resolution. On 32-pixel images it uses resolution // 8 for both. A translation by 100 pixels would move a
    small image out of view. So the second rule is used below 128 pixels (CIFAR, SVHN, Tiny ImageNet, STL),
    and the first rule from 128 pixels.

    Args:
        config: configuration of the noise.
        resolution: side of the images in pixels.

    Raises:
        InputError: `config.randaugment` is not in timm's notation.
    """
    small = resolution < 128
    return Policy(
        crop=config.crop,
        flip=config.flip,
        randaugment=None if config.randaugment is None else parse_randaugment(config.randaugment),
        cutout=config.cutout,
        quirks=config.quirks,
        translate_const=resolution // 8 if small else 100,
        cutout_const=resolution // 8 if small else 40,
        crop_last=config.quirks == "official" and config.crop == "pad",
    )


_KEYS = ("m", "n", "p", "mstd", "mmax", "inc")
_SUPPORTED = (
    "use m (magnitude), n (operations), p (probability), mstd, mmax, inc, as in rand-m27-n2 or "
    "rand-m9-n2-mstd0.5-inc1"
)


def parse_randaugment(text: str) -> RandAugment:
    """Parse timm's notation: `rand-m27-n2` is N = 2 and M = 27, as in the paper.

    Sections may come in any order. The defaults are m = 10, n = 2 and p = 1. As in timm, an mstd above 100
    means uniform magnitudes. timm's named or weighted operation sets (`t…`, `w…`) are not supported.

    Raises:
        InputError: `text` is not in this notation. The message names the text, the wrong section and the
            supported keys.
    """
    name, *sections = text.split("-")
    if name != "rand":
        raise InputError(f"augment.randaugment is {text!r}; it must start with 'rand', as in rand-m27-n2")
    numbers: dict[str, float] = {}
    for place, section in enumerate(sections, start=2):  # section 1 is `rand`
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d*)?)", section)
        if match is None or match[1] not in _KEYS:
            raise _bad_section(text, place, section, f"is not supported; {_SUPPORTED}")
        key, value = match[1], float(match[2])
        if key in numbers:
            raise _bad_section(text, place, section, f"repeats {key}")
        if reason := _number_fault(key, value):
            raise _bad_section(text, place, section, reason)
        numbers[key] = value
    return _from_numbers(numbers)


def _bad_section(text: str, place: int, section: str, reason: str) -> InputError:
    """Error for one section; `place` counts from 1, and `rand` is section 1."""
    return InputError(f"augment.randaugment is {text!r}: section {place}, {section!r}, {reason}")


def _number_fault(key: str, value: float) -> str:
    """Reason why a number of timm's notation is not allowed; empty if it is allowed."""
    if key == "n" and not (value.is_integer() and value >= 1):
        return "must be a whole number of operations, at least 1"
    if key == "p" and value > 1:
        return "must be a probability, at most 1"
    if key == "inc" and value not in (0, 1):
        return "must be inc0 or inc1"
    return ""


def _from_numbers(numbers: dict[str, float]) -> RandAugment:
    """RandAugment with the given numbers by key of timm's notation, and defaults for the others."""
    default = RandAugment()
    std = numbers.get("mstd", default.magnitude_std)
    return RandAugment(
        num_ops=int(numbers.get("n", default.num_ops)),
        magnitude=numbers.get("m", default.magnitude),
        magnitude_std=math.inf if std > 100 else std,
        magnitude_max=numbers.get("mmax"),
        increasing=bool(numbers.get("inc", default.increasing)),
        prob=numbers.get("p", default.prob),
    )


def levels(randaugment: RandAugment, normal: Floats, uniform: Floats) -> Floats:
    """Compute the magnitude of each operation.

    Args:
        randaugment: RandAugment of the policy.
        normal: standard normal numbers of any shape, used if `magnitude_std` is finite.
        uniform: numbers in [0, 1) of the same shape, used if `magnitude_std` is infinite.

    Returns:
        Magnitudes of the same shape.
    """
    magnitude, std, bound = randaugment.magnitude, randaugment.magnitude_std, randaugment.magnitude_max
    if std == 0:
        return np.full(normal.shape, magnitude if bound is None else min(magnitude, bound))
    # Two different draws: a finite `magnitude_std` is a jitter, an infinite one is uniform from 0 to M.
    level = uniform * magnitude if math.isinf(std) else magnitude + std * normal
    return np.clip(level, 0.0, max(10.0, magnitude) if bound is None else bound)


def arguments(policy: Policy, op: NDArray[np.int64], level: Floats, sign: Floats) -> NDArray[np.float32]:
    """Compute the argument of each operation by the published table (`randaugment.py`), at any magnitude.

    Args:
        policy: gives the constants, and whether the effect grows with M (`RandAugment.increasing`).
        op: `Op` numbers of any shape.
        level: magnitudes M of the same shape.
        sign: -1 or 1, of the same shape: direction of geometric operations, and of brightness, contrast,
            colour and sharpness if the effect grows with M.

    Returns:
        Array of the same shape: degrees (positive rotates counter-clockwise), shear or pixels (positive moves
        the content left or up), blend factor, bits, threshold, addition or half side. 0 for operations
        without an argument.
    """
    # Every formula is computed for all elements, then the one of the operation is chosen.
    formulas = _formulas(policy, level / 10.0, sign)
    return np.choose(op, [formulas.get(operation, 0.0) for operation in Op]).astype(np.float32)


def _formulas(policy: Policy, x: Floats, sign: Floats) -> dict[Op, Floats]:
    """Argument of each operation at M/10 = x, truncated as in the published code."""
    increasing = policy.randaugment is not None and policy.randaugment.increasing
    # Factor of the blend: 1 keeps the image, 0 gives the image to blend with.
    enhance = np.maximum(0.1, 1.0 + sign * (x * 0.9)) if increasing else x * 1.8 + 0.1
    bits = np.trunc(x * 4)
    threshold = np.minimum(256, np.trunc(x * 256))  # a threshold of 256 changes no pixel
    shear, translate = sign * (x * 0.3), sign * (x * policy.translate_const)
    return {
        Op.POSTERIZE: np.clip(4 - bits if increasing else bits, 1, 8),
        Op.SOLARIZE: 256 - threshold if increasing else threshold,
        Op.SOLARIZE_ADD: np.trunc(x * 110),
        Op.BRIGHTNESS: enhance,
        Op.CONTRAST: enhance,
        Op.COLOR: enhance,
        Op.SHARPNESS: enhance,
        Op.ROTATE: sign * (x * 30.0),
        Op.SHEAR_X: shear,
        Op.SHEAR_Y: shear,
        Op.TRANSLATE_X: translate,
        Op.TRANSLATE_Y: translate,
        Op.CUTOUT: np.trunc(x * policy.cutout_const),
    }
