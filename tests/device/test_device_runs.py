"""Whole runs on a GPU: trainings are captured, and no stage mixes devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from device_training import in_thread
from pretend_gpu import Gpu
from pretend_graph import CUDAGraph

from noisystudent.data import loader

FP32 = {"teacher.train.precision": "fp32", "student.train.precision": "fp32"}
RUNS: dict[str, dict[str, Any]] = {
    "resident": {},
    "on the fly": {"student.pseudo_label.on_the_fly": True, "student.augment.crop": "inception"},
    "moving average as teacher, growing": {
        "student.pseudo_label.teacher": "ema",
        "student.pseudo_label.ema_adaptive": True,
        "student.train.steps": 16,
        "student.unlabeled_ratio": [1, 2],
    },
    "fine-tuned": {"student.finetune.steps": 6, "student.finetune.frozen_blocks": 1},
    "attacked": {"evaluate.tests": ["c", "fgsm", "pgd"], "evaluate.sample": 3, "evaluate.severities": [1]},
    "streamed": {"data.plane": "streamed", "data.workers": 1},
    "second GPU": {"device": "cuda:1"},
    "bfloat16": {"teacher.train.precision": "auto", "student.train.precision": "bf16"},
}


# The others take long.
FAST = ("resident", "moving average as teacher, growing", "streamed")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[] if name in FAST else [pytest.mark.slow])
        for name, changes in RUNS.items()
    ],
)
def test_a_run_on_a_gpu(
    gpu: Gpu, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(loader, "in_workers", in_thread)
    given = tiny.config(images, *({"device": "cuda"} | FP32 | changes).items())
    lines = tiny.run(given, tmp_path / "run")
    assert sum("Execution of steps: captured" in line for line in lines) >= 3, lines
    # Triton needs a real GPU; PyTorch computes the noise.
    assert not any("fails on this machine" in line for line in lines if "noise" not in line.lower()), lines
    assert len(CUDAGraph.made) >= 3 and all(graph.replays for graph in CUDAGraph.made)
