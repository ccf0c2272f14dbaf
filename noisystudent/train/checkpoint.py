"""Exact snapshots of a training: one folder a snapshot, in the format of torch.distributed.checkpoint."""

from __future__ import annotations

import dataclasses
import enum
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.optim import Optimizer

from noisystudent import rundir
from noisystudent.errors import RunError
from noisystudent.train.ema import Ema

_SNAPSHOT = re.compile(r"step-\d{8,}")
_UNFINISHED = re.compile(r"\.step-\d{8,}\.partial")  # named by `rundir.atomic`; a kill leaves it behind


@dataclass(slots=True)
class TrainState:
    """Everything that a training changes.

    Attributes:
        model: what learns.
        ema: its moving average.
        optimizer: over the parameters of `model`; a snapshot holds its tensors, not its settings.
        window: (2,) float32 on the device: sums of loss and top-1 over the steps since the log's last line.
        logged: the step of that line.
        decay: () float32 on the device: the average's in the step at hand; no part of a snapshot.
        step: steps done.
    """

    model: nn.Module
    ema: Ema
    optimizer: Optimizer
    window: Tensor
    decay: Tensor
    step: int = 0
    logged: int = 0


def latest(folder: Path) -> Path | None:
    """The snapshot with the most steps, or None; a half-written one never bears the name."""
    paths = [path for path in folder.glob("step-*") if _SNAPSHOT.fullmatch(path.name)]
    return max(paths, key=_step, default=None)


def saved_step(folder: Path) -> int:
    """How many steps the latest snapshot holds; 0 without one."""
    snapshot = latest(folder)
    return 0 if snapshot is None else _step(snapshot)


def _step(snapshot: Path) -> int:
    return int(snapshot.name.removeprefix("step-"))


def save(state: TrainState, folder: Path) -> None:
    """Write `folder/step-XXXXXXXX` whole or not at all, then remove the snapshots before it.

    Raises:
        RunError: the disk is full or cannot be written; the snapshot before is still there.
    """
    path = folder / f"step-{state.step:08d}"
    _remove(folder, _UNFINISHED)
    with rundir.atomic(path) as partial, _single_process():
        partial.mkdir()
        try:
            contents = _contents(state, _optimizer_state(state))
            dcp_save(contents, checkpoint_id=str(partial), no_dist=True)
        except (CheckpointException, RuntimeError) as error:  # how torch reports that it cannot write
            raise OSError(_reason(error)) from error
    _remove(folder, _SNAPSHOT, keep=path)


def load(state: TrainState, path: Path) -> None:
    """Fill `state`, made by the same configuration, from the snapshot `path`, bit for bit.

    Tensors are read with `weights_only`, and the index, which the format pickles, may name plain records
    only: a snapshot from a stranger cannot run code.

    Raises:
        RunError: `path` is unreadable, or of another model or optimiser.
    """
    saved = _index(path)
    optimizer_state = _optimizer_state(state)
    owners = {key.rpartition(".")[0] for key in saved}
    optimizer_state["state"] = {  # a parameter that never had a gradient has none
        name: entry for name, entry in optimizer_state["state"].items() if f"optimizer.{name}" in owners
    }
    contents = _contents(state, optimizer_state)
    _require_same(saved, contents, path)
    try:
        with _single_process():
            dcp_load(contents, checkpoint_id=str(path), no_dist=True)  # in place
    except (CheckpointException, Exception) as error:  # whatever a damaged file leads torch to
        raise RunError(
            f"cannot read the checkpoint {path} ({_reason(error)}); delete it to go on without"
        ) from error
    for name, entry in optimizer_state["state"].items():
        for key, value in entry.items():
            read = contents[f"optimizer.{name}.{key}"]
            entry[key] = read if isinstance(value, Tensor) else type(value)(read.item())
    lenient = StateDictOptions(strict=False)
    set_optimizer_state_dict(state.model, state.optimizer, optimizer_state, options=lenient)
    state.step, state.logged = int(contents["step"]), int(contents["logged"])


def _optimizer_state(state: TrainState) -> dict[str, Any]:
    """`state` by parameter name, and `param_groups`; an optimiser that has not stepped gets its tensors."""
    return dict(get_optimizer_state_dict(state.model, state.optimizer))


def _contents(state: TrainState, optimizer_state: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor of a snapshot by name, sharing memory with `state`."""
    contents = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    contents |= {f"ema.{name}": tensor for name, tensor in state.ema.module.state_dict().items()}
    for name, entry in optimizer_state["state"].items():
        contents |= {f"optimizer.{name}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    counts = {"step": torch.tensor(state.step), "logged": torch.tensor(state.logged)}
    return contents | {"window": state.window} | counts


def _require_same(saved: dict[str, str], contents: dict[str, Tensor], path: Path) -> None:
    wanted = {name: _describe(tensor.dtype, tensor.shape) for name, tensor in contents.items()}
    for name in sorted(saved.keys() | wanted.keys()):
        there, here = saved.get(name, "absent"), wanted.get(name, "absent")
        if there != here:
            raise RunError(
                f"the checkpoint {path} is of another training: {name} is {there} there and {here} here;"
                " delete it to start anew"
            )


def _describe(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _index(path: Path) -> dict[str, str]:
    """Name -> type and shape of every tensor in the snapshot."""
    try:
        with (path / ".metadata").open("rb") as file:
            metadata = _RecordsOnly(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
        entries = metadata.state_dict_metadata.items()
        odd = [name for name, entry in entries if not isinstance(entry, TensorStorageMetadata)]
        if odd:  # torch would unpickle it
            raise pickle.UnpicklingError(f"{odd[0]} is not a tensor")
    except Exception as error:  # a damaged pickle can raise anything
        raise RunError(
            f"cannot read the checkpoint {path} ({_reason(error)}); delete it to go on without"
        ) from error
    return {
        name: _describe(entry.properties.dtype, entry.size)
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }


class _RecordsOnly(pickle.Unpickler):
    """Reads the format's index; refuses what is not a dataclass, enumeration, path, dtype or size."""

    _MODULES = (
        "torch",
        "torch.serialization",
        "torch.distributed.checkpoint.metadata",
        "torch.distributed.checkpoint.filesystem",
        "pathlib",
        "pathlib._local",
    )

    def find_class(self, module: str, name: str, /) -> Any:
        if module in self._MODULES and "." not in name:  # else not even looked up: an import runs code
            found = super().find_class(module, name)
            if isinstance(found, type):
                harmless = dataclasses.is_dataclass(found) or issubclass(
                    found, (enum.Enum, PurePath, torch.Size)
                )
            else:
                harmless = isinstance(found, torch.dtype) or name == "_get_layout"
            if harmless:
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


@contextmanager
def _single_process() -> Iterator[None]:
    """Without the note that a single process is assumed, which `no_dist` already says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)
        yield


def _reason(error: BaseException) -> str:
    """First line of the error that started it: torch answers a full disk with errors of its own on top."""
    while True:
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        causes = [error.__cause__, *(failure[0] for failure in failures), error.__context__]
        inner = next((cause for cause in causes if cause is not None), None)
        if inner is None:
            text = str(getattr(error, "strerror", None) or error)
            return text.splitlines()[0] if text else type(error).__name__
        error = inner


def _remove(folder: Path, names: re.Pattern[str], keep: Path | None = None) -> None:
    for path in folder.glob("*") if folder.is_dir() else ():
        if names.fullmatch(path.name) and path != keep:
            rundir.remove(path)
