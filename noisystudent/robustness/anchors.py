"""Published results on ImageNet's test sets, looked up by test and protocol.

Two numbers are comparable only if test and protocol are the same. A protocol names everything besides the
data that must be equal:

    center-crop          clean, a, r, v2, sketch, real: one center crop at the model's resolution; on a and r
                         the argmax is taken over 200 logits
    released-224         c, p: the released files of that size, resized as a whole to the resolution the model
    released-299         was trained at; images corrupted on the fly are another protocol, with no anchors
    eps-2 … eps-16       fgsm: the bound in units of 1/255, at the resolution given
    eps-16-steps-10      pgd

The paper does not say that its ImageNet-A number is over 200 logits. timm's number is, and the two differ by
less than one point.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from noisystudent.robustness import tables


@dataclass(frozen=True, slots=True)
class Anchor:
    """One published number.

    Attributes:
        test: clean, c, p, a, r, v2, sketch, real, fgsm or pgd, all on ImageNet.
        protocol: one of those listed in the module docstring.
        measure: top1, top5, mce, mfr or mt5d.
        model: name of the model; timm's name if timm published the number.
        resolution: side in pixels of the model's input; None if the source does not state it.
        value: a share, as in all our own results: 0.457 for an mCE of 45.7.
        source: the publication, and the table or page of it that has the number.
    """

    test: str
    protocol: str
    measure: str
    model: str
    resolution: int | None
    value: float
    source: str


def find(test: str, protocol: str, measure: str | None = None) -> tuple[Anchor, ...]:
    """Published results for this test and protocol, in the order of anchors.json; empty if there are none.

    Args:
        test: as in `Anchor`.
        protocol: as in `Anchor`.
        measure: returns only this measure; None: all measures.
    """
    return tuple(
        anchor
        for anchor in anchors()
        if (anchor.test, anchor.protocol) == (test, protocol) and measure in (None, anchor.measure)
    )


@cache
def anchors() -> tuple[Anchor, ...]:
    """All published results in anchors.json, which stores them in percent."""
    return tuple(
        Anchor(table["test"], table["protocol"], measure, model, resolution, percent / 100, table["source"])
        for table in json.loads(tables.read_text("anchors.json"))
        for model, resolution, *values in table["rows"]
        # The first two columns are model and resolution. A missing value means that it was not published.
        for measure, percent in zip(table["columns"][2:], values, strict=True)
        if percent is not None
    )
