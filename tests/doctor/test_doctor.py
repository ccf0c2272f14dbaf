"""`doctor` measures, names what to fix, and never fails, whatever the machine is like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tiny import Capture, call

from noisystudent import cgroups
from noisystudent.doctor import Finding, disk, machine, packages

GIB = 2**30


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def of_memory(root: Path) -> Finding:
    (finding,) = machine.memory(proc=root / "proc", root=root / "cgroup")
    return finding


def meminfo(total: int, free: int) -> dict[str, object]:
    return {"proc/meminfo": f"MemTotal: {total // 1024} kB\nMemAvailable: {free // 1024} kB"}


V2 = {"proc/self/cgroup": "0::/outer/inner"}
V1 = {"proc/self/cgroup": "4:memory:/outer/inner\n2:cpu,cpuacct:/outer/inner\n0::/"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (V2 | {"cgroup/outer/inner/cpu.max": "max 100000"}, None),
        (V2 | {"cgroup/outer/inner/cpu.max": "max 100000", "cgroup/outer/cpu.max": "250000 100000"}, 2.5),
        ({"proc/self/cgroup": "0::/of/the/host", "cgroup/cpu.max": "50000 100000"}, 0.5),
        (V1 | {"cgroup/cpu/outer/cpu.cfs_quota_us": -1, "cgroup/cpu/outer/cpu.cfs_period_us": 100000}, None),
        (V1 | {"cgroup/cpu/cpu.cfs_quota_us": 300000, "cgroup/cpu/cpu.cfs_period_us": 100000}, 3.0),
    ],
)
def test_the_quota_is_the_smallest_of_all_groups_around(
    tmp_path: Path, files: dict[str, object], expected: float | None
) -> None:
    write(tmp_path, files)
    assert cgroups.quota(proc=tmp_path / "proc", root=tmp_path / "cgroup") == expected


def test_memory_is_that_of_the_machine_or_of_its_groups(tmp_path: Path) -> None:
    write(tmp_path, V2 | meminfo(64 * GIB, 60 * GIB))
    assert of_memory(tmp_path) == Finding("memory", "60.0 GiB free of 64.0 GiB of the machine")
    outer = {"max": 8 * GIB, "current": 5 * GIB, "stat": f"anon {GIB}\ninactive_file {2 * GIB}"}
    inner = {"max": "max", "current": GIB, "stat": "anon 0"}
    for group, files in (("outer", outer), ("outer/inner", inner)):
        write(tmp_path, {f"cgroup/{group}/memory.{name}": content for name, content in files.items()})
    assert of_memory(tmp_path).value == "5.0 GiB free of 8.0 GiB that a control group allows"
    write(tmp_path, {"cgroup/outer/memory.stat": "inactive_file 0", "cgroup/outer/memory.current": 7 * GIB})
    assert of_memory(tmp_path).fix.startswith("end other programs")
    unlimited = 9223372036854771712
    v1 = {"limit_in_bytes": unlimited, "usage_in_bytes": 5 * GIB, "stat": f"total_inactive_file {GIB}"}
    write(tmp_path / "v1", V1 | meminfo(64 * GIB, 60 * GIB))
    write(tmp_path / "v1", {f"cgroup/memory/memory.{name}": content for name, content in v1.items()})
    assert of_memory(tmp_path / "v1").value == "60.0 GiB free of 64.0 GiB of the machine"
    write(tmp_path / "v1", {"cgroup/memory/memory.limit_in_bytes": 16 * GIB})
    assert of_memory(tmp_path / "v1").value == "12.0 GiB free of 16.0 GiB that a control group allows"


def test_more_threads_than_cores_are_to_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "quota", lambda: 0.5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (wrong,) = machine.cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (right,) = machine.cores()
    assert "OMP_NUM_THREADS=1" in wrong.fix and right.fix == ""


def test_the_disk_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    (finding,) = disk.disk(tmp_path / "not" / "yet")
    assert "MB/s" in finding.value and str(tmp_path) in finding.value
    assert list(tmp_path.iterdir()) == []


def test_versions_are_compared_with_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy>=2.0", "pillow>=999", "absent>=1", "timm<0.1; extra == 'x'", "other; extra == 'x'"]
    monkeypatch.setattr(metadata, "requires", lambda name: declared)
    fixes = {finding.name: finding.fix for finding in packages.packages()}
    assert fixes == {
        "noisystudent": "",
        "numpy": "",
        "pillow": "pip install 'pillow>=999'",
        "absent": "pip install 'absent>=1'",
        "timm": "pip install 'timm<0.1'",
    }


def test_a_probe_that_crashes_is_a_finding_about_its_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crash = tmp_path / "crash"
    lines = [{"step": "GPU"}, {"name": "GPU", "value": "none", "fix": ""}, {"step": "import odd"}]
    text = "\n".join(map(json.dumps, lines))
    crash.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nkill -ILL $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    none, odd = packages.libraries()
    assert none == Finding("GPU", "none")
    assert odd.name == "import odd" and "was killed by SIGILL" in odd.value and odd.fix


def test_the_probe_works_and_prints_nothing_else() -> None:
    environment = os.environ | {"PYTHONWARNINGS": "default"}
    ended = subprocess.run(
        [sys.executable, "-m", "noisystudent.doctor.probe"], capture_output=True, env=environment, check=True
    )
    records: list[dict[str, Any]] = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [record["step"] for record in records if "step" in record][:2] == ["GPU", "decoder"]
    found = [record for record in records if "name" in record]
    assert [record for record in found if record["fix"]] == []
    assert any(record["value"].startswith("cpu: simplejpeg") for record in found)


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("odd machine")

    monkeypatch.setattr(packages, "libraries", list)
    monkeypatch.setattr(packages, "packages", broken)
    for check in ("system", "cores", "memory", "shared_memory"):
        monkeypatch.setattr(machine, check, broken)
    assert call("doctor", tmp_path, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    *unknown, last = said["findings"]
    assert len(unknown) == 5 and last["name"] == "disk"
    assert all(one["value"] == "unknown (ZeroDivisionError: odd machine)" for one in unknown)
    monkeypatch.setattr(machine, "cores", lambda: [Finding("cores", "too few", "buy some")])
    assert call("doctor", tmp_path) == 1
    assert "buy some" in capsys.readouterr().out
