"""What `import noisystudent` offers, and that it costs nothing."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import noisystudent
from noisystudent.config import SelectionConfig

PUBLIC = [
    "Config",
    "InputError",
    "NoisyStudent",
    "NoisyStudentClassifier",
    "NoisyStudentError",
    "RunError",
    "Stopped",
    "build_model",
    "label_images",
    "load_predictor",
    "predict",
    "score",
    "select",
    "self_train",
]


def test_the_public_names_are_these() -> None:
    assert noisystudent.__all__ == sorted(noisystudent.__all__) == PUBLIC
    assert [name for name in dir(noisystudent) if not name.startswith("__")] == PUBLIC
    for name in PUBLIC:
        assert getattr(noisystudent, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Noisy'"):
        noisystudent.Noisy  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    parts = noisystudent.__version__.split(".")
    assert len(parts) == 3 and all(part.isdecimal() for part in parts)


def test_no_public_name_is_hidden_by_a_module() -> None:
    """Else the name would mean the function or the module, whichever was imported first."""
    modules = {module.name for module in pkgutil.iter_modules(noisystudent.__path__)}
    assert modules.isdisjoint(PUBLIC)


def test_windows_is_refused_in_one_line() -> None:
    code = "import sys; sys.platform = 'win32'; import noisystudent"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("ImportError: noisystudent does not run on Windows")


def test_importing_it_imports_nothing_heavy_and_sets_nothing_up() -> None:
    code = (
        "import sys, noisystudent; dir(noisystudent); noisystudent.InputError, noisystudent.Config;"
        "heavy = {'torch', 'timm', 'numpy', 'pyarrow', 'duckdb', 'PIL', 'yaml'} & sys.modules.keys();"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n" and done.stderr == ""


def test_the_functions_can_be_called_with_a_model_images_and_a_folder(
    finished: Path, images: Path, tmp_path: Path
) -> None:
    predictor = noisystudent.load_predictor(finished)
    predictions = noisystudent.predict(predictor, images / "pool")
    labels, bad = noisystudent.label_images(predictor, images / "pool", tmp_path / "labels")
    assert bad == predictions.bad == []
    parts = sorted(labels.path.glob("*.parquet"))
    confidences = np.concatenate(
        [pyarrow.parquet.read_table(part)["confidence"].to_numpy() for part in parts]
    )
    assert np.allclose(confidences, predictions.probs.max(axis=1), atol=1e-6)
    values, _ = noisystudent.score(predictor, images / "test")
    assert 0 <= values["top1"] <= values["top5"] <= 1
    kept = noisystudent.select(labels, SelectionConfig(), seed=0, out=tmp_path / "selection.parquet")
    assert pyarrow.parquet.read_table(kept.path).num_rows == len(predictions.ids)


def test_the_docstring_names_the_stages_in_order() -> None:
    text = noisystudent.__doc__ or ""
    stages = [
        "config/",
        "run/",
        "data/",
        "augment/",
        "models/",
        "train/",
        "pseudo_label/",
        "selection/",
        "metrics/",
        "robustness/",
        "inference/",
        "evaluation/",
        "self_training/",
        "report/",
        "trackers/",
        "ablation/",
    ]
    places = [text.index(f"    {stage}") for stage in stages]
    assert places == sorted(places)
    for stage in stages:
        importlib.import_module(f"noisystudent.{stage.removesuffix('/')}")


def test_planning_needs_nothing_that_trains() -> None:
    code = (
        "import sys, noisystudent.run.status; print(sorted({'torch', 'timm', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
