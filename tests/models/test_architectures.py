"""timm's architectures of the paper's tables can be trained and can label with this package."""

from __future__ import annotations

import doctest
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from noisystudent.augment import policies
from noisystudent.config import AugmentConfig, LearnerConfig, ModelConfig, PseudoLabelConfig, TrainConfig
from noisystudent.console import Progress
from noisystudent.errors import InputError
from noisystudent.models import Classifier, build_model
from noisystudent.models.scaling import PUBLISHED, multiply_adds, parameters
from noisystudent.pseudo_label import label_images
from noisystudent.records import Batch
from noisystudent.run.rundir import ModelDir
from noisystudent.runtime import torch_seed
from noisystudent.self_training.noise import TrainingNoise
from noisystudent.train.loop import fit
from noisystudent.train.optim import lr_at
from noisystudent.train.step import TrainStep

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
CLASSES, LABELED, POOL = 3, 2, 1


@dataclass(frozen=True)
class Row:
    """An architecture in docs/models.md: its name in the paper and in timm, size and noise."""

    paper: str
    name: str
    millions: float  # of parameters, 1,000 classes
    side: int  # pixels in the test: small, but large enough for all strides
    depth: bool  # has stochastic depth
    dropout: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    real: bool = True  # False: only counted, because its weights and their averages take 10 GB or more

    @property
    def id(self) -> str:
        return "-".join([self.name, *(key for key, _ in self.options)])

    def model(self, dropout: float, depth: float) -> ModelConfig:
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in self.options}
        return ModelConfig(name=self.name, dropout=dropout, stochastic_depth=depth, options=options)

    def line(self) -> str:
        """Row of the table in docs/models.md."""
        given = ", ".join(f"{k}: {list(v) if isinstance(v, tuple) else v}" for k, v in self.options)
        name = f"`{self.name}`" + (f", options `{{{given}}}`" if given else "")
        noise = ("yes" if self.dropout else "no", "yes" if self.depth else "no")
        return f"| {self.paper} | {name} | {self.millions:.2f} | {noise[0]} | {noise[1]} |"


ROWS = [
    Row("ResNet-50", "resnet50", 25.56, 64, True),
    Row("ResNet-152", "resnet152", 60.19, 64, True),
    Row("DenseNet-121", "densenet121", 7.98, 64, False),
    Row("DenseNet-161", "densenet161", 28.68, 64, False),
    Row("DenseNet-201", "densenet201", 20.01, 64, False),
    Row("DenseNet-264", "densenet201", 33.34, 64, False, options=(("block_config", (6, 12, 64, 48)),)),
    Row("Inception-v3", "inception_v3", 23.83, 75, False),
    Row("Inception-v4", "inception_v4", 42.68, 75, False),
    Row("Inception-ResNet-v2", "inception_resnet_v2", 55.84, 75, False),
    Row("Xception", "legacy_xception", 22.86, 71, False),
    Row("ResNeXt-101 32x4d", "resnext101_32x4d", 44.18, 64, True),
    Row("ResNeXt-101 64x4d", "resnext101_64x4d", 83.46, 64, True),
    Row("ResNeXt-101 32x8d (WSL)", "resnext101_32x8d", 88.79, 64, True),
    Row("ResNeXt-101 32x16d (WSL)", "resnext101_32x16d", 194.03, 64, True),
    Row("ResNeXt-101 32x32d (WSL)", "resnext101_32x32d", 468.53, 64, True, real=False),
    Row(
        "ResNeXt-101 32x48d (WSL)",
        "resnext101_32x32d",
        828.41,
        64,
        True,
        options=(("base_width", 48),),
        real=False,
    ),
    Row("SENet-154", "legacy_senet154", 115.09, 64, False),
    Row("SENet-154", "senet154", 115.09, 64, True),
    Row("NASNet-A", "nasnetalarge", 88.75, 96, False),
    Row("PNASNet", "pnasnet5large", 86.06, 96, False),
    Row("BiT R50x1", "resnetv2_50x1_bit", 25.55, 64, True, dropout=False),
    Row("BiT R101x1", "resnetv2_101x1_bit", 44.54, 64, True, dropout=False),
    Row("BiT-L (R152x4)", "resnetv2_152x4_bit", 936.53, 64, True, dropout=False, real=False),
    Row("EfficientNet-B0", "efficientnet_b0", 5.29, 64, True),
    Row("EfficientNet-B7", "tf_efficientnet_b7", 66.35, 64, True),
    Row("EfficientNet-L2", "tf_efficientnet_l2", 480.31, 64, True),
]
LACKING = ["polynet", "amoebanet", "gpipe"]
RATE = 0.2
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # bytes


def _id(row: Row) -> str:
    return row.id


def images(count: int, side: int, step: int) -> Tensor:
    """(count, 3, side, side) uint8."""
    draws = torch.Generator().manual_seed(torch_seed(0, "batch", step))
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draws)


def batches(side: int, start: int, stop: int) -> Iterator[Batch]:
    """Batches of two labelled images and one pool image with a soft pseudo-label."""
    for step in range(start, stop):
        yield Batch(images(LABELED + POOL, side, step), torch.tensor([0, 2]), torch.tensor([[0.2, 0.7, 0.1]]))


def trained(model: Classifier, learner: LearnerConfig, side: int, folder: Path) -> nn.Module:
    """Run two training steps of this package, with RandAugment and model noise."""
    noise = TrainingNoise(model, learner, policies.build_policy(learner.augment, side), 0, side)
    lr = partial(lr_at, config=learner.train, steps_per_epoch=10.0, total_steps=2)
    return fit(
        model,
        lambda start, stop: noise.batches(batches(side, start, stop), start),
        TrainStep(noise=noise, lr=lr, config=learner.train, num_classes=CLASSES, dtype=torch.float32),
        total_steps=2,
        steps_per_epoch=10.0,
        folder=ModelDir(folder),
        progress=Progress(),
    )


def labeled(model: nn.Module, side: int, out: Path) -> NDArray[np.float32]:
    """Probabilities (3, K) of three images, read from the part that `label_images` wrote."""
    label_images(
        lambda count, most: (torch.inference_mode()(model), most),
        lambda requests: (images(len(rows), side, 9) for rows in requests),
        lambda rows: [f"{row}.png" for row in rows],
        np.arange(48, dtype=np.uint8).reshape(3, 16),
        num_classes=CLASSES,
        config=PseudoLabelConfig(),
        out=out,
        task="labeling",
        progress=Progress(),
    )
    (part,) = out.glob("part-*.parquet")
    return np.array(pq.read_table(part)["probs"].to_pylist(), np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.real], ids=_id)
def test_it_learns_and_labels(row: Row, tmp_path: Path) -> None:
    if row.millions > 300 and MEMORY < 14 * 2**30:
        pytest.skip("needs 9 GB of memory")
    learner = LearnerConfig(
        model=row.model(RATE * row.dropout, RATE * row.depth),
        augment=AugmentConfig(randaugment="rand-m9-n2"),
        # Clipped: batch norm over three images makes gradients explode in deep networks without shortcuts.
        train=TrainConfig(batch_size=LABELED, warmup_epochs=0.0, log_steps=1, lr=1.0, clip_norm=1.0),
    )
    model = build_model(learner.model, CLASSES, row.side)
    ends = [next(model.parameters()), list(model.parameters())[-1]]
    before = [tensor.detach().clone() for tensor in ends]
    teacher = trained(model, learner, row.side, tmp_path / "training")
    assert not any(torch.equal(*pair) for pair in zip(ends, before, strict=True))
    lines = [json.loads(line) for line in (tmp_path / "training" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in lines)
    probs = labeled(teacher, row.side, tmp_path / "labels")
    assert probs.shape == (3, CLASSES)
    np.testing.assert_allclose(probs.sum(1), 1.0, atol=2e-3)


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_its_size_and_noise_are_as_the_page_says(row: Row) -> None:
    with torch.device("meta"):
        net = build_model(row.model(RATE * row.dropout, RATE * row.depth), 1000, row.side)
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == row.millions
        for kind, lacks, rates in (
            ("stochastic_depth", not row.depth, (0.0, RATE)),
            ("dropout", not row.dropout, (RATE, 0.0)),
        ):
            if lacks:
                with pytest.raises(InputError, match=f"{row.name}.*set model.{kind} to 0") as error:
                    build_model(row.model(*rates), 1000, row.side)
                assert "\n" not in str(error.value)


def test_the_page_has_every_row_and_timm_lacks_the_others() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for row in ROWS:
        assert row.line() in lines
    assert not [name for lacking in LACKING for name in timm.list_models(f"*{lacking}*")]


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_page_has_the_table(size: str) -> None:
    one = PUBLISHED[size]
    cells = [
        size.upper(),
        f"{one.width:g}",
        f"{one.depth:g}",
        f"{one.resolution}" + (f" ({one.test_resolution})" if one.test_resolution else ""),
        "not published" if one.dropout is None else f"{one.dropout:g}",
        f"{parameters(one) / 1e6:.2f}",
        f"{multiply_adds(one) / 1e9:.2f}",
    ]
    assert f"| {' | '.join(cells)} |" in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_the_page_prints_what_it_says() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, verbose=False)
    assert tried > 5 and failed == 0
