"""Select pseudo-labels by confidence and balance the classes, with a reason for every pool image."""

from noisystudent.selection.choice import choose
from noisystudent.selection.counts import lost_classes, summary
from noisystudent.selection.database import selected_rows
from noisystudent.selection.decisions import too_few_agree
from noisystudent.selection.rules import reassign, select
from noisystudent.selection.thresholds import without_effect

__all__ = [
    "choose",
    "lost_classes",
    "reassign",
    "select",
    "selected_rows",
    "summary",
    "too_few_agree",
    "without_effect",
]
