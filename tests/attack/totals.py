"""What was attacked, and what held: counted over all tests of a session, also over its parallel processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from engine import COUNT, SEED

KEY = "attack"


def count(request: pytest.FixtureRequest, kind: str, tried: int, name: str = "") -> None:
    """Count attacks of a kind in the totals; they held if the test passes.

    Args:
        request: pytest's fixture of the test.
        kind: row of the table.
        tried: number of attacks.
        name: of the file that was attacked; names are counted once.
    """
    request.node.user_properties.append((KEY, (kind, tried, name)))


def table(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Return the totals as lines of a table: each group, such as "kill", and below it its kinds."""
    rows: dict[str, list[int]] = {}
    names: dict[str, set[str]] = {}
    for report in reports:
        entries = [_entry(value) for key, value in report.user_properties if key == KEY]
        for kind, tried, name in entries if report.when == "call" else ():
            for row in (kind.partition(":")[0], kind):
                amounts = rows.setdefault(row, [0, 0])
                amounts[0] += tried
                amounts[1] += tried if report.passed else 0
                names.setdefault(row, set()).add(name)
    lines = [f"{'kind':<36}{'tried':>8}{'held':>8}{'names':>8}"]
    for kind, (tried, held) in sorted(rows.items()):
        label = f"  {kind.partition(': ')[2]}" if ":" in kind else kind
        lines.append(f"{label:<36}{tried:>8}{held:>8}{len(names[kind] - {''}) or '':>8}")
    return [*lines, f"seed {SEED}, count {COUNT}; the same again: make attack SEED={SEED} COUNT={COUNT}"]


def _entry(value: Any) -> tuple[str, int, str]:
    kind, tried, name = value  # a list, if it comes from a parallel process
    return kind, tried, name
