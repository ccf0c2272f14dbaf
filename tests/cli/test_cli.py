"""Each command on a finished tiny run."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from tiny import Capture, output, table

from noisystudent.console import Progress
from noisystudent.inference.images import open_images, scanned
from noisystudent.inference.load import find_model, load_predictor
from noisystudent.inference.predict import predict


def test_a_run_leaves_what_the_readme_promises(finished: Path) -> None:
    names = [
        "config.yaml environment.json run.log metrics.jsonl verdict.json report.html data/manifest.parquet",
        "data/ledger.csv data/leaks.csv iteration-0/teacher/model.safetensors iteration-0/evaluation.json",
        "iteration-0/teacher/metrics.jsonl iteration-0/teacher/checkpoint/step-00000010",
        "iteration-1/labels/part-00000.parquet iteration-1/selection.parquet iteration-1/evaluation.json",
        "iteration-1/student/model.safetensors iteration-1/control/model.safetensors tensorboard",
    ]
    missing = [name for line in names for name in line.split() if not (finished / name).exists()]
    assert missing == []
    log = (finished / "run.log").read_text()
    assert (
        "student-1: val top-1" in log
        and " ".join(json.loads((finished / "verdict.json").read_text())["headline"]) in log
    )


# --- predict ---


def test_predict_writes_csv_json_and_parquet_alike(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ("predict", finished, images / "test")
    rows = list(csv.DictReader(io.StringIO(output(capsys, *words))))
    assert len(rows) == 12 and list(rows[0]) == [
        "id",
        "class",
        "probability",
        "p(blue)",
        "p(green)",
        "p(red)",
    ]
    for ending in ("csv", "json", "parquet"):
        assert output(capsys, *words, "--out", tmp_path / f"rows.{ending}") == ""
    from_json = json.loads((tmp_path / "rows.json").read_text())
    assert from_json == pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert from_json == json.loads(output(capsys, *words, "--format", "json"))
    assert (tmp_path / "rows.csv").read_text().splitlines()[1:] == [",".join(row.values()) for row in rows]
    for row, other in zip(rows, from_json, strict=True):
        probs = np.array([float(row[f"p({name})"]) for name in tiny.CLASSES])
        assert row["id"] == other["id"] and float(row["probability"]) == probs.max() == other["probability"]
        assert row["class"] == tiny.CLASSES[int(probs.argmax())]
        assert probs.sum() == pytest.approx(1, abs=1e-6)
    right = np.mean([row["class"] == row["id"].split("/")[0] for row in rows])
    top1 = json.loads((finished / "iteration-1" / "evaluation.json").read_text())["models"]["student"][
        "test"
    ]["top1"]
    assert right == pytest.approx(top1)


def test_predict_takes_a_single_file_and_a_model_folder(
    finished: Path, images: Path, capsys: Capture
) -> None:
    file = images / "test" / "red" / "00.png"
    rows = {}
    for model in ("", "iteration-1/student", "iteration-1/student/model.safetensors", "iteration-0/teacher"):
        rows[model] = output(capsys, "predict", finished / model, file).splitlines()
        assert len(rows[model]) == 2
    assert rows[""] == rows["iteration-1/student"] == rows["iteration-1/student/model.safetensors"]
    assert rows[""] != rows["iteration-0/teacher"]


def test_predict_takes_several_files_by_name(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    files = [images / "test" / name for name in ("red/03.png", "blue/00.png", "green/01.png")]
    (tmp_path / "broken.JPG").write_text("no image")
    assert tiny.call("predict", finished, *files, tmp_path / "broken.JPG") == 0
    out, err = capsys.readouterr()
    assert [row.split(",")[0] for row in out.splitlines()[1:]] == [str(file) for file in files]
    assert f"noisystudent: {tmp_path}/broken.JPG: not an image" in err
    of_folder = {
        row["id"]: row["p(red)"]
        for row in csv.DictReader(io.StringIO(output(capsys, "predict", finished, images / "test")))
    }
    for row in csv.DictReader(io.StringIO(out)):
        alone, among = float(row["p(red)"]), float(of_folder["/".join(row["id"].split("/")[-2:])])
        assert alone == pytest.approx(among, abs=1e-6)
    assert tiny.call("predict", finished, files[0], tmp_path / "gone.png") == 2
    assert f"{tmp_path}/gone.png: no such file or folder" in tiny.one_line(capsys)
    assert tiny.call("predict", finished, files[0], tmp_path) == 2
    assert "is an image file, but others are not" in tiny.one_line(capsys)


def test_predict_to_parquet_needs_a_file(finished: Path, images: Path, capsys: Capture) -> None:
    assert tiny.call("predict", finished, images / "test", "--format", "parquet") == 2
    assert "--format parquet needs a file" in tiny.one_line(capsys)


# --- label, select, evaluate ---


def whole(labels: Path) -> pa.Table:
    """Return the rows of all parts."""
    parts = [pq.read_table(path) for path in sorted(labels.glob("*.parquet"))]
    return pa.concat_tables([part.replace_schema_metadata(None) for part in parts]).combine_chunks()


def test_label_writes_what_a_run_wrote(finished: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    teacher = finished / "iteration-0" / "teacher"
    words = ("label", teacher, "--unlabeled", images / "pool", "--out", tmp_path / "labels")
    output(capsys, *words, "--pseudo_label.part_size", "16")
    alone, of_run = (whole(folder) for folder in (tmp_path / "labels", finished / "iteration-1" / "labels"))
    rounded = ["probs", "confidence", "energy"]
    assert alone.drop_columns(rounded).equals(of_run.drop_columns(rounded))
    for name in ("confidence", "energy"):
        np.testing.assert_allclose(alone[name], of_run[name], rtol=1e-5, atol=1e-5)
    sharp = (*words[:-1], tmp_path / "sharp", "--pseudo-label.temperature", "0.5")
    output(capsys, *sharp)
    colder = whole(tmp_path / "sharp")
    np.testing.assert_allclose(colder["confidence"], alone["confidence"], rtol=1e-5)
    largest = [np.array(table["probs"].to_pylist()).max(axis=1) for table in (colder, alone)]
    assert (largest[0] > largest[1]).all()


def test_label_averages_over_mirror_images(finished: Path, images: Path, tmp_path: Path) -> None:
    words = ("--unlabeled", images / "pool", "--out", tmp_path / "labels")
    assert tiny.call("label", finished, *words, "--pseudo_label.flip", "true") == 0
    labels = pq.read_table(tmp_path / "labels" / "part-00000.parquet")
    predictor = load_predictor(finished, "cpu")
    pool = open_images(images / "pool", labeled=False)
    with scanned(pool, None, Progress(), stored=None) as (images_of_pool, _):
        (views,) = predictor.views(images_of_pool)
    expected = (predictor(views).softmax(1) + predictor(views.flip(3)).softmax(1)) / 2
    np.testing.assert_allclose(np.stack(labels["probs"].to_numpy()), expected.numpy(), atol=1e-3)


def test_precision_is_that_of_the_forward_pass(
    finished: Path, images: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # any CPU can emulate it
    exact, rounded = (
        predict(load_predictor(finished, "cpu", precision=precision), images / "test").probs
        for precision in ("auto", "bf16")
    )
    assert (exact != rounded).any()
    np.testing.assert_allclose(exact, rounded, atol=0.05)
    assert tiny.call("evaluate", finished, "--data", images / "test", "--precision", "fp16") == 2
    assert "--precision" in tiny.one_line(capsys)


def test_select_writes_what_a_run_wrote(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    labels, out = finished / "iteration-1" / "labels", tmp_path / "chosen.parquet"
    line = output(capsys, "select", labels, "--out", out)
    rows = pq.read_table(out)
    assert rows.equals(pq.read_table(finished / "iteration-1" / "selection.parquet"))
    kept = int((rows["repeats"].to_numpy() > 0).sum())
    assert line == f"{kept:,} of 42 images kept, {rows['repeats'].to_numpy().sum():,} with repeats: {out}\n"
    output(capsys, "select", labels, "--out", out, "--overwrite", "--selection.per_class", "3")
    assert pq.read_table(out)["repeats"].to_numpy().sum() == 9


def test_evaluate_prints_the_scores_of_the_run(finished: Path, images: Path, capsys: Capture) -> None:
    printed = output(capsys, "evaluate", finished, "--data", images / "test", "--tests", "clean")
    values = {line.split()[1]: line.split()[2] for line in printed.splitlines()[1:]}
    scores = json.loads((finished / "iteration-1" / "evaluation.json").read_text())["models"]["student"][
        "test"
    ]
    assert values == {name: f"{value:.4f}" for name, value in scores.items()}


# --- export, report ---


@pytest.mark.slow  # the exporter takes its time
@pytest.mark.filterwarnings("ignore")
def test_export_to_onnx_is_the_same_model_for_any_number_of_images(
    finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    shutil.copytree(finished, tmp_path / "run")
    line = output(capsys, "export", tmp_path / "run", "--format", "onnx").strip()
    assert line.startswith(f"onnxruntime.InferenceSession('{tmp_path}/run.onnx')")
    predictor = load_predictor(finished, "cpu")
    session = onnxruntime.InferenceSession(str(tmp_path / "run.onnx"))
    for count in (1, 5):
        pixels = torch.from_numpy(tiny.pictures(0, count, 77)).permute(0, 3, 1, 2).contiguous()
        logits = session.run(["logits"], {"images": pixels.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(logits), predictor(pixels), rtol=1e-4, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(tiny.CLASSES)


def test_report_is_rebuilt_from_files(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert output(capsys, "report", out) == f"{out}/report.html\n"
    assert (out / "report.html").read_bytes() == page


# --- plan, check ---


def test_plan_lists_what_is_to_do_and_why(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.unmeasured(monkeypatch)
    words = ("plan", tiny.write_recipe(tmp_path / "tiny.yaml"), *tiny.flags(images))
    stages = ["data", "teacher", "labels-1", "selection-1", "student-1", "control-1", "judgement"]
    fresh = table(output(capsys, *words, "--out", tmp_path / "new"))
    assert list(fresh) == stages and all(row.startswith("to do") for row in fresh.values())
    assert not (tmp_path / "new").exists(), "a plan does nothing"
    assert all(row.startswith("done") for row in table(output(capsys, *words, "--out", finished)).values())
    strict = table(output(capsys, *words, "--out", finished, "--student.selection.threshold", "0.9"))
    assert strict["selection-1"].startswith("to redo: config changed iteration-1/selection.parquet")
    assert strict["student-1"].startswith("to redo: selection changed")
    assert strict["judgement"].startswith("to redo: student-1 changed")
    assert all(strict[name].startswith("done") for name in ("data", "teacher", "labels-1", "control-1"))
    longer = table(output(capsys, *words, "--out", finished, "--teacher.train.steps", "9"))
    assert longer["teacher"].startswith("to redo: train changed") and longer["data"].startswith("done")
    assert len(table(output(capsys, *words, "--students", "3", "--control", "none"))) == 12


# --- train, demo ---


def test_train_trains_the_teacher_alone(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    sets = ("--labeled", images / "labeled", "--val", images / "val")
    output(capsys, "train", recipe, *sets, "--out", tmp_path / "run")
    assert tiny.weights(tmp_path / "run", "iteration-0/teacher") == tiny.weights(
        finished, "iteration-0/teacher"
    )
    assert not (tmp_path / "run" / "iteration-1").exists()
    assert find_model(tmp_path / "run").parent.name == "teacher"


def test_demo_takes_fields(tmp_path: Path, capsys: Capture) -> None:
    words = ("--out", tmp_path / "demo", "--device", "cpu", "--teacher.train.steps", "1")
    assert tiny.call("demo", *words) == 1, "the model of one step is at chance level"
    assert "teacher: " in tiny.one_line(capsys)
    manifest = tiny.manifest(tmp_path / "demo")
    assert sum(row["set"] == "pool" for row in manifest) == 850
    assert sum(row["set"] in ("labeled", "val") for row in manifest) == 50
