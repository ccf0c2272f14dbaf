"""A training step on a GPU waits for nothing, mixes no devices, and gives the same numbers in every form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from device_training import Setting, require_equal, trained
from pretend_compile import tracing
from pretend_gpu import Gpu
from pretend_graph import CUDAGraph
from torch import Tensor

from noisystudent.errors import RunError
from noisystudent.train import losses
from noisystudent.train import step as step_module
from noisystudent.train.ema_teacher import EmaTeacher

OPTIMIZERS = {
    "sgd": {"optimizer": "sgd"},
    "sgd without momentum": {"optimizer": "sgd", "momentum": 0.0},
    "sgd, clipped": {"optimizer": "sgd", "clip_norm": 1.0},
    "rmsprop": {"optimizer": "rmsprop_tf"},
    "rmsprop, clipped": {"optimizer": "rmsprop_tf", "clip_norm": 1.0},
    "adamw": {"optimizer": "adamw"},
}


@pytest.mark.parametrize("train", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_captured_steps_give_the_numbers_of_eager_ones(gpu: Gpu, train: dict[str, object]) -> None:
    eager = Setting(train=train)
    require_equal(trained(gpu, eager), trained(gpu, replace(eager, form="captured")))


CASES = {
    "hard pseudo-labels": Setting(hard_pool=True),
    "temperature": Setting(temperature=2.0, train={"normalization": "official"}),
    "labelled images alone": Setting(rows=(6, 0)),
    "pool images alone": Setting(rows=(0, 12), train={"normalization": "equal"}),
    "no input noise, no dropout": Setting(policy=None, dropout=0.0),
    "bfloat16": Setting(dtype=torch.bfloat16),
    "not channels last": Setting(train={"channels_last": False}),
    "frozen blocks": Setting(frozen=1),
    "weight standardisation": Setting(model="test_efficientnet"),
    "labels of the average": Setting(teacher=EmaTeacher(threshold=0.4)),
    "hard labels of the average, adaptive": Setting(
        teacher=EmaTeacher(adaptive=True, fairness=0.1), hard_pool=True, rows=(0, 12)
    ),
    "labels of the average, bfloat16": Setting(teacher=EmaTeacher(adaptive=True), dtype=torch.bfloat16),
}


@pytest.mark.parametrize("setting", CASES.values(), ids=CASES)
def test_all_kinds_of_steps_can_be_captured(gpu: Gpu, setting: Setting) -> None:
    require_equal(trained(gpu, setting, 6), trained(gpu, replace(setting, form="captured"), 6))


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("form", ["compiled", "captured"])
def test_compiled_steps_are_two_graphs_with_the_numbers_of_eager_ones(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    eager, graphs = trained(gpu, Setting(), 6), tracing(monkeypatch)
    require_equal(eager, trained(gpu, Setting(form=form), 6))
    assert len(graphs) == 2  # of noise and forward pass; a number that changes would give one in each step


@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("form", ["compiled", "captured"])
def test_compiled_labels_of_the_average_have_the_numbers_of_eager_ones(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    setting = Setting(teacher=EmaTeacher(adaptive=True, fairness=0.1))
    eager, graphs = trained(gpu, setting, 6), tracing(monkeypatch)
    require_equal(eager, trained(gpu, replace(setting, form=form), 6))
    assert len(graphs) == 3  # of noise, labels and forward pass


def test_steps_of_another_kind_are_captured_again(gpu: Gpu) -> None:
    """Stored labels for four steps, then those of the average."""
    setting = Setting(teacher=EmaTeacher(threshold=0.4, first_step=4))
    require_equal(trained(gpu, setting, 12), trained(gpu, replace(setting, form="captured"), 12))
    assert len([graph for graph in CUDAGraph.made if graph.replays]) == 2


def test_a_failed_capture_names_its_cause_and_leaves_no_stream(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = losses.joint_loss

    def fails(*arguments: Any, **options: Any) -> Tensor:
        if CUDAGraph.recording is not None:
            CUDAGraph.recording.broken = "capture invalidated"
            raise RuntimeError("a planted cause")
        loss: Tensor = real(*arguments, **options)
        return loss

    monkeypatch.setattr(step_module, "joint_loss", fails)
    stream = torch.cuda.current_stream()
    with pytest.raises(RunError, match="a planted cause"):
        trained(gpu, Setting(form="captured"))
    assert torch.cuda.current_stream() is stream


def test_the_second_gpu_gives_the_numbers_of_the_first(gpu: Gpu) -> None:
    first = trained(gpu, Setting(), 6)
    for form in ("eager", "captured"):
        require_equal(first, trained(gpu, Setting(form=form, device="cuda:1"), 6))
