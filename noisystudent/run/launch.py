"""Starts a command as several processes of this machine, by torchrun, and ends when they have ended."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid

from noisystudent.errors import EndedElsewhere, InputError, RunError, Stopped

_GRACE = "120"  # seconds for a last snapshot, before a process that was stopped is killed


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


def launch(processes: int) -> None:
    """Run the command of this process as several processes, and wait for them.

    Nothing is restarted here: the same command resumes the run. If one process ends, the others are ended.

    Raises:
        RunError: a process was killed.
        Stopped: a signal was received, and the processes were stopped by it.
        EndedElsewhere: a process failed, and has printed why.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ |= {
        # Otherwise the processes of a later call could be given the addresses of an earlier one.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": _GRACE,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(processes))),
    }
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the error says it in one line
    with tempfile.TemporaryDirectory(prefix="noisystudent-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "noisystudent", *sys.argv[1:])
        except SignalException as error:
            raise Stopped(f"stopped by {error.sigval.name}; run the same command again to resume") from error
        except ChildFailedError as error:
            raise _failure(error) from error


def _threads(processes: int) -> int:
    return max(1, (os.cpu_count() or 1) // processes)


def _failure(error: object) -> RunError | EndedElsewhere:
    """The error of the process that ended first: one that was killed has printed nothing."""
    failures: dict[int, object] = getattr(error, "failures", {})
    codes = {rank: int(getattr(failure, "exitcode", 1)) for rank, failure in sorted(failures.items())}
    for rank, code in codes.items():
        if code < 0:
            import signal

            name = signal.Signals(-code).name
            return RunError(
                f"process {rank} of the run was killed by {name}; run the same command again to resume"
            )
    return EndedElsewhere("a process of the run has failed", max(codes.values(), default=1))
