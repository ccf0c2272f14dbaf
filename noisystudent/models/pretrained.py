"""Where initial weights come from: a file, timm or the hub; a download has a line with size and licence."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache

from noisystudent.console import Progress
from noisystudent.errors import InputError, require
from noisystudent.models import download
from noisystudent.models.download import Message, Request
from noisystudent.models.files import weights_in
from noisystudent.run.described import DESCRIPTION
from noisystudent.run.rundir import WEIGHT_FILES
from noisystudent.runtime import is_offline

SILENT_SECONDS = 25.0
"""Longest time in seconds in which a download may receive nothing; with its end it is below 30 s."""

HUB = "hf-hub:"
"""Begins the name of a repository of the Hugging Face hub, as in timm."""

_POLL_SECONDS = 0.1  # a signal ends the download after this time
_AGAIN = "try again later, or set HF_ENDPOINT to another hub"
_END_SECONDS = 2.0  # time to remove the part of a file that was downloaded

# The settings of huggingface_hub for the download. Telemetry would be a second, unannounced request. Without
# Xet, files come by HTTP, from the server that the line names.
_ENVIRONMENT = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}


_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class Unavailable(Exception):
    """The published weights of a model are not available; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Source:
    """What `model.pretrained` names; one of the three is set.

    Attributes:
        name: model of timm, with the tag of its published weights if one is given.
        repository: on the hub, with its revision if one is given.
        file: weights on this machine.
    """

    name: str = ""
    repository: str = ""
    file: Path | None = None


def find_source(name: str, pretrained: bool | str) -> Source | None:
    """Return what `model.pretrained` names for the model `name`, without a download. None: no weights.

    Raises:
        InputError: it is no file, no tag of this model and no repository.
    """
    if isinstance(pretrained, bool):
        return Source(name=name) if pretrained else None
    if pretrained.startswith(HUB):
        repository = pretrained.removeprefix(HUB)
        right = f"{HUB}<owner>/<name> is right"
        require(bool(_REPOSITORY.fullmatch(repository)), f"model.pretrained is {pretrained!r}; {right}")
        return Source(repository=repository)
    architecture = name.split(".")[0]
    tags = published_tags(architecture)
    if pretrained in tags:
        return Source(name=f"{architecture}.{pretrained}")
    if Path(pretrained).exists():
        return Source(file=weights_in(Path(pretrained)))
    known = f"whose tags are {', '.join(tags)}" if tags else "which has none"
    raise InputError(
        f"model.pretrained is {pretrained!r}, which is no file and no tag of {architecture}, {known};"
        f" give true, false, a file, a tag or {HUB}<owner>/<name>"
    )


def published_tags(architecture: str) -> list[str]:
    """Return the tags of the weights that timm publishes for an architecture."""
    published = (listed.split(".", 1) for listed in timm.list_pretrained(f"{architecture}*") if "." in listed)
    return [tag for network, tag in published if network == architecture]


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
    title = f"the published weights of {name}"
    path = _obtained(_request(cfg), title, cfg.license, progress)
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": path}}


def hub_file(repository: str, progress: Progress | None = None) -> Path:
    """Return the path of the weights in a repository of the hub; its config.json, if any, is beside them.

    It may be missing if the weights are in the cache, and it cannot be downloaded.

    Raises:
        Unavailable, Stopped: see `pretrained_source`.
    """
    request = _hub_request(repository, list(WEIGHT_FILES), described=True)
    file = Path(_obtained(request, HUB + repository, None, progress))
    # Others, such as timm, download the weights alone. A branch may have moved on since, the commit has not.
    name, commit = request["repository"], file.parent.name
    known = try_to_load_from_cache(name, DESCRIPTION, revision=commit) is not None  # as a file, or as none
    if not known and not is_offline():
        about = _hub_request(f"{name}@{commit}", [DESCRIPTION], described=False)
        with suppress(Unavailable):
            _download_visibly(about, f"{DESCRIPTION} of {HUB}{repository}", None, progress)
    return file


def _request(cfg: Any) -> Request:
    """Where the weights are, as in timm: on the hub if it has them, otherwise at a URL."""
    if not cfg.hf_hub_id:
        path = Path(torch.hub.get_dir()) / "checkpoints" / cfg.url.rpartition("/")[2]
        return Request(
            server=cfg.url, repository="", revision=None, files=[], path=str(path), described=False
        )
    files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else list(WEIGHT_FILES)
    return _hub_request(cfg.hf_hub_id, files, described=False)


def _hub_request(name: str, files: list[str], *, described: bool) -> Request:
    repository, _, revision = name.partition("@")
    return Request(
        server=constants.ENDPOINT,
        repository=repository,
        revision=revision or None,
        files=files,
        path="",
        described=described,
    )


def _obtained(request: Request, title: str, license_: str | None, progress: Progress | None) -> str:
    """Path of the weights: in the cache, or downloaded."""
    path = _cached(request)
    if path is not None:
        return path
    if is_offline():
        source = request["repository"] or request["server"]
        raise Unavailable(
            f"{source} is not in the cache, and --offline or HF_HUB_OFFLINE=1 forbids the download"
        )
    return _download_visibly(request, title, license_, progress)


def _cached(request: Request) -> str | None:
    """Path of the weights in the cache of the hub or of torch, if they are there."""
    if not request["repository"]:
        return request["path"] if Path(request["path"]).is_file() else None
    for file in request["files"]:
        path = try_to_load_from_cache(request["repository"], file, revision=request["revision"])
        if isinstance(path, str):
            return path
    return None


def _download_visibly(request: Request, title: str, license_: str | None, progress: Progress | None) -> str:
    """Download the weights and return their path, with a line on standard error if `progress` is None."""
    if progress is not None:
        return _download(request, title, license_, progress)
    from noisystudent.terminal import Terminal  # rich is slow to import

    terminal = Terminal(stderr=True)
    try:
        return _download(request, title, license_, terminal)
    finally:
        terminal.close()


def _download(request: Request, title: str, license_: str | None, progress: Progress) -> str:
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
                progress.say(f"another process downloads {title}; waiting for it")
            elif "license" in message:
                license_ = message["license"]
            elif "total" in message:
                total = message["total"]
                size = "size unknown" if total is None else f"{total / 1e6:,.1f} MB"
                progress.say(f"downloading {title} from {source} ({size}, licence {license_ or 'unknown'})")
            else:
                progress.advance(title, message["done"], total or message["done"])
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
