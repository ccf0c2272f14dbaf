"""The zygote and the runs that struck runs are compared with; the table of totals after the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import totals
from engine import Box, Zygote
from folders import temporary_folder
from reference import References


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
