"""Other methods with the same parts: averaged teachers, distillation, online labels, folder tags."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from noisystudent.errors import InputError
from noisystudent.pseudo_label.parts import unlist
from noisystudent.train.losses import joint_loss


def probs(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1)


# --- averaged teachers ---


@pytest.mark.slow
def test_two_teachers_label_together(images: Path, tmp_path: Path) -> None:
    fields = [("ensemble", 2), ("student.pseudo_label.flip", True)]
    tiny.run(tiny.config(images, *fields), tmp_path / "both")
    folder = tmp_path / "both" / "iteration-0"
    assert tiny.weights(folder, "teacher") != tiny.weights(folder, "teacher-2")
    tiny.run(tiny.config(images), tmp_path / "one")
    assert tiny.weights(tmp_path / "one", "iteration-0/teacher") == tiny.weights(folder, "teacher")
    folders = [tmp_path / run / "iteration-1" / "labels" for run in ("both", "one")]
    labels = [
        np.concatenate([unlist(pq.read_table(part)["probs"]) for part in sorted(path.glob("*.parquet"))])
        for path in folders
    ]
    assert np.abs(labels[0].astype(float) - labels[1]).max() > 0.01


# --- distillation ---


@settings(max_examples=30, deadline=None)
@given(temperature=st.floats(1.5, 8), seed=st.integers(0, 99))
def test_distillation_is_hintons(temperature: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits, teacher = torch.randn(6, 4, generator=rng), torch.randn(6, 4, generator=rng)
    targets = probs(teacher / temperature)
    nothing = torch.empty(0, dtype=torch.int64)
    loss = joint_loss(
        logits, nothing, targets, smoothing=0.1, hard_pool=False, normalization="joint",
        pool_temperature=temperature,
    )  # fmt: skip
    cooled = torch.log_softmax(logits / temperature, dim=1)
    entropy = -(targets * targets.log()).sum(1).mean()
    divergence = functional.kl_div(cooled, targets, reduction="batchmean")
    assert loss.item() == pytest.approx(temperature**2 * (divergence + entropy).item(), rel=1e-4)


def test_labelled_rows_have_no_temperature() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3])
    targets = probs(torch.randn(3, 4))
    warm, plain = (
        joint_loss(
            logits, labels, targets, smoothing=0.0, hard_pool=False, normalization="equal", pool_temperature=t
        )
        for t in (3.0, 1.0)
    )
    pool = functional.cross_entropy(logits[2:], targets)
    cooled = 9 * functional.cross_entropy(logits[2:] / 3, targets)
    assert (warm - plain).item() == pytest.approx((cooled - pool).item(), rel=1e-4)


# --- labels made during the training of the student ---


def test_labels_made_in_the_step_equal_stored_ones(images: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tiny.run(tiny.config(images, ("student.pseudo_label.on_the_fly", True)), out)
    ours, stored = (
        load_file(run / "iteration-1" / "student" / "model.safetensors") for run in (out, finished)
    )
    for name, value in stored.items():
        assert torch.allclose(ours[name].float(), value.float(), atol=1e-5), name


# --- the pool alone ---


@pytest.mark.slow
def test_pretraining_on_the_pool_then_training_on_the_labels(images: Path, tmp_path: Path) -> None:
    second = {"steps": 20, "lr": 1.0, "augment": True}
    lines = tiny.run(
        tiny.config(images, ("student.joint", False), ("student.finetune", second)), tmp_path / "run"
    )
    assert "student-1: resnet8_16, 12 steps of 0 labelled and 18 pool images, 16 pixels" in lines
    assert "control-1: resnet8_16, 12 steps of 18 labelled and 0 pool images, 16 pixels" in lines
    assert "student-1-finetune: resnet8_16, 20 steps of 6 labelled and 0 pool images, 16 pixels" in lines


def test_weakly_labelled_pretraining_trains_on_any_tags(images: Path, tmp_path: Path) -> None:
    """Five tags, none of them a class: the trunk is copied, and the classifier is new."""
    files = sorted((images / "pool").rglob("*.png"))
    for number, file in enumerate(files):
        target = tmp_path / "tagged" / f"tag{number % 5}" / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    learner = tiny.RECIPE["teacher"]
    fields = [
        ("pretrain", learner), ("data.pool_tags", True), ("data.pool_truth", False), ("students", 0),
        ("data.unlabeled", str(tmp_path / "tagged")), ("teacher.train.lr", 1e-9),
    ]  # fmt: skip
    tiny.run(tiny.config(images, *fields), tmp_path / "run")
    folder = tmp_path / "run" / "iteration-0"
    before, after = (load_file(folder / name / "model.safetensors") for name in ("pretraining", "teacher"))
    assert before["fc.weight"].shape[0] == 5 and after["fc.weight"].shape[0] == 3
    assert torch.allclose(before["body.stem.0.weight"], after["body.stem.0.weight"], atol=1e-5)
    assert json.loads((tmp_path / "run" / "data" / "dataset.json").read_text())["tags"] == [
        f"tag{i}" for i in range(5)
    ]


def test_pretraining_needs_two_or_more_tags(images: Path, tmp_path: Path) -> None:
    for file in sorted((images / "pool").rglob("*.png")):
        target = tmp_path / "pool" / "all" / f"{file.parent.name}-{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    fields = [("pretrain", tiny.RECIPE["teacher"]), ("data.pool_tags", True), ("students", 0)]
    config = tiny.config(images, *fields, ("data.unlabeled", str(tmp_path / "pool")))
    with pytest.raises(InputError, match="two or more named folders; this one has 1"):
        tiny.run(config, tmp_path / "run")
    with pytest.raises(InputError, match=r"data\.pool_tags is false"):
        tiny.config(images, ("pretrain", tiny.RECIPE["teacher"]))
