"""Estimators in the manner of scikit-learn: `NoisyStudent` on images, `NoisyStudentClassifier` on arrays."""

from noisystudent.estimator.arrays import NoisyStudentClassifier
from noisystudent.estimator.images import NoisyStudent

__all__ = ["NoisyStudent", "NoisyStudentClassifier"]
