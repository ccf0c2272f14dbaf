"""The limit of the energy below which a pool image counts as junk: unlike the labelled images."""

from __future__ import annotations

import math

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.config import SelectionConfig
from noisystudent.errors import InputError, RunError, first_line
from noisystudent.records import PseudoLabels
from noisystudent.run.rundir import LabelsDir


def energy_limit(energies: NDArray[np.float32], rejection: float) -> float | None:
    """Return the largest limit below which at most a share of labelled images has its energy.

    Args:
        energies: (N,) energies of labelled images that the teacher has not seen.
        rejection: the share, 0 to 1.

    Returns:
        The energy of one of the images. None if the share is less than one image: nothing is junk.
    """
    rejected = math.floor(rejection * len(energies))
    return float(np.sort(energies)[rejected]) if 0 < rejected < len(energies) else None


def read_energies(labels: PseudoLabels) -> NDArray[np.float32] | None:
    """Read the energies (N,) of val that a run stores beside its labels; None without a file.

    Raises:
        RunError: the file cannot be read.
    """
    path = LabelsDir(labels.path).energies
    if not path.is_file():
        return None
    try:
        energies: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} cannot be read ({first_line(error)}); label the pool again") from error
    return energies


def junk_limit(
    labels: PseudoLabels, config: SelectionConfig, energies: NDArray[np.float32] | None
) -> float | None:
    """Return the limit for a selection; None: nothing is junk.

    Args:
        labels: pseudo-labels of the teacher.
        config: fields of `selection`.
        energies: see `energy_limit`; None: those of `read_energies`.

    Raises:
        InputError: junk is to be dropped, and energies are missing.
        RunError: see `read_energies`.
    """
    if config.junk == "off":
        return None
    energies = read_energies(labels) if energies is None else energies
    parts = LabelsDir(labels.path).parts()
    if energies is not None and all("energy" in pq.read_schema(path).names for path in parts):
        return energy_limit(energies, config.junk_rejection)
    if config.junk == "drop":
        raise InputError(
            f"selection.junk is drop, but {labels.path} has no energies of pool and labelled images, because"
            " the teachers have no logits, or `label` or an older version of this program made it; set"
            " selection.junk to off, or label the pool again in a run"
        )
    return None
