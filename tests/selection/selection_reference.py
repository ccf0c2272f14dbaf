"""Selection in simple Python, to which the SQL must be equal, and pools of a few rows for tests."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisystudent.config import SelectionConfig
from noisystudent.records import PseudoLabels, Selection
from noisystudent.runtime import torch_seed

Mode = Literal["paper", "official", "adaptive", "threshold", "all"]
BALANCED = ("paper", "adaptive")


def in_mode(config: SelectionConfig, mode: Mode) -> SelectionConfig:
    """The configuration without the fields that the mode does not have."""
    per_class = config.per_class if mode in (*BALANCED, "official") else None
    top_fraction = config.top_fraction if mode in BALANCED else None
    return replace(config, mode=mode, per_class=per_class, top_fraction=top_fraction)


class Row(NamedTuple):
    """A pool image with its pseudo-label; `confidence` is the value of a float32."""

    row: int
    content_hash: bytes
    label: int
    confidence: float


class Decision(NamedTuple):
    content_hash: bytes
    label: int
    repeats: int
    reason: str


def pool(pairs: Sequence[tuple[int, float]]) -> list[Row]:
    """(label, confidence) -> rows with distinct content hashes in no particular order."""
    digests = [hashlib.blake2b(str(i).encode(), digest_size=16).digest() for i in range(len(pairs))]
    return [Row(i, digests[i], label, float(np.float32(c))) for i, (label, c) in enumerate(pairs)]


def write(folder: Path, parts: Mapping[str, Sequence[Row]], num_classes: int = 4) -> PseudoLabels:
    """Write Parquet files of these names, with the columns that the selection reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        table = {
            "row": pa.array([r.row for r in rows], pa.int64()),
            "content_hash": pa.array([r.content_hash for r in rows], pa.binary(16)),
            "label": pa.array([r.label for r in rows], pa.int32()),
            "confidence": pa.array(np.array([r.confidence for r in rows], dtype=np.float32)),
        }
        with pq.ParquetWriter(folder / name, pa.table(table).schema) as writer:
            writer.write_table(pa.table(table))
    return PseudoLabels(folder, num_classes)


def read(selection: Selection) -> list[dict[str, object]]:
    """The rows of the file, in order."""
    with pq.ParquetFile(selection.path) as file:
        return list(file.read().to_pylist())


def decisions(selection: Selection) -> Counter[Decision]:
    return Counter(Decision(*(row[f] for f in Decision._fields)) for row in read(selection))  # type: ignore[arg-type]


def mean_quota(config: SelectionConfig, candidates: Sequence[int]) -> int:
    present = [n for n in candidates if n > 0]
    if config.per_class is not None:
        return config.per_class
    return math.floor(Fraction(sum(present), len(present)) + Fraction(1, 2)) if present else 1


def from_chance(config: SelectionConfig, num_classes: int) -> Fraction:
    """The threshold of the mode `paper`, as a fraction."""
    if not config.relative:
        return Fraction(config.threshold)
    return Fraction(1, num_classes) + Fraction(str(config.threshold)) * Fraction(num_classes - 1, num_classes)


def paper(rows: Sequence[Row], config: SelectionConfig, num_classes: int = 4) -> Counter[Decision]:
    """The rule of Noisy Student §3.1."""
    threshold = from_chance(config, num_classes)
    return ranked(rows, config, lambda row: Fraction(row.confidence) > threshold)


def adaptive(rows: Sequence[Row], config: SelectionConfig, num_classes: int = 4) -> Counter[Decision]:
    """The same with the thresholds of FreeMatch, on confidences from 0 (chance) to 1, and class means."""

    def mean(some: Sequence[Row]) -> Fraction:
        total = sum((Fraction(r.confidence) for r in some), Fraction(0))
        above = total / len(some) - Fraction(1, num_classes)
        return max(above / Fraction(num_classes - 1, num_classes), Fraction(0))

    means = {c: mean([r for r in rows if r.label == c]) for c in {row.label for row in rows}}
    top = max(means.values(), default=Fraction(0))

    def reached(row: Row) -> bool:
        relative = mean(rows) * means[row.label] / top if top else Fraction(0)
        threshold = relative * Fraction(str(config.strength)) * Fraction(num_classes - 1, num_classes)
        return Fraction(row.confidence) >= threshold + Fraction(1, num_classes)

    return ranked(rows, config, reached)


def ranked(
    rows: Sequence[Row], config: SelectionConfig, is_above: Callable[[Row], bool]
) -> Counter[Decision]:
    """Balance the images above the threshold, rank by rank."""
    classes = {row.label for row in rows}
    ranks = {
        c: sorted((r for r in rows if r.label == c), key=lambda r: (-r.confidence, r.content_hash, r.row))
        for c in classes
    }
    above = {c: [r for r in ranks[c] if is_above(r)] for c in classes}
    share = Fraction(1) if config.top_fraction is None else Fraction(str(config.top_fraction))
    eligible = {c: above[c][: math.ceil(share * len(ranks[c]))] for c in classes}
    quota = mean_quota(config, [len(e) for e in eligible.values()])
    decided: Counter[Decision] = Counter()
    for c in classes:
        n = len(eligible[c])
        for rank, r in enumerate(ranks[c]):
            if rank >= len(above[c]):
                repeats, reason = 0, "below_threshold"
            elif rank >= n:
                repeats, reason = 0, "below_top_fraction"
            elif rank >= quota:
                repeats, reason = 0, "over_quota"
            elif n < quota and config.duplicate:
                repeats, reason = quota // n + (rank < quota % n), "kept"
            else:
                repeats, reason = 1, "kept"
            decided[Decision(r.content_hash, c, repeats, reason)] += 1
    return decided


def draw(content_hash: bytes, seed: int) -> Fraction:
    """In [0, 1): the second half of the hash, through the end of splitmix64 (Steele et al., OOPSLA 2014)."""
    bits = int.from_bytes(content_hash[8:], "big") ^ torch_seed(seed, "selection")
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return Fraction(bits ^ bits >> 31, 2**64)


def official(rows: Sequence[Row], config: SelectionConfig, seed: int) -> Counter[Decision]:
    """filter_unlabel.py in exact fractions: thresholds fall in steps of 0.01, copies are rounded randomly."""
    lowest = Fraction(round(config.threshold * 100), 100)
    candidates = Counter(r.label for r in rows if Fraction(r.confidence) >= lowest)
    quota = mean_quota(config, list(candidates.values()))
    decided: Counter[Decision] = Counter()
    for c in {row.label for row in rows}:
        members = [r for r in rows if r.label == c]
        threshold = Fraction(1)
        while threshold > lowest and sum(Fraction(r.confidence) >= threshold for r in members) < quota:
            threshold -= Fraction(1, 100)
        n = sum(Fraction(r.confidence) >= threshold for r in members)
        for r in members:
            if Fraction(r.confidence) < lowest:
                decided[Decision(r.content_hash, c, 0, "below_threshold")] += 1
                continue
            repeats = 0
            if Fraction(r.confidence) >= threshold:
                copies = Fraction(quota, n) if config.duplicate else min(Fraction(quota, n), Fraction(1))
                chance = copies - math.floor(copies)
                repeats = math.floor(copies) + (draw(r.content_hash, seed) < chance)
            decided[Decision(r.content_hash, c, repeats, "kept" if repeats else "over_quota")] += 1
    return decided
