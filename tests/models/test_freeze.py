"""Frozen blocks, and they alone, keep their statistics and lose no branch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisystudent.config import ModelConfig
from noisystudent.models import Classifier, build_model
from noisystudent.models.noise import MaskedDropPath

# Some have parameters of the network itself in the stem, and some have blocks that are parts of a stage.
WITH_BRANCHES = ("test_vit", "test_convnext", "test_efficientnet", "test_resnet", "resnet8_16", "wrn10_1")
WITHOUT = ("densenet121", "hgnetv2_b0", "fastvit_t8")


def frozen(name: str, blocks: int) -> tuple[Classifier, int]:
    """A network with so many frozen blocks, or with all that it has."""
    depth = 0.5 if name in WITH_BRANCHES else 0.0
    model = build_model(ModelConfig(name=name, dropout=0.0, stochastic_depth=depth), 3, 32)
    blocks = min(blocks, len(model.layers("")) - 2)
    model.freeze(blocks)
    return model.train(), blocks


def of_frozen_block(model: Classifier, name: str, blocks: int) -> bool:
    """Whether all parameters of a module are frozen; if it has none, those of the module around it."""
    names = {key for layer in model.layers("")[: blocks + 1] for key in layer}
    while True:
        own = {f"{name}.{key}" for key, _ in model.get_submodule(name).named_parameters()}
        if own:
            return own <= names
        name = name.rpartition(".")[0]


@pytest.mark.parametrize("blocks", [0, 1, 3, 5])
@pytest.mark.parametrize("name", [*WITH_BRANCHES, *WITHOUT])
def test_a_block_is_without_noise_and_keeps_its_statistics_if_and_only_if_it_is_frozen(
    name: str, blocks: int
) -> None:
    model, blocks = frozen(name, blocks)
    model.noise.draw(0, 0, torch.ones(500, dtype=torch.bool))
    modules = dict(model.named_modules())
    norms = [key for key, module in modules.items() if isinstance(module, _BatchNorm)]
    branches = {key: module for key, module in modules.items() if isinstance(module, MaskedDropPath)}
    assert norms or branches
    for key in norms:
        assert modules[key].training != of_frozen_block(model, key, blocks), key
    for key, branch in branches.items():
        assert branch.mask is not None
        assert bool((branch.mask == 0).any()) != of_frozen_block(model, key, blocks), key


@pytest.mark.parametrize("name", ["densenet121", "test_efficientnet"])
def test_statistics_change_in_a_step_if_and_only_if_they_are_of_a_trained_block(name: str) -> None:
    model, _ = frozen(name, 2)
    before = {key: value.clone() for key, value in model.named_buffers()}
    with torch.no_grad():
        model(torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8))
    for key, value in model.named_buffers():
        if key.endswith("running_mean"):
            assert torch.equal(value, before[key]) == of_frozen_block(model, key.rpartition(".")[0], 2), key


def test_a_norm_without_parameters_belongs_to_the_block_around_it() -> None:
    model = build_model(ModelConfig(name="resnet8_16", dropout=0.0, stochastic_depth=0.0), 3, 32)
    for name in ("body.block1", "body.block2"):
        model.net.set_submodule(f"{name}.bn1", nn.BatchNorm2d(32, affine=False))
    model.freeze(2)
    model.train()
    norms = [model.net.get_submodule(f"body.{name}.bn1") for name in ("block1", "block2")]
    assert [norm.training for norm in norms] == [False, True]
