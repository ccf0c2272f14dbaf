"""The command `doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from noisystudent.cli import screen
from noisystudent.doctor import examine


def doctor(
    folder: Path = Path("runs"),
    /,
    *,
    json_: Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object.")] = False,
) -> None:
    """Check this machine and this installation, and print what to fix.

    These are versions, libraries, decoder, GPUs, cores and memory with the limits of a container, and the
    disk of the working folder, where a temporary file of 16 MiB is written. The exit code is 1 if something
    must be fixed.

    Parameters
    ----------
    folder
        Working folder, in which runs are made.
    """
    findings = list(examine(folder))
    wrong = [finding for finding in findings if finding.fix]
    if json_:
        screen.line(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        screen.table(("what", "here", "to fix"), [(each.name, each.value, each.fix) for each in findings])
    if wrong:
        sys.exit(1)
