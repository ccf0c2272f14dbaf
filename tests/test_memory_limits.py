from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest
import torch

from noisystudent import cgroups, memory

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_peak_is_what_a_block_used_at_most() -> None:
    with memory.peak(CPU) as before:  # it also returns what earlier tests have freed
        pass
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with memory.peak(CPU) as peak, mmap.mmap(-1, 64 * MIB, flags=private) as held:
        held[:: mmap.PAGESIZE] = bytes(64 * MIB // mmap.PAGESIZE)
        for _ in range(1_000):  # until the thread that measures has had its turn
            if peak.used > before.used + 60 * MIB:
                break
            time.sleep(0.01)
    assert before.used + 60 * MIB < peak.used
    with memory.peak(CPU) as after:
        pass
    assert after.used < peak.used, "freed memory does not count"


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("current", "expected"),
    [(300, 700), (900, 100), (1200, 0)],
)
def test_the_tightest_control_group_limits_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: int, expected: int
) -> None:
    monkeypatch.setattr(cgroups, "PROC", tmp_path / "proc")
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "groups")
    write(tmp_path / "proc", meminfo="MemTotal: 9 kB\nMemAvailable:      2 kB")
    assert memory.free(CPU) == 2048
    write(tmp_path / "proc" / "self", cgroup="3:cpu:/x\n0::/job/step", statm="3 2 1 0 0 0 0")
    job, step = tmp_path / "groups" / "job", tmp_path / "groups" / "job" / "step"
    write(job, memory__max="max", memory__current=5000, memory__stat="inactive_file 1")
    write(step, memory__max=1000, memory__current=current, memory__stat="anon 7\ninactive_file 0")
    assert memory.free(CPU) == expected
    (step / "memory.stat").write_text("inactive_file 100\n")
    assert memory.free(CPU) == min(2048, max(0, 1000 - current + 100)), "the file cache is given back"
    assert memory.limit(CPU) == min(2048, max(0, 1100 - current)) + memory.used(CPU)


def test_a_control_group_of_version_1_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "PROC", tmp_path / "proc")
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "groups")
    write(tmp_path / "proc" / "self", cgroup="4:memory:/job\n0::/")
    assert memory.free(CPU) is None, "nothing is known"
    files = {"memory.limit_in_bytes": 50, "memory.usage_in_bytes": 20, "memory.stat": "total_inactive_file 5"}
    write(tmp_path / "groups" / "memory" / "job", **{name.replace(".", "__"): v for name, v in files.items()})
    assert memory.free(CPU) == 35
