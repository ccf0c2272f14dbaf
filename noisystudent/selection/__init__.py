"""What to trust: threshold and per-class balance -> `Selection`, with a reason for every image."""

from noisystudent.selection.database import chosen, summary
from noisystudent.selection.rules import reassign, select

__all__ = ["chosen", "reassign", "select", "summary"]
