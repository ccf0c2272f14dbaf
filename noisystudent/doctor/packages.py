"""The installed packages against the bounds of this package, and whether their libraries work."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from noisystudent.doctor.findings import Finding

_LONGEST = 120.0  # seconds; a GPU whose driver hangs does not answer


def packages() -> Iterator[Finding]:
    """The versions of all packages that are needed, and those of extras that do not fit."""
    try:
        declared = metadata.requires("noisystudent") or []
        yield Finding("noisystudent", metadata.version("noisystudent"))
    except metadata.PackageNotFoundError:
        yield Finding(
            "noisystudent", "not installed", "pip install noisystudent, or pip install . in its folder"
        )
        return
    for requirement in map(Requirement, declared):
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        installed = _version(requirement.name)
        fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        if needed or (installed is not None and not fits):
            fix = "" if fits else f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding(requirement.name, f"{installed or 'not installed'} ({requirement.specifier})", fix)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def libraries() -> Iterator[Finding]:
    """What `probe` finds in a process of its own: a library for other processors ends it."""
    command = [sys.executable, "-m", "noisystudent.doctor.probe"]
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LONGEST)
        code, output = ended.returncode, ended.stdout
        reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    except subprocess.TimeoutExpired as error:
        code, output = 1, error.stdout or b""
        reason = f"gave no answer for {_LONGEST:.0f} s"
    step = "libraries"
    for line in output.splitlines():
        record = json.loads(line)
        if "step" in record:
            step = record["step"]
        else:
            yield Finding(**record)
    if code != 0:
        yield Finding(step, f"the process that tried it {reason}", "install its packages or its driver again")
