"""The published magnitude table, timm's notation, and the constants of small and large images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from noisystudent.augment.policies import (
    DRAWN,
    Op,
    Policy,
    RandAugment,
    arguments,
    build_policy,
    levels,
    parse_randaugment,
)
from noisystudent.config import AugmentConfig
from noisystudent.errors import InputError

# Reference table of the published code: argument at M = 5, 15, 27 (positive sign; ImageNet constants)
PUBLISHED = {
    Op.ROTATE: (15, 45, 81),
    Op.SHEAR_X: (0.15, 0.45, 0.81),
    Op.SHEAR_Y: (0.15, 0.45, 0.81),
    Op.TRANSLATE_X: (50, 150, 270),
    Op.TRANSLATE_Y: (50, 150, 270),
    Op.COLOR: (1.0, 2.8, 4.96),
    Op.CONTRAST: (1.0, 2.8, 4.96),
    Op.BRIGHTNESS: (1.0, 2.8, 4.96),
    Op.SHARPNESS: (1.0, 2.8, 4.96),
    Op.POSTERIZE: (2, 6, 8),  # 10 bits at M = 27 are undefined in the code; all 8 are kept
    Op.SOLARIZE: (128, 256, 256),  # 384 and 691 are above every pixel
    Op.SOLARIZE_ADD: (55, 165, 297),
    Op.CUTOUT: (20, 60, 108),
    Op.AUTO_CONTRAST: (0, 0, 0),
    Op.EQUALIZE: (0, 0, 0),
    Op.INVERT: (0, 0, 0),
}
SIGNED = {Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y}


def argument(policy: Policy, op: int, level: float, sign: float = 1.0) -> float:
    return float(arguments(policy, np.array([op]), np.array([level]), np.array([sign]))[0])


@pytest.mark.parametrize("op", DRAWN)
def test_arguments_are_the_published_table(op: Op) -> None:
    policy = build_policy(AugmentConfig(crop="inception", randaugment="rand-m27-n2"), 224)
    for level, expected in zip((5, 15, 27), PUBLISHED[op], strict=True):
        assert argument(policy, op, level) == pytest.approx(expected, rel=1e-6)
        sign = -1 if op in SIGNED else 1
        assert argument(policy, op, level, -1.0) == pytest.approx(sign * expected, rel=1e-6)


def test_enhancement_at_magnitude_5_is_exactly_the_identity() -> None:
    assert argument(Policy(), Op.COLOR, 5) == 1.0


def test_small_images_move_and_cut_an_eighth() -> None:
    config = AugmentConfig(randaugment="rand-m5-n2")
    small, large = build_policy(config, 32), build_policy(config, 128)
    assert (small.translate_const, small.cutout_const) == (4, 4)
    assert (large.translate_const, large.cutout_const) == (100, 40)
    assert argument(small, Op.TRANSLATE_X, 5) == 2.0
    assert argument(small, Op.CUTOUT, 5) == 2.0


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("level", [0.0, 1.0, 3.3, 5.0, 9.0, 9.9])
def test_arguments_agree_with_timm(increasing: bool, level: float) -> None:
    timm = pytest.importorskip("timm.data.auto_augment")
    policy = Policy(randaugment=RandAugment(increasing=increasing), translate_const=100)
    grows = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}
    for op in DRAWN:
        name = op.name.title().replace("_", "")
        if op is Op.CUTOUT or timm.LEVEL_TO_ARG[name] is None:
            continue
        ours = {argument(policy, op, level, sign) for sign in (-1.0, 1.0)}
        formula = timm.LEVEL_TO_ARG[name + "Increasing" * (increasing and name in grows)]
        timms = {np.float32(formula(level, {"translate_const": 100})[0]) for _ in range(60)}
        if op is Op.POSTERIZE:  # timm passes 0 bits to Pillow, which raises an error
            timms = {np.float32(max(1.0, float(bits))) for bits in timms}
        assert sorted(ours) == pytest.approx(sorted(timms))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand-m27-n2", RandAugment(magnitude=27, num_ops=2)),
        ("rand-n1-m5", RandAugment(magnitude=5, num_ops=1)),
        ("rand-m9-n2-mstd0.5", RandAugment(magnitude=9, magnitude_std=0.5)),
        ("rand-m9-mstd0.5-inc1", RandAugment(magnitude=9, magnitude_std=0.5, increasing=True)),
        ("rand-m9-inc0", RandAugment(magnitude=9)),
        ("rand-mstd101", RandAugment(magnitude_std=math.inf)),
        (
            "rand-m15-mmax30-mstd1-p0.5",
            RandAugment(magnitude=15, magnitude_max=30, magnitude_std=1, prob=0.5),
        ),
        ("rand", RandAugment(num_ops=2, magnitude=10)),
    ],
)
def test_parses_timm_notation(text: str, expected: RandAugment) -> None:
    assert parse_randaugment(text) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("augmix-m3", "must start with 'rand'"),
        ("rand-m9-tweights", "section 3, 'tweights', is not supported"),
        ("rand-m9-w0", "section 3, 'w0'"),
        ("rand-m9-n2-q1", "section 4, 'q1'"),
        ("rand-m", "section 2, 'm'"),
        ("rand--m9", "section 2, ''"),
        ("rand-m-9", "section 2, 'm'"),
        ("rand-m9-m8", "section 3, 'm8', repeats m"),
        ("rand-n0", "section 2, 'n0', must be a whole number"),
        ("rand-n1.5", "must be a whole number"),
        ("rand-p1.5", "must be a probability"),
        ("rand-inc2", "must be inc0 or inc1"),
    ],
)
def test_wrong_notation_is_named(text: str, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_randaugment(text)
    assert repr(text) in str(caught.value) and fault in str(caught.value)


def test_levels_follow_the_notation() -> None:
    normal, uniform = np.array([-30.0, -1.0, 0.0, 1.0, 30.0]), np.array([0.0, 0.25, 0.5, 0.75, 0.99])

    def of(text: str) -> list[float]:
        return [float(level) for level in levels(parse_randaugment(text), normal, uniform)]

    assert of("rand-m27") == [27.0] * 5
    assert of("rand-m27-mmax10") == [10.0] * 5
    assert of("rand-m9-mstd0.5") == [0.0, 8.5, 9.0, 9.5, 10.0]
    assert of("rand-m27-mstd1") == [0.0, 26.0, 27.0, 27.0, 27.0]
    assert of("rand-m9-mstd0.5-mmax30") == [0.0, 8.5, 9.0, 9.5, 24.0]
    assert of("rand-m8-mstd101") == [0.0, 2.0, 4.0, 6.0, 7.92]


def test_policy_takes_everything_from_the_configuration() -> None:
    svhn = AugmentConfig(crop="pad", flip=False, randaugment="rand-m5-n2", cutout=16, quirks="official")
    policy = build_policy(svhn, 32)
    assert (policy.crop, policy.flip, policy.cutout, policy.crop_last) == ("pad", False, 16, True)
    assert policy.randaugment == RandAugment(magnitude=5, num_ops=2)
    imagenet = build_policy(AugmentConfig(crop="inception", quirks="official", randaugment=None), 224)
    assert imagenet.randaugment is None and not imagenet.crop_last
