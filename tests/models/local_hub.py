"""A small hub on this machine: it serves one file of weights, well or badly."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants


class Hub(ThreadingHTTPServer):
    """Serves `content` as model.safetensors of every repository and as any other file.

    Attributes:
        content: the file.
        behaviour: ok; silent: no answer at all; hangs: no answer to the second request and later ones; slow:
            in pieces; stops: half of the file and then nothing; short: half of the file; resets: half of the
            file and a reset connection; 404, 500: this status.
        description: config.json of every repository. None: there is none.
        requests: method and path of each request.
    """

    daemon_threads = True

    def __init__(self, content: bytes, behaviour: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.behaviour = content, behaviour
        self.requests: list[str] = []
        self.description: bytes | None = None
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:  # a client that went away is part of the tests
        pass


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def do_GET(self) -> None:
        self._respond(body=True)

    def _refuse(self) -> None:
        self.send_response(404)
        # Of the real hub: a file that a repository does not have is no broken repository.
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _respond(self, body: bool) -> None:
        hub = self.server
        hub.requests.append(f"{self.command} {self.path}")
        how, content = hub.behaviour, hub.content
        if how == "silent" or (how == "hangs" and len(hub.requests) > 1):
            hub.closing.wait()
            return
        if self.path.endswith("/config.json"):
            if hub.description is None:
                self._refuse()
                return
            how, content = "ok", hub.description
        if how.isdigit() and self.path != "/":
            self.send_error(int(how))
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self._send(how, content)

    def _send(self, how: str, content: bytes) -> None:
        hub = self.server
        pieces = 4 if how == "slow" else 2
        size = -(-len(content) // pieces)
        for start in range(0, len(content), size):
            if start and how in ("stops", "short", "resets"):
                break
            self.wfile.write(content[start : start + size])
            hub.closing.wait(0.2 if how == "slow" else 0)
        if how == "stops":
            hub.closing.wait()
        elif how == "resets":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@contextmanager
def serving(content: bytes, behaviour: str) -> Iterator[Hub]:
    """A hub that runs within the block."""
    hub = Hub(content, behaviour)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        thread.join()
        hub.server_close()


def use_empty_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """From now on downloads are kept in a new folder, are allowed, and need no proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    monkeypatch.setenv("HF_HOME", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
