"""scikit-learn's shape of the whole: `NoisyStudent(...).fit(labeled, unlabeled).predict(images)`."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisystudent import inference, recipes, rundir, self_training
from noisystudent.config import Config
from noisystudent.data.sources import ArraySource, Sources
from noisystudent.errors import InputError
from noisystudent.inference import Images, Labeled, open_images, open_labeled
from noisystudent.report import build
from noisystudent.runtime import Silent, StopFlag, Voice


class NoisyStudent:
    """Self-training for image classification.

    Args:
        recipe: a recipe's name, a YAML file, or a `Config`.
        out: run directory, an existing one is gone on with. None: a temporary one, gone with the object.
        verbose: say what happens.
        **overrides: fields of the configuration, two underscores for the dot: `teacher__train__epochs=30`.

    Attributes:
        classes_: class names, in the order of the columns of `predict_proba`.
        verdict_: the content of verdict.json: did it help, and is that luck.
        scores_: {"teacher", "student-1", …, "control-n": {"val" | "test": {top1, top5, nll, ece, brier}}}.
        transduction_: (N,) int64, the class last given to each pool image that was kept; -1 for the others.
            Row i is row i of the array `unlabeled`; of a pool on disk, the rows of data/manifest.parquet.
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
            labeled: `(images, labels)`, images (N, H, W) or (N, H, W, 3) uint8, or folders, shards, files.
            unlabeled: the pool: images, folders, shards, files. None: supervised training, with a warning.
            val: labelled images for choices. None: split off the labels.
            test: labelled images for the verdict.

        Returns:
            The estimator itself.

        Raises:
            InputError: wrong arguments or unusable images.
            RunError: the run cannot go on; see `run_`.
        """
        self.run_ = self._run_directory()
        sources = Sources(
            labeled=open_labeled(labeled),
            unlabeled=None if unlabeled is None else open_images(unlabeled, labeled=False),
            val=None if val is None else open_labeled(val),
            test=None if test is None else open_labeled(test),
        )
        config = self._config()
        if unlabeled is None and config.students:
            warnings.warn(
                "no unlabelled images: the students learn from the given labels alone", stacklevel=2
            )
        voice: Voice = self._voice()
        self_training.self_train(config, sources, self.run_, stop=StopFlag(), voice=voice)
        self.report_ = build(self.run_)
        self._read_results(config, sources)
        return self

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (N, K) of the last student.

        Raises:
            InputError: not fitted, or an image cannot be read.
        """
        predictor = inference.load_predictor(self._fitted())
        found = inference.predict(predictor, images)
        if found.bad:
            name, reason = found.bad[0]
            raise InputError(f"{len(found.bad)} of the images cannot be read, the first is {name}: {reason}")
        return found.probs

    def predict(self, images: Images) -> NDArray[np.str_]:
        """Class names (N,) of the last student."""
        best = self.predict_proba(images).argmax(axis=1)
        names: NDArray[np.str_] = np.asarray(self.classes_)[best]
        return names

    def _run_directory(self) -> Path:
        if self.out is not None:
            return Path(self.out)
        folder = tempfile.mkdtemp(prefix="noisystudent-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder) / "run"

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

    def _read_results(self, config: Config, sources: Sources) -> None:
        self.verdict_ = rundir.read_json(self.run_ / "verdict.json")
        self.classes_ = tuple(rundir.read_json(self.run_ / "data" / "dataset.json")["classes"])
        self.n_iter_ = len(config.students)
        self.termination_condition_ = "max_iter"
        self.scores_: dict[str, dict[str, dict[str, float]]] = {}
        for index in range(self.n_iter_ + 1):
            models = rundir.read_json(self.run_ / f"iteration-{index}" / "evaluation.json")["models"]
            for role, sets in models.items():
                self.scores_[role if index == 0 else f"{role}-{index}"] = sets
        self.transduction_ = self._transduction(sources)

    def _transduction(self, sources: Sources) -> NDArray[np.int64]:
        if self.n_iter_ == 0:
            return np.empty(0, dtype=np.int64)
        path = self.run_ / f"iteration-{self.n_iter_}" / "selection.parquet"
        kept = _transduction(path)
        if not isinstance(sources.unlabeled, ArraySource):
            return kept
        # Copies and leaks are no rows of the pool: back to the rows of the array, which are its offsets.
        manifest = pq.read_table(
            self.run_ / "data" / "manifest.parquet", columns=["offset"], filters=[("set", "=", "pool")]
        )
        classes = np.full(len(sources.unlabeled), -1, dtype=np.int64)
        classes[manifest.column("offset").to_numpy()] = kept
        return classes


def _transduction(selection: Path) -> NDArray[np.int64]:
    """(N,) the class each pool image was trained as; -1 where it was not kept."""
    found = pq.read_table(selection, columns=["row", "label", "repeats"])
    row, label, repeats = (column.to_numpy() for column in found.columns)
    classes = np.full(len(row), -1, dtype=np.int64)
    classes[row] = np.where(repeats > 0, label, -1)
    return classes
