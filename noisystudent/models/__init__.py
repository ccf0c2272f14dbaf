"""Classifiers and their model noise: any timm model by its name, and the networks of this package."""

from noisystudent.models.classifier import Classifier
from noisystudent.models.registry import build_model
from noisystudent.models.weights import load_weights, save_weights

__all__ = ["Classifier", "build_model", "load_weights", "save_weights"]
