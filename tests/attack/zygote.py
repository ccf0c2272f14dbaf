"""A process that has imported the program once, and forks a child for each call, which takes milliseconds.

The engine writes a request as one line of JSON on standard input. The answers are two lines: the process id
of the child, and, when the child has ended, its exit code and its largest resident memory. The child leaves
`serve` and calls the command line as any process does, so that it also ends as any process ends.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

PRELOAD = (
    "cv2",
    "duckdb",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "scipy.stats",
    "sklearn.datasets",
    "yaml",
    "simplejpeg",
    "safetensors.torch",
    "plotly.graph_objects",
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict",
    "torch.utils.tensorboard",
    "tensorboard.summary.writer.event_file_writer",
    "timm.optim",
    "PIL.PngImagePlugin",
    "PIL.JpegImagePlugin",
    "rich.table",
    "rich.progress",
    "noisystudent.cli",
    "noisystudent.estimator",
    "noisystudent.self_training",
    "noisystudent.report",
    "noisystudent.evaluation.measure",
    "noisystudent.inference.load",
    "noisystudent.inference.predict",
    "noisystudent.inference.export",
    "noisystudent.inference.write",
    "noisystudent.selection",
    "noisystudent.ablation",
)
"""Modules that the commands import; the others are imported by the children."""

OPERATIONS = {
    "open",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.symlink",
    "os.truncate",
}
"""Audit events of Python that stand for an operation on a file."""


def _worker() -> int | None:
    return next((child.pid for child in multiprocessing.active_children()), None)


TARGETS: dict[str, Callable[[], int | None]] = {
    "process": os.getpid,
    "group": lambda: -os.getpid(),  # the child leads its group
    "worker": _worker,
    "forkserver": lambda: getattr(forkserver._forkserver, "_forkserver_pid", None),
    "tracker": lambda: getattr(resource_tracker._resource_tracker, "_pid", None),
}
"""Name of a target to the process id that is struck; None if it is not running yet."""


class Striker:
    """An audit hook that counts the file operations below a path, and sends a signal before one of them.

    Args:
        request: `below`, the path as text; `notes`, a file that receives '<operations> <signals sent>' after
            each operation; `strike`, None or the operation, target, signal, and how many times.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self._below: str = request["below"]
        self._notes = os.open(request["notes"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.pwrite(self._notes, b"0 0", 0)
        self._strike: dict[str, Any] | None = request["strike"]
        self._process = os.getpid()
        self._count = self._sent = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in OPERATIONS or not arguments or os.getpid() != self._process:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(self._below):
            return
        self._count += 1
        pid = self._due()
        self._sent += pid is not None
        os.pwrite(self._notes, f"{self._count} {self._sent}".encode(), 0)
        if pid is not None and self._strike is not None:
            os.kill(pid, self._strike["number"])

    def _due(self) -> int | None:
        """Process that is struck before this operation; None if it is not yet the moment, or was already."""
        strike = self._strike
        if strike is None or self._count < strike["operation"] or self._sent >= strike["times"]:
            return None
        return TARGETS[strike["target"]]()


def _broken_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def _full_output() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    os.dup2(descriptor, 1)


def _no_folder() -> None:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")


def _no_privileges() -> None:
    """Take from root the right to ignore permissions, once it starts another program; others have none."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP


FAULTS: dict[str, Callable[[], object]] = {
    "": lambda: None,
    "closed stdout": lambda: os.close(1),
    "closed stderr": lambda: os.close(2),
    "closed stdin": lambda: os.close(0),
    "broken pipe": _broken_pipe,
    "full stdout": _full_output,
    "no working folder": _no_folder,
    "no privileges": _no_privileges,
    "umask 777": lambda: os.umask(0o777),
    "ignored SIGPIPE": lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
}
"""Name of a fault in the surroundings to the function that makes it, in the child, before the program."""


def _prepare(request: dict[str, Any]) -> list[str]:
    """Turn the forked child into the process that is described; returns the arguments of the command line."""
    os.setsid()  # a session of its own, so that all its processes can be listed and ended
    for descriptor, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o600), descriptor)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    words: list[str] = request["words"]
    for name, most in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))
    if (
        request["deadly_size"] is not None
    ):  # the kernel kills the process within the write that goes beyond it
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["deadly_size"],) * 2)
    if request["fresh"]:
        FAULTS[request["fault"]]()
        os.execv(sys.executable, [sys.executable, "-m", "noisystudent", *words])
    sys.addaudithook(Striker(request))
    FAULTS[request["fault"]]()
    return words


def _new_streams() -> None:
    """Give the child text streams as a new process has them: those of the zygote are pipes of the engine."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
    error = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(error, "utf-8", "backslashreplace", line_buffering=True)


def serve() -> list[str]:
    """Answer requests until standard input ends. In a child, return the arguments of its command line."""
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing else may write among the answers

    def answer(**content: int) -> None:
        os.write(answers, (json.dumps(content) + "\n").encode())

    # Unbuffered: a child must not inherit a part of the next request.
    with os.fdopen(os.dup(0), "rb", buffering=0) as requests:
        for line in requests:
            pid = os.fork()
            if pid == 0:
                os.close(answers)
                arguments = _prepare(json.loads(line))
                _new_streams()
                return arguments
            answer(pid=pid)
            _, status, usage = os.wait4(pid, 0)
            answer(code=os.waitstatus_to_exitcode(status), memory=usage.ru_maxrss * 1024)
    sys.exit()


def main() -> None:
    """Import, serve, and, in a child, run the command line."""
    for name in PRELOAD:
        importlib.import_module(name)
    import torch

    from noisystudent.__main__ import main as command_line

    torch.set_num_threads(1)
    Path("/proc/self/oom_score_adj").write_text(
        "500"
    )  # a test that takes too much memory ends before other programs
    gc.collect()
    gc.freeze()
    command_line(serve())


if __name__ == "__main__":
    main()
