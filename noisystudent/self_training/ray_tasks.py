"""Workers as tasks of a Ray cluster, which starts a task again when its process or its machine dies."""

from __future__ import annotations

import os
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
        resources = ray.cluster_resources()
        gpus, machines = int(resources.get("GPU", 0)), sum(node["Alive"] for node in ray.nodes())
        count = tasks or gpus or machines
        task = ray.remote(_work).options(
            num_cpus=max(1, int(resources.get("CPU", 1)) // count),
            num_gpus=min(1, gpus),
            max_retries=_RETRIES,
            scheduling_strategy="SPREAD",
        )
        progress.say(f"{out}: {count} tasks of Ray on {machines} machines")
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
