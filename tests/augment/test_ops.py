"""Every operation equals Pillow's; every image gets its own noise, whatever the other images are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_inputs import FULL, PHOTOS, photos, synthetic, to_numpy, to_torch
from numpy.typing import NDArray
from PIL import Image
from pil_oracle import pil_operation

from noisystudent.augment import ops
from noisystudent.augment.plan import Plan, draw, identity
from noisystudent.augment.policies import DRAWN, Op, Policy, RandAugment, arguments
from noisystudent.errors import InputError

BLENDS = {Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS}


def one_of_each(count: int, side: int, magnitude: float, seed: int) -> Plan:
    """A plan with one operation for each image, one after the other, with alternating signs."""
    eighth = side // 8
    noise = RandAugment(num_ops=1, magnitude=magnitude)
    policy = Policy(randaugment=noise, translate_const=eighth, cutout_const=eighth)
    op = np.arange(count)[:, None] % len(DRAWN)
    sign = np.where(np.arange(count)[:, None] // len(DRAWN) % 2, -1.0, 1.0)
    drawn = draw(policy, seed, "test", 0, count, resolution=side)
    return replace(drawn, op=op, argument=arguments(policy, op, np.full(op.shape, magnitude), sign))


def assert_equals_pillow(images: NDArray[np.uint8], plan: Plan) -> None:
    result = to_numpy(ops.apply(to_torch(images), plan))
    for i, image in enumerate(images):
        op, argument, (row, column) = int(plan.op[i, 0]), plan.argument[i, 0], plan.centre[i, 0]
        expected = pil_operation(image.copy(), op, argument, (int(row), int(column)))
        worst = np.abs(expected.astype(int) - result[i]).max()
        assert worst <= (1 if op in BLENDS else 0), f"{Op(op).name} {argument}: off by {worst}"


@pytest.mark.parametrize("side", [32, 33])
def test_every_operation_equals_pillow_on_small_images(side: int) -> None:
    images = synthetic(side, 200)
    for magnitude in range(31):
        shifted = np.roll(images, magnitude, axis=0)  # so that each image gets many operations
        assert_equals_pillow(shifted, one_of_each(200, side, magnitude, seed=magnitude))


@pytest.mark.parametrize("magnitude", range(31))
def test_every_operation_equals_pillow_at_224(magnitude: int) -> None:
    images = np.roll(synthetic(224, 48), magnitude, axis=0)
    assert_equals_pillow(images, one_of_each(48, 224, magnitude, seed=magnitude))


@pytest.mark.slow
@pytest.mark.parametrize("magnitude", range(31))
def test_every_operation_equals_pillow_on_two_hundred_images_at_224(magnitude: int) -> None:
    images = np.roll(synthetic(224, 200), magnitude, axis=0)
    assert_equals_pillow(images, one_of_each(200, 224, magnitude, seed=magnitude))


@pytest.mark.parametrize("side", [32, 224])
def test_every_operation_equals_pillow_on_photographs(side: int) -> None:
    images = photos(side)
    for magnitude in range(0, 31, 1 if side == 32 else 3):
        shifted = np.roll(images, magnitude, axis=0)
        assert_equals_pillow(shifted, one_of_each(len(images), side, magnitude, seed=magnitude))


@settings(max_examples=25, deadline=None)
@given(magnitude=st.floats(0, 30), seed=st.integers(0, 1000))
def test_jittered_arguments_equal_pillow_too(magnitude: float, seed: int) -> None:
    assert_equals_pillow(synthetic(32, 32), one_of_each(32, 32, magnitude, seed))


@pytest.mark.parametrize("side", [32, 224, 320])
def test_official_contrast_blends_with_the_pixel_count(side: int) -> None:
    images = synthetic(side, 5)
    plan = one_of_each(5, side, 9, seed=0)
    plan = replace(
        plan, op=np.full((5, 1), int(Op.CONTRAST)), argument=np.full((5, 1), 1.72, dtype=np.float32)
    )
    official = replace(plan, policy=replace(plan.policy, quirks="official"))
    result = to_numpy(ops.apply(to_torch(images), official))
    grey = Image.new("RGB", (side, side), (min(side * side // 256, 255),) * 3)
    for image, noised in zip(images, result, strict=True):
        expected = np.asarray(Image.blend(grey, Image.fromarray(image), 1.72))
        assert np.abs(expected.astype(int) - noised).max() <= 1
    assert not np.array_equal(result, to_numpy(ops.apply(to_torch(images), plan)))


@pytest.mark.parametrize("crop_last", [False, True])
def test_crop_flip_and_cutout_equal_numpy(crop_last: bool) -> None:
    policy = Policy(crop="pad", flip=True, cutout=7, crop_last=crop_last)
    images, plan = synthetic(32, 60), draw(policy, 0, "test", 0, 60, resolution=32)
    result = to_numpy(ops.apply(to_torch(images), plan))

    def crop_flip(image: NDArray[np.uint8], i: int) -> NDArray[np.uint8]:
        down, right = plan.shift[i] + 4
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        window = padded[down : down + 32, right : right + 32]
        return window[:, ::-1] if plan.flip[i] else window

    for i, image in enumerate(images):
        expected = image.copy() if crop_last else crop_flip(image, i).copy()
        top, left = plan.square[i, :2] - 3
        expected[max(top, 0) : top + 7, max(left, 0) : left + 7] = 128
        assert np.array_equal(result[i], crop_flip(expected, i) if crop_last else expected)


def test_operations_are_applied_in_turn() -> None:
    images, plan = to_torch(synthetic(32, 40)), draw(FULL, 0, "test", 0, 40, resolution=32)
    expected = images
    bare = replace(FULL, crop="none", flip=False, cutout=0)
    still = identity(bare, 40, 32)
    stages = [replace(identity(FULL, 40, 32), shift=plan.shift, flip=plan.flip)]
    for k in range(3):
        one = {name: getattr(plan, name)[:, k : k + 1] for name in ("op", "argument", "centre")}
        stages.append(replace(still, **one))
    stages.append(replace(identity(FULL, 40, 32), square=plan.square))
    for stage in stages:
        expected = ops.apply(expected, stage)
    assert torch.equal(ops.apply(images, plan), expected)


def test_copies_of_one_image_get_their_own_noise() -> None:
    image = to_torch(photos(32)[:1]) if PHOTOS.exists() else to_torch(synthetic(32, 3)[2:])
    noised = ops.apply(image.expand(64, -1, -1, -1), draw(FULL, 0, "test", 0, 64, resolution=32))
    assert len({image.numpy().tobytes() for image in noised}) == 64


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), count=st.integers(1, 24), data=st.data())
def test_a_row_depends_on_nothing_but_itself(seed: int, count: int, data: st.DataObject) -> None:
    images, plan = to_torch(synthetic(32, 24)), draw(FULL, seed, "test", 0, 24, resolution=32)
    whole = ops.apply(images, plan)
    start = data.draw(st.integers(0, count - 1))
    assert torch.equal(ops.apply(images[start:count], plan.rows(start, count)), whole[start:count])
    assert torch.equal(
        ops.apply(images[:count], draw(FULL, seed, "test", 0, count, resolution=32)), whole[:count]
    )


def test_blocks_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    images, plan = to_torch(synthetic(32, 50)), draw(FULL, 0, "test", 0, 50, resolution=32)
    whole = ops.apply(images, plan)
    monkeypatch.setattr(ops, "BLOCK", 7 * 3 * 32 * 32)
    assert torch.equal(ops.apply(images, plan), whole)


def test_noised_images_can_be_trained_on() -> None:
    images = to_torch(synthetic(32, 8))
    weight = torch.ones(3, requires_grad=True)
    noised = ops.apply(images, draw(FULL, 0, "test", 0, 8, resolution=32)).float()
    (noised * weight[:, None, None]).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, noised.sum((0, 2, 3)))


@pytest.mark.parametrize("policy", [FULL, Policy(), replace(FULL, crop_last=True, quirks="official")])
def test_identity_plan_changes_nothing(policy: Policy) -> None:
    images = to_torch(synthetic(32, 10))
    assert torch.equal(ops.apply(images, identity(policy, 10, 32)), images)


def test_images_are_left_as_they_were() -> None:
    images = to_torch(synthetic(32, 20))
    before = images.clone()
    result = ops.apply(images, draw(FULL, 0, "test", 0, 20, resolution=32))
    assert torch.equal(images, before) and not torch.equal(result, before)


def test_an_empty_batch_stays_empty() -> None:
    assert ops.apply(torch.zeros(0, 3, 32, 32, dtype=torch.uint8), identity(FULL, 0, 32)).shape == (
        0,
        3,
        32,
        32,
    )


def test_images_must_fit_the_plan() -> None:
    plan = identity(FULL, 4, 32)
    for wrong in (torch.zeros(4, 3, 32, 32), to_torch(synthetic(32, 5)), to_torch(synthetic(33, 4))):
        with pytest.raises(InputError, match=r"this plan needs torch.uint8 \(4, 3, 32, 32\)"):
            ops.apply(wrong, plan)
