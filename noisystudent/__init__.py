"""Noisy Student: labelled images and a pile of unlabelled ones in, a better classifier and its proof out.

    labelled images ─► data ─► augment ─► train ◄─ models         the teacher, and later every student
    the pile ────────► data ─► pseudo_label ─► selection ─► train   its word on clean images, sifted
                                    ▲                         │
                                    └──── the next teacher ◄──┘
    every model ─► evaluate ─► report, export                     how good, did it help, is that luck

    data/           where images come from: folders, shards, arrays; splits, leaks, batches
    augment/        input noise: what is done to each image, drawn first, then applied
    models/         what learns, and model noise: dropout, stochastic depth
    train/          how it learns: losses, optimisers, moving average, exact resume
    pseudo_label/   the teacher speaks: probabilities of every pool image, on disk
    selection/      what to trust: a threshold, balanced classes, a reason for every image
    evaluate/       how good, and did it help: metrics, paired statistics
    self_training/  the algorithm: the only place where all parts meet
    report/         a run directory in, one HTML page out; export and inference stand beside it
    ablation/       many runs, recipes by seeds, that share their stages; one table
    graph, stages   what a run consists of, what is done, what must run again; rundir: how it is kept

Names below are loaded when first asked for: importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisystudent.config import Config
    from noisystudent.errors import InputError, NoisyStudentError, RunError, Stopped
    from noisystudent.estimator import NoisyStudent
    from noisystudent.inference import load_predictor, predict, score
    from noisystudent.models import build_model
    from noisystudent.pseudo_label import label_images
    from noisystudent.selection import select
    from noisystudent.self_training import self_train

    __version__: str

__all__ = [
    "Config",
    "InputError",
    "NoisyStudent",
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
    "estimator": ("NoisyStudent",),
    "inference": ("load_predictor", "predict", "score"),
    "models": ("build_model",),
    "pseudo_label": ("label_images",),
    "selection": ("select",),
    "self_training": ("self_train",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """PEP 562: a public name is imported when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("noisystudent")
    elif name in _HOME:
        found = getattr(importlib.import_module(f"noisystudent.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'noisystudent' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names and the dunders."""
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
