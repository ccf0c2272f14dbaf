"""Scaled networks equal the published ones, grow with phi, and are never above a budget."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models._efficientnet_builder import round_channels

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError
from noisystudent.models import build_model, scaling
from noisystudent.models.scaling import (
    PUBLISHED,
    Scaled,
    efficientnets,
    from_phi,
    grown,
    largest,
    multiply_adds,
    next_larger,
    parameters,
    wide_resnets,
)

torch.set_num_threads(1)

MILLIONS = dict(  # published
    b0=5.29, b1=7.79, b2=9.11, b3=12.23, b4=19.34, b5=30.39, b6=43.04, b7=66.35, l0=140, l1=273, l2=480.31
)
BILLIONS = dict(b0=0.39, b1=0.70, b2=1.0, b3=1.8, b4=4.2, b5=9.9, b6=19, b7=37)  # Tan and Le, table 2
FEW, MANY = (settings(max_examples=count, deadline=None) for count in (8, 40))
SMALL = [scaled for scaled in efficientnets() if scaled.width <= 1.2][::25]


def shapes(name: str, **options: object) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in timm.create_model(name, **options).state_dict().items()}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size: str) -> None:
    millions = parameters(PUBLISHED[size]) / 1e6
    if size in ("l0", "l1"):
        assert abs(millions - MILLIONS[size]) < 1  # the paper prints no decimals
    else:
        assert millions == pytest.approx(MILLIONS[size], rel=1e-3)
    if size in BILLIONS:
        assert multiply_adds(PUBLISHED[size]) / 1e9 == pytest.approx(BILLIONS[size], rel=0.05)


@pytest.mark.parametrize("prefix", ["", "tf_"])
@pytest.mark.parametrize("size", [size for size in PUBLISHED if size not in ("l0", "l1")])
def test_width_and_depth_of_the_table_build_timms_own(size: str, prefix: str) -> None:
    one = PUBLISHED[size]
    ours = shapes(f"{prefix}efficientnet_scaled", width=one.width, depth=one.depth)
    assert ours == shapes(f"{prefix}efficientnet_{size}")


@pytest.mark.parametrize("prefix", ["", "tf_"])
def test_what_has_timms_shapes_has_its_numbers(prefix: str) -> None:
    torch.manual_seed(0)
    ours = timm.create_model(f"{prefix}efficientnet_scaled", width=1.0, depth=1.1).eval()
    timms = timm.create_model(f"{prefix}efficientnet_b1").eval()
    timms.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 65, 65)  # the paddings differ for an odd side
    assert torch.equal(ours(images), timms(images))


@pytest.mark.parametrize("size", ["l0", "l1"])
def test_l0_and_l1_are_scaled_networks(size: str) -> None:
    one = PUBLISHED[size]
    expected = shapes("efficientnet_scaled", width=one.width, depth=one.depth)
    assert shapes(f"efficientnet_{size}") == shapes(f"tf_efficientnet_{size}") == expected
    with pytest.raises(InputError, match=f"'width', which is not an option of efficientnet_{size}"):
        build_model(ModelConfig(name=f"efficientnet_{size}", options={"width": 1.0}), 5, 32)


@MANY
@given(st.integers(1, 400), st.floats(0.3, 6.0))
def test_channels_are_multiples_of_8_and_never_below_nine_tenths(eighths: int, width: float) -> None:
    wanted = 8 * eighths * width
    channels = round_channels(8 * eighths, width)
    assert channels % 8 == 0 and channels >= 8
    assert channels >= 0.9 * wanted
    official = max(8, int(wanted + 4) // 8 * 8)
    assert channels == official + 8 * (official < 0.9 * wanted)


@FEW
@given(st.floats(0.3, 4.0), st.floats(0.3, 4.0))
def test_channels_and_blocks_of_a_built_network(width: float, depth: float) -> None:
    with torch.device("meta"):
        net = timm.create_model("efficientnet_scaled", width=width, depth=depth)
    assert [len(stage) for stage in net.blocks] == [math.ceil(n * depth) for n in (1, 2, 2, 3, 3, 4, 1)]
    channels = [stage[-1].conv_pw if i == 0 else stage[-1].conv_pwl for i, stage in enumerate(net.blocks)]
    expected = [round_channels(n, width) for n in (16, 24, 40, 80, 112, 192, 320)]
    assert [conv.out_channels for conv in channels] == expected
    assert net.conv_stem.out_channels == round_channels(32, width)
    assert net.num_features == round_channels(1280, width)


def test_phi_0_is_b0_and_dropout_follows_the_published_trend() -> None:
    origin, b0 = from_phi(0), PUBLISHED["b0"]
    assert replace(origin, name=b0.name) == b0
    assert [from_phi(i).dropout for i in range(8)] == [PUBLISHED[f"b{i}"].dropout for i in range(8)]
    assert (from_phi(-6).dropout, from_phi(12).dropout) == (0.2, 0.5)


@MANY
@given(st.floats(-6, 12), st.integers(16, 512))
def test_coefficients_are_powers(phi: float, base: int) -> None:
    one = from_phi(phi, base)
    assert one.width == pytest.approx(1.1**phi, abs=5e-4)
    assert one.depth == pytest.approx(1.2**phi, abs=5e-4)
    assert one.resolution % 8 == 0
    assert abs(one.resolution - base * 1.15**phi) <= 4 or one.resolution == 8


def test_a_step_of_phi_doubles_the_multiply_adds() -> None:
    sizes = [multiply_adds(from_phi(phi)) for phi in range(10)]
    assert (sizes[-1] / sizes[0]) ** (1 / 9) == pytest.approx(1.2 * 1.1**2 * 1.15**2, rel=0.01)
    steps = [larger / smaller for smaller, larger in pairwise(sizes)]
    assert all(1.6 < step < 2.3 for step in steps)  # rounding of channels and blocks


@FEW
@given(st.data())
@pytest.mark.parametrize("measure", [parameters, multiply_adds])
def test_a_budget_is_used_and_never_exceeded(measure: scaling.Measure, data: st.DataObject) -> None:
    low, high = (measure(SMALL[i]) for i in (0, -1))
    budgets = sorted(data.draw(st.tuples(st.floats(low, high), st.floats(low, high))))
    less, more = (largest(measure, budget, SMALL) for budget in budgets)
    assert measure(less) <= budgets[0] and measure(more) <= budgets[1]
    assert parameters(less) <= parameters(more) and multiply_adds(less) <= multiply_adds(more)
    for one, budget in ((less, budgets[0]), (more, budgets[1])):
        assert one == SMALL[-1] or measure(SMALL[SMALL.index(one) + 1]) > budget


@MANY
@given(st.integers(1, 60), st.floats(0, 70))
def test_every_family_and_every_measure(size: int, budget: float) -> None:
    family = [Scaled("any", 1.0, 1.0, side, 0.0) for side in range(1, size + 1)]
    measured: list[int] = []

    def seconds(one: Scaled) -> float:
        measured.append(one.resolution)
        return float(one.resolution)

    if budget < 1:
        with pytest.raises(InputError, match="the smallest network needs 1"):
            largest(seconds, budget, family)
        return
    assert largest(seconds, budget, family).resolution == min(size, int(budget))
    assert max(measured) <= budget + max(1, size // 18)


def test_no_network_measured_is_much_above_the_budget() -> None:
    measured: list[int] = []

    def seconds(one: Scaled) -> float:
        measured.append(multiply_adds(one))
        return multiply_adds(one) / 1e10

    network = largest(seconds, 0.05)
    assert multiply_adds(network) <= 5e8 < max(measured) < 4 * 5e8
    assert len(measured) < 20
    family = efficientnets()
    assert multiply_adds(family[family.index(network) + 1]) > 5e8


def test_a_budget_gives_a_model() -> None:
    config = largest(partial(parameters, num_classes=10), 3e6, efficientnets(base=32)).model_config()
    with torch.device("meta"):
        net = build_model(config, 10, config.resolution or 0).net
    assert 2.4e6 < sum(p.numel() for p in net.parameters()) <= 3e6
    assert PUBLISHED["l0"].model_config().dropout == 0.5


def test_a_budget_of_a_wide_resnet() -> None:
    count = partial(parameters, num_classes=10)
    expected = ModelConfig(name="wrn28_10", resolution=32, dropout=0.0)
    assert largest(count, 36.5e6, wide_resnets()).model_config() == expected
    network = largest(count, 30e6, wide_resnets())
    assert (network.name, network.width) == ("wrn_scaled", 9)
    assert largest(multiply_adds, 5.25e9, wide_resnets()).name == "wrn28_10"


@pytest.mark.parametrize(("phi", "base"), [(-6.01, 224), (12.5, 224), (float("nan"), 224), (0, 4)])
def test_what_cannot_be_scaled_is_named(phi: float, base: int) -> None:
    with pytest.raises(InputError, match="base is 4" if base == 4 else f"phi is {phi:g}.*-6 and 12"):
        from_phi(phi, base)


@pytest.mark.parametrize("name", ["efficientnet_scaled", "tf_efficientnet_scaled", "wrn_scaled"])
def test_a_scaled_model_learns(name: str) -> None:
    options: dict[str, object] = {"width": 1, "depth": 10} if name[0] == "w" else {"width": 0.3, "depth": 0.4}
    model = build_model(ModelConfig(name=name, options=options, stochastic_depth=0.5), 3, 32, seed=1).train()
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(6) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.noise.draw(0, 0, torch.ones(6, dtype=torch.bool))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_wrn_scaled_is_the_wide_resnet() -> None:
    assert shapes("wrn_scaled", width=4, depth=16) == shapes("wrn16_4")
    assert shapes("wrn_scaled") == shapes("wrn28_2")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("efficientnet_scaled", {"width": -1}, "'width' -1; it must be a number above 0"),
        ("efficientnet_scaled", {"depth": "deep"}, "'depth' 'deep'; it must be a number above 0"),
        ("efficientnet_scaled", {"width": 1e9}, "at most 32"),
        ("efficientnet_scaled", {"phi": 1}, "'phi', which is not an option of efficientnet_scaled"),
        ("wrn_scaled", {"width": 1.5}, "'width' 1.5; it must be a whole number"),
        ("wrn_scaled", {"depth": 27}, "'depth' 27; it must be 6 n [+] 4"),
    ],
)
def test_sizes_that_are_none_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build_model(ModelConfig(name=name, options=options), 5, 32)
    assert "\n" not in str(error.value)


def test_importing_again_neither_warns_nor_replaces() -> None:
    before, names = timm.model_entrypoint("efficientnet_scaled"), dict(vars(scaling))
    importlib.reload(scaling).register()  # warnings are errors
    vars(scaling).update(names)  # other tests hold the classes of before
    assert timm.model_entrypoint("efficientnet_scaled") is before


def chain(name: str) -> list[str]:
    names = [name]
    while names[-1] in scaling.LARGER:
        names.append(next_larger(names[-1]))
    return names


def test_chains() -> None:
    letters = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "l2"]
    for prefix in ("efficientnet_", "tf_efficientnet_"):
        assert chain(f"{prefix}b0") == [prefix + size for size in letters]
        assert chain(f"{prefix}l0") == [prefix + size for size in ("l0", "l1", "l2")]
    assert chain("wrn28_2") == ["wrn28_2", "wrn28_4", "wrn28_8", "wrn28_10"]
    assert chain("wrn16_1") == ["wrn16_1", "wrn16_2", "wrn16_4"]
    assert chain("resnet8_16") == ["resnet8_16", "resnet8_32", "resnet8_64"]
    assert next_larger("tf_efficientnet_b0.ns_jft_in1k") == "tf_efficientnet_b1"


@pytest.mark.parametrize("name", sorted(scaling.LARGER))
def test_the_next_model_is_larger_and_exists(name: str) -> None:
    sizes = [sum(math.prod(shape) for shape in shapes(one).values()) for one in (name, next_larger(name))]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    "name", ["efficientnet_l2", "wrn28_10", "resnet8_64", "efficientnet_b0_32px", "resnet50", "none"]
)
def test_the_largest_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"model.name is {name}, which has no next larger") as error:
        next_larger(name)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="give the student's model by name"):
        grown(ModelConfig(name=name))


def test_grown_keeps_all_but_the_size() -> None:
    before = ModelConfig(name="efficientnet_b0", dropout=0.3, resolution=96)
    assert grown(before) == ModelConfig(name="efficientnet_b1", dropout=0.3, resolution=96)
    before = ModelConfig(name="wrn_scaled", options={"width": 10, "global_pool": "max"})
    assert grown(before).options == {"width": 15, "global_pool": "max"}
    with pytest.raises(InputError, match="grown"):
        next_larger("wrn_scaled")


@MANY
@given(st.floats(-6, 11))
def test_a_scaled_model_grows_by_one_step_of_phi(phi: float) -> None:
    larger, expected = grown(from_phi(phi).model_config()), from_phi(phi + 1)
    assert larger.options["width"] == pytest.approx(expected.width, abs=2e-3)
    assert larger.options["depth"] == pytest.approx(expected.depth, abs=2e-3)
