"""Self-training on arrays `X, y`, in which -1 marks unlabelled rows, as in scikit-learn's own classifier."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score
from sklearn.utils import _safe_indexing
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from noisystudent.config import Config
from noisystudent.errors import InputError
from noisystudent.estimator.images import NoisyStudent
from noisystudent.estimator.parameters import Parameters
from noisystudent.estimator.results import Rows

_WHITE = 255  # value of a pixel


class InvalidArrays(InputError, ValueError):
    """Arrays that cannot be used; scikit-learn expects a ValueError."""


class NoisyStudentClassifier(Parameters):
    """Self-training on arrays, to be used wherever scikit-learn takes a classifier.

    `NoisyStudent` has the same parameters, and takes images in any form.

    Args:
        recipe, out, verbose, overrides: see `NoisyStudent`.
        image_shape: (H, W) or (H, W, 3) of the images, if X has one row of pixels for each. None: they are
            grey squares. If the pixels fill no square, the rest of it is black.

    Attributes:
        classes_: (K,) the values of y but -1, sorted; the order of the columns of `predict_proba`.
        estimator_: the fitted `NoisyStudent`, with `verdict_`, `scores_`, `report_` and `run_`.
        transduction_: (N,) labels of the last training: given ones, pseudo-labels, and -1 for rows that were
            not kept.
        labeled_iter_: (N,) int64: 0 for given labels, k for rows that were kept in iteration k and in all
            that follow, -1 for rows that were not kept.
        n_iter_: number of students.
        termination_condition_: see `NoisyStudent`.
        n_features_in_: size of the second dimension of X.
        image_shape_: shape of an image.
        pixel_range_: the values of X that are black and white.

    Example:
        >>> from noisystudent import NoisyStudentClassifier
        >>> model = NoisyStudentClassifier("demo", students=1)
        >>> model.fit(X, y).score(X_test, y_test)  # doctest: +SKIP
    """

    def __init__(
        self,
        recipe: str | Config = "folder",
        *,
        image_shape: tuple[int, ...] | None = None,
        out: str | Path | None = None,
        verbose: bool = False,
        **overrides: Any,
    ) -> None:
        super().__init__(recipe, out=out, verbose=verbose, **overrides)
        self.image_shape = image_shape

    def fit(self, X: ArrayLike, y: ArrayLike) -> NoisyStudentClassifier:
        """Train on the labelled rows and, as the pool, on the rows whose label is -1.

        Without such a row no student is trained.

        Args:
            X: (N, H, W) or (N, H, W, 3) images, or (N, F) rows of pixels. Values that are not uint8 are
                scaled: the smallest is black, the largest white.
            y: (N,) labels, numbers or text, -1 for none.

        Returns:
            The estimator itself.

        Raises:
            InputError: the arrays or the parameters cannot be used. It is a ValueError, too.
            RunError: the run cannot continue.
        """
        self.__dict__.pop("estimator_", None)  # its classes and those of a fit that fails may differ
        rows, labels = validate_data(self, X, y, allow_nd=True, ensure_min_samples=2)
        given = _is_given(labels)
        self.classes_, numbers = _classes(labels[given])
        self.image_shape_ = rows.shape[1:] if rows.ndim > 2 else self._shape_of_rows(rows.shape[1])
        scaled = rows.dtype != np.uint8
        self.pixel_range_ = (float(rows.min()), float(rows.max())) if scaled else (0.0, float(_WHITE))
        images = self._images(rows)
        names = _names(self.classes_)
        with _invalid_arrays():
            self.estimator_ = self._new_estimator(students=not given.all()).fit(
                (images[given], [names[number] for number in numbers]),
                None if given.all() else images[~given],
            )
        # The run sorts the classes by name: "10" before "2".
        self._places = np.array([names.index(name) for name in self.estimator_.classes_])
        self.n_iter_ = self.estimator_.n_iter_
        self.termination_condition_ = self.estimator_.termination_condition_
        self._read_rows(labels, ~given)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Class probabilities (N, K) of the model.

        Raises:
            NotFittedError: `fit` was not called.
            InputError: X has images of another shape. It is a ValueError, too.
        """
        check_is_fitted(self, "estimator_")
        images = self._images(validate_data(self, X, allow_nd=True, reset=False))
        with _invalid_arrays():
            probs = self.estimator_.predict_proba(images)
        columns: NDArray[np.float32] = probs[:, self._places.argsort()]
        return columns

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Predicted labels (N,) of the model, of the type of y.

        Raises:
            NotFittedError: see `predict_proba`.
            InputError: see `predict_proba`.
        """
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy on the labelled rows; those whose label is -1 have no right answer.

        Raises:
            NotFittedError: see `predict_proba`.
            InputError: see `predict_proba`; or no row has a label.
        """
        labels = np.asarray(y).ravel()
        rows = np.flatnonzero(_is_given(labels))
        if len(rows) == 0:
            raise InvalidArrays("y has no label but -1; give labels of some rows")
        weights = None if sample_weight is None else np.asarray(sample_weight)[rows]
        return float(
            accuracy_score(labels[rows], self.predict(_safe_indexing(X, rows)), sample_weight=weights)
        )

    def _new_estimator(self, *, students: bool) -> NoisyStudent:
        """An estimator of the same recipe, with its students or without."""
        config = self._config() if students else dataclasses.replace(self._config(), students=())
        return NoisyStudent(config, out=self.out, verbose=self.verbose)

    def _shape_of_rows(self, pixels: int) -> tuple[int, ...]:
        """Shape of an image that X has as a row of pixels."""
        if self.image_shape is None:
            side = math.isqrt(pixels - 1) + 1
            return side, side
        if math.prod(self.image_shape) != pixels:
            raise InvalidArrays(f"image_shape is {self.image_shape}, but X has {pixels} pixels in a row")
        return tuple(self.image_shape)

    def _images(self, X: NDArray[Any]) -> NDArray[np.uint8]:
        """X as images (N, H, W) or (N, H, W, 3) uint8."""
        if X.ndim > 2 and X.shape[1:] != self.image_shape_:
            raise InvalidArrays(f"X has images of shape {X.shape[1:]}; the model has {self.image_shape_}")
        low, high = self.pixel_range_
        scaled = (X.astype(np.float64) - low) * (_WHITE / ((high - low) or 1))
        pixels = np.rint(scaled.clip(0, _WHITE)).astype(np.uint8).reshape(len(X), -1)
        rest = math.prod(self.image_shape_) - pixels.shape[1]
        return np.pad(pixels, ((0, 0), (0, rest))).reshape(len(X), *self.image_shape_)

    def _read_rows(self, y: NDArray[Any], unlabeled: NDArray[np.bool_]) -> None:
        """Set `transduction_` and `labeled_iter_`."""
        self.transduction_ = y.copy()
        self.labeled_iter_: Rows = np.where(unlabeled, -1, 0).astype(np.int64)
        if self.n_iter_:
            rows = np.flatnonzero(unlabeled)
            classes = self.estimator_.transduction_
            kept = classes >= 0
            self.transduction_[rows[kept]] = self.classes_[self._places[classes[kept]]]
            self.labeled_iter_[rows] = self.estimator_.labeled_iter_


def _is_given(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) False for -1, as a number or as text."""
    given: NDArray[np.bool_] = (labels != -1) & (labels.astype(str) != "-1")
    return given


def _classes(given: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the sorted classes (K,) of the given labels, and the class number of each label."""
    if not given.size:
        raise InvalidArrays("y has no label but -1, which marks unlabelled rows; give labels of some rows")
    try:
        check_classification_targets(given)
        classes, numbers = np.unique(given, return_inverse=True)
    except TypeError as error:  # None, or text among numbers
        raise InvalidArrays(
            f"the labels of y cannot be sorted ({error}); give numbers or text, and -1 for unlabelled rows"
        ) from error
    return classes, numbers


def _names(classes: NDArray[Any]) -> list[str]:
    """Return the class names of a run. In Unicode, different text can have the same normal form."""
    names = [unicodedata.normalize("NFC", str(label)) for label in classes]
    if "" in names or len(set(names)) < len(names):
        raise InvalidArrays(f"y has the classes {names}; their names must be different and not empty")
    return names


@contextmanager
def _invalid_arrays() -> Iterator[None]:
    """Raise each InputError of the block as a ValueError, too."""
    try:
        yield
    except InputError as error:
        raise InvalidArrays(str(error)) from error
