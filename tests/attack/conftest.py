"""The zygote and the runs that struck runs are compared with; the table of totals after the tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import totals
from engine import Box, Zygote
from reference import References


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """The process that makes all calls of this session."""
    server = Zygote(tmp_path_factory.mktemp("home"))
    yield server
    server.close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """An empty folder for one attack, deleted after it: some hold thousands of levels or gigabytes."""
    yield Box(tmp_path).make()
    subprocess.run(["chmod", "-R", "u+rwX", str(tmp_path)], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", "--", str(tmp_path)], check=False)


@pytest.fixture(scope="session")
def references(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> References:
    """Uninterrupted runs by the name of their configuration; each is made at its first use."""
    return References(zygote, tmp_path_factory.mktemp("references"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the totals."""
    reports = [one for key in ("passed", "failed") for one in terminalreporter.stats.get(key, [])]
    if any(key == totals.KEY for report in reports for key, _ in report.user_properties):
        terminalreporter.section("attack")
        for line in totals.table(reports):
            terminalreporter.line(line)
