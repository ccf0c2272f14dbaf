"""Functions called in several processes that are joined as those of one run, over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from noisystudent.distributed import joined

T = TypeVar("T")

IS_OLD = torch.__version__ < "2.7"  # compared as versions, not as text
OLD = "several processes need torch 2.7"

_CONTEXT = multiprocessing.get_context("forkserver")
_MODULES = ["noisystudent.estimator", "noisystudent.cli", "torch.distributed.fsdp", "pytest"]
_SECONDS = 120.0  # a deadlock is a failure


@cache
def _start_server() -> None:
    """Start a server that has imported the package, so that no process needs seconds for it."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    _CONTEXT.set_forkserver_preload(_MODULES)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port: int = listening.getsockname()[1]
        return port


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets for one of `size` processes of a machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return {name: str(n) for name, n in numbers.items()} | {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }


def _call(
    rank: int,
    size: int,
    port: int,
    pipe: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ |= environment(rank, size, port)
    try:
        with joined():
            pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        raise


def together(size: int, function: Callable[..., T], *arguments: Any) -> list[T]:
    """What a function returns in each of `size` processes, by rank; it is called with equal arguments."""
    if IS_OLD:
        pytest.skip(OLD)
    _start_server()
    port, pipes, processes, results = free_port(), [], [], []
    for rank in range(size):
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_call, args=(rank, size, port, theirs, function, arguments))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(_SECONDS), f"process {rank} of {size} does not answer"
            results.append(pipe.recv())
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    failed = [text for done, text in results if not done]
    assert not failed, "\n".join(map(str, failed))
    return [result for _, result in results]


def ranks(launcher: int) -> list[int]:
    """Process ids of the ranks, by rank: the children that run the command."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((name for name in names if name.startswith(b"RANK=")), None)
        if parent == launcher and rank is not None:
            found[int(rank.removeprefix(b"RANK="))] = int(folder.name)
    return [found[rank] for rank in sorted(found)]
