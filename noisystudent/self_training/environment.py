"""Writes the configuration and the software versions of a run, before any stage runs."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import torch

from noisystudent import recipes
from noisystudent.config import Config
from noisystudent.run.files import write_json, write_text
from noisystudent.run.rundir import RunDir

# Packages whose version can change the results or the files of a run.
_PACKAGES = ("noisystudent", "torch", "torchvision", "timm", "numpy", "pillow", "pyarrow", "duckdb")


def describe(run: RunDir, config: Config) -> None:
    """Write config.yaml, the configuration with all defaults filled in, and environment.json.

    Raises:
        RunError: a file cannot be written.
    """
    write_text(run.config, recipes.dump(config))
    write_json(run.environment, _environment())


def _environment() -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "command": " ".join(sys.argv),
    }
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    if torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
    versions["cpu_threads"] = str(torch.get_num_threads())
    return versions
