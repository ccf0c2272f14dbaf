"""Model noise is drawn for each image, reproducible, unbiased, and off until it is drawn."""

import copy
import io
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noised_networks import feature_masks, path_masks, paths, tiny
from timm.layers import DropPath
from torch import nn

from noisystudent.errors import InputError
from noisystudent.models.noise import MaskedDropPath, ModelNoise

torch.set_num_threads(1)

TINY = [
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
    "test_vit",
    "test_byobnet",
    "resnet8_16",
    "wrn10_1",
]
MASKS = settings(max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def net() -> Any:
    return tiny("wrn10_1")


@pytest.fixture(scope="module")
def noise(net: nn.Module) -> ModelNoise:
    return ModelNoise(net, 0.3, 0.5)


@pytest.mark.parametrize("name", TINY)
def test_every_drop_path_is_replaced_by_one_of_the_same_rate(name: str) -> None:
    net = tiny(name)
    names = set(net.state_dict())
    rates = [module.drop_prob for module in net.modules() if isinstance(module, DropPath)]
    ModelNoise(net, 0.2, 0.5)
    assert [path.rate for path in paths(net)] == rates
    assert rates == sorted(rates)
    assert not any(isinstance(module, DropPath) for module in net.modules())
    assert set(net.state_dict()) == names


@pytest.mark.parametrize("name", TINY)
def test_without_a_draw_the_network_is_timms(name: str) -> None:
    images = torch.randn(3, 3, 32, 32)
    net = tiny(name)
    expected = net(images)
    training = copy.deepcopy(net).train()
    noise = ModelNoise(net, 0.5, 0.5)
    assert torch.equal(net(images), expected)
    noise.draw(0, 0, torch.ones(3, dtype=torch.bool))
    assert not torch.allclose(net(images), expected)
    noise.off()
    assert torch.equal(net(images), expected)
    for module in training.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    torch.testing.assert_close(net.train()(images), training(images))  # train() does not switch the noise on


@pytest.mark.parametrize("name", TINY)
def test_rows_are_noised_one_by_one(name: str) -> None:
    images = torch.randn(4, 3, 32, 32)
    net = tiny(name, 0.6)
    clean = net(images)
    noise = ModelNoise(net, 0.5, 0.6)
    noise.draw(3, 7, torch.tensor([True, False, True, False]), split=2)
    noised = net(images)
    torch.testing.assert_close(noised[[1, 3]], clean[[1, 3]])
    assert not torch.allclose(noised[0], clean[0])
    assert not torch.allclose(noised[2], clean[2])


def test_masks_do_what_timms_drop_path_does(net: nn.Module, noise: ModelNoise) -> None:
    branch = torch.randn(6, 2, 3, 3)
    noise.draw(0, 1, torch.ones(6, dtype=torch.bool))
    path = paths(net)[-1]
    assert path.mask is not None
    kept = path.mask > 0
    torch.testing.assert_close(path(branch)[kept], branch[kept] / (1 - path.rate))
    assert (path(branch)[~kept] == 0).all()
    assert path(branch.bfloat16()).dtype == torch.bfloat16


@MASKS
@given(
    seed=st.integers(0, 2**40), step=st.integers(0, 10**6), labeled=st.integers(0, 6), pool=st.integers(0, 6)
)
def test_values_and_determinism(
    net: nn.Module, noise: ModelNoise, seed: int, step: int, labeled: int, pool: int
) -> None:
    active = torch.arange(labeled + pool) % 3 > 0
    noise.draw(seed, step, active, split=labeled)
    masks, features = path_masks(net), feature_masks(net, labeled + pool)
    assert (masks[:, ~active] == 1).all()
    assert (features[~active] == 1).all()
    kept = 1 / (1 - torch.tensor([path.rate for path in paths(net)]))[:, None].expand_as(masks)
    assert ((masks == 0) | (masks == kept))[:, active].all()
    assert ((features == 0) | torch.isclose(features, torch.tensor(1 / 0.7)))[active].all()
    noise.draw(seed, step + 1, active, split=labeled)
    noise.draw(seed, step, active, split=labeled)
    assert torch.equal(path_masks(net), masks)
    assert torch.equal(feature_masks(net, labeled + pool), features)


@MASKS
@given(
    seed=st.integers(0, 1000),
    labeled=st.integers(1, 8),
    pool=st.lists(st.booleans(), max_size=8),
    other=st.lists(st.booleans(), max_size=8),
)
def test_one_part_does_not_move_the_other(
    net: nn.Module, noise: ModelNoise, seed: int, labeled: int, pool: list[bool], other: list[bool]
) -> None:
    drawn = []
    for rows in (pool, other):
        noise.draw(seed, 5, torch.tensor([True] * labeled + rows), split=labeled)
        drawn.append((path_masks(net)[:, :labeled], feature_masks(net, labeled + len(rows))[:labeled]))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])


@MASKS
@given(seed=st.integers(0, 1000), size=st.integers(1, 40), first=st.integers(1, 40))
def test_first_rows_do_not_depend_on_the_size(
    net: nn.Module, noise: ModelNoise, seed: int, size: int, first: int
) -> None:
    first = min(first, size)
    noise.draw(seed, 2, torch.ones(size, dtype=torch.bool))
    masks, features = path_masks(net), feature_masks(net, size)
    noise.draw(seed, 2, torch.ones(first, dtype=torch.bool))
    assert torch.equal(path_masks(net), masks[:, :first])
    assert torch.equal(feature_masks(net, first), features[:first])


def test_dropout_does_not_depend_on_stochastic_depth() -> None:
    masks = []
    for depth in (0.0, 0.5):
        net = tiny("resnet8_16")
        ModelNoise(net, 0.5, depth).draw(0, 3, torch.ones(9, dtype=torch.bool))
        masks.append(feature_masks(net, 9))
    assert torch.equal(*masks)


def test_switching_a_row_off_leaves_its_neighbours(net: nn.Module, noise: ModelNoise) -> None:
    noise.draw(0, 3, torch.ones(8, dtype=torch.bool), split=4)
    masks = path_masks(net)
    active = torch.tensor([True, False, True, True, False, True, True, False])
    noise.draw(0, 3, active, split=4)
    assert torch.equal(path_masks(net)[:, active], masks[:, active])


def test_the_two_parts_and_the_seeds_differ(net: nn.Module, noise: ModelNoise) -> None:
    noise.draw(0, 0, torch.ones(64, dtype=torch.bool), split=32)
    masks = path_masks(net)
    assert not torch.equal(masks[:, :32], masks[:, 32:])
    noise.draw(1, 0, torch.ones(64, dtype=torch.bool), split=32)
    assert not torch.equal(path_masks(net), masks)


def test_expectation_is_preserved(net: nn.Module, noise: ModelNoise) -> None:
    rows = 20_000
    noise.draw(0, 0, torch.ones(rows, dtype=torch.bool), split=rows // 2)
    rates = torch.tensor([path.rate for path in paths(net)])
    masks, features = path_masks(net), feature_masks(net, rows)
    spread = (rates / (1 - rates) / rows).sqrt()  # of the mean of `rows` masks
    assert ((masks.mean(1) - 1).abs() < 4.5 * spread).all()
    assert (((masks == 0).float().mean(1) - rates).abs() < 0.02).all()
    assert abs(features.mean() - 1) < 4.5 * (0.3 / 0.7 / features.numel()) ** 0.5
    neighbours = torch.corrcoef(torch.cat([masks, features[:, :4].T]))
    assert (neighbours - torch.eye(len(neighbours))).abs().max() < 4.5 / rows**0.5


def test_global_generators_are_left_alone(net: nn.Module, noise: ModelNoise) -> None:
    before = torch.get_rng_state()
    noise.draw(0, 0, torch.ones(4, dtype=torch.bool))
    net.train()(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    net.eval()
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_keep_their_memory(net: nn.Module, noise: ModelNoise) -> None:
    with torch.inference_mode():  # as in labelling by a teacher with noise
        noise.draw(0, 0, torch.ones(4, dtype=torch.bool))
    path = paths(net)[0]
    assert path.mask is not None
    address = path.mask.data_ptr()
    noise.off()
    noise.draw(0, 1, torch.ones(4, dtype=torch.bool))
    assert path.mask.data_ptr() == address


def test_a_copy_starts_clean_and_has_masks_of_its_own() -> None:
    images = torch.randn(4, 3, 16, 16)
    net = tiny("resnet8_16")
    clean = net(images)
    net.noise = ModelNoise(net, 0.5, 0.5)
    net.noise.draw(0, 0, torch.ones(4, dtype=torch.bool))
    noised = net(images)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(images), clean)
    twin.noise.draw(0, 0, torch.ones(4, dtype=torch.bool))
    assert torch.equal(twin(images), noised)
    twin.noise.off()
    assert torch.equal(net(images), noised)


def test_masks_are_not_saved() -> None:
    net = tiny("resnet8_16")
    noise = ModelNoise(net, 0.5, 0.5)
    before = list(net.state_dict())
    noise.draw(0, 0, torch.ones(4, dtype=torch.bool))
    assert list(net.state_dict()) == before
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert all(path.mask is None for path in paths(torch.load(file, weights_only=False)))


def test_gradients_skip_a_dropped_branch() -> None:
    net = tiny("resnet8_16")
    noise = ModelNoise(net, 0.0, 0.5)
    noise.draw(0, 0, torch.ones(16, dtype=torch.bool))
    images = torch.randn(16, 3, 16, 16)
    block = net.body.block2
    for keep in (True, False):
        mask = paths(net)[-1].mask
        assert mask is not None
        rows = (mask > 0) == keep
        assert rows.any()
        net.zero_grad()
        (net(images) * rows[:, None]).sum().backward()
        assert (block.conv1.weight.grad.abs().sum() > 0) == keep


def test_noise_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"resnet8_16.*model.stochastic_depth to 0"):
        ModelNoise(timm.create_model("resnet8_16"), 0.0, 0.2)
    with pytest.raises(InputError, match=r"resnet8_16.*model.dropout to 0"):
        ModelNoise(timm.create_model("resnet8_16", num_classes=0), 0.2, 0.0)


def test_no_noise_leaves_no_drop_path() -> None:
    net = tiny("resnet8_16")
    ModelNoise(net, 0.0, 0.0).draw(0, 0, torch.ones(2, dtype=torch.bool))
    assert not any(isinstance(module, DropPath | MaskedDropPath) for module in net.modules())


@pytest.mark.parametrize(("dropout", "depth", "setting"), [(0.5, 0.0, "dropout"), (0.0, 0.5, "stochastic")])
def test_masks_of_another_batch_are_refused(dropout: float, depth: float, setting: str) -> None:
    net = tiny("resnet8_16")
    noise = ModelNoise(net, dropout, depth)
    noise.draw(0, 0, torch.ones(4, dtype=torch.bool))
    with pytest.raises(InputError, match=f"{setting}.*drawn for.*4"):
        net(torch.randn(3, 3, 8, 8))
