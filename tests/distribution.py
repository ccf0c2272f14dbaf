"""What `make dist` checks of the wheel and the sdist: their files, and that both work in a fresh environment.

It needs no package: `python tests/distribution.py dist`, with the Python that is to be tried.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In seconds. The teacher is that of the recipe, because a run stops at a useless one.
DEMO = ["demo", "--students", "1", "--student.train.steps", "20", "--control", "none", "--keep-going"]
PROBE = "import noisystudent, sys; print(noisystudent.__file__); assert 'torch' not in sys.modules"


def tree() -> set[str]:
    """Every file of the package in this working tree."""
    files = (path for path in (ROOT / "noisystudent").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def check_files(wheel: Path, sdist: Path) -> None:
    """The wheel has the package alone; the sdist also has what builds it. Neither has tests or benchmarks."""
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        names = [member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()]
    about = {"pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "setup.cfg"}
    in_sdist = {name for name in names if ".egg-info/" not in name}
    for archive_name, found, expected in ((wheel, in_wheel, tree()), (sdist, in_sdist, tree() | about)):
        wrong = sorted(found ^ expected)
        assert not wrong, f"{archive_name}: {wrong[:5]} are in it or in the working tree, and not in both"


def try_out(wheel: Path, sdist: Path) -> None:
    """Install the wheel with its dependencies into a fresh environment, use it, and then the sdist."""
    with tempfile.TemporaryDirectory(prefix="noisystudent-dist-") as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        command = str(folder / "venv" / "bin" / "noisystudent")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

        def run(*words: str) -> str:
            print("$", *words, flush=True)
            ended = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
            if ended.returncode != 0:
                print(ended.stdout)
            ended.check_returncode()
            return ended.stdout

        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(*install, str(wheel))
        assert str(folder / "venv") in run(python, "-c", PROBE)
        started = time.perf_counter()
        run(python, "-c", "import noisystudent")
        imported = time.perf_counter() - started
        started = time.perf_counter()
        run(python, "-c", "pass")
        imported -= time.perf_counter() - started
        assert run(command, "--version").strip() == version()
        assert "demo" in run(command, "recipes") and "--labeled" in run(command, "run", "--help")
        print(run(command, "doctor"))  # first, because it names what is wrong
        print(run(command, *DEMO, "--out", "run"))
        assert (folder / "run" / "report.html").is_file()
        run(*install, "--no-deps", "--force-reinstall", str(sdist))
        assert run(command, "--version").strip() == version()
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.2f} MB" for path in (wheel, sdist))
    print(f"{sizes}; import noisystudent {imported * 1000:.0f} ms; Python {sys.version.split()[0]}")


def version() -> str:
    """The version that pyproject.toml states."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return str(stated)


if __name__ == "__main__":
    built = Path(sys.argv[1]).resolve()
    (of_wheel,), (of_sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    check_files(of_wheel, of_sdist)
    try_out(of_wheel, of_sdist)
