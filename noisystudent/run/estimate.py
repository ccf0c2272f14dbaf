"""The plan of a run in figures: time, memory, disk and images a second of each stage and of the whole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from noisystudent.config import Config
from noisystudent.errors import InputError, readable_size

WHOLE = "whole"
"""Name of the row of the whole run."""

COLUMNS = ("time", "memory", "disk", "images/s")
"""Header of `cells`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """What a stage will take on this machine.

    Attributes:
        stage: name of the stage.
        steps: optimiser steps; 0 if it is no training.
        seconds: duration.
        images_per_second: images of all batches of a training, views of a labelling, or read files, for each
            second of the stage. 0: the stage has none.
        peak_bytes: largest memory of the process, or of the GPU, during the stage. 0: it was not measured.
        disk_bytes: size of the files that the stage leaves.
    """

    stage: str
    steps: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    peak_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What the stages of a run that are not done will take.

    Attributes:
        stages: an estimate of each of them, in order.
        memory: bytes that the process, or the GPU, can use in all. None: not known.
        fields: name of a stage -> field of the configuration that changes its memory.
    """

    stages: tuple[StageEstimate, ...]
    memory: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


def whole(estimates: Sequence[StageEstimate]) -> StageEstimate:
    """Return the sum of the stages: steps, seconds and disk; the largest memory; the mean images a second."""
    seconds = sum(one.seconds for one in estimates)
    images = sum(one.images_per_second * one.seconds for one in estimates)
    return StageEstimate(
        stage=WHOLE,
        steps=sum(one.steps for one in estimates),
        seconds=seconds,
        images_per_second=images / seconds if seconds else 0.0,
        peak_bytes=max((one.peak_bytes for one in estimates), default=0),
        disk_bytes=sum(one.disk_bytes for one in estimates),
    )


def cells(estimate: StageEstimate | None) -> tuple[str, ...]:
    """Return the cells of a row under `COLUMNS`; a dash stands for what is not known. None: dashes alone."""
    if estimate is None:
        return ("-",) * len(COLUMNS)
    return (
        readable_time(estimate.seconds) if estimate.seconds else "-",
        readable_size(estimate.peak_bytes) if estimate.peak_bytes else "-",
        readable_size(estimate.disk_bytes) if estimate.disk_bytes else "-",
        f"{estimate.images_per_second:,.0f}" if estimate.images_per_second else "-",
    )


def planned_rows(states: Sequence[tuple[str, ...]], stages: Sequence[StageEstimate]) -> list[tuple[str, ...]]:
    """Return the rows of all stages, from `status.states`, with the cells of those that are estimated.

    The last row is of the whole, unless there is nothing to do.
    """
    known = {one.stage: one for one in stages}
    rows = [(*row, *cells(known.get(row[0]))) for row in states]
    return [*rows, (WHOLE, "", "", *cells(whole(stages)))] if stages else rows


def as_json(stages: Sequence[StageEstimate], config: Config) -> str:
    """Return a JSON object: the stages, their sum under `whole`, and the configuration under `config`."""
    figures: dict[str, object] = {"stages": [asdict(one) for one in stages], WHOLE: asdict(whole(stages))}
    return json.dumps(figures | {"config": asdict(config)})


def lines(stages: Sequence[StageEstimate]) -> list[str]:
    """Return a line about the whole run, and one about each stage that takes time."""
    parts = [
        f"plan: {one.stage}: {readable_time(one.seconds)}"
        + (f", {one.images_per_second:,.0f} images/s" if one.images_per_second else "")
        for one in stages
        if one.seconds
    ]
    total = whole(stages)
    memory = f", {readable_size(total.peak_bytes)} of memory" if total.peak_bytes else ""
    return [
        f"plan: about {readable_time(total.seconds)}{memory}, {readable_size(total.disk_bytes)} on disk",
        *parts,
    ]


def seconds_of(text: str, flag: str) -> float:
    """Read a duration such as 90m, 2h or 1.5d.

    Raises:
        InputError: it is not a number above 0 with one of these units; the message begins with `flag`.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([mhd])", text)
    if match is None or float(match[1]) == 0:
        raise InputError(f"{flag} is {text!r}; give a number above 0 and a unit, such as 90m, 2h or 1.5d")
    return float(match[1]) * {"m": 60, "h": 3_600, "d": 86_400}[match[2]]


def readable_time(seconds: float) -> str:
    """Return a duration in the largest unit in which it is at least 2, such as '90 min'."""
    for name, unit in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.1f} s"


def too_large(plan: RunPlan) -> str | None:
    """Return a sentence about the stage that needs the most memory if it does not fit; None if all fit."""
    largest = max(plan.stages, key=lambda one: one.peak_bytes, default=None)
    if largest is None or plan.memory is None or largest.peak_bytes <= plan.memory:
        return None
    name = plan.fields[largest.stage]
    factor = 2 ** math.ceil(math.log2(largest.peak_bytes / plan.memory))
    change = f"{'multiply' if name.endswith('accumulate') else 'divide'} {name} by {factor}"
    return (
        f"{largest.stage} takes {readable_size(largest.peak_bytes)} of memory, and"
        f" {readable_size(plan.memory)} can be used; {change}, or give a smaller model or resolution"
    )


def require_memory(plan: RunPlan) -> None:
    """Check that every stage fits into the memory.

    Raises:
        InputError: names the stage, the figures and the field to change.
    """
    line = too_large(plan)
    if line is not None:
        raise InputError(line)
