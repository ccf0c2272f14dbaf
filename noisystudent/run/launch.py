"""Starts a command as several processes of this machine, by torchrun, and ends when they have ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from datetime import timedelta

from noisystudent import cgroups
from noisystudent.distributed import is_main_process
from noisystudent.errors import EndedElsewhere, InputError, NoisyStudentError, RunError, Stopped, require

_GRACE = "120"  # seconds for a last snapshot, before a process that was stopped is killed
_LAUNCHER = "NOISYSTUDENT_LAUNCHER"  # number of the process that has launched this one
_LAST, _MOMENT = "noisystudent/last-line", timedelta(seconds=5)


def launched(processes: int) -> bool:
    """True in a process that torchrun has started.

    Raises:
        InputError: torchrun has started another number of processes.
    """
    if "RANK" not in os.environ:
        return False
    started = int(os.environ["WORLD_SIZE"])
    if started != processes:
        raise InputError(
            f"--processes is {processes}, but torchrun has started {started} processes; leave it out"
        )
    return True


def uses_gpus(device: str, processes: int) -> bool:
    """Return True if each process of this machine computes on a GPU of its own.

    Args:
        device: `device` of the configuration. With `cpu` no GPU is touched.
        processes: number of processes of this machine.

    Raises:
        InputError: there are more processes than GPUs.
    """
    import torch

    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or not torch.cuda.is_available():
        return False
    count = 1 if number else torch.cuda.device_count()
    require(
        processes <= count,
        f"this machine has {processes} processes, but device {device} is {count} GPU{'s' * (count > 1)}, and"
        f" each process needs its own; give --processes {count}, or --device cpu",
    )
    return True


def launch(processes: int, device: str) -> None:
    """Run the command of this process as several processes, and wait for them.

    Nothing is restarted here: the same command resumes the run. If one process ends, the others are ended.

    Raises:
        InputError: there are more processes than GPUs, see `uses_gpus`.
        RunError: a process was killed.
        Stopped: a signal came.
        EndedElsewhere: a process failed, and has printed why.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Not only in the processes: when the first of them fails, torchrun may end process 0 before it says why.
    uses_gpus(device, processes)
    os.environ |= {
        # Otherwise the processes of a later call could be given the addresses of an earlier one.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _GRACE,
        _LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cgroups.usable_cores(processes))),
    }
    logging.disable(logging.ERROR)  # of torchrun: the error of this function says the same in one line
    with tempfile.TemporaryDirectory(prefix="noisystudent-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "noisystudent", *sys.argv[1:])
        except SignalException as error:
            raise Stopped(f"stopped by {error.sigval.name}; run the same command again to resume") from error
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise _failure(codes) from error


def is_ended_by_launcher(error: NoisyStudentError) -> bool:
    """Return True if a signal has stopped this process, and the process that launched it lives and says why.

    The launcher also stops the others when one has died, and these do not know of it.
    """
    return isinstance(error, Stopped) and os.environ.get(_LAUNCHER) == str(os.getppid())


def is_repeated(line: str) -> bool:
    """Return True if process 0 ends with the same line as this one, and prints it.

    An error may be one of all processes, or of one of them. Process 0 leaves its line in the store by which
    the processes have met; any other one looks there for a moment, while all others may wait for it.
    """
    torch = sys.modules.get("torch")
    if torch is None or "RANK" not in os.environ or not torch.distributed.is_initialized():
        return False
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    try:
        if is_main_process():
            store.set(_LAST, line)
            return False
        store.wait([_LAST], _MOMENT)
        return bool(store.get(_LAST).decode() == line)
    except RuntimeError:  # no line came, or the store has ended with its process
        return False


def _failure(codes: dict[int, int]) -> NoisyStudentError:
    """The error for the exit codes of the ranks, also of those that ended because another one had."""
    for rank, code in sorted(codes.items()):
        if code < 0:
            name = signal.Signals(-code).name
            return RunError(
                f"process {rank} of the run was killed by {name}; run the same command again to resume"
            )
    failed = [code for code in codes.values() if code != Stopped.exit_code]
    if not failed:
        return Stopped("a signal stopped a process of the run; run the same command again to resume")
    return EndedElsewhere("a process of the run has failed", max(failed))
