"""The first teachers of a run in the report: their weights, and how far they agree."""

from __future__ import annotations

from typing import Any

from noisystudent.report.figures import finite
from noisystudent.report.read import Record


def about_teachers(labels: Record) -> list[str]:
    """Sentences about the first teachers that labelled the pool together; none if there was one.

    Args:
        labels: `pseudo_labels` of evaluation.json.
    """
    sentences = [
        f"{row['name']} ({row['what']}): weight {_number(row['weight'])}, val top-1 {_share(row['top1'])},"
        f" NLL {_number(row['nll'])}"
        for row in labels.get("teachers") or ()
    ]
    voted = labels.get("agreement")
    if voted:
        shares = "; ".join(
            f"{_share(share)} of the teachers: {images:,} images, {kept:,} of them kept"
            for share, images, kept in voted["shares"]
        )
        sentences.append(f"agreement with the average: {_share(voted['mean'])} in the mean; {shares}")
    return sentences


def _number(value: Any) -> str:
    number = finite(value)
    return "not known" if number is None else f"{number:.3f}"


def _share(value: Any) -> str:
    number = finite(value)
    return "not known" if number is None else f"{100 * number:.1f}\u202f%"
