"""Limits of confidence and of the share of the pool: the rule is applied to the rest of the images only."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import selection_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_reference import Decision, Mode, Row, in_mode
from test_selection import confidences, configs, large_pool, pairs, run

from noisystudent.config import SelectionConfig

MODES: list[Mode] = ["paper", "official", "adaptive", "threshold", "all"]
# Hashes of real images are uniformly distributed. The first bytes of these hashes take all values.
shares = st.sampled_from([0.03125, 0.25, 0.5, 1.0])


def inside_share(row: Row, config: SelectionConfig) -> bool:
    return int.from_bytes(row.content_hash[:8]) < config.pool_fraction * 2**64


@settings(max_examples=40, deadline=None)
@given(pairs=pairs, config=configs, mode=st.sampled_from(MODES), highest=confidences, share=shares)
def test_a_limited_selection_is_the_selection_of_a_smaller_pool(
    pairs: list[tuple[int, float]], config: SelectionConfig, mode: Mode, highest: float, share: float
) -> None:
    config = in_mode(config, mode)
    least = 0.01 if mode in ("adaptive", "all") else config.threshold + 0.01
    limited = replace(config, max_confidence=max(highest, least), pool_fraction=share)
    rows = reference.pool(pairs)
    inside = [row for row in rows if inside_share(row, limited) and row.confidence <= limited.max_confidence]
    with tempfile.TemporaryDirectory() as name:
        decided = reference.decisions(run(rows, limited, Path(name) / "limited", seed=3))
        expected = reference.decisions(run(inside, config, Path(name) / "smaller", seed=3))
    for row in rows:
        if not inside_share(row, limited):
            expected[Decision(row.content_hash, row.label, 0, "not_looked_at")] += 1
        elif row.confidence > limited.max_confidence:
            expected[Decision(row.content_hash, row.label, 0, "too_confident")] += 1
    assert decided == expected


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_above_the_threshold_every_image_once(tmp_path: Path, threshold: float) -> None:
    rows = large_pool(500)
    written = reference.read(run(rows, SelectionConfig(mode="threshold", threshold=threshold), tmp_path))
    for row, decided in zip(rows, written, strict=True):
        kept = row.confidence > threshold
        assert (decided["repeats"], decided["reason"]) == ((1, "kept") if kept else (0, "below_threshold"))


def test_smaller_shares_are_parts_of_larger_ones(tmp_path: Path) -> None:
    rows, kept = large_pool(4000), []
    for share in (0.1, 0.4, 1.0):
        selection = run(rows, SelectionConfig(mode="all", pool_fraction=share), tmp_path / str(share))
        kept.append({row["row"] for row in reference.read(selection) if row["repeats"]})
        assert abs(len(kept[-1]) / len(rows) - share) < 0.03
    assert kept[0] < kept[1] < kept[2]
