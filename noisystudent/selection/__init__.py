"""Select pseudo-labels by confidence and balance the classes, with a reason for every pool image."""

from noisystudent.selection.choice import choose
from noisystudent.selection.counts import junk_note, lost_classes, none_kept, summary
from noisystudent.selection.database import selected_rows
from noisystudent.selection.decisions import too_few_agree
from noisystudent.selection.junk import energy_limit, read_energies
from noisystudent.selection.rules import reassign, select
from noisystudent.selection.thresholds import without_effect

__all__ = [
    "choose",
    "energy_limit",
    "junk_note",
    "lost_classes",
    "none_kept",
    "read_energies",
    "reassign",
    "select",
    "selected_rows",
    "summary",
    "too_few_agree",
    "without_effect",
]
