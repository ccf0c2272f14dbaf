"""Counts of a selection, of all images and of each class, and warnings about lost classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noisystudent.config import SelectionConfig
from noisystudent.metrics.reasons import listed
from noisystudent.records import Selection
from noisystudent.selection.database import database, marks, parquet
from noisystudent.selection.decisions import REASONS

# Why an image is not kept, after "n are".
_WHY = {
    "below_threshold": "not above the threshold",
    "over_quota": "over the quota of their class",
    "below_top_fraction": "outside selection.top_fraction",
    "too_confident": "above selection.max_confidence",
    "not_looked_at": "outside selection.pool_fraction",
    "teachers_disagree": "below selection.agreement",
    "junk": "junk",
}
# Reasons of images whose confidence is above the threshold.
_ABOVE = tuple(reason for reason in REASONS if reason in ("kept", "over_quota", "below_top_fraction"))


def summary(selection: Selection) -> dict[str, Any]:
    """Count the images of a selection.

    Returns:
        images: in the pool.
        above_threshold: images whose confidence is above the threshold.
        kept: distinct images that were kept.
        total: kept images with their repeats.
        junk: images that are marked as junk.
        junk_kept: those of them that were kept.
        coverage: kept / images. 0 if the pool is empty.
        confidences: smallest and largest confidence of the pool; empty if the pool is.
        reasons: reason -> number of images, the most frequent first.
        classes: for each class label, predicted, above_threshold, kept, total and min_confidence, the
            smallest confidence of the kept images (None if none was kept).
    """
    names = ("label", "predicted", "above_threshold", "kept", "total", "min_confidence")
    junk = marks(selection.path)
    with database(selection.path, "2GB", None) as connection:
        rows = connection.execute(
            f"""SELECT label, count(*), count(*) FILTER (reason IN {_ABOVE}),
                count(*) FILTER (repeats > 0), sum(repeats)::BIGINT, min(confidence) FILTER (repeats > 0),
                count(*) FILTER ({junk}), count(*) FILTER ({junk} AND repeats > 0), min(confidence),
                max(confidence)
            FROM {parquet([selection.path])} GROUP BY label"""
        ).fetchall()
        reasons = connection.execute(
            f"""SELECT reason, count(*) AS n FROM {parquet([selection.path])} GROUP BY reason
            ORDER BY n DESC, reason"""
        ).fetchall()
    counts = {row[0]: row[1:6] for row in rows}
    spans = [row[8:] for row in rows]
    classes = [
        dict(zip(names, (label, *counts.get(label, (0, 0, 0, 0, None))), strict=True))
        for label in range(selection.num_classes)
    ]
    images, above, kept, total = (sum(row[name] for row in classes) for name in names[1:5])
    return {
        "images": images,
        "above_threshold": above,
        "kept": kept,
        "total": total,
        "junk": sum(row[6] for row in rows),
        "junk_kept": sum(row[7] for row in rows),
        "coverage": kept / images if images else 0.0,
        "confidences": [min(low for low, _ in spans), max(high for _, high in spans)] if spans else [],
        "reasons": dict(reasons),
        "classes": classes,
    }


def none_kept(counts: Mapping[str, Any]) -> str:
    """Why no image is kept, in words.

    Args:
        counts: what `summary` returned; `kept` is 0.
    """
    if not counts["images"]:
        return "the pool is empty"
    why = ", ".join(f"{count:,} are {_WHY[reason]}" for reason, count in counts["reasons"].items())
    return f"no pool image of {counts['images']:,} is kept: {why}"


def junk_note(counts: Mapping[str, Any], config: SelectionConfig) -> str | None:
    """How many images are junk, in words; None if `config` does not look for it.

    Args:
        counts: what `summary` returned.
        config: fields of `selection`.
    """
    if config.junk == "off" or (config.junk == "report" and not counts["junk"]):
        return None
    if not counts["junk"]:
        return (
            f"no pool image is junk; with junk_rejection {config.junk_rejection:g} none can be, if there are"
            " fewer labelled images than its inverse"
        )
    share, kept = counts["junk"] / counts["images"], counts["junk_kept"]
    return (
        f"{counts['junk']:,} of {counts['images']:,} pool images ({share:.1%}) are marked as junk, as at most"
        f" {config.junk_rejection:.1%} of the labelled images would be;"
        f" {'they are left out' if config.junk == 'drop' else f'{kept:,} of them are kept'}"
    )


def lost_classes(counts: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Warnings about the classes without a selected pool image, each with what may help.

    Args:
        counts: what `summary` returned.
        names: name of each class.
    """
    lost = [row for row in counts["classes"] if row["kept"] == 0]
    causes = {
        "the teacher predicts none; give more labels of these classes, or pool images of them": [
            row for row in lost if row["predicted"] == 0
        ],
        "no pseudo-label passes the selection; decrease selection.threshold or strength or agreement (or"
        " increase max_confidence, top_fraction or pool_fraction), or give more labels of these classes": [
            row for row in lost if row["predicted"] > 0
        ],
    }
    return [
        f"no pool image of {len(rows)} of {len(names)} classes is kept:"
        f" {listed([names[row['label']] for row in rows])}; {cause}"
        for cause, rows in causes.items()
        if rows
    ]
