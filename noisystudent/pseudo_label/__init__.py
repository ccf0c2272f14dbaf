"""Label the pool with the teacher (EMA weights, evaluation mode, clean images) and store `PseudoLabels`."""

from noisystudent.pseudo_label.label import label_images
from noisystudent.pseudo_label.parts import has_agreement, iterate, summary
from noisystudent.pseudo_label.targets import Targets, read_targets

__all__ = ["Targets", "has_agreement", "iterate", "label_images", "read_targets", "summary"]
