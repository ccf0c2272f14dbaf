"""The teacher speaks: clean images, evaluation mode, EMA weights -> `PseudoLabels` on disk."""

from noisystudent.pseudo_label.averaging import averaged
from noisystudent.pseudo_label.labeler import labeler
from noisystudent.pseudo_label.labeling import label_images
from noisystudent.pseudo_label.parts import iterate, summary
from noisystudent.pseudo_label.targets import Targets, read_targets

__all__ = ["Targets", "averaged", "iterate", "label_images", "labeler", "read_targets", "summary"]
