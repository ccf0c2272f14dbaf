"""Stores that hold shards: object stores and web servers (obstore), and the Hugging Face hub (fsspec)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

from noisystudent.data.sources.base import Unreadable
from noisystudent.errors import InputError, RunError, did_you_mean, first_line
from noisystudent.runtime import is_offline

SCHEMES = ("s3", "gs", "az", "https", "http", "hf")
_CONNECT_SECONDS = 5.0
_SILENT_SECONDS = 10.0  # without a byte of an answer
_REQUEST_SECONDS = 60.0
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "HF_TOKEN",
}
# What obstore says if it has no credentials: it asks the metadata service of a virtual machine, in vain.
_NO_CREDENTIALS = re.compile(r"latest/api/token|169\.254\.169\.254|metadata\.google|must be specified")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long a store is tried again: `retries` times, and no longer than `seconds`."""

    retries: int
    seconds: float


NAMING = Patience(3, 15.0)
"""When a user has named shards: a wrong name is an error at once."""
READING = Patience(10, 180.0)
"""In the middle of a run: a store may be away for minutes."""


@dataclass(frozen=True, order=True)
class Entry:
    """An object in a store. Entries are in the order of their paths.

    Attributes:
        path: its path in the store.
        size: bytes.
        version: its etag, or the time of its last change.
    """

    path: str
    size: int
    version: str


class Store(Protocol):
    """A bucket, a container, a web server or the hub. All methods raise `Unreadable`, with one line."""

    def head(self, path: str, /) -> Entry:
        """The object at a path."""

    def list(self, prefix: str, /) -> Iterator[Entry]:
        """All objects whose path begins with `prefix`, a folder."""

    def get(self, entry: Entry, start: int, stop: int, /) -> bytes:
        """Bytes start … stop-1 of an object.

        Raises:
            RunError: the object is not the one that `entry` describes any more.
            Unreadable: the bytes cannot be read.
        """


def is_url(spec: object) -> bool:
    """True if a spec is a URL and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(spec)) is not None


def split(url: str) -> tuple[str, str]:
    """Root of a URL, which names the store, and the path in it.

    Raises:
        InputError: the scheme is not known, or there is no host or bucket.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise InputError(f"{url}: {scheme}:// is not known{did_you_mean(scheme, SCHEMES)} ({known})")
    if scheme == "hf":
        return "hf://", rest
    host, _, path = rest.partition("/")
    if not host:
        raise InputError(f"{url}: names no {'server' if scheme.startswith('http') else 'bucket'}")
    return f"{scheme}://{host}", unquote(path) if scheme.startswith("http") else path


@lru_cache(maxsize=64)
def open_store(root: str, patience: Patience) -> Store:
    """The store of a root from `split`, opened once in a process. It is not fork-safe.

    Raises:
        Unreadable: it cannot be opened.
        InputError: downloads are forbidden.
    """
    if is_offline():
        raise InputError(f"{root}: --offline or HF_HUB_OFFLINE=1 forbids the download; give files on disk")
    if root == "hf://":
        from huggingface_hub import HfFileSystem

        return FilesystemStore(root, HfFileSystem(), patience)
    from obstore.store import from_url

    seconds = timedelta(seconds=patience.seconds)
    try:
        store = from_url(
            root,
            client_options={
                "allow_http": True,  # http:// is used only where the user has written it
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "read_timeout": timedelta(seconds=_SILENT_SECONDS),
                "timeout": timedelta(seconds=_REQUEST_SECONDS),
            },
            retry_config={"max_retries": patience.retries, "retry_timeout": seconds},
        )
    except Exception as error:  # obstore raises many types of errors on a wrong root
        raise Unreadable(_reason(root, error)) from error
    return _ObjectStore(root, store, patience.retries)


class _ObjectStore:
    """A store of obstore, which tries again by itself: server errors, resets, stalls, bodies cut short."""

    def __init__(self, root: str, store: Any, retries: int) -> None:
        self._root, self._store, self._retries = root, store, retries

    def head(self, path: str, /) -> Entry:
        """See `Store`."""
        import obstore

        return _entry(self._tried(lambda: obstore.head(self._store, path), path))

    def list(self, prefix: str, /) -> Iterator[Entry]:
        """See `Store`. obstore does not try again if the body of a list is cut short."""
        import obstore

        def read() -> Iterator[Entry]:
            return iter(
                [_entry(meta) for chunk in obstore.list(self._store, prefix or None) for meta in chunk]
            )

        for _ in range(self._retries):
            try:
                return self._tried(read, prefix)
            except Unreadable as error:
                if "list response body" not in str(error):
                    raise
        return self._tried(read, prefix)

    def get(self, entry: Entry, start: int, stop: int, /) -> bytes:
        """See `Store`."""
        import obstore

        options: dict[str, Any] = {"range": (start, stop)}
        if entry.version.startswith('"'):  # a weak etag, W/"…", never matches; nor does one without quotes
            options["if_match"] = entry.version

        def read() -> tuple[Entry, bytes]:
            answer = obstore.get(self._store, entry.path, options=options)  # type: ignore[arg-type]
            return _entry(answer.meta), bytes(answer.bytes())

        there, data = self._tried(read, entry.path)
        if there != entry:  # there was no condition, or the server has ignored it
            raise _replaced(self._root, entry.path)
        return _whole(data, stop - start)

    def _tried(self, call: Callable[[], Result], path: str) -> Result:
        from obstore.exceptions import BaseError, PreconditionError

        try:
            return call()
        except PreconditionError as error:
            raise _replaced(self._root, path) from error
        except (BaseError, OSError, ValueError) as error:  # ValueError: no store of obstore has such a path
            raise Unreadable(_reason(self._root, error)) from error


class FilesystemStore:
    """A file system of fsspec, which loses requests: each is tried again here."""

    def __init__(self, root: str, filesystem: Any, patience: Patience) -> None:
        self._root, self._files, self._patience = root, filesystem, patience

    def head(self, path: str, /) -> Entry:
        """See `Store`."""
        return _file_entry(self._tried(lambda: self._files.info(path)))

    def list(self, prefix: str, /) -> Iterator[Entry]:
        """See `Store`."""
        infos: dict[str, Any] = self._tried(lambda: self._files.find(prefix, detail=True))
        return map(_file_entry, infos.values())

    def get(self, entry: Entry, start: int, stop: int, /) -> bytes:
        """See `Store`. The hub has no conditional request: the content hashes of the images show a change."""

        def read() -> bytes:
            return _whole(self._files.cat_file(entry.path, start=start, end=stop), stop - start)

        return self._tried(read)

    def _tried(self, call: Callable[[], Result]) -> Result:
        end, pause, left = time.monotonic() + self._patience.seconds, 0.1, self._patience.retries
        while True:
            try:
                return call()
            except Exception as error:  # a file system passes on the errors of its client, of any type
                if isinstance(error, FileNotFoundError) or left == 0 or time.monotonic() + pause > end:
                    raise Unreadable(_reason(self._root, error)) from error
            time.sleep(pause)
            left, pause = left - 1, min(2 * pause, 15.0)


def _entry(meta: Any) -> Entry:
    tag, changed = meta["e_tag"], meta["last_modified"]
    if not tag and changed.timestamp() == 0:  # what obstore has if a server sends no time
        raise Unreadable(
            "the server sends neither ETag nor Last-Modified, so a shard that is replaced would not be"
            " noticed; copy the shards to disk or to another server"
        )
    return Entry(meta["path"], meta["size"], tag or changed.isoformat())


def _file_entry(info: Any) -> Entry:
    # blob_id: the hub's hash of a file
    version = info.get("blob_id") or info.get("mtime") or info.get("created")
    return Entry(info["name"], int(info["size"]), str(version))


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise Unreadable(f"{len(data):,} bytes came, not {size:,}")
    return data


def _replaced(root: str, path: str) -> RunError:
    return RunError(f"{root.rstrip('/')}/{path} was replaced while it was in use; run again to list it again")


def _reason(root: str, error: Exception) -> str:
    """One line about an error of a client."""
    scheme, line = root.partition("://")[0], first_line(error).partition(": <")[0]  # then comes XML or HTML
    denied = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    if scheme in _CREDENTIALS and (denied or _NO_CREDENTIALS.search(line)):
        what = "access is denied" if denied else "there are no credentials"
        return f"{what}; set {_CREDENTIALS[scheme]} ({line})"
    if isinstance(error, FileNotFoundError) or "404 Not Found" in line:
        return "no such object, bucket or repository (404)"
    return line
