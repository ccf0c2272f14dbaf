"""Fields of a selection that exclude each other, and why a selection is empty."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import selection_reference as reference
from test_selection import run

from noisystudent.config import SelectionConfig
from noisystudent.errors import InputError
from noisystudent.selection import none_kept, summary


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mode": "threshold", "top_fraction": 0.5},
            "top_fraction is 0.5, but selection.mode is threshold; it must be paper or adaptive",
        ),
        (
            {"mode": "all", "per_class": 3},
            "per_class is 3, but selection.mode is all, which does not balance",
        ),
        (
            {"mode": "threshold", "per_class": 3},
            "per_class is 3, but selection.mode is threshold, which does",
        ),
        (
            {"threshold": 0.9, "max_confidence": 0.5},
            "max_confidence is 0.5, but selection.threshold is 0.9, so",
        ),
        (
            {"mode": "threshold", "max_confidence": 0.3},
            "max_confidence is 0.3, but selection.threshold is 0.3",
        ),
    ],
)
def test_fields_that_exclude_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"selection.{message}")):
        SelectionConfig(**fields)


def test_an_empty_selection_has_its_reasons(tmp_path: Path) -> None:
    rows = [(0, 0.4), (0, 0.9), (1, 0.9), (1, 0.2)]
    counts = summary(run(reference.pool(rows), SelectionConfig(max_confidence=0.35), tmp_path))
    assert counts["kept"] == 0 and counts["reasons"] == {"too_confident": 3, "below_threshold": 1}
    assert none_kept(counts) == (
        "no pool image of 4 is kept: 3 are above selection.max_confidence, 1 are not above the threshold"
    )
    assert none_kept(summary(run([], SelectionConfig(), tmp_path / "empty"))) == "the pool is empty"
