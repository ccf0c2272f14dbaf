"""`make gpu`: a part that fails or hangs is in the report, the others still run, and its calls are right."""

from __future__ import annotations

import importlib.util
import os
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HANGS = (
    "import subprocess, sys, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
)


def test_parts_that_fail_or_hang_are_reported_and_end_with_all_their_processes(gpu: ModuleType) -> None:
    words = {"good": "print('measured')", "bad": "print('half'); 1 / 0", "hanging": HANGS}
    limits = {"hanging": 2.0}
    results = [
        gpu.run(gpu.Part(name, ("-S", "-c", code), limits.get(name, 60)), 60, dict(os.environ))
        for name, code in words.items()
    ]
    text = gpu.report("# head", results)
    assert [result.state for result in results] == [
        "ok",
        "FAILED with exit code 1",
        "FAILED: ended after 2 s",
    ]
    for shown in ("measured", "half", "ZeroDivisionError", "| hanging |", "# head"):
        assert shown in text
    child = int(results[2].output)
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the child of a part that was ended still runs")


def test_a_part_has_what_is_left_of_the_budget(gpu: ModuleType) -> None:
    part = gpu.Part("late", ("-S", "-c", "import time; time.sleep(60)"), 60)
    assert gpu.run(part, 3.0, dict(os.environ)).state == "not run: the budget was spent"


@pytest.mark.parametrize("dry", [True, False])
def test_every_call_names_a_script_and_options_that_it_has(
    gpu: ModuleType, dry: bool, tmp_path: Path
) -> None:
    parts = gpu.parts(dry, [tmp_path], tmp_path)
    assert {"tests", "step", "snapshot", "cifar10", "label", "noise", "host", "decode", "kernels"} == {
        part.name.split()[0] for part in parts
    }
    for part in parts[1:]:
        script = (ROOT / part.words[0]).read_text()
        # Fields of the configuration, such as --teacher.train.steps, are read by `noisystudent run`.
        options = [word for word in part.words if word.startswith("--") and "." not in word]
        assert all(f'"{option}"' in script for option in options if option != "--students"), part


def test_wheels_of_a_pack_can_be_imported(gpu: ModuleType, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "value = 7")
    path = gpu.unpacked(sorted(tmp_path.glob("*.whl")), tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    result = gpu.run(gpu.Part("import", ("-c", "import carried; print(carried.value)"), 60), 60, environment)
    assert (result.state, result.output) == ("ok", "7\n"), result
    assert gpu.unpacked([], tmp_path / "none") == []
