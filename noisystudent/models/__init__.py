"""What learns, and its noise: any timm model by name, with ours registered beside them."""

from noisystudent.models.registry import Classifier, build_model, load_weights, save_weights

__all__ = ["Classifier", "build_model", "load_weights", "save_weights"]
