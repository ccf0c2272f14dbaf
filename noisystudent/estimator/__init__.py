"""The whole as estimators of scikit-learn: `NoisyStudent` on images, `NoisyStudentClassifier` on arrays `X, y`."""

from noisystudent.estimator.arrays import NoisyStudentClassifier
from noisystudent.estimator.images import NoisyStudent

__all__ = ["NoisyStudent", "NoisyStudentClassifier"]
