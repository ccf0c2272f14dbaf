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
    """Return the totals as lines of a table, in alphabetical order of the kinds."""
    rows: dict[str, list[int]] = {}
    names: dict[str, set[str]] = {}
    for report in reports:
        if report.when != "call":
            continue
        for key, value in report.user_properties:
            if key == KEY:
                kind, tried, name = _entry(value)
                row = rows.setdefault(kind, [0, 0])
                row[0] += tried
                row[1] += tried if report.passed else 0
                names.setdefault(kind, set()).add(name)
    lines = [f"{'kind':<30}{'tried':>8}{'held':>8}{'names':>8}"]
    for kind, (tried, held) in sorted(rows.items()):
        lines.append(f"{kind:<30}{tried:>8}{held:>8}{len(names[kind] - {''}) or '':>8}")
    return [*lines, f"seed {SEED}, count {COUNT}; the same again: make attack SEED={SEED} COUNT={COUNT}"]


def _entry(value: Any) -> tuple[str, int, str]:
    kind, tried, name = value  # a list, if it comes from a parallel process
    return kind, tried, name
