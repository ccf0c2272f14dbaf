"""What noise may do: timm's RandAugment notation, and the published table from magnitude to argument."""

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
    """The 16 operations of RandAugment v1, and doing nothing; neighbours share a kernel in `ops`."""

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
"""What RandAugment draws from, each with the same probability; another order is other noise for a seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandAugment:
    """`num_ops` operations drawn with replacement for every image (Cubuk et al., arXiv:1909.13719).

    Attributes:
        num_ops: N, operations an image.
        magnitude: M. Arguments are linear in M/10 and extrapolate above 10, as in the paper (M = 27).
        magnitude_std: Gaussian jitter of M for each operation; inf draws it uniformly from 0 to M.
        magnitude_max: levels are clipped to 0 … this. None: a fixed M is taken as it is (timm would clip it
            to 10), a jittered one is clipped to max(10, M).
        increasing: timm's `inc1`: posterize, solarize and (both ways) the four enhancements grow with M.
        prob: chance that a drawn operation is applied; 1 is the paper's (timm's default is 0.5).
    """

    num_ops: int = 2
    magnitude: float = 10.0
    magnitude_std: float = 0.0
    magnitude_max: float | None = None
    increasing: bool = False
    prob: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """All input noise of one set of images; build it with `build_policy`.

    Attributes:
        crop: none; pad: reflect-pad by an eighth of the side, random crop; inception: see `plan.crop_boxes`.
        flip: mirror left and right half of the time.
        randaugment: None switches it off.
        cutout: side in pixels of the grey square every image gets after RandAugment; 0 is off.
        quirks: 'defined' gives every operation its documented meaning. 'official' reproduces the published
            code where that is defined: Contrast blends with the grey level H·W/256 (at most 255) instead of
            the image's mean. Where it is undefined (posterize to fewer than 1 or more than 8 bits, solarize
            thresholds beyond 255) both keep the bits in 1 … 8 and leave the pixels alone.
        translate_const: pixels a translation moves at M = 10.
        cutout_const: half the side in pixels of RandAugment's own Cutout at M = 10.
        crop_last: crop and flip after RandAugment and cutout (the published order on 32 pixels), not before.
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
        """The kernels crop or flip; boxes of crop 'inception' are cut where images are decoded."""
        return self.crop == "pad" or self.flip


def build_policy(config: AugmentConfig, resolution: int) -> Policy:
    """The policy of `config` for square images of `resolution` pixels.

    The published code moves 100 and cuts 40 pixels at M = 10 on ImageNet whatever the resolution, and
    resolution // 8 for both on 32-pixel images. A large model's 100 pixels would empty a small image, so the
    second rule holds below 128 pixels (CIFAR, SVHN, Tiny ImageNet, STL) and the first from there on.

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
    "m (magnitude), n (operations), p (probability), mstd, mmax and inc are, as in rand-m27-n2 or "
    "rand-m9-n2-mstd0.5-inc1"
)


def parse_randaugment(text: str) -> RandAugment:
    """Read timm's notation: `rand-m27-n2` is the paper's N = 2, M = 27.

    Sections may come in any order; m is 10, n is 2 and p is 1 when not given. As in timm, an mstd above 100
    means uniform magnitudes. timm's named or weighted operation sets (`t…`, `w…`) are not supported.

    Raises:
        InputError: names the string, the section that is wrong and what is supported.
    """
    name, *sections = text.split("-")
    if name != "rand":
        raise InputError(f"augment.randaugment is {text!r}; it starts with 'rand', as in rand-m27-n2")
    found: dict[str, float] = {}
    for place, section in enumerate(sections, start=2):
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d*)?)", section)
        if match is None or match[1] not in _KEYS:
            raise _bad_section(text, place, section, f"is not supported; {_SUPPORTED}")
        key, value = match[1], float(match[2])
        if key in found:
            raise _bad_section(text, place, section, f"repeats {key}")
        if reason := _complaint(key, value):
            raise _bad_section(text, place, section, reason)
        found[key] = value
    return _from_numbers(found)


def _bad_section(text: str, place: int, section: str, reason: str) -> InputError:
    return InputError(f"augment.randaugment is {text!r}: section {place}, {section!r}, {reason}")


def _complaint(key: str, value: float) -> str:
    """What is wrong with a number of timm's notation; empty when nothing is."""
    if key == "n" and not (value.is_integer() and value >= 1):
        return "must be a whole number of operations, at least 1"
    if key == "p" and value > 1:
        return "must be a probability, at most 1"
    if key == "inc" and value not in (0, 1):
        return "must be inc0 or inc1"
    return ""


def _from_numbers(found: dict[str, float]) -> RandAugment:
    default = RandAugment()
    std = found.get("mstd", default.magnitude_std)
    return RandAugment(
        num_ops=int(found.get("n", default.num_ops)),
        magnitude=found.get("m", default.magnitude),
        magnitude_std=math.inf if std > 100 else std,
        magnitude_max=found.get("mmax"),
        increasing=bool(found.get("inc", default.increasing)),
        prob=found.get("p", default.prob),
    )


def levels(randaugment: RandAugment, normal: Floats, uniform: Floats) -> Floats:
    """Magnitudes of single operations.

    Args:
        randaugment: the policy's.
        normal: standard normal numbers of any shape, used by a finite `magnitude_std`.
        uniform: numbers in [0, 1) of the same shape, used by an infinite one.
    """
    magnitude, std, bound = randaugment.magnitude, randaugment.magnitude_std, randaugment.magnitude_max
    if std == 0:
        return np.full(normal.shape, magnitude if bound is None else min(magnitude, bound))
    level = uniform * magnitude if math.isinf(std) else magnitude + std * normal
    return np.clip(level, 0.0, max(10.0, magnitude) if bound is None else bound)


def arguments(policy: Policy, op: NDArray[np.int64], level: Floats, sign: Floats) -> NDArray[np.float32]:
    """What each operation is called with: the table of the published `randaugment.py`, at any level.

    Args:
        policy: its constants and whether severity increases.
        op: `Op` numbers.
        level: magnitudes M of the same shape.
        sign: -1 or 1, same shape: the direction of geometry, and of enhancements when severity increases.

    Returns:
        Degrees (positive turns counter-clockwise), shear and pixels (positive moves the content left or up),
        blend factor, bits, threshold, addition or half-side; 0 for operations without argument.
    """
    formulas = _formulas(policy, level / 10.0, sign)
    return np.choose(op, [formulas.get(which, 0.0) for which in Op]).astype(np.float32)


def _formulas(policy: Policy, x: Floats, sign: Floats) -> dict[Op, Floats]:
    """Operation -> argument at M/10 = x, truncated as in the published code."""
    increasing = policy.randaugment is not None and policy.randaugment.increasing
    enhance = np.maximum(0.1, 1.0 + sign * (x * 0.9)) if increasing else x * 1.8 + 0.1
    bits = np.trunc(x * 4)
    threshold = np.minimum(256, np.trunc(x * 256))
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
