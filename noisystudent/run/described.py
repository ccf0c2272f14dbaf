"""What is written about a network beside its weights: architecture, mean and std of the pixels, licence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors

from noisystudent.errors import InputError, first_line, require
from noisystudent.run.rundir import WEIGHT_FILES

DESCRIPTION = "config.json"

_KEYS = ("architecture", "mean", "std", "license")


def described(path: Path) -> dict[str, Any]:
    """What is written about the network: architecture, mean, std, license, as far as it is known.

    Files of this package have it in their metadata, and timm's folders and repositories in config.json.

    Raises:
        InputError: the description is damaged.
    """
    metadata, beside = _metadata(path), _beside(path)
    try:
        plain = {key: json.loads(metadata[key]) for key in ("mean", "std") if key in metadata}
        known: dict[str, Any] = {key: metadata[key] for key in _KEYS if key in metadata} | plain
        if not known and beside is not None:
            config = json.loads(beside.read_text("utf-8"))
            about = (config.get("pretrained_cfg") or {}) | config
            known = {key: about[key] for key in _KEYS if key in about}
        for key in {"mean", "std"} & known.keys():
            known[key] = tuple(float(value) for value in known[key])
            allowed = all(math.isfinite(value) and (key == "mean" or value > 0) for value in known[key])
            require(allowed and len(known[key]) == 3, f"{key} is {known[key]}")
    except (ValueError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{path}: its description is damaged ({first_line(error)})") from error
    return known


def normalization_beside(path: Path) -> dict[str, Any]:
    """Mean and std of `described` if config.json gives them: the checksum of the weights is not of them.

    Raises:
        InputError: the description is damaged.
    """
    if _beside(path) is None or not _metadata(path).keys().isdisjoint(_KEYS):
        return {}
    return {key: value for key, value in described(path).items() if key in ("mean", "std")}


def _beside(path: Path) -> Path | None:
    """The config.json that describes the file unless it describes itself; None: there is none."""
    beside = path.with_name(DESCRIPTION)
    return beside if path.name in WEIGHT_FILES and beside.is_file() else None


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); write it again") from error
