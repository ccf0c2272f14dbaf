"""What does a pool in a store cost? Requests, bytes and CPU time an image, beside a folder and beside fsspec.

    python benchmarks/remote.py
    python benchmarks/remote.py --images 4000 --shards 8 --repeats 3

The images are random bytes of 20 to 80 kB in tar shards; nothing is decoded; the server is the tests', on
loopback in a process of its own: the CPU time is that of the reader alone. `in order` reads 64 neighbours at
once, as the scan does; `shuffled` reads 64 that are drawn from all shards, as a training does. Figures are an
image, but `faults`.

folder: a file an image. tar: the shards on disk. remote: the same shards through the store, `cold` without a
cache, `cached` with a cache that has them. windows: an empty cache, and the order of `student.pool_window
512` for a selection of all images, with the next window fetched ahead. fsspec: a range request an image, in
16 threads. It is told the ranges, and does not look whether the shard is still the same. S3: the shards in a
bucket (moto), read through the tests' server, which passes its answers on. 10 % faults: a tenth of the
requests is an error 503, a body cut short, a reset or a stall of 0.6 s; `faults` counts them.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent.data.sampler import Repeated, Sampler
from noisystudent.data.sources import Place, Source, open_source, prefetch, remote
from noisystudent.data.sources.threads import THREADS
from noisystudent.records import Selection
from noisystudent.selection import selected_rows
from noisystudent.selection.database import SCHEMA

sys.path.append(str(Path(__file__).parents[1] / "tests" / "data"))
from shard_files import add
from web_server import faults, serving

_BATCH, _WINDOW = 64, 512
Read = Callable[[Sequence[Place]], list[bytes]]


def images(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(int(size)) for size in rng.integers(20_000, 80_000, count)]


def write(root: Path, data: list[bytes], shards: int) -> None:
    """The images as files `folder/<shard>/<number>.jpg` and as `<shard>.tar`."""
    for shard in range(shards):
        (root / "folder" / f"{shard:04d}").mkdir(parents=True)
        with tarfile.open(root / f"{shard:04d}.tar", "w") as archive:
            for number in range(shard, len(data), shards):
                add(archive, f"c/{number:06d}.jpg", data[number])
                (root / "folder" / f"{shard:04d}" / f"{number:06d}.jpg").write_bytes(data[number])


def serve(root: Path, pipe: Connection, bucket: bool) -> None:
    """Serve the shards, on a web server or in the bucket `pool`.

    Each message is the share of faults from now on, and is answered with (requests, bytes, faults) since the
    last one.
    """
    shards = {f"/{path.name}": path.read_bytes() for path in root.glob("*.tar")}
    upstream = serve_bucket(shards) if bucket else None
    with serving({} if bucket else shards, upstream) as web:
        pipe.send(web.url)
        while True:
            share = pipe.recv()
            counts = (len(web.requests), sum(web.sent), len(web.faults))
            web.fault = faults(share)
            web.requests, web.sent, web.faults = [], [], []
            pipe.send(counts)


def serve_bucket(shards: dict[str, bytes]) -> str:
    """Host and port of an S3 server with the shards in the bucket `pool`."""
    from moto.server import ThreadedMotoServer  # here, because it takes seconds

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    kind = {"Content-Type": "application/x-tar"}  # by default data are a form
    for path, data in {"": None, **shards}.items():
        url = f"http://{host}:{port}/pool{path}"
        urllib.request.urlopen(urllib.request.Request(url, data, kind, method="PUT")).close()
    return f"{host}:{port}"


def places(source: Source) -> list[Place]:
    return [(item.shard, item.offset, item.size, item.id) for item in source.items()]


def counted(pipe: Connection, share: float = 0.0) -> tuple[int, float, int]:
    """Requests, MB and faults since the last call; from now on there is a fault in this share of requests."""
    pipe.send(share)
    requests, size, faulty = pipe.recv()
    return requests, size / 1e6, faulty


def from_source(source: Source) -> Read:
    def read(batch: Sequence[Place]) -> list[bytes]:
        prefetch(source, batch)
        return [bytes(source.read(*place)) for place in batch]

    return read


def selection_of_all(path: Path, images: int) -> Selection:
    """A selection that keeps every image once; the content hashes are random."""
    hashes = np.random.default_rng(2).bytes(16 * images)
    columns = [
        pa.array(np.arange(images)),
        pa.array([hashes[at : at + 16] for at in range(0, len(hashes), 16)], pa.binary(16)),
        pa.array(np.zeros(images, np.int32)),
        pa.array(np.ones(images, np.float32)),
        pa.array(np.zeros(images, bool)),
        pa.array(np.ones(images, np.int32)),
        pa.DictionaryArray.from_arrays(np.zeros(images, np.uint8), ["kept"]),
    ]
    pq.write_table(pa.table(columns, schema=SCHEMA), path)
    return Selection(path, 1)


class Windows:
    """The order of a student with `student.pool_window`."""

    def __init__(self, selection: Selection) -> None:
        self._rows, repeats = selected_rows(selection, _WINDOW)
        self._expanded = Repeated(repeats)
        self._sampler = Sampler(len(self._expanded), _BATCH, 0, "pool", window=_WINDOW)

    def epoch(self) -> NDArray[np.int64]:
        """The rows of one pass over the images."""
        count = len(self._expanded)
        drawn = np.concatenate([self._sampler.at(step) for step in range(-(-count // _BATCH))])
        return self._rows[self._expanded[drawn[:count]]]

    def ahead(self, step: int) -> NDArray[np.int64]:
        """The rows of the next window that are fetched in this step."""
        return np.unique(self._rows[self._expanded[self._sampler.ahead(step, slice(0, _BATCH))]])


def with_windows(source: Source, where: list[Place], windows: Windows) -> Read:
    """Each batch also fetches its share of the next window, as a training does."""
    read, steps = from_source(source), count()

    def windowed(batch: Sequence[Place]) -> list[bytes]:
        ahead = [where[row] for row in windows.ahead(next(steps))]
        for start in range(0, len(ahead), _BATCH):
            prefetch(source, ahead[start : start + _BATCH])
        return read(batch)

    return windowed


def from_fsspec(url: str, threads: ThreadPoolExecutor) -> Read:
    files = fsspec.filesystem("http")

    def one(place: Place) -> bytes:
        shard, offset, size, _ = place
        data: bytes = files.cat_file(f"{url}/{shard:04d}.tar", start=offset, end=offset + size)
        return data

    return lambda batch: list(threads.map(one, batch))


def digest(data: Iterable[bytes]) -> bytes:
    state = hashlib.blake2b()
    for one in data:
        state.update(hashlib.blake2b(one).digest())
    return state.digest()


def measure(
    read: Read, where: list[Place], rows: NDArray[np.int64], pipe: Connection, share: float = 0.0
) -> tuple[str, bytes]:
    """Read all images in the order of `rows`; the figures, and the digest of the images by row."""
    found: dict[int, bytes] = {}
    remote._memory = remote._Memory()
    counted(pipe, share)
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH].tolist()
        found |= dict(zip(batch, read([where[row] for row in batch]), strict=True))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    requests, size, faulty = counted(pipe)
    count = len(rows)
    figures = (requests / count, 1000 * size / count, 1000 * cpu / count, count / wall, faulty)
    return "{:10.3f}{:10.1f}{:10.3f}{:10,.0f}{:10}".format(*figures), digest(
        found[row] for row in range(count)
    )


def compare(root: Path, url: str, shards: int, repeats: int, pipe: Connection) -> None:
    names = f"{url}/{{0000..{shards - 1:04d}}}.tar"
    tars, cold = open_source([root / "*.tar"], True), open_source([names], True, cache_gb=0)
    where = places(tars)
    counted(pipe)
    cpu = time.process_time()
    assert places(cold) == where
    cpu, (requests, size, _) = time.process_time() - cpu, counted(pipe)
    print(f"listing: {requests} requests, {size:.1f} MB, {1000 * cpu / len(where):.3f} CPU ms an image\n")
    cached, loose = open_source([names], True, cache_gb=1), open_source([root / "folder"], False)
    in_order = np.arange(len(where))
    measure(from_source(cached), where, in_order, pipe)  # fills the cache
    print(f"{'':26}{'requests':>10}{'kB':>10}{'CPU ms':>10}{'images/s':>10}{'faults':>10}")
    expected = digest(from_source(tars)(where))
    shuffled = np.random.default_rng(1).permutation(len(where))
    with ThreadPoolExecutor(THREADS) as threads:
        readers = {
            "folder": (from_source(loose), places(loose)),
            "tar": (from_source(tars), where),
            "remote, cold": (from_source(cold), where),
            "remote, cached": (from_source(cached), where),
            "fsspec": (from_fsspec(url, threads), where),
        }
        for _ in range(repeats):
            for name, (read, at) in readers.items():
                for order, rows in (("in order", in_order), ("shuffled", shuffled)):
                    figures, found = measure(read, at, rows, pipe)
                    assert found == expected, f"{name} has read other bytes"
                    print(f"{name:16}{order:10}{figures}")
        os.environ["NOISYSTUDENT_CACHE"] += "-of-windows"  # an empty one
        windows = Windows(selection_of_all(root / "selection.parquet", len(where)))
        read = with_windows(open_source([names], True, cache_gb=1), where, windows)
        figures, found = measure(read, where, windows.epoch(), pipe)
        assert found == expected
        print(f"{'remote, windows':16}{'shuffled':10}{figures}")


def compare_faults(root: Path, url: str, web: Connection, s3: Connection) -> None:
    """A web server and a bucket, both without a cache, without faults and with them."""
    tars = open_source([root / "*.tar"], True)
    where = places(tars)
    expected = digest(from_source(tars)(where))
    orders = {"in order": np.arange(len(where)), "shuffled": np.random.default_rng(1).permutation(len(where))}
    names = f"{url}/{{{','.join(sorted(path.stem for path in root.glob('*.tar')))}}}.tar"
    for name, spec, pipe in (("web", names, web), ("S3", "s3://pool/*.tar", s3)):
        source = open_source([spec], True, cache_gb=0)
        assert places(source) == where
        for share in (0.0, 0.1):
            for order, rows in orders.items():
                figures, found = measure(from_source(source), where, rows, pipe, share)
                assert found == expected, f"{name} has given other bytes"
                print(f"{name + (f', {share:.0%} faults' if share else ''):16}{order:10}{figures}")


def server(root: Path, bucket: bool) -> tuple[str, Connection]:
    """URL of a server in a process of its own, and the pipe of its counts."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=serve, args=(root, there, bucket), daemon=True
    )
    process.start()
    return here.recv(), here


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["NOISYSTUDENT_CACHE"] = str(root / "cache")
        data = images(given.images)
        write(root, data, given.shards)
        (url, web), (bucket, s3) = server(root, bucket=False), server(root, bucket=True)
        os.environ |= {"AWS_ENDPOINT_URL": bucket, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        size = sum(map(len, data)) / 1e6
        print(f"{len(data):,} images, {size:.0f} MB in {given.shards} shards")
        compare(root, url, given.shards, given.repeats, web)
        compare_faults(root, url, web, s3)


if __name__ == "__main__":
    main()
