"""Each row of a plan is a pure function of (seed, stream, step); crop boxes are those of Inception."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.augment import plan
from noisystudent.augment.policies import DRAWN, Op, Policy, parse_randaugment
from noisystudent.errors import InputError

FULL = Policy(crop="pad", flip=True, randaugment=parse_randaugment("rand-m9-n3-mstd0.5-p0.8"), cutout=8)
BOXES = Policy(crop="inception")


def same(one: plan.Plan, two: plan.Plan) -> bool:
    pairs = zip(one.arrays().values(), two.arrays().values(), strict=True)
    return one.policy == two.policy and all(np.array_equal(a, b) for a, b in pairs)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**40), step=st.integers(0, 10**7), small=st.integers(0, 20), more=st.integers(0, 20)
)
def test_rows_do_not_depend_on_the_batch_size(seed: int, step: int, small: int, more: int) -> None:
    part = plan.draw(FULL, seed, "pool", step, small, resolution=32)
    whole = plan.draw(FULL, seed, "pool", step, small + more, resolution=32)
    assert len(part) == small
    assert same(part, whole.rows(0, small))
    assert same(whole, plan.join([part, whole.rows(small, small + more)]))


def test_seed_stream_and_step_each_change_the_noise() -> None:
    base = plan.draw(FULL, 1, "pool", 5, 64, resolution=32)
    assert same(base, plan.draw(FULL, 1, "pool", 5, 64, resolution=32))
    for other in ((2, "pool", 5), (1, "labeled", 5), (1, "pool", 6)):
        assert not same(base, plan.draw(FULL, *other, 64, resolution=32))


def test_switching_a_part_off_leaves_the_other_draws() -> None:
    bare = Policy(crop="none", flip=False, randaugment=FULL.randaugment)
    full, part = (
        plan.draw(FULL, 0, "pool", 0, 64, resolution=32),
        plan.draw(bare, 0, "pool", 0, 64, resolution=32),
    )
    assert np.array_equal(full.op, part.op) and np.array_equal(full.argument, part.argument)
    assert full.shift.any() and full.flip.any() and full.square[:, 2].all()
    assert not part.shift.any() and not part.flip.any() and not part.square[:, 2].any()


def test_draws_are_uniform() -> None:
    policy = Policy(crop="pad", flip=True, randaugment=parse_randaugment("rand-m9-n2"), cutout=8)
    drawn = plan.draw(policy, 3, "pool", 0, 20_000, resolution=32)
    counts = np.bincount(drawn.op.ravel(), minlength=len(DRAWN))
    expected = drawn.op.size / len(DRAWN)
    assert len(counts) == len(DRAWN)
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # chi-square, 15 degrees of freedom, p = 0.001
    assert abs(drawn.flip.mean() - 0.5) < 0.015
    for places, low, high in ((drawn.shift, -4, 4), (drawn.square[:, :2], 0, 31), (drawn.centre, 0, 31)):
        assert set(np.unique(places)) == set(range(low, high + 1))
        assert abs(places.mean() - (low + high) / 2) < 0.3
    rotations = drawn.argument[drawn.op == Op.ROTATE]
    assert set(np.unique(rotations)) == {-27.0, 27.0} and abs((rotations > 0).mean() - 0.5) < 0.05


def test_a_seed_means_the_same_noise_in_every_version() -> None:
    drawn = plan.draw(FULL, 0, "pool", 0, 4, resolution=32)
    assert drawn.op.tolist() == [
        [Op.CUTOUT, Op.ROTATE, Op.POSTERIZE],
        [Op.SHEAR_Y, Op.SOLARIZE, Op.IDENTITY],
        [Op.IDENTITY, Op.COLOR, Op.SHEAR_X],
        [Op.IDENTITY, Op.POSTERIZE, Op.TRANSLATE_Y],
    ]
    assert drawn.argument[:2] == pytest.approx(np.array([[40, -27.604134, 3], [-0.27067998, 246, 0]]))
    assert drawn.shift.tolist() == [[4, 3], [-2, 2], [-1, 2], [-2, 0]]
    assert drawn.flip.tolist() == [False, True, False, False]


def test_jitter_is_gaussian_and_probability_is_kept() -> None:
    policy = Policy(randaugment=parse_randaugment("rand-m5-n2-mstd0.5-p0.25"))
    drawn = plan.draw(policy, 0, "pool", 0, 40_000, resolution=32)
    assert abs((drawn.op != Op.IDENTITY).mean() - 0.25) < 0.01
    level = (drawn.argument[drawn.op == Op.SHARPNESS] - 0.1) / 1.8 * 10
    assert abs(level.mean() - 5) < 0.05 and abs(level.std() - 0.5) < 0.04
    assert abs((np.abs(level - 5) < 0.5).mean() - 0.683) < 0.05


def test_identity_joins_with_noise_and_differing_policies_do_not() -> None:
    joined = plan.join([plan.identity(FULL, 3, 32), plan.draw(FULL, 0, "pool", 0, 4, resolution=32)])
    assert len(joined) == 7 and joined.op.shape == (7, 3)
    assert (joined.op[:3] == Op.IDENTITY).all() and joined.square[3:, 2].all()
    with pytest.raises(InputError, match="one policy"):
        plan.join([plan.identity(FULL, 3, 32), plan.identity(BOXES, 3, 32)])
    with pytest.raises(InputError, match="one policy"):
        plan.join([])


def test_boxes_are_inceptions() -> None:
    sizes = np.random.default_rng(0).integers(200, 900, (20_000, 2))
    boxes = plan.crop_boxes(BOXES, 0, "labeled", 0, sizes)
    assert boxes is not None and boxes.dtype == np.float32 and boxes.shape == (20_000, 4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all()
    pixels = boxes * np.tile(sizes, 2)
    assert np.abs(pixels - np.rint(pixels)).max() < 1e-3  # whole pixels
    area = boxes[:, 2] * boxes[:, 3]
    aspect = pixels[:, 3] / pixels[:, 2]
    fallback = (pixels[:, 2] == pixels[:, 3]) & (np.abs(pixels[:, 2] - 0.875 * sizes.min(1)) < 1)
    assert area[~fallback].min() > 0.08 * 0.97
    assert aspect.min() > 0.75 * 0.97 and aspect.max() < 4 / 3 * 1.03
    assert abs(np.log(aspect).mean()) < 0.02  # log-uniform: wide and tall are equally likely
    assert fallback.mean() < 0.02


def test_boxes_depend_on_their_own_row_only() -> None:
    sizes = np.array([[300, 400], [1, 1], [50, 2000], [224, 224]])
    boxes = plan.crop_boxes(BOXES, 0, "labeled", 7, sizes)
    fewer = plan.crop_boxes(BOXES, 0, "labeled", 7, sizes[:2])
    assert boxes is not None and fewer is not None
    assert np.array_equal(boxes[:2], fewer)
    assert boxes[1].tolist() == [0, 0, 1, 1]
    # No box of area 0.08 fits into an image 40 times as wide as tall: centre square of 43 pixels.
    assert np.rint(boxes[2] * [50, 2000, 50, 2000]).tolist() == [4, 979, 43, 43]


def test_other_crops_draw_no_boxes() -> None:
    assert plan.crop_boxes(FULL, 0, "labeled", 0, np.array([[10, 10]])) is None
    empty = plan.crop_boxes(BOXES, 0, "labeled", 0, np.zeros((0, 2), dtype=np.int32))
    assert empty is not None and empty.shape == (0, 4)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 2000), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_noise_drawn_for_rows_depends_on_each_row_alone(rows: list[int], seed: int) -> None:
    together = plan.draw_rows(FULL, seed, "embeddings", np.array(rows), resolution=32)
    alone = [plan.draw_rows(FULL, seed, "embeddings", np.array([row]), resolution=32) for row in rows]
    assert same(together, plan.join(alone))
    sizes = np.array([[100 + row % 50, 80] for row in rows])
    boxes = plan.crop_boxes_of_rows(BOXES, seed, "embeddings", np.array(rows), sizes)
    assert boxes is not None and plan.crop_boxes_of_rows(FULL, seed, "a", np.array(rows), sizes) is None
    for row, size, box in zip(rows, sizes, boxes, strict=True):
        single = plan.crop_boxes_of_rows(BOXES, seed, "embeddings", np.array([row]), size[None])
        assert single is not None and (single[0] == box).all()


def test_rows_have_different_noise() -> None:
    drawn = plan.draw_rows(FULL, 0, "embeddings", np.arange(600), resolution=32)
    assert len(np.unique(drawn.argument, axis=0)) > 590
