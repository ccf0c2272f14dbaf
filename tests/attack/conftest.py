"""The zygote and the runs that struck runs are compared with; the table of totals after the tests."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import totals
from engine import Box, Zygote
from reference import References


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder with a short path, deleted in the end whatever is in it: some hold thousands of levels.

    Not a folder of pytest: the path of a socket in TMPDIR has at most 107 bytes, and pytest deletes folders
    much later, and cannot delete so many levels.
    """
    path = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        yield path
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--", str(path)], check=True)


@pytest.fixture(scope="session")
def references() -> Iterator[References]:
    """Uninterrupted runs by the name of their configuration; each is made at its first use."""
    with temporary_folder() as folder:
        zygote = Zygote(folder)
        yield References(zygote, folder)
        zygote.close()


@pytest.fixture
def box() -> Iterator[Box]:
    """An empty folder for one attack."""
    with temporary_folder() as folder:
        yield Box(folder).make()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the totals."""
    reports = [one for key in ("passed", "failed") for one in terminalreporter.stats.get(key, [])]
    if any(key == totals.KEY for report in reports for key, _ in report.user_properties):
        terminalreporter.section("attack")
        for line in totals.table(reports):
            terminalreporter.line(line)
