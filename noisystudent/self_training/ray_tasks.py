"""Workers as tasks of a Ray cluster, which starts a task again when its process or its machine dies."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from noisystudent.config import Config
from noisystudent.console import Progress
from noisystudent.errors import InputError, NoisyStudentError
from noisystudent.self_training.worker import label_as_worker

_RETRIES = 10  # of a task; a part that kills every process must not do so for ever
_POLL = 0.5  # seconds between two looks at the tasks and at signals


def label_with_ray(config: Config, out: Path, tasks: int | None, *, progress: Progress) -> bool:
    """Label the pool of a run by `label_as_worker`, in tasks of Ray Core.

    Args:
        config: configuration of the run.
        out: run directory, which every machine of the cluster has at the same path.
        tasks: number of tasks; None: one for each GPU, or without GPUs for each machine.
        progress: receives lines, and stops the work.

    Returns:
        False if nothing was left to label.

    Raises:
        InputError: Ray is not installed.
        NoisyStudentError: as `label_as_worker` raises it.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--engine is ray, which is not installed; pip install 'noisystudent[ray]'"
        ) from error
    ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, cpus, gpus = shares(alive, tasks)
        task = ray.remote(_work).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES, scheduling_strategy="SPREAD"
        )
        progress.say(f"{out}: {count} tasks of Ray on {len(alive)} machines")
        running = [task.remote(config, str(out.absolute()), os.getcwd()) for _ in range(count)]
        left = False
        while running:
            progress.check()
            ended, running = ray.wait(running, timeout=_POLL)
            for one in ended:
                made, failure = ray.get(one)
                if failure is not None:
                    raise _error(*failure)
                left = left or made
        return left
    finally:
        ray.shutdown()  # also ends the tasks


def shares(machines: Sequence[Mapping[str, float]], tasks: int | None) -> tuple[int, int, int]:
    """Number of tasks, and the CPUs and GPUs of each, such that every machine that has them can run a task.

    Ray waits without end for a machine that is large enough, so the smallest one counts.

    Args:
        machines: resources of each machine; one without CPUs, as a head may be, gets no task. Without any
            other a cluster may still grow: a task asks for one CPU then.
        tasks: as of `label_with_ray`.
    """
    hosts = [machine for machine in machines if machine.get("CPU", 0) >= 1] or [{"CPU": 1}]
    with_gpu = [machine for machine in hosts if machine.get("GPU", 0) >= 1]
    if with_gpu:
        cpus = min(int(machine["CPU"] // machine["GPU"]) for machine in with_gpu)
        return tasks or sum(int(machine["GPU"]) for machine in with_gpu), max(1, cpus), 1
    count = tasks or len(hosts)
    cpus = min(int(machine["CPU"]) // math.ceil(count / len(hosts)) for machine in hosts)
    return count, max(1, cpus), 0


def _work(config: Config, out: str, folder: str) -> tuple[bool, tuple[str, int] | None]:
    """What a task does: whether anything was left to label, and message and exit code of an error."""
    os.chdir(folder)  # relative paths of images are those of the caller
    try:
        return label_as_worker(config, Path(out)), None
    except NoisyStudentError as error:
        return False, (str(error), error.exit_code)


def _error(message: str, exit_code: int) -> NoisyStudentError:
    error = NoisyStudentError(message)
    error.exit_code = exit_code
    return error
