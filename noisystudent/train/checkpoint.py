"""Exact snapshots of a training: one folder for each, in the format of torch.distributed.checkpoint."""

from __future__ import annotations

import dataclasses
import enum
import pickle
import re
import warnings
from dataclasses import dataclass
from inspect import signature
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.optim import Optimizer

from noisystudent.console import Progress
from noisystudent.errors import RunError, first_line
from noisystudent.run import files
from noisystudent.run.aside import put_aside
from noisystudent.run.checksums import broken, seal
from noisystudent.train.ema import Ema
from noisystudent.train.ema_teacher import Averages

_SNAPSHOT = re.compile(r"step-\d{8,}")
_UNFINISHED = re.compile(r"\.step-\d{8,}\.partial")  # name that `files.atomic` uses; a killed run leaves it
# torch 2.6 has no such argument, and needs none: `distributed.joined` refuses several processes with it.
_ALONE: dict[str, Any] = {"no_dist": True} if "no_dist" in signature(dcp_save).parameters else {}


@dataclass(slots=True)
class TrainState:
    """Everything that changes during a training.

    Attributes:
        model: model that is trained. A snapshot holds its trained parameters and its buffers, and a digest of
            its frozen parameters, which the caller makes again.
        ema: moving average of `model`.
        optimizer: optimiser of the parameters of `model`. A snapshot holds its tensors, not its settings.
        window: (2,) float32 on the device, sums of loss and top-1 of whole batches since the last log line.
        decay: () float32 on the device, decay of the moving average in the current step. It is not part of a
            snapshot.
        averages: what the thresholds of an adaptive `EmaTeacher` depend on. None: there is no such teacher.
        parts: parts in which each batch is computed, if memory was too short for fewer.
        step: number of finished steps.
        logged: step of the last log line.
        frozen: digest of the frozen parameters, see `optim.frozen_digest`; 0 if there are none.
        whole: copy of the average on the CPU, for its weights in the end. None: they are not sharded.
    """

    model: nn.Module
    ema: Ema
    optimizer: Optimizer
    window: Tensor
    decay: Tensor
    averages: Averages | None = None
    parts: int = 1
    step: int = 0
    logged: int = 0
    frozen: int = 0
    whole: nn.Module | None = None


def newest(folder: Path, progress: Progress) -> Path | None:
    """Path of the intact snapshot with the most steps, or None. Broken ones are moved away and named."""
    for path in reversed(_snapshots(folder)):
        problem = broken(path)
        if problem is None:
            return path
        progress.say(
            f"checkpoint {path.name}: {problem}; kept in {put_aside(path)}; the training continues from an"
            " earlier step"
        )
    return None


def journal(snapshot: Path) -> Path:
    """Path of the measurements up to a snapshot, in the format of metrics.jsonl."""
    return snapshot / "metrics.jsonl"


def contents(state: TrainState) -> dict[str, Tensor]:
    """Every tensor of a snapshot by name, in the same order in all processes; they share memory with `state`.

    All processes call it. Of a sharded tensor each has its shard.
    """
    return _named(state, _optimizer_state(state))


def write(tensors: dict[str, Tensor], folder: Path, metrics: bytes) -> None:
    """Write `folder/step-XXXXXXXX` completely or not at all, then remove all earlier snapshots but one.

    Args:
        tensors: result of `contents`, or a copy of it, on the CPU; sharded ones as a whole.
        folder: folder of the snapshots.
        metrics: content of metrics.jsonl up to this step. It is part of the snapshot, so that a resumed
            training does not depend on a file that was written after it.

    Raises:
        RunError: the disk is full or cannot be written. The earlier snapshots are still there.
    """
    path = folder / f"step-{int(tensors['step']):08d}"
    _remove(folder, _UNFINISHED)
    _hide_warnings()
    with files.atomic(path) as partial:
        partial.mkdir()
        # Nothing is copied ahead: otherwise torch uses a stream of the GPU, although the tensors are here.
        writer = FileSystemWriter(partial, per_thread_copy_ahead=0)
        try:
            dcp_save(dict(tensors), storage_writer=writer, **_ALONE)
        except (CheckpointException, RuntimeError) as error:  # torch hides the OSError of a failed write
            raise OSError(_reason(error)) from error  # `files.atomic` turns it into a RunError
        journal(partial).write_bytes(metrics)
        seal(partial)
    # Only after the new snapshot is complete: a run that is killed at any time has one to resume from. The
    # one before it stays, in case that the new one is damaged on the disk.
    for earlier in _snapshots(folder)[:-2]:
        files.remove(earlier)


def _snapshots(folder: Path) -> list[Path]:
    """Snapshots in order of their steps. Unfinished ones have another name."""
    paths = [path for path in folder.glob("step-*") if _SNAPSHOT.fullmatch(path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def load(state: TrainState, path: Path) -> None:
    """Fill `state` from the snapshot `path`, bit for bit.

    A snapshot from an unknown source cannot run code: tensors are read with `weights_only`, and the index,
    which the format pickles, may contain plain records only.

    Args:
        state: state built from the same configuration; changed in place.
        path: snapshot that `save` wrote.

    Raises:
        RunError: `path` is not readable, or belongs to another model or optimiser.
    """
    saved = _index(path)
    optimizer_state = _optimizer_state(state)
    # A parameter that never had a gradient has no optimiser state in the snapshot.
    with_state = {key.rpartition(".")[0] for key in saved}
    for name in optimizer_state["state"]:
        if f"optimizer.{name}" not in with_state:
            optimizer_state["state"][name] = {}  # torch 2.6 needs an entry for each
    tensors = _named(state, optimizer_state)
    _require_same(saved, tensors, path)
    _hide_warnings()
    try:
        dcp_load(tensors, checkpoint_id=str(path), **_ALONE)  # fills the tensors in place
    except (CheckpointException, Exception) as error:  # a damaged file can raise any exception
        raise RunError(
            f"cannot read the checkpoint {path} ({_reason(error)}); delete it to continue without it"
        ) from error
    # The model, its average and the window are filled already. The optimiser needs the types it had.
    for name, entry in optimizer_state["state"].items():
        for key, value in entry.items():
            loaded = tensors[f"optimizer.{name}.{key}"]
            entry[key] = loaded if isinstance(value, Tensor) else type(value)(loaded.item())
    not_strict = StateDictOptions(strict=False)  # parameters without optimiser state are allowed
    set_optimizer_state_dict(state.model, state.optimizer, optimizer_state, options=not_strict)
    state.parts, state.step, state.logged = (int(tensors[name]) for name in ("parts", "step", "logged"))
    if int(tensors["frozen"]) != state.frozen:
        raise RunError(
            f"the checkpoint {path} belongs to another training: the frozen weights have changed; give the"
            " weights with which it began, or delete it to start again"
        )


def _optimizer_state(state: TrainState) -> dict[str, Any]:
    """Return `state` by parameter name and `param_groups` of the optimiser.

    torch first creates the tensors of an optimiser that has made no step.
    """
    return dict(get_optimizer_state_dict(state.model, state.optimizer))


def _named(state: TrainState, optimizer_state: dict[str, Any]) -> dict[str, Tensor]:
    """The result of `contents` for this optimiser state."""
    frozen = {name for name, parameter in state.model.named_parameters() if not parameter.requires_grad}
    tensors = {
        f"{part}.{name}": tensor
        for part, module in (("model", state.model), ("ema", state.ema.module))
        for name, tensor in module.state_dict().items()
        if name not in frozen
    }
    # as_tensor, because some optimisers keep numbers such as their step count as Python numbers.
    for name, entry in optimizer_state["state"].items():
        tensors |= {f"optimizer.{name}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    if state.averages is not None:
        tensors |= {f"averages.{name}": tensor for name, tensor in state.averages._asdict().items()}
    counts = {name: torch.tensor(getattr(state, name)) for name in ("parts", "step", "logged", "frozen")}
    return tensors | {"window": state.window} | counts


def _require_same(saved: dict[str, str], tensors: dict[str, Tensor], path: Path) -> None:
    """Raise unless snapshot and state have the same tensors; torch ignores additional ones."""
    expected = {name: _describe(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(saved.keys() | expected.keys()):
        in_snapshot, in_training = saved.get(name, "absent"), expected.get(name, "absent")
        if in_snapshot != in_training:
            raise RunError(
                f"the checkpoint {path} belongs to another training: {name} is {in_snapshot} in it and"
                f" {in_training} in this training; delete it to start again"
            )


def _describe(dtype: torch.dtype, shape: torch.Size) -> str:
    """Type and shape as in error messages, such as "float32 [2, 3]"."""
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _index(path: Path) -> dict[str, str]:
    """Type and shape of every tensor in a snapshot by name, read without loading the tensors."""
    try:
        with (path / ".metadata").open("rb") as file:
            metadata = _RestrictedUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"it contains a {type(metadata).__name__}")
        entries = metadata.state_dict_metadata.items()
        not_tensors = [name for name, entry in entries if not isinstance(entry, TensorStorageMetadata)]
        if not_tensors:  # torch would unpickle them without a check
            raise pickle.UnpicklingError(f"{not_tensors[0]} is not a tensor")
    except Exception as error:  # a damaged pickle can raise any exception
        raise RunError(
            f"cannot read the checkpoint {path} ({_reason(error)}); delete it to continue without it"
        ) from error
    return {
        name: _describe(entry.properties.dtype, entry.size)
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickler for the index of a snapshot; it accepts plain records only, whose classes run no code.

    These are dataclasses, enumerations, paths, and torch's dtypes, layouts and sizes.
    """

    _MODULES = (
        "torch",
        "torch.serialization",
        "torch.distributed.checkpoint.metadata",
        "torch.distributed.checkpoint.filesystem",
        "pathlib",
        "pathlib._local",  # Python 3.13
    )

    def find_class(self, module: str, name: str, /) -> Any:
        # The check comes before the look-up, because importing a module runs its code.
        if module in self._MODULES and "." not in name:
            value = super().find_class(module, name)
            if isinstance(value, type):
                plain = (enum.Enum, PurePath, torch.Size)
                harmless = dataclasses.is_dataclass(value) or issubclass(value, plain)
            else:  # torch pickles its layouts as calls of _get_layout
                harmless = isinstance(value, torch.dtype) or name == "_get_layout"
            if harmless:
                return value
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _hide_warnings() -> None:
    """Hide for ever what torch says of a single process: to end a filter is not safe among other threads."""
    warnings.filterwarnings("ignore", "torch.distributed is (disabled, )?unavailable", UserWarning)
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)  # by torch 2.6 itself


def _reason(error: BaseException) -> str:
    """First line of the original error: torch wraps the error of a full disk into others."""
    while True:
        # A CheckpointException holds the errors of each rank as (error, traceback).
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        causes = [error.__cause__, *(failure[0] for failure in failures), error.__context__]
        inner = next((cause for cause in causes if cause is not None), None)
        if inner is None:
            return getattr(error, "strerror", None) or first_line(error)
        error = inner


def _remove(folder: Path, names: re.Pattern[str]) -> None:
    """Remove every entry of `folder` whose name matches."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if names.fullmatch(path.name):
            files.remove(path)
