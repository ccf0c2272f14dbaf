"""A trained model by itself: load it, let it predict, label a pool, or be measured."""

from noisystudent.inference.asked import Asked
from noisystudent.inference.asking import Predicted, label, predict, read_labels, score
from noisystudent.inference.images import Images, Labeled, open_images, open_labeled
from noisystudent.inference.loading import Predictor, find_model, load_predictor
from noisystudent.inference.measuring import measure
from noisystudent.inference.rows import Row, write_rows

__all__ = [
    "Asked",
    "Images",
    "Labeled",
    "Predicted",
    "Predictor",
    "Row",
    "find_model",
    "label",
    "load_predictor",
    "measure",
    "open_images",
    "open_labeled",
    "predict",
    "read_labels",
    "score",
    "write_rows",
]
