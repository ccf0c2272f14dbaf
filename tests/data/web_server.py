"""A web server on loopback with faults, that serves bytes by path, or passes on those of another server."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np

from noisystudent.data.sources import remote
from noisystudent.data.sources.stores import open_store

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""

FAULTS = ("error", "truncated", "reset", "stall")
STALL_SECONDS = 0.6


class WebServer(ThreadingHTTPServer):
    """Files by path.

    Attributes:
        files: content of each path.
        upstream: host and port of a server whose answers are passed on; None: `files` are served.
        requests: (method, path, first byte, past last byte) of each request.
        fault: draws the fault of a request; None: no fault.
        faults: those that came.
        sent: bytes of the body of each answer that had one.
        etags: False: only the time of the last change is sent.
        quote: what stands around an etag; some servers send none.
        modified: the time of the last change. Empty: it is not sent.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, files: dict[str, bytes], upstream: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.upstream = files, upstream
        self.requests: list[tuple[str, str, int, int]] = []
        self.fault: Callable[[], str | None] = lambda: None
        self.faults: list[str] = []
        self.sent: list[int] = []
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
def serving(files: dict[str, bytes], upstream: str | None = None) -> Iterator[WebServer]:
    with WebServer(files, upstream) as server:
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
        status, headers, data = self._stored() if self.server.upstream is None else self._passed_on()
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
        if fault == "error" and status != 404:
            status, headers, data = 503, {"Content-Length": "0"}, b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            if fault == "truncated":
                self.close_connection, data = True, data[: len(data) // 2]
            self.server.sent.append(len(data))  # first: the client may be ready before this thread goes on
            self.wfile.write(data)

    def _stored(self) -> Answer:
        """The answer of `files`."""
        data = self.server.files.get(unquote(self.path))
        ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = len(data or b"")
        start, stop = (int(ranged[1]), min(int(ranged[2]) + 1, size)) if ranged else (0, size)
        self.server.requests.append((self.command, self.path, start, stop))
        if data is None:
            return 404, {"Content-Length": "0"}, b""
        headers = {"Last-Modified": self.server.modified} if self.server.modified else {}
        if self.server.etags:
            headers["ETag"] = self.server.quote + _digest(data) + self.server.quote
        etag = headers.get("ETag")
        if self.headers.get("If-Match", etag) != etag:
            return 412, {"Content-Length": "0"}, b""
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return 206 if ranged else 200, headers | {"Content-Length": str(stop - start)}, data[start:stop]

    def _passed_on(self) -> Answer:
        """The answer of the other server to this request, which has no body."""
        assert self.server.upstream is not None
        with closing(http.client.HTTPConnection(self.server.upstream)) as connection:
            connection.request(self.command, self.path, headers=dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
        own = ("Server", "Date", "Connection", "Transfer-Encoding")  # of each connection
        headers = {name.title(): value for name, value in answer.getheaders() if name.title() not in own}
        if self.command == "GET":
            headers["Content-Length"] = str(len(data))
        self.server.requests.append((self.command, self.path, 0, len(data)))
        return answer.status, headers, data


def forget() -> None:
    """Forget what another process would not have."""
    remote._memory = remote._Memory()  # the fixture `fresh` puts it back
    open_store.cache_clear()
