"""Runs on cached features: what a head sees, what its network predicts, and what resuming gives."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_interrupted import _server_that_has_imported_all as _server  # noqa: F401
from test_interrupted import after, attempt, reached

from noisystudent.config import Config
from noisystudent.data.prepare import Dataset, open_dataset
from noisystudent.data.sources import open_sources
from noisystudent.embeddings import Features
from noisystudent.inference.load import load_predictor
from noisystudent.models import Classifier
from noisystudent.pseudo_label.parts import unlist
from noisystudent.run.rundir import EmbeddingsDir, LabelsDir, RunDir

MODELS = ("iteration-0/teacher", "iteration-1/student", "iteration-2/student", "iteration-2/control")
TEACHER: list[tuple[str, Any]] = [
    ("teacher.train.features", True),
    ("teacher.train.lr", 1.0),
    ("teacher.augment.views", 2),
    ("teacher.augment.mix", 0.5),
]


def config(images: Path, *fields: tuple[str, Any]) -> Config:
    return tiny.config(images, *TEACHER, ("students", 2), *fields)


def opened(images: Path, out: Path) -> Dataset:
    given = config(images)
    return open_dataset(RunDir(out).data, given.data, open_sources(given.data))


def network_of(out: Path) -> Classifier:
    model = load_predictor(out / MODELS[0], "cpu").model
    assert isinstance(model, Classifier)
    return model


def labels(out: Path, iteration: int) -> pa.Table:
    folder = out / f"iteration-{iteration}" / "labels"
    return pa.concat_tables(pq.read_table(part) for part in LabelsDir(folder).parts())


@pytest.fixture(scope="module")
def out(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: a linear head, two students and a control. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("features") / "run"
    tiny.run(config(images), out)
    return out


def test_the_whole_loop_runs_on_one_pass_over_the_images(out: Path) -> None:
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["set"] == "test" and set(verdict["comparisons"]) >= {"teacher", "control"}
    assert len(list(out.glob("embeddings*"))) == 1, "teacher, students and control share the features"
    evaluated = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    teacher = next(line for line in evaluated if line["model"] == "teacher" and line["set"] == "test")
    assert teacher["top1"] > 0.5


def test_every_network_has_the_same_frozen_backbone(out: Path) -> None:
    backbone = load_file(EmbeddingsDir(out / "embeddings").backbone)
    for model in MODELS:
        weights = load_file(out / model / "model.safetensors")
        changed = {name for name in weights if not torch.equal(weights[name], backbone[name])}
        assert weights.keys() == backbone.keys() and changed == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("iteration, model", [(1, MODELS[0]), (2, MODELS[1])])
def test_labels_of_features_are_those_of_the_network_on_clean_views(
    images: Path, out: Path, iteration: int, model: str
) -> None:
    table = labels(out, iteration)
    network = load_predictor(out / model, "cpu")
    expected = network.probs(opened(images, out).pool)
    assert np.abs(unlist(table["probs"]).astype(np.float32) - expected).max() < 5e-3
    sure = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 0.01
    assert (table["label"].to_numpy()[sure] == expected.argmax(axis=1)[sure]).all() and sure.any()


def test_the_features_are_those_of_the_views(images: Path, out: Path) -> None:
    pool, network = opened(images, out).pool, network_of(out)
    rows = np.arange(len(pool))
    stored = Features(EmbeddingsDir(out / "embeddings").features("pool"))
    pixels = pool.fetch(rows, tiny.SIDE)
    with torch.inference_mode():
        for view, expected in enumerate((pixels, pixels.flip(3))):
            features = network.features(expected)
            assert torch.allclose(stored(rows, view), features, rtol=2e-3, atol=1e-5)
    assert stored.layout.views == 4
    assert not torch.equal(stored(rows, 2), stored(rows, 3)), "each view has its own noise"


@pytest.mark.slow
def test_a_run_is_that_on_features_computed_directly(
    images: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run without drawn views, on features that are computed when they are used."""
    dataset, network = opened(images, out), network_of(out)
    sets = {
        images.name: images for images in (dataset.labeled, dataset.val, dataset.test, dataset.pool) if images
    }

    def direct(self: Features, rows: np.ndarray, views: np.ndarray | int = 0) -> torch.Tensor:
        pixels = sets[self._folder.path.name].fetch(rows, tiny.SIDE)
        mirrored = torch.from_numpy(np.broadcast_to(views, rows.shape) == 1)
        with torch.no_grad():
            views_of = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
            features = network.features(views_of)
        return features.half().float()

    given = config(images, ("teacher.augment.views", 0))
    tiny.run(given, tmp_path / "cached")
    monkeypatch.setattr(Features, "__call__", direct)
    tiny.run(given, tmp_path / "direct")
    for model in MODELS:
        cached, computed = (
            load_file(tmp_path / name / model / "model.safetensors") for name in ("cached", "direct")
        )
        for name in ("fc.weight", "fc.bias"):
            assert torch.allclose(cached[name], computed[name], rtol=1e-3, atol=1e-3), model


@pytest.mark.slow
def test_the_run_gives_the_same_bits_again_and_without_workers(
    images: Path, out: Path, tmp_path: Path
) -> None:
    tiny.run(config(images, ("data.workers", 1)), tmp_path)
    assert all(tiny.weights(tmp_path, model) == tiny.weights(out, model) for model in MODELS)


@pytest.mark.parametrize("name", ["embeddings/pool/part-00000.npy", "embeddings/backbone.safetensors"])
def test_a_damaged_file_is_named_and_made_again(images: Path, out: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(out, tmp_path / "run")
    path = tmp_path / "run" / name
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 255]))
    lines = tiny.run(config(images), tmp_path / "run")
    assert any(line.startswith(f"embeddings: {name} is damaged; kept in ") for line in lines)
    assert path.read_bytes() == before
    assert [line for line in lines if "student-2: done before, skipped" in line]


@pytest.mark.slow
def test_killed_in_every_stage_ends_with_the_same_bits(images: Path, out: Path, tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        recipe["students"] = 2
        recipe["teacher"] = json.loads(json.dumps(recipe["teacher"]))
        recipe["teacher"]["train"] |= {"features": True, "lr": 1.0}
        recipe["teacher"]["augment"] |= {"views": 2, "mix": 0.5}

    recipe = tiny.write_recipe(tmp_path / "tiny.yaml", change)
    command = ("run", recipe, *tiny.flags(images), "--out", tmp_path / "run")
    for name in (
        "embeddings/backbone.safetensors",
        "embeddings/pool/parts.json",
        "iteration-0/teacher/checkpoint/step-00000005/.metadata",
        "iteration-1/labels/part-00000.parquet",
        "iteration-2/student/checkpoint/step-00000010/.metadata",
    ):
        assert attempt(command, tmp_path / "run", reached(name)) == -signal.SIGKILL, name
    assert attempt(command, tmp_path / "run", after(300)) == 0
    assert all(tiny.weights(tmp_path / "run", model) == tiny.weights(out, model) for model in MODELS)
    for part in sorted((out / "embeddings").rglob("part-*.npy")):
        assert (tmp_path / "run" / part.relative_to(out)).read_bytes() == part.read_bytes()
    assert (tmp_path / "run" / "verdict.json").read_bytes() == (out / "verdict.json").read_bytes()


def test_predict_evaluate_and_export_load_the_network(
    images: Path, out: Path, tmp_path: Path, capsys: tiny.Capture
) -> None:
    student, test = out / MODELS[2], images / "test"
    text = tiny.output(capsys, "predict", student, test, "--device", "cpu")
    assert len(text.splitlines()) == 1 + 12
    assert "top1" in tiny.output(capsys, "evaluate", student, "--data", test, "--device", "cpu")
    assert "timm.create_model" in tiny.output(capsys, "export", student, "--out", tmp_path / "a.safetensors")


@pytest.mark.slow
def test_other_backbones_have_caches_of_their_own(images: Path, tmp_path: Path) -> None:
    larger = {"model": {"name": "resnet8_32"}}
    tiny.run(config(images, ("students", [{}, larger])), tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("embeddings*"))] == ["embeddings", "embeddings-2"]
    weights = load_file(tmp_path / MODELS[2] / "model.safetensors")
    assert weights["fc.weight"].shape == (3, 128)


def test_teachers_with_two_backbones_label_together(images: Path, tmp_path: Path) -> None:
    """Each from its own cache, at its own resolution; the student's head is on the first backbone."""
    other = {"model": {"name": "wrn10_1", "resolution": 24}}
    fields: list[tuple[str, Any]] = [("teachers", [{}, other]), ("students", 1), ("control", "none")]
    tiny.run(config(images, *fields), tmp_path)
    assert [path.name for path in sorted(tmp_path.glob("embeddings*"))] == ["embeddings", "embeddings-2"]
    pool, table = opened(images, tmp_path).pool, labels(tmp_path, 1)
    teachers = ("teacher", "teacher-2")
    each = [load_predictor(tmp_path / "iteration-0" / name, "cpu").probs(pool) for name in teachers]
    assert np.abs(each[0] - each[1]).max() > 0.01
    assert np.abs(unlist(table["probs"]).astype(np.float32) - np.mean(each, axis=0)).max() < 5e-3
    votes = np.mean([probs.argmax(axis=1) == table["label"].to_numpy() for probs in each], axis=0)
    assert (table["agreement"].to_numpy() == votes).mean() > 0.9, "float16 may turn a near tie"


# --- after the features ---


@pytest.fixture(scope="module")
def mlp(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLP as teacher, mirrored labels, and a student that trains the whole network from its weights."""
    out = tmp_path_factory.mktemp("mlp") / "run"
    student: dict[str, Any] = {"init": "teacher", "train": {"features": False, "lr": 0.0, "steps": 1}}
    student["augment"] = {"mix": 0.0, "views": 0}
    model = {"name": "test_vit", "head": "mlp", "resolution": 32, "stochastic_depth": 0.0}  # no batch norm
    fields: list[tuple[str, Any]] = [("teacher.model", model), ("student.pseudo_label.flip", True)]
    tiny.run(config(images, *fields, ("students", [{}, student])), out)
    return out


def test_a_student_on_images_starts_from_backbone_and_head(mlp: Path) -> None:
    """With a learning rate of 0 its weights stay."""
    teacher, student = (load_file(mlp / model / "model.safetensors") for model in MODELS[1:3])
    assert {"head.0.weight", "head.2.bias"} <= teacher.keys() == student.keys()
    assert all(torch.allclose(teacher[name], student[name], rtol=1e-6) for name in teacher)


def test_mirrored_labels_are_the_mean_of_both_views(images: Path, mlp: Path) -> None:
    table = labels(mlp, 1)
    network = replace(load_predictor(mlp / MODELS[0], "cpu"), flip=True)
    expected = network.probs(opened(images, mlp).pool)
    assert np.abs(unlist(table["probs"]).astype(np.float32) - expected).max() < 5e-3


def test_an_mlp_is_exported_as_onnx_only(mlp: Path, tmp_path: Path, capsys: tiny.Capture) -> None:
    line = tiny.refused(capsys, 2, "export", mlp / MODELS[0], "--out", tmp_path / "a.safetensors")
    assert "timm has no head mlp; give a file that ends in .onnx" in line
    with safe_open(mlp / MODELS[0] / "model.safetensors", framework="pt") as file:
        assert file.metadata()["head"] == "mlp"


@pytest.mark.slow
def test_a_finetuning_trains_the_whole_network(images: Path, tmp_path: Path) -> None:
    finetune = {"steps": 3, "lr": 0.1}
    tiny.run(config(images, ("students", 0), ("teacher.finetune", finetune)), tmp_path)
    head, whole = (
        load_file(tmp_path / "iteration-0" / "teacher" / name / "model.safetensors")
        for name in ("", "finetune")
    )
    assert not torch.equal(head["body.stem.0.weight"], whole["body.stem.0.weight"])


@pytest.mark.slow
def test_the_moving_average_can_label_features(images: Path, tmp_path: Path) -> None:
    fields = [("student.pseudo_label.teacher", "ema"), ("student.init", "teacher"), ("students", 1)]
    tiny.run(config(images, *fields), tmp_path)
    assert (tmp_path / "iteration-1" / "student" / "model.safetensors").is_file()
