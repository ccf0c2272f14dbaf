"""A run with teachers of several kinds is killed in every stage of them, and ends with the same bits."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny
from test_interrupted import _server_that_has_imported_all, after, attempt, reached

from noisystudent.inference.export import export

__all__ = ["_server_that_has_imported_all"]  # a fixture

ZERO = "iteration-0"
MOMENTS = [
    (f"{ZERO}/existing-1/stage.json", "running"),
    (f"{ZERO}/existing-1/predictions-val.npz", ""),
    (f"{ZERO}/existing-2/probs.npy", ""),
    (f"{ZERO}/teacher/checkpoint/step-00000005/.metadata", ""),
    (f"{ZERO}/teacher-2/model.safetensors", ""),
    ("iteration-1/labels/part-00000.parquet", ""),
    ("iteration-1/labels/part-00001.parquet", ""),
    ("iteration-1/selection.parquet", ""),
    ("verdict.stage.json", "running"),
]


@pytest.mark.slow
def test_killed_among_teachers_of_several_kinds(images: Path, finished: Path, tmp_path: Path) -> None:
    onnx = tmp_path / "student.onnx"
    export(finished, onnx)

    def change(recipe: dict[str, Any]) -> None:
        stored = {"labels_from": str(finished / "iteration-1" / "labels")}
        other = {"model": {"name": "wrn10_1", "resolution": 24}}
        recipe["teachers"] = [{}, {"model_from": str(onnx)}, other, stored]
        recipe["teacher_weights"] = [1, 2, 1, 1]
        recipe["student"]["selection"]["agreement"] = 0.7

    recipe = tiny.write_recipe(tmp_path / "tiny.yaml", change)
    command = ("run", recipe, *tiny.flags(images), "--out")
    straight, out = tmp_path / "straight", tmp_path / "killed"
    assert attempt((*command, straight), straight, after(300)) == 0
    for name, text in MOMENTS:
        assert attempt((*command, out), out, reached(name, text)) == -signal.SIGKILL, (name, text)
        assert (out / name).exists()
    assert attempt((*command, out), out, after(300)) == 0
    for model in (f"{ZERO}/teacher", f"{ZERO}/teacher-2", "iteration-1/student", "iteration-1/control"):
        assert tiny.weights(out, model) == tiny.weights(straight, model), model
    tables = sorted(path.relative_to(straight) for path in (straight / "iteration-1").rglob("*.parquet"))
    assert len(tables) == 4
    for table in tables:
        assert pq.read_table(out / table).equals(pq.read_table(straight / table)), table
    for name in ("verdict.json", f"{ZERO}/evaluation.json", "iteration-1/evaluation.json"):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name
    left = [
        path for path in (*out.rglob(".*.partial"), *out.rglob(".*.npy")) if "checkpoint" not in path.parts
    ]
    assert left == []
