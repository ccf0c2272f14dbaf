"""scikit-learn's shape of the whole: `NoisyStudent(...).fit(labeled, unlabeled).predict(images)`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisystudent import inference, recipes, rundir, self_training
from noisystudent.config import Config
from noisystudent.data.sources import ArraySource, Source, Sources, open_source
from noisystudent.errors import InputError
from noisystudent.records import Selection
from noisystudent.report import build
from noisystudent.runtime import Silent, StopFlag, Voice

Images = str | Path | Sequence[str | Path] | NDArray[np.uint8] | Source
Labeled = Images | tuple[NDArray[np.uint8], Sequence[object] | NDArray[Any]]


class NoisyStudent:
    """Self-training for image classification.

    Args:
        recipe: a recipe's name, a YAML file, or a `Config`.
        out: run directory; a temporary one, gone with the object, when not given. An existing run is gone on with.
        verbose: say what happens.
        **overrides: fields of the configuration, a double underscore for the dot: `teacher__train__epochs=30`.

    Attributes:
        classes_: class names, in the order of the columns of `predict_proba`.
        verdict_: the content of verdict.json: did it help, and is that luck.
        scores_: {"teacher", "student-1", …, "control-n": {"val" | "test": {top1, top5, nll, ece, brier}}}.
        transduction_: (N,) int64, the class last given to each pool image that was kept; -1 for the others.
        n_iter_: number of students trained.
        termination_condition_: "max_iter": all students of the recipe were trained.
        run_: the run directory; `report_` its report.

    Example:
        >>> from noisystudent import NoisyStudent
        >>> model = NoisyStudent("demo", teacher__train__steps=20, students=0)  # doctest: +SKIP
        >>> model.fit((images, labels), pool).predict(new_images)  # doctest: +SKIP
    """

    def __init__(
        self,
        recipe: str | Config = "folder",
        *,
        out: str | Path | None = None,
        verbose: bool = False,
        **overrides: Any,
    ) -> None:
        self.recipe = recipe
        self.out = out
        self.verbose = verbose
        self.overrides = overrides

    def fit(
        self,
        labeled: Labeled,
        unlabeled: Images | None = None,
        *,
        val: Labeled | None = None,
        test: Labeled | None = None,
    ) -> NoisyStudent:
        """Run the whole loop.

        Args:
            labeled: `(images, labels)` with images (N, H, W) or (N, H, W, 3) uint8, or folders, shards, files.
            unlabeled: the pool: images, folders, shards, files. None: supervised training, with a warning.
            val: labelled images for choices. None: split off the labels.
            test: labelled images for the verdict.

        Returns:
            The estimator itself.

        Raises:
            InputError: wrong arguments or unusable images.
            RunError: the run cannot go on; see `run_`.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="noisystudent-") if self.out is None else None
        self.run_ = Path(self._temporary.name) / "run" if self._temporary else Path(str(self.out))
        sources = Sources(
            labeled=_labeled(labeled),
            unlabeled=None if unlabeled is None else _source(unlabeled, labeled=False),
            val=None if val is None else _labeled(val),
            test=None if test is None else _labeled(test),
        )
        config = self._config()
        voice: Voice = self._voice()
        self_training.self_train(config, sources, self.run_, stop=StopFlag(), voice=voice)
        self.report_ = build(self.run_)
        self._read_results(config)
        return self

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (N, K) of the last student.

        Raises:
            InputError: not fitted, or an image cannot be read.
        """
        predictor = inference.load_predictor(self._fitted())
        found = inference.predict(predictor, _source(images, labeled=False))
        if found.bad:
            name, reason = found.bad[0]
            raise InputError(f"{len(found.bad)} of the images cannot be read, the first is {name}: {reason}")
        return found.probs

    def predict(self, images: Images) -> NDArray[np.str_]:
        """Class names (N,) of the last student."""
        names: NDArray[np.str_] = np.asarray(self.classes_)[self.predict_proba(images).argmax(axis=1)]
        return names

    def _config(self) -> Config:
        given = [(name.replace("__", "."), value) for name, value in self.overrides.items()]
        if isinstance(self.recipe, Config):
            if given:
                raise InputError(
                    f"{given[0][0]} is given beside a Config; use dataclasses.replace on the Config"
                )
            return self.recipe
        return recipes.load(self.recipe, given)

    def _voice(self) -> Voice:
        if not self.verbose:
            return Silent()
        from noisystudent.console import Terminal

        return Terminal(self.run_ / "run.log")

    def _fitted(self) -> Path:
        if not hasattr(self, "verdict_"):
            raise InputError("this NoisyStudent is not fitted; call fit(labeled, unlabeled) first")
        return self.run_

    def _read_results(self, config: Config) -> None:
        self.verdict_ = rundir.read_json(self.run_ / "verdict.json")
        self.classes_ = tuple(rundir.read_json(self.run_ / "data" / "dataset.json")["classes"])
        self.n_iter_ = len(config.students)
        self.termination_condition_ = "max_iter"
        self.scores_: dict[str, dict[str, dict[str, float]]] = {}
        for index in range(self.n_iter_ + 1):
            models = rundir.read_json(self.run_ / f"iteration-{index}" / "evaluation.json")["models"]
            for role, sets in models.items():
                self.scores_[role if index == 0 else f"{role}-{index}"] = sets
        self.transduction_ = self._transduction()

    def _transduction(self) -> NDArray[np.int64]:
        if self.n_iter_ == 0:
            return np.empty(0, dtype=np.int64)
        path = self.run_ / f"iteration-{self.n_iter_}" / "selection.parquet"
        return self_training.transduction(Selection(path, len(self.classes_)))


def _labeled(given: Labeled) -> Source:
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], np.ndarray):
        return open_source([ArraySource(given[0], given[1])], labeled=True)
    return _source(given, labeled=True)


def _source(given: Images, labeled: bool) -> Source:
    if isinstance(given, np.ndarray):
        return open_source([ArraySource(given)], labeled=labeled)
    if isinstance(given, str | Path):
        return open_source([given], labeled=labeled)
    if isinstance(given, Sequence):
        return open_source(list(given), labeled=labeled)
    return given
