"""The explorer: what the script of the page computes equals what the program selects."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import fake_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from html_page import page
from numpy.typing import NDArray

from noisystudent.config import SelectionConfig
from noisystudent.errors import RunError
from noisystudent.metrics.precision import GRID, bins
from noisystudent.records import PseudoLabels, Selection
from noisystudent.report.explorer import MOST_CLASSES, explorer
from noisystudent.report.read import read_run
from noisystudent.run.lock import MARKER
from noisystudent.run.record import write_record
from noisystudent.run.rundir import LabelsDir, RunDir
from noisystudent.selection import select, summary

K = len(fake_run.CLASSES)
SETTINGS = [
    SelectionConfig(threshold=0.0),
    SelectionConfig(threshold=0.3),
    SelectionConfig(threshold=0.3, duplicate=False),
    SelectionConfig(threshold=0.5, per_class=1),
    SelectionConfig(threshold=0.5, per_class=50),
    SelectionConfig(threshold=0.7, per_class=5000, duplicate=False),
    SelectionConfig(threshold=0.85, per_class=120),
    SelectionConfig(threshold=0.97, max_confidence=0.995),
    SelectionConfig(threshold=0.3, max_confidence=0.9, pool_fraction=0.5),
    SelectionConfig(threshold=0.999),
    SelectionConfig(mode="threshold", threshold=0.6),
]


def confident(rng: np.random.Generator, images: int) -> NDArray[np.float32]:
    """Confidences of which many are equal to a threshold, or beside one in float32."""
    drawn = rng.beta(5, 1, images).astype(np.float32)
    on = rng.choice(np.array(GRID), images).astype(np.float32)
    beside = np.nextafter(on, rng.choice(np.array([0, 1], np.float32), images))
    return np.asarray(np.choose(rng.integers(0, 4, images), [drawn, drawn, on, beside]), np.float32)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> PseudoLabels:
    rng, images = np.random.default_rng(3), 3000
    hashes = rng.bytes(16 * images)
    columns = {
        "row": pa.array(np.arange(images)),
        "id": pa.array([f"{row}.jpg" for row in range(images)]),
        "content_hash": pa.array([hashes[16 * i : 16 * i + 16] for i in range(images)], pa.binary(16)),
        # The last class has no image.
        "label": pa.array(np.minimum(rng.geometric(0.3, images) - 1, K - 2).astype(np.int32)),
        "confidence": pa.array(confident(rng, images)),
    }
    labels = LabelsDir(tmp_path_factory.mktemp("pool"))
    pq.write_table(pa.table(columns), labels.part(0))
    return PseudoLabels(labels.path, K)


def known() -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Class, confidence and rightness of labelled images."""
    rng = np.random.default_rng(4)
    confidence = confident(rng, 400)
    return rng.integers(0, K, 400), confidence, rng.random(400) < confidence


def begun(run: Path, classes: int = K) -> Path:
    """A run that is at its first student."""
    (run / "iteration-1").mkdir(parents=True)
    fake_run.write_data(run / "data", (fake_run.CLASSES * 200)[:classes])
    return run


def select_in(run: Path, pool: PseudoLabels, config: SelectionConfig) -> None:
    """Write the selection with these settings, its record, and the settings."""
    iteration = RunDir(run).iteration(1)
    select(pool, config, seed=0, out=iteration.selection)
    label, confidence, right = known()
    counts, hits = bins(label, confidence, K), bins(label[right], confidence[right], K)
    rows = [[int(k), int(b), int(counts[k, b]), int(hits[k, b])] for k, b in np.argwhere(counts)]
    record = {"name": "selection-1", "fingerprint": "0", "status": "done", "inputs": {}}
    write_record(
        iteration.selection_record, record | {"result": {"precision": {"source": "val", "bins": rows}}}
    )
    students = json.dumps([{"selection": asdict(config)}])
    (run / "config.yaml").write_text(f"name: explored\nstudents: {students}\n")


@pytest.fixture(scope="module")
def functions(pool: PseudoLabels, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The functions in the script of a page."""
    run = begun(tmp_path_factory.mktemp("runs") / "run")
    select_in(run, pool, SETTINGS[0])
    (script,) = (script for script in page(run).scripts if "function explore(" in script)
    return script[script.index("function explore(") : script.index("function explorer(")]


def computed(functions: str, content: dict[str, Any]) -> dict[str, Any]:
    """What the script of the page computes for the settings of the run."""
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed; it runs the script of the page")
    call = """
    const run = JSON.parse(process.argv[1]).iterations[0];
    console.log(JSON.stringify(explore(run.pool, run.known, run.threshold, run.quota, run.duplicate)));"""
    words = [node, "-e", functions + call, json.dumps(content)]
    return dict(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))


@pytest.mark.parametrize("config", SETTINGS, ids=range(len(SETTINGS)))
def test_the_page_computes_what_duckdb_selects(
    config: SelectionConfig, pool: PseudoLabels, tmp_path: Path, functions: str
) -> None:
    run = begun(tmp_path / "run")
    select_in(run, pool, config)
    content = explorer(read_run(RunDir(run)))
    assert content is not None
    found, counts = computed(functions, content), summary(Selection(RunDir(run).iteration(1).selection, K))
    assert (found["kept"], found["total"]) == (counts["kept"], counts["total"])
    for own, row in zip(found["classes"], counts["classes"], strict=True):
        expected = (row["above_threshold"], row["kept"], row["total"])
        assert (own["candidates"], own["kept"], own["total"]) == expected
    # Labelled images above the last threshold that all kept images of their class are above.
    label, confidence, right = known()
    least = [row["min_confidence"] for row in counts["classes"]]
    ends = [np.inf if low is None else max(t for t in GRID if t < low) for low in least]
    counted = confidence > np.array(ends)[label]
    assert (found["known"], found["right"]) == (counted.sum(), (counted & right).sum())


@pytest.mark.parametrize("mode", ["paper", "official", "adaptive", "threshold", "all"])
def test_the_page_has_what_the_run_kept_in_any_mode(
    mode: Literal["paper", "official", "adaptive", "threshold", "all"], pool: PseudoLabels, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run")
    select_in(run, pool, SelectionConfig(mode=mode, threshold=0.6))
    content = explorer(read_run(RunDir(run)))
    assert content is not None
    (own,), counts = content["iterations"], summary(Selection(RunDir(run).iteration(1).selection, K))
    assert (own["mode"], own["kept"], own["total"]) == (mode, counts["kept"], counts["total"])


def test_the_page_knows_which_fields_a_run_with_its_numbers_has_to_reset(
    pool: PseudoLabels, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run")
    select_in(run, pool, SelectionConfig(relative=True, per_class=7, top_fraction=0.5, max_confidence=0.99))
    content = explorer(read_run(RunDir(run)))
    assert content is not None
    assert content["iterations"][0]["changed"] == ["relative", "per_class", "top_fraction"]


def test_the_columns_of_bins_sum_to_the_images_above_each_threshold() -> None:
    label, confidence, _ = known()
    counts = bins(label, confidence, K)
    for at, threshold in enumerate(GRID):
        above = np.bincount(label[confidence.astype(np.float64) > threshold], minlength=K)
        assert (counts[:, at + 1 :].sum(axis=1) == above).all()


@pytest.mark.parametrize("classes", [K, MOST_CLASSES + 1])
def test_without_a_selection_or_with_too_many_classes_there_is_no_explorer(
    pool: PseudoLabels, tmp_path: Path, classes: int
) -> None:
    run = begun(tmp_path / "run", classes)
    (run / MARKER).touch()  # its own report may be replaced
    select_in(run, pool, SETTINGS[0])
    report = page(run)
    if classes == K:
        assert "explorer" in report.sections
        RunDir(run).iteration(1).selection.unlink()
        report = page(run)
    assert "explorer" not in report.sections
    assert report.content["explorer"] is None


def test_a_damaged_selection_is_named(pool: PseudoLabels, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    (run / MARKER).touch()
    select_in(run, pool, SETTINGS[0])
    RunDir(run).iteration(1).selection.write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"selection\.parquet cannot be read"):
        page(run)
