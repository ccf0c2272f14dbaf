"""What a run was made with: configuration and versions, written before anything else."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from noisystudent import recipes, rundir
from noisystudent.config import Config

_PACKAGES = ("noisystudent", "torch", "torchvision", "timm", "numpy", "pillow", "pyarrow", "duckdb")


def describe(run: Path, config: Config) -> None:
    """Write `config.yaml`, the resolved configuration, and `environment.json`."""
    rundir.write_text(run / "config.yaml", recipes.dump(config))
    rundir.write_json(run / "environment.json", _environment())


def _environment() -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "command": " ".join(sys.argv),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["cpu_threads"] = str(torch.get_num_threads())
    return found
