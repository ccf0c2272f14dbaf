"""The cache of blocks is bounded, and gives what was put last or nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from noisystudent.data.sources.cache import BLOCK, BlockFile, Cache, key_of


@given(
    puts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 2**10)), max_size=60),
    size=st.integers(8 * (BLOCK + 32), 30 * (BLOCK + 32)),
)
def test_the_cache_stays_within_its_bound_and_gives_what_was_put_last(
    puts: list[tuple[int, int]], size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [BlockFile(Path(folder, "blocks"), size) for _ in range(2)]  # two processes
        last: dict[bytes, bytes] = {}
        for turn, (number, length) in enumerate(puts):
            key, data = key_of(number), bytes([turn]) * length
            files[turn % 2].put(key, data)
            last[key] = data
            assert files[(turn + 1) % 2].get(key) == data
        assert all(files[0].get(key) in (None, data) for key, data in last.items())
        if len(last) <= 8:
            assert all(files[0].get(key) == data for key, data in last.items())
        assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= size


def test_a_torn_block_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "blocks"
    blocks = BlockFile(path, 2**21)
    blocks.put(b"k" * 16, b"x" * 100)
    data = bytearray(path.read_bytes())
    data[data.index(b"x" * 100) + 50] = 0
    path.write_bytes(data)
    assert blocks.get(b"k" * 16) is None


def test_a_file_of_the_user_stays(tmp_path: Path) -> None:
    """Of any size, in a folder that NOISYSTUDENT_CACHE names; a file of another size is replaced."""
    (tmp_path / "blocks").write_text("mine")
    for size in (2**21, 2**22):
        blocks = Cache(tmp_path, size).blocks
        assert blocks is not None
        blocks.put(b"k" * 16, b"x")
        assert Cache(tmp_path, size).blocks is blocks and blocks.get(b"k" * 16) == b"x"
    assert (tmp_path / "blocks").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


TRIALS, PROCESSES, THREADS, SIZE = 60, 2, 8, 2**25


def key_at(process: int, thread: int) -> bytes:
    """A key in a set of its own: two that are put into one set at once may take one slot."""
    return (process * THREADS + thread).to_bytes(16, "little")


def keep_at_once(folder: Path, process: int, barrier: Any) -> None:
    """In each trial open its file in all threads at once, and keep a block in each."""

    def keep(trial: int, thread: int) -> None:
        start.wait()
        BlockFile(folder / str(trial) / "blocks", SIZE).put(key_at(process, thread), b"x")

    sys.setswitchinterval(1e-6)  # seconds; threads come in between at any place
    start = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS) as threads:
        for trial in range(TRIALS):
            barrier.wait(60)
            list(threads.map(keep, [trial] * THREADS, range(THREADS)))


def test_all_who_open_the_file_at_once_share_it(tmp_path: Path) -> None:
    """A block that one of them keeps is in the file of the path, which is the only one."""
    paths = [tmp_path / str(trial) / "blocks" for trial in range(TRIALS)]
    for path, before in zip(paths, cycle([None, 0, 2**21]), strict=False):  # bytes of the file that is there
        path.parent.mkdir()
        if before is not None:
            path.touch()
            os.truncate(path, before)
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(PROCESSES)
    processes = [
        context.Process(target=keep_at_once, args=(tmp_path, number, barrier)) for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    keys = [key_at(process, thread) for process in range(PROCESSES) for thread in range(THREADS)]
    for path in paths:
        assert [*path.parent.iterdir()] == [path] and path.stat().st_size <= SIZE
        blocks = BlockFile(path, SIZE)
        assert [blocks.get(key) for key in keys] == [b"x"] * len(keys)
