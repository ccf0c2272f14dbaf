"""A web server on loopback that serves bytes by path, with ranges, etags and faults."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np

FAULTS = ("error", "truncated", "reset", "stall")
STALL_SECONDS = 0.6


class WebServer(ThreadingHTTPServer):
    """Files by path.

    Attributes:
        files: content of each path.
        requests: (method, path, first byte, past last byte) of each request.
        fault: draws the fault of a request; None: no fault.
        faults: those that came.
        etags: False: only the time of the last change is sent.
        quote: what stands around an etag; some servers send none.
        modified: the time of the last change. Empty: it is not sent.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.requests: list[tuple[str, str, int, int]] = []
        self.fault: Callable[[], str | None] = lambda: None
        self.faults: list[str] = []
        self.etags = True
        self.quote = '"'
        self.modified = "Thu, 01 Jan 2026 00:00:00 GMT"
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has given up is no error."""

    @property
    def gets(self) -> int:
        """Number of GET requests."""
        return sum(method == "GET" for method, *_ in self.requests)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[WebServer]:
    with WebServer(files) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def faults(share: float, seed: int = 0) -> Callable[[], str | None]:
    """A fault of a kind in turn, in this share of the requests."""
    rng, lock = np.random.default_rng(seed), threading.Lock()

    def draw() -> str | None:
        with lock:
            return str(rng.choice(FAULTS)) if rng.random() < share else None

    return draw


@lru_cache
def _digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets; the second would wait for 40 ms
    server: WebServer

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        data = self.server.files.get(unquote(self.path))
        ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = len(data or b"")
        start, stop = (int(ranged[1]), min(int(ranged[2]) + 1, size)) if ranged else (0, size)
        self.server.requests.append((self.command, self.path, start, stop))
        fault = self.server.fault()
        if fault is not None:
            self.server.faults.append(fault)
        if fault == "reset":
            linger = b"\1\0\0\0\0\0\0\0"  # a close is then a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return
        if fault == "stall":
            time.sleep(STALL_SECONDS)
        if data is None or fault == "error":
            self._status(404 if data is None else 503)
            return
        etag = self.server.quote + _digest(data) + self.server.quote if self.server.etags else None
        if self.headers.get("If-Match", etag) != etag:
            self._status(412)
            return
        self.send_response(206 if ranged else 200)
        if self.server.modified:
            self.send_header("Last-Modified", self.server.modified)
        if etag is not None:
            self.send_header("ETag", etag)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self.close_connection = fault == "truncated"
            self.wfile.write(data[start : (start + stop) // 2 if fault == "truncated" else stop])

    def _status(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()
