"""First teachers of several kinds: a list of one, averages, existing models, probabilities made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from noisystudent.config import Config, FirstTeacherConfig, ModelConfig
from noisystudent.errors import InputError
from noisystudent.inference.existing import fingerprints, load_existing
from noisystudent.inference.export import export
from noisystudent.inference.load import load_predictor
from noisystudent.models.registry import build_model
from noisystudent.models.weights import save_weights
from noisystudent.pseudo_label.parts import unlist
from noisystudent.recipes import resolve
from noisystudent.report import build
from noisystudent.run.build import build_graph
from noisystudent.run.rundir import RunDir

TEACHER = "iteration-0/teacher/model.safetensors"
LABELS = "iteration-1/labels"
OTHER = {"model": {"name": "wrn10_1", "resolution": 24}}
WEIGHTS = [1, 1, 1, 2]


def config(images: Path, *teachers: Any, **fields: Any) -> Config:
    given = [(name.replace("__", "."), value) for name, value in fields.items()]
    return tiny.config(images, ("teachers", list(teachers)), *given)


def stages(given: Config) -> dict[str, str]:
    graph = build_graph(given, tiny.LISTING, RunDir(Path("run")), fingerprints(given))
    return {stage.name: stage.fingerprint for stage in graph.stages()}


def labels(run: Path) -> dict[str, NDArray[Any]]:
    """Columns of the pseudo-labels, in the order of the pool."""
    tables = [pq.read_table(part) for part in sorted((run / LABELS).glob("*.parquet"))]
    columns: dict[str, NDArray[Any]] = {}
    for name in tables[0].column_names:
        parts = [unlist(table[name]) if name == "probs" else table[name].to_numpy() for table in tables]
        columns[name] = np.concatenate(parts)
    return columns


@pytest.fixture(scope="module")
def onnx(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    export(finished, path)
    return path


@pytest.fixture(scope="module")
def kinds(finished: Path, onnx: Path) -> list[dict[str, Any]]:
    """A teacher as `teacher`, another network at another resolution, an ONNX file and stored labels."""
    return [{}, OTHER, {"model_from": str(onnx)}, {"labels_from": str(finished / LABELS)}]


@pytest.fixture(scope="module")
def mixed(images: Path, kinds: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed") / "run"
    tiny.run(config(images, *kinds, teacher_weights=WEIGHTS, student__selection__agreement=0.75), out)
    return out


# --- the list, and its short forms ---


def test_a_list_of_one_is_that_teacher_and_equal_ones_are_an_ensemble(images: Path) -> None:
    plain = tiny.config(images)
    assert config(images, {}) == plain and stages(config(images, {})) == stages(plain)
    assert config(images, {}, {}, {}) == tiny.config(images, ("ensemble", 3))
    wide = {"model": {"name": "wrn10_1"}, "train": {"steps": 7}}
    listed = stages(config(images, wide))
    named = stages(tiny.config(images, *((f"teacher.{key}", value) for key, value in wide.items())))
    assert [listed[name] for name in ("data", "teacher")] == [named[name] for name in ("data", "teacher")]


def test_another_teacher_repeats_no_training(images: Path, kinds: list[dict[str, Any]]) -> None:
    alone, more = stages(tiny.config(images)), stages(config(images, *reversed(kinds)))
    assert [name for name in more if name not in alone] == ["existing-1", "existing-2", "teacher-2"]
    few = stages(config(images, {}, *kinds[2:]))
    for name in ("data", "teacher", "control-1"):
        assert few[name] == alone[name]
    assert few["labels-1"] != alone["labels-1"]


def test_a_teacher_of_weight_0_labels_nothing(
    images: Path, finished: Path, kinds: list[dict[str, Any]], tmp_path: Path
) -> None:
    given = config(images, *kinds[:3], teacher_weights=[3, 0, 0], control="none")
    assert stages(given)["labels-1"] == stages(tiny.config(images))["labels-1"]
    tiny.run(given, tmp_path)
    for part in sorted((finished / LABELS).glob("*.parquet")):
        assert (tmp_path / LABELS / part.name).read_bytes() == part.read_bytes()


def test_entries_take_defaults_from_teacher_and_flags_reach_them(images: Path) -> None:
    given = config(images, {}, OTHER, {"labels_from": "x"}, teacher__train__lr=0.5)
    assert [each.train.steps for each in given.teachers] == [12, 12, None]
    assert [each.train.lr for each in given.teachers[:2]] == [0.5, 0.5]
    changed = resolve({**tiny.RECIPE, "teachers": [{}, OTHER]}, [("teachers.1.model.name", "wrn10_2")])
    assert changed.teachers[1].model.name == "wrn10_2"
    assert changed.teachers[1].model.resolution is None, "it was that of another network"


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "both": ([{"model_from": "a", "labels_from": "b"}], {}, "give one of the two"),
    "trained": ([{"labels_from": "b", "train": {"steps": 3}}], {}, "has train, but it is not trained"),
    "classes": ([{"classes": ["a"]}], {}, "neither model_from nor labels_from"),
    "ensemble": ([{}, OTHER], {"ensemble": 2}, "ensemble is 2, but teachers lists them"),
    "folds": ([{}, OTHER], {"folds": 2}, "folds is 2, but the first teachers are of different kinds"),
    "few weights": ([{}, OTHER], {"teacher_weights": [1]}, r"is \[1.0\]; it must be equal, val, or a"),
    "no weights": ([{}, OTHER], {"teacher_weights": [0, 0]}, "not all 0"),
    "a word": ([{}, OTHER], {"teacher_weights": "vall"}, "is 'vall'; it must be one of equal, val"),
    "agreement": ([{}], {"student__selection__agreement": 0.5}, "one teacher labels the pool; set it to 0"),
    "init": ([{"labels_from": "b"}], {"student__init": "teacher"}, "trains none of the first teachers"),
    "noise": ([{}, {"labels_from": "b"}], {"student__pseudo_label__noise": True}, "has no noise; set it to"),
    "online": ([{}, OTHER], {"student__pseudo_label__on_the_fly": True}, "the pool before the training"),
    "nothing": ([{"labels_from": "b"}], {"students": 0}, "none is trained, and students is 0"),
    "unknown": ([{"from": "b"}], {}, "unknown key 'teachers.0.from'"),
    "text": (["b"], {}, "it must be a list of mappings"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_list_is_one_line(images: Path, name: str) -> None:
    teachers, fields, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as error:
        config(images, *teachers, **fields)
    assert "\n" not in str(error.value)


# --- several teachers label the pool ---


def members(run: Path, onnx: Path, images: Path, finished: Path) -> Iterator[NDArray[np.float32]]:
    """What each teacher of `kinds` predicts for the pool, computed on its own."""
    pool = tiny.opened(images, run)[1].pool
    for model in (run / TEACHER, run / "iteration-0/teacher-2/model.safetensors", onnx):
        yield replace(load_predictor(model, device="cpu"), temperature=1.0, batch_size=8).probs(pool)
    stored = labels(finished)
    probs = stored["probs"].astype(np.float32)
    probs[np.arange(len(probs)), stored["label"]] = stored["confidence"]
    yield probs


def test_labels_are_the_weighted_mean_and_the_share_of_equal_classes(
    mixed: Path, onnx: Path, images: Path, finished: Path
) -> None:
    probs = np.stack(list(members(mixed, onnx, images, finished)))
    mean = np.average(probs.astype(float), axis=0, weights=WEIGHTS)
    made = labels(mixed)
    assert np.array_equal(made["label"], mean.argmax(axis=1))
    assert np.abs(made["confidence"] - mean.max(axis=1)).max() < 1e-6
    assert np.abs(made["probs"] - mean).max() < 1e-3, "they are rounded to float16"
    votes = (probs.argmax(axis=2) == mean.argmax(axis=1)).mean(axis=0)
    assert np.array_equal(made["agreement"], votes.astype(np.float32))


def test_selection_and_report_use_the_agreement(mixed: Path) -> None:
    made, chosen = labels(mixed), pq.read_table(mixed / "iteration-1" / "selection.parquet").to_pylist()
    for row in chosen:
        assert (row["reason"] == "teachers_disagree") == (made["agreement"][row["row"]] < 0.75)
    evaluation = json.loads((mixed / "iteration-1" / "evaluation.json").read_text())["pseudo_labels"]
    assert [row["weight"] for row in evaluation["teachers"]] == pytest.approx([0.2, 0.2, 0.2, 0.4])
    assert evaluation["agreement"]["mean"] == pytest.approx(made["agreement"].mean())
    build(mixed)
    page = (mixed / "report.html").read_text()
    assert "teacher-2 (wrn10_1): weight 0.200" in page and "agreement with the average" in page
    voted = dict(zip(made["id"], made["agreement"].tolist(), strict=True))
    gallery = json.loads((mixed / "iteration-1" / "gallery.json").read_text())
    shown = {image["id"]: image["agreement"] for group in gallery["classes"] for image in group["images"]}
    assert shown and all(voted[name] == agreement for name, agreement in shown.items())


def test_the_verdict_compares_with_the_average(mixed: Path) -> None:
    scores = json.loads((mixed / "iteration-0" / "evaluation.json").read_text())["models"]
    verdict = json.loads((mixed / "verdict.json").read_text())
    assert verdict["top1"]["teacher"] == scores["teachers"]["test"]["top1"]
    assert "the average of the first teachers" in verdict["sentence"]
    # The stored labels are of the pool alone, so the average on test is that of the other three.
    names = ("teacher", "teacher-2", "existing-1")
    files = [mixed / "iteration-0" / name / "predictions-test.npz" for name in names]
    mean = np.mean([np.load(file)["probs"] for file in files], axis=0)
    of_label = mean[np.arange(len(mean)), np.load(files[0])["labels"]]
    assert scores["teachers"]["test"]["nll"] == pytest.approx(-np.log(of_label).mean(), rel=1e-5)


# --- labels of another run ---


def test_the_labels_of_a_run_give_its_selection(images: Path, finished: Path, tmp_path: Path) -> None:
    given = config(
        images, {"labels_from": str(finished / LABELS)}, {}, teacher_weights=[1, 0], control="none"
    )
    tiny.run(given, tmp_path)
    ours, theirs = (pq.read_table(run / "iteration-1" / "selection.parquet") for run in (tmp_path, finished))
    assert ours.equals(theirs)
    assert "agreement" not in labels(tmp_path)


# --- models that exist ---


def with_permuted_classes(source: Path, out: Path, order: list[int]) -> Path:
    """The same model with its outputs in another order."""
    tensors = load_file(source)
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    for name in ("fc.weight", "fc.bias"):
        tensors[name] = tensors[name][order].contiguous()
    names = json.loads(metadata["classes"])
    save_file(tensors, out, metadata | {"classes": json.dumps([names[place] for place in order])})
    return out


def test_permuted_class_names_give_the_same_answer(finished: Path, images: Path, tmp_path: Path) -> None:
    permuted = with_permuted_classes(finished / TEACHER, tmp_path / "m.safetensors", [2, 0, 1])
    val, answers = tiny.opened(images, finished)[1].val, []
    for path in (finished / TEACHER, permuted):
        model, order = load_existing(FirstTeacherConfig(model_from=str(path)), tiny.CLASSES, tiny.SIDE, "cpu")
        answers.append(model.probs(val)[:, list(order)])
    assert order == (1, 2, 0)
    assert np.abs(answers[0] - answers[1]).max() < 1e-6


def test_a_checkpoint_needs_its_network_and_its_classes(finished: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(finished / TEACHER), bare)
    entry = {"model_from": str(bare), "model": {"name": "resnet8_16"}, "classes": list(tiny.CLASSES)}
    given = config(Path("images"), {}, entry).teachers[1]
    model, order = load_existing(given, tiny.CLASSES, tiny.SIDE, "cpu")
    assert order == (0, 1, 2) and model.resolution == tiny.SIDE
    with pytest.raises(InputError, match="does not name its classes; give them as classes"):
        load_existing(replace(given, classes=()), tiny.CLASSES, tiny.SIDE, "cpu")


WRONG = {
    "other classes": (("blue", "green", "pink"), "lacks 'pink' and has also 'red'; it must have the classes"),
    "fewer": (("blue", "red"), "has also 'green'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_classes_are_one_line(finished: Path, name: str) -> None:
    classes, message = WRONG[name]
    with pytest.raises(InputError, match=message) as error:
        load_existing(FirstTeacherConfig(model_from=str(finished / TEACHER)), classes, tiny.SIDE, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("outputs", [2, 10])
def test_a_model_without_names_has_as_many_outputs_as_the_run_has_classes(
    tmp_path: Path, outputs: int
) -> None:
    """The names in the entry alone would take the first outputs, or outputs that the model lacks."""
    path = tmp_path / "m.safetensors"
    save_weights(build_model(ModelConfig(name="resnet8_16"), outputs, tiny.SIDE), path)
    entry = FirstTeacherConfig(model_from=str(path), classes=tiny.CLASSES)
    with pytest.raises(
        InputError, match=f"has {outputs} outputs; it must have one for each of the 3 classes"
    ):
        load_existing(entry, tiny.CLASSES, tiny.SIDE, "cpu")


@pytest.mark.parametrize("path", ["nothing", "nothing.onnx", "nothing.safetensors", "."])
def test_a_missing_model_is_one_line(images: Path, tmp_path: Path, path: str) -> None:
    given = config(images, {}, {"model_from": str(tmp_path / path)})
    with pytest.raises(InputError, match=r"^teachers: model_from ") as error:
        tiny.run(given, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "iteration-0").exists()


def test_weights_that_val_cannot_give_are_refused_before_a_training(
    images: Path, finished: Path, tmp_path: Path
) -> None:
    pool = tiny.opened(images, finished)[1].pool
    columns = {name: np.full(len(pool), 1 / 3, np.float32) for name in tiny.CLASSES}
    table = pa.table({"id": pool.ids(np.arange(len(pool))), **columns})
    pq.write_table(table, tmp_path / "p.parquet")
    entry = {"labels_from": str(tmp_path / "p.parquet")}
    with pytest.raises(InputError, match=r"teacher_weights is val, but .*p\.parquet has no probabilities"):
        tiny.run(config(images, {}, entry, teacher_weights="val"), tmp_path / "run")
    assert not (tmp_path / "run" / TEACHER).exists()
