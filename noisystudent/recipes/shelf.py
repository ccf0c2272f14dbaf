"""Where recipes are found: those that ship with the package by name, others as YAML files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from noisystudent.errors import InputError, did_you_mean

_MATRIX = "ablation-"


def names() -> list[str]:
    """The recipes of one run that ship with the package."""
    return [name for name in _shipped() if not name.startswith(_MATRIX)]


def matrices() -> list[str]:
    """The recipes of many runs, for `noisystudent ablate`, that ship with the package."""
    return [name for name in _shipped() if name.startswith(_MATRIX)]


def text(recipe: str) -> str:
    """The YAML of a shipped recipe or of a file.

    Raises:
        InputError: neither a recipe nor a file.
    """
    shipped = _shipped()
    if recipe in shipped:
        return (resources.files("noisystudent.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path.read_text(encoding="utf-8")
    raise InputError(
        f"no recipe or YAML file {recipe!r}{did_you_mean(recipe, shipped)}; recipes: {', '.join(shipped)}"
    )


def read(recipe: str) -> dict[str, Any]:
    """What the YAML of a recipe holds, as it is written.

    Raises:
        InputError: neither a recipe nor a file, or not a mapping in YAML.
    """
    try:
        raw = yaml.safe_load(text(recipe)) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{recipe} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{recipe} holds a {type(raw).__name__}; a recipe is a mapping of fields")
    return raw


def _shipped() -> list[str]:
    files = resources.files("noisystudent.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
