"""Published results on ImageNet's tests, found by test and protocol so that only like stands beside like.

A protocol is all that must be the same besides the data:

    center-crop          clean, a, r, v2, sketch, real: one center crop at the model's resolution; on a and r
                         the argmax is over 200 logits
    released-224         c, p: the released files of that size, resized whole to the resolution the model was
    released-299         trained at; images corrupted on the fly are another protocol, with no anchors
    eps-2 … eps-16       fgsm: the bound in 255ths, at the resolution given
    eps-16-steps-10      pgd

The paper does not say that its ImageNet-A number is over 200 logits; timm's is, and lies within one point.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from noisystudent.evaluate import data


@dataclass(frozen=True, slots=True)
class Anchor:
    """One published number.

    Attributes:
        test: clean, c, p, a, r, v2, sketch, real, fgsm or pgd, all of ImageNet.
        protocol: as the module lists them.
        measure: top1, top5, mce, mfr or mt5d.
        model: timm's name where the number is timm's.
        resolution: side in pixels of the model's input; None where it is not stated.
        value: a share, as our own numbers are: 0.457 for an mCE of 45.7.
        source: who printed it where.
    """

    test: str
    protocol: str
    measure: str
    model: str
    resolution: int | None
    value: float
    source: str


def find(test: str, protocol: str, measure: str | None = None) -> tuple[Anchor, ...]:
    """What others got on this test by this protocol, in the order of their sources; none if nobody did."""
    return tuple(
        anchor
        for anchor in anchors()
        if (anchor.test, anchor.protocol) == (test, protocol) and measure in (None, anchor.measure)
    )


@cache
def anchors() -> tuple[Anchor, ...]:
    """All of them."""
    return tuple(
        Anchor(table["test"], table["protocol"], measure, model, resolution, percent / 100, table["source"])
        for table in json.loads(data.read_text("anchors.json"))
        for model, resolution, *values in table["rows"]
        for measure, percent in zip(table["columns"][2:], values, strict=True)
        if percent is not None
    )
