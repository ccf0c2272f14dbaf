"""From what a user names to shards and folders: paths, URLs, patterns, braces, and lists of names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path, PurePosixPath

from noisystudent.data.sources.cache import Cache
from noisystudent.data.sources.remote import RemoteShard
from noisystudent.data.sources.stores import NAMING, Entry, is_url, open_store, split
from noisystudent.data.sources.threads import in_threads
from noisystudent.errors import InputError

_MOST_NAMES = 1_000_000  # that one pair of braces stands for: a typing error of some zeros is one line
_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")
_WILD = re.compile(r"[*?[]")
SUFFIXES = (".tar", ".parquet")
"""Suffixes of shards."""


def expand(spec: str | Path, cache: Cache) -> list[Path | RemoteShard]:
    """Files and folders that a spec names.

    Args:
        spec: a path or a URL; with a glob pattern or with braces, `{000..999}` or `{a,b}`; or `@` and the
            path of a text file with one of these in each line.
        cache: for remote shards.

    Raises:
        InputError: a name stands for nothing.
    """
    text = str(spec)
    if not text:
        raise InputError("the name of an image source is empty; give a folder or a file")
    lines = _lines(text) if text.startswith("@") and not os.path.lexists(text) else [text]
    names = [name for line in lines for name in _braced(line)]
    # The stores answer many requests at once; files on disk are looked up one by one.
    remote = in_threads(partial(_remote, cache=cache), filter(is_url, names))
    return [one for name in names for one in (next(remote) if is_url(name) else _local(name))]


def _lines(text: str) -> list[str]:
    """The names in a list. Empty lines and those that begin with # are left out."""
    try:
        lines = Path(text[1:]).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text}: the list cannot be read ({error}); give @ and a text file") from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise InputError(f"{text}: the list is empty; give a shard in each line")
    return names


def _braced(name: str) -> Iterable[str]:
    """The names that braces stand for, in order; the name itself if it has none, or if it exists."""
    pieces = _BRACES.split(name)  # every second piece is the inside of braces
    if len(pieces) == 1 or (not is_url(name) and os.path.lexists(name)):
        return [name]
    choices = [[piece] if at % 2 == 0 else _choices(piece, name) for at, piece in enumerate(pieces)]
    names = list(islice(map("".join, product(*choices)), _MOST_NAMES + 1))
    if len(names) > _MOST_NAMES:
        raise _too_many(name)
    return names


def _choices(inside: str, name: str) -> list[str]:
    """What the inside of a pair of braces stands for; numbers keep their zeros, as in 000..999."""
    if "," in inside:
        return inside.split(",")
    first, last = inside.split("..")
    if abs(int(last) - int(first)) > _MOST_NAMES:
        raise _too_many(name)
    step = 1 if int(first) <= int(last) else -1
    padded = any(len(end) > 1 and end[0] == "0" for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


def _too_many(name: str) -> InputError:
    return InputError(f"{name}: the braces stand for more than {_MOST_NAMES:,} names; give fewer")


def _local(name: str) -> list[Path]:
    """The path itself, or the sorted matches of a glob pattern."""
    path = Path(name).expanduser()
    if os.path.exists(path):  # before the pattern: names of existing folders may contain [ or *
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        raise InputError(f"{name}: no such file or folder")
    return matches


def _remote(url: str, cache: Cache) -> list[RemoteShard]:
    """The shard at a URL, those that match a pattern, or those of a folder, in the order of their names.

    Raises:
        InputError: there is none, the pattern is wrong, or the store does not answer.
    """
    root, path = split(url)
    try:
        entries = list(_entries(url, root, path))
    except (OSError, re.error) as error:
        raise InputError(f"{url}: {error}") from error
    if not entries:
        raise InputError(f"{url}: no such shards; give .tar or .parquet files, or a folder of them")
    if [entry.path for entry in entries] == [path]:
        return [RemoteShard(url, entries[0], cache)]
    start = root if root.endswith("/") else f"{root}/"
    return [RemoteShard(start + entry.path, entry, cache) for entry in sorted(entries)]


def _entries(url: str, root: str, path: str) -> Iterable[Entry]:
    web = root.startswith("http")
    # The path on a web server is decoded: %5B in its URL is no bracket of a pattern.
    store, wild = open_store(root, NAMING), _WILD.search(url.removeprefix(root) if web else path)
    if wild is None and PurePosixPath(path).suffix.lower() in SUFFIXES:
        return [store.head(path)]
    if web:
        raise InputError(
            f"{url}: a web server lists no files; name each .tar or .parquet file, without * and ?, with"
            " braces such as {000..999} or in a list, @FILE"
        )
    if wild is not None:
        matches = _pattern(path)
        folder = path[: wild.start()].rpartition("/")[0]
        listed = (entry for entry in store.list(folder) if matches.fullmatch(entry.path))
        return (entry for entry in listed if entry.path.lower().endswith(SUFFIXES))
    folder = path.rstrip("/")
    inside = [entry for entry in store.list(folder) if entry.path.rpartition("/")[0] == folder]
    shards = [entry for entry in inside if entry.path.lower().endswith(SUFFIXES)]
    if shards:
        one_suffix(url.rstrip("/"), [entry.path.rpartition("/")[2] for entry in shards])
    return shards


def one_suffix(folder: str, names: Sequence[str]) -> str:
    """The suffix of the shards in a folder.

    Raises:
        InputError: they have two; one kind would be left out unseen.
    """
    first = {PurePosixPath(name).suffix.lower(): name for name in sorted(names, reverse=True)}
    if len(first) > 1:
        patterns = " and ".join(f"'{folder}/*{suffix}'" for suffix in SUFFIXES)
        held = " and ".join(first[suffix] for suffix in SUFFIXES)
        raise InputError(f"{folder}: holds {held}; give {patterns} separately, or one of them")
    return next(iter(first))


def _pattern(path: str) -> re.Pattern[str]:
    """Expression of a glob pattern, whose * and ? stand for anything but a slash, and **/ for any folders.

    Raises:
        re.error: the inside of its brackets is not right.
    """
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", path)
    # (?!/): no brackets match a slash either
    pieces = [
        "(?!/)" + one.replace("[!", "[^", 1) if one[:1] == "[" else parts.get(one, re.escape(one))
        for one in pieces
    ]
    return re.compile("".join(pieces))
