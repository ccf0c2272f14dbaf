"""Arrays in scikit-learn's manner: the digits with 100 labels, against its own self-training.

python examples/arrays.py
"""

from __future__ import annotations

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.semi_supervised import SelfTrainingClassifier

from noisystudent import NoisyStudentClassifier


def main() -> None:
    """Train both on the same rows, and compare them on the same test rows."""
    X, y = load_digits(return_X_y=True)  # rows of 64 pixels: images of 8 × 8
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0, stratify=y)
    y = np.where(np.arange(len(y)) < 100, y, -1)  # -1: no label

    linear = SelfTrainingClassifier(LogisticRegression(max_iter=1000)).fit(X, y)
    print(f"logistic regression, self-trained: {linear.score(X_test, y_test):.1%}")

    model = NoisyStudentClassifier("demo", students=1, student__unlabeled_ratio=3)
    model.set_params(teacher__train__steps=150, student__train__steps=200)
    model = clone(model).fit(X, y)
    print(f"noisy student: {model.score(X_test, y_test):.1%}, stopped by {model.termination_condition_}")
    given, kept = (int((model.labeled_iter_ == iteration).sum()) for iteration in (0, 1))
    print(f"{given} labels given, {kept} pseudo-labels kept, of {len(y)} rows")


if __name__ == "__main__":
    main()
