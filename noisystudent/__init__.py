"""Noisy Student self-training: trains an image classifier on labelled and unlabelled images, and tests it.

    labelled images ─► data ─► augment ─► train ◄─ models          the teacher, and later every student
    the pool ────────► data ─► pseudo_label ─► selection ─► train  labels of clean images, filtered
                                    ▲                         │
                                    └──── the next teacher ◄──┘
    every model ─► evaluation ─► metrics, robustness ─► report     accuracy, robustness, effect of the pool

    errors, records, runtime, console   one-line errors, shared records, device and seeds, progress
    config/  recipes/                   the configuration of a run; named configurations
    run/            the run directory: files, stages, which stages are done and which must run again
    data/           reading images: folders, shards, arrays; splits, leaks, batches
    augment/        input noise: drawn first for each image, then applied
    models/         networks, and model noise: dropout, stochastic depth
    train/          training: losses, optimisers, moving average, exact resume
    pseudo_label/   the teacher's labels: probabilities of every pool image, on disk
    selection/      which pseudo-labels are kept: a threshold, balanced classes, a reason for every image
    metrics/        functions from arrays to numbers: accuracy, calibration, paired statistics, the verdict
    robustness/     tests of robustness: corruptions, perturbations, attacks
    inference/      use of a trained model: one Predictor; load, predict, write, export
    evaluation/     evaluation of a trained model on images, the same for `run` and `evaluate`
    self_training/  the algorithm: the only package that imports all parts
    report/         one HTML page about a run directory
    trackers/       the numbers of a run in MLflow, W&B, or as JSON lines
    ablation/       many runs, one for each recipe and seed, that share their stages; one table
    review/         the images of a run that are worth a look, as a CSV file and a page
    cli/            one command for each stage; estimator/: the same as estimators of scikit-learn

The names below are imported when they are first used, so `import noisystudent` does not import torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError("noisystudent does not run on Windows; install it in WSL, the Linux of Windows")

if TYPE_CHECKING:
    from noisystudent.config import Config
    from noisystudent.errors import InputError, NoisyStudentError, RunError, Stopped
    from noisystudent.estimator import NoisyStudent, NoisyStudentClassifier
    from noisystudent.inference.load import load_predictor
    from noisystudent.inference.predict import label_images, predict, score
    from noisystudent.models import build_model
    from noisystudent.selection import select
    from noisystudent.self_training import self_train

    __version__: str

__all__ = [
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

_HOMES = {
    "config": ("Config",),
    "errors": ("InputError", "NoisyStudentError", "RunError", "Stopped"),
    "estimator": ("NoisyStudent", "NoisyStudentClassifier"),
    "inference.load": ("load_predictor",),
    "inference.predict": ("label_images", "predict", "score"),
    "models": ("build_model",),
    "selection": ("select",),
    "self_training": ("self_train",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562).

    Raises:
        AttributeError: the package has no such public name.
    """
    if name == "__version__":
        # Imported here to keep `import noisystudent` fast: few callers read the version.
        from importlib.metadata import version

        value: Any = version("noisystudent")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"noisystudent.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'noisystudent' has no attribute {name!r}")
    globals()[name] = value  # the next access does not call this function
    return value


def __dir__() -> list[str]:
    """Sorted public names and names with double underscores."""
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
