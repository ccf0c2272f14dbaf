"""The file of timm's published weights: in the local cache, or downloaded, with a line that says so."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import timm
import torch
from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache

from noisystudent.console import Progress, Terminal
from noisystudent.models import download
from noisystudent.models.download import Message, Request

SILENT_SECONDS = 30.0
"""Longest time in seconds in which a download may receive nothing."""

_POLL_SECONDS = 0.1  # a signal ends the download after this time
_AGAIN = "try again later, or set HF_ENDPOINT to another hub"
_END_SECONDS = 2.0  # time to remove the part of a file that was downloaded

# The settings of huggingface_hub for the download. Telemetry would be a second, unannounced request. Without
# Xet, files come by HTTP, from the server that the line names.
_ENVIRONMENT = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}


class Unavailable(Exception):
    """The published weights of a model are not available; the message gives the reason."""


def is_offline() -> bool:
    """Return True if downloads are forbidden by `--offline` or HF_HUB_OFFLINE=1."""
    # huggingface_hub reads the variable when it is imported, which may be before --offline sets it.
    return is_offline_mode() or os.environ.get("HF_HUB_OFFLINE") == "1"


def pretrained_source(name: str, progress: Progress | None = None) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` that load the published weights of `name` from a file.

    Args:
        name: model of timm.
        progress: prints what is downloaded, and stops the download. None: a line on standard error.

    Raises:
        Unavailable: no weights were published, they are not in the cache and downloads are forbidden, the
            download failed, or the server sent nothing for SILENT_SECONDS.
        Stopped: a signal was received.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise Unavailable("none were published")
    request = _request(cfg)
    path = _cached(request)
    if path is None:
        if is_offline():
            source = request["repository"] or request["server"]
            raise Unavailable(
                f"{source} is not in the cache, and --offline or HF_HUB_OFFLINE=1 forbids the download"
            )
        path = _download_visibly(name, request, progress)
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": path}}


def _request(cfg: Any) -> Request:
    """Where the weights are, as in timm: on the hub if it has them, otherwise at a URL."""
    if not cfg.hf_hub_id:
        path = Path(torch.hub.get_dir()) / "checkpoints" / cfg.url.rpartition("/")[2]
        return Request(server=cfg.url, repository="", revision=None, files=[], path=str(path))
    repository, _, revision = cfg.hf_hub_id.partition("@")
    files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    return Request(
        server=constants.ENDPOINT, repository=repository, revision=revision or None, files=files, path=""
    )


def _cached(request: Request) -> str | None:
    """Path of the weights in the cache of the hub or of torch, if they are there."""
    if not request["repository"]:
        return request["path"] if Path(request["path"]).is_file() else None
    for file in request["files"]:
        path = try_to_load_from_cache(request["repository"], file, revision=request["revision"])
        if isinstance(path, str):
            return path
    return None


def _download_visibly(name: str, request: Request, progress: Progress | None) -> str:
    """Download the weights and return their path, with a line on standard error if `progress` is None."""
    if progress is not None:
        return _download(name, request, progress)
    terminal = Terminal(stderr=True)
    try:
        return _download(name, request, terminal)
    finally:
        terminal.close()


def _download(name: str, request: Request, progress: Progress) -> str:
    """Download the weights, show the progress, and return their path."""
    source = request["server"] + (f"/{request['repository']}" if request["repository"] else "")
    total = None
    with closing(_messages(request, progress)) as messages:  # the process ends now, whatever happens
        for message in messages:
            if "error" in message:
                raise Unavailable(f"{source} cannot be downloaded ({message['error']}); {_AGAIN}")
            if "path" in message:
                return message["path"]
            if "waits" in message:
                progress.say(f"another process downloads the weights of {name}; waiting for it")
            elif "total" in message:
                total = message["total"]
                size = "size unknown" if total is None else f"{total / 1e6:,.1f} MB"
                progress.say(f"downloading the published weights of {name} from {source} ({size})")
            else:
                progress.advance(f"weights of {name}", message["done"], total or message["done"])
    raise Unavailable(f"the download from {source} ended early; {_AGAIN}")


def _messages(request: Request, progress: Progress) -> Generator[Message]:
    """Yield the messages of a download.

    Raises:
        Unavailable: none came for SILENT_SECONDS.
        Stopped: a signal was received.
    """
    with _process(request) as output:
        last, pending = time.monotonic(), b""
        while True:
            progress.check()
            if select.select([output], [], [], _POLL_SECONDS)[0]:
                received = os.read(output.fileno(), 2**16)
                if not received:
                    progress.check()  # a Ctrl-C ends the process, too
                    return
                *lines, pending = (pending + received).split(b"\n")
                yield from map(json.loads, lines)
                last = time.monotonic()
            elif time.monotonic() - last > SILENT_SECONDS:
                silence = f"sent nothing new for {SILENT_SECONDS:.0f} s"
                raise Unavailable(f"{request['server']} {silence}; {_AGAIN}")


@contextmanager
def _process(request: Request) -> Iterator[IO[bytes]]:
    """Run `download` as a process, and yield its output. The process ends with the block."""
    # -P: the folder of the file is not searched for modules.
    command = [sys.executable, "-P", str(download.__file__), json.dumps(request)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | _ENVIRONMENT | {"HF_ENDPOINT": constants.ENDPOINT},
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
