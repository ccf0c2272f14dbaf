"""Find and read recipes: those shipped with the package by their name, others as YAML files."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from noisystudent.config.parse import parse, read_text
from noisystudent.errors import InputError, did_you_mean

_MATRIX = "ablation-"  # the names of shipped ablations begin with this


def names() -> list[str]:
    """Names of the shipped recipes for a single run."""
    return [name for name in _shipped() if not name.startswith(_MATRIX)]


def matrices() -> list[str]:
    """Names of the shipped ablations, each a matrix of runs for `noisystudent ablate`."""
    return [name for name in _shipped() if name.startswith(_MATRIX)]


def text(recipe: str) -> str:
    """YAML text of a shipped recipe or of a file.

    Raises:
        InputError: there is no recipe and no YAML file of this name, or the file is not text.
    """
    shipped = _shipped()
    if recipe in shipped:  # read as a resource, because the package may be in an archive
        return (resources.files("noisystudent.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") and os.path.isfile(path):
        return read_text(path)
    raise InputError(
        f"no recipe or YAML file {recipe!r}{did_you_mean(recipe, shipped)}; recipes: {', '.join(shipped)}"
    )


def read(recipe: str) -> dict[str, Any]:
    """Content of the YAML of a recipe, before inheritance and overrides.

    Raises:
        InputError: there is no such recipe or file, or it is not a mapping in YAML (see `parse`).
    """
    raw = parse(text(recipe), recipe) or {}
    if not isinstance(raw, dict):
        raise InputError(f"{recipe} is a {type(raw).__name__}; it must be a mapping of fields")
    return raw


def _shipped() -> list[str]:
    """Names of all shipped recipes and ablations, sorted."""
    files = resources.files("noisystudent.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
