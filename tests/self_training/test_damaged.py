"""A damaged file of a finished run is named, and the same command makes it again, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from noisystudent.errors import InputError
from noisystudent.inference.load import load_predictor

Damage = Callable[[Path], None]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 16
    path.write_bytes(text)


def removed(path: Path) -> None:
    path.unlink()


def results(run: Path) -> dict[str, object]:
    """Return all that a run has computed, without times and speeds."""
    names = [path for path in run.rglob("*") if path.suffix in (".safetensors", ".parquet", ".npy")]
    names += [*run.rglob("evaluation.json"), run / "verdict.json", run / "metrics.jsonl"]
    content: dict[str, object] = {
        str(path.relative_to(run)): path.read_bytes() for path in names if "superseded" not in path.parts
    }
    for path in run.rglob("predictions-*.npz"):
        if "superseded" not in path.parts:
            with np.load(path) as arrays:
                content[str(path.relative_to(run))] = [arrays[name].tolist() for name in arrays.files]
    for path in (run / "iteration-0" / "teacher", run / "iteration-1" / "student"):
        lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        content[str(path)[len(str(run)) :]] = [{**line, "images_per_second": 0} for line in lines]
    return content


FILES = [
    "data/dataset.json",
    "data/manifest.parquet",
    "data/store/pool.npy",
    "data/store/labeled.arrow",
    "data/stage.json",
    "iteration-0/teacher/model.safetensors",
    "iteration-0/teacher/metrics.jsonl",
    "iteration-0/teacher/predictions-val.npz",
    "iteration-0/teacher/predictions-test.npz",
    "iteration-0/teacher/stage.json",
    "iteration-1/labels/part-00001.parquet",
    "iteration-1/labels/parts.json",
    "iteration-1/selection.parquet",
    "iteration-1/selection.stage.json",
    "iteration-1/student/model.safetensors",
    "iteration-1/evaluation.json",
    "metrics.jsonl",
    "verdict.json",
]


DAMAGE: list[Damage] = [emptied, flipped, removed]
CASES = [
    # One kind for every second file, in turn; the others take long.
    pytest.param(name, damage, marks=[] if 2 * number == place % (2 * len(DAMAGE)) else [pytest.mark.slow])
    for place, name in enumerate(FILES)
    for number, damage in enumerate(DAMAGE)
]


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_damage_is_named_and_the_results_are_the_same(
    images: Path, finished: Path, tmp_path: Path, name: str, damage: Damage
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = results(out)
    damage(out / name)
    lines = tiny.run(tiny.config(images), out)
    assert results(out) == before
    # Predictions follow from the weights, and a bit of their archive may be without meaning.
    if not (name.endswith(".npz") and damage in (removed, flipped)):
        assert any(Path(name).name in line for line in lines), lines
    again = tiny.run(tiny.config(images), out)
    assert len([line for line in again if line.endswith("done before, skipped")]) == 7


@pytest.mark.parametrize("damage", [flipped, removed])
def test_damaged_weights_are_refused_by_every_command(finished: Path, tmp_path: Path, damage: Damage) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    weights = out / "iteration-1" / "student" / "model.safetensors"
    damage(weights)
    with pytest.raises(InputError, match=r"model\.safetensors is (damaged|missing); start its run again"):
        load_predictor(out, "cpu")
