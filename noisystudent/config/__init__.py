"""Configuration of a run: frozen dataclasses, with their fields in the order of the pipeline.

The string under a field is its help text on the command line.
"""

from noisystudent.config.evaluation import EvaluateConfig
from noisystudent.config.images import AugmentConfig, DataConfig
from noisystudent.config.learners import FirstTeacherConfig, LearnerConfig, StudentConfig, TeacherConfig
from noisystudent.config.pool import PseudoLabelConfig, SelectionConfig
from noisystudent.config.run import Config
from noisystudent.config.training import FinetuneConfig, ModelConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "FirstTeacherConfig",
    "LearnerConfig",
    "ModelConfig",
    "PseudoLabelConfig",
    "SelectionConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
]
