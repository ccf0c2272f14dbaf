"""Downloads published weights; `pretrained` runs this file in a process of its own, which it can end.

The only argument is a `Request` as JSON. Each line of the output is a `Message` as JSON. The process ends
when its standard input is closed, so it does not outlive its parent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import constants, get_session, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

PROBE_SECONDS = 5.0
"""Longest time in seconds that a server may take to respond to the first request, which is not repeated."""

_CHUNK = 2**16  # bytes between two messages; the default of 10 MB is half a minute of a slow connection


class Request(TypedDict):
    """A file to download.

    Attributes:
        server: address that is contacted first.
        repository, revision: on the Hugging Face hub. An empty repository: `server` is the address of the
            file.
        files: names in the repository; the first that exists is downloaded.
        path: where a file that is not on the hub is stored. The hub has its own cache.
        described: the repository may describe the network in config.json, which is downloaded first.
    """

    server: str
    repository: str
    revision: str | None
    files: list[str]
    path: str
    described: bool


class Message(TypedDict, total=False):
    """Progress or result of a download; each message has one of these.

    Attributes:
        license: licence of the weights in config.json; None if it names none.
        total: size of the file in bytes, None if the server does not tell. The download begins.
        done: number of bytes that have come; each message has a larger one.
        waits: another process downloads the same file.
        path: path of the whole file.
        error: one line, why there is none.
    """

    license: str | None
    total: int | None
    done: int
    waits: bool
    path: str
    error: str


def send(message: Message) -> None:
    """Write one message."""
    print(json.dumps(message), flush=True)


class Bar:
    """Has the methods of a bar of tqdm that huggingface_hub calls, and sends messages."""

    def __init__(self, *, total: int | None = None, **_: Any) -> None:
        self._done = self._most = 0
        send({"total": total})

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        """Count the bytes; `count` is negative if the server begins again, so not all of them are new."""
        self._done += count
        if self._done > self._most:
            self._most = self._done
            send({"done": self._done})


class _Lock(logging.Handler):
    """Sends a message when huggingface_hub logs that another process holds the lock of the file."""

    def emit(self, _record: logging.LogRecord) -> None:
        send({"waits": True})


def download(request: Request) -> str:
    """Download the file unless it is there, and return its path."""
    bar: Any = Bar  # the annotation of huggingface_hub is tqdm, its documentation allows other classes
    if not request["repository"]:
        path = Path(request["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as stream:
                http_get(request["server"], stream, tqdm_class=bar)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return str(path)
    if request["described"]:
        send({"license": _license(request)})
    for file in request["files"]:
        try:
            return hf_hub_download(request["repository"], file, revision=request["revision"], tqdm_class=bar)
        except EntryNotFoundError:
            if file == request["files"][-1]:
                raise
    raise ValueError("no file name was given")


def _license(request: Request) -> str | None:
    """Licence in the config.json of a repository, which is then in the cache beside the weights."""
    try:
        path = hf_hub_download(request["repository"], "config.json", revision=request["revision"])
        config = json.loads(Path(path).read_text("utf-8"))
        license_ = config.get("license") or (config.get("pretrained_cfg") or {}).get("license")
    except (EntryNotFoundError, ValueError, AttributeError):  # none, or of another form
        return None
    return license_ if isinstance(license_, str) else None


def _reason(error: BaseException) -> str:
    """First line of the original error: huggingface_hub replaces those of the network by advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _end_with(stream: Any, end: Callable[[int], object]) -> None:
    threading.Thread(target=lambda: (stream.read(), end(1)), daemon=True).start()


def main() -> None:
    """Download the file of the first argument, and send the result."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    _end_with(sys.stdin.buffer, os._exit)  # sys.exit would end only the thread
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
    lock = logging.getLogger(WeakFileLock.__module__)
    lock.setLevel(logging.INFO)
    lock.addHandler(_Lock())
    request: Request = json.loads(sys.argv[1])
    try:
        # huggingface_hub repeats a request for half a minute, even if there is no network.
        get_session().head(request["server"], timeout=PROBE_SECONDS)
        send({"path": download(request)})
    except Exception as error:  # of the network, of the disk or of huggingface_hub: the parent reports it
        send({"error": _reason(error)})
    except KeyboardInterrupt:  # the part of the file is removed; the interpreter would need a second to end
        os._exit(1)


if __name__ == "__main__":
    main()
