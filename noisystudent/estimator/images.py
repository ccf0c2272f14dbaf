"""Self-training on images: `NoisyStudent(...).fit(labeled, unlabeled).predict(images)`."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from noisystudent import recipes, self_training
from noisystudent.config import Config
from noisystudent.console import Progress
from noisystudent.data.sources import ArraySource, Sources
from noisystudent.errors import InputError
from noisystudent.estimator.notebook import printed_progress
from noisystudent.estimator.parameters import Parameters
from noisystudent.estimator.results import (
    Report,
    Rows,
    kept_classes,
    labeled_iterations,
    termination_condition,
)
from noisystudent.inference.images import Images, Labeled, open_images, open_labeled, paths_of
from noisystudent.inference.load import find_model, load_predictor
from noisystudent.inference.predict import predict, score
from noisystudent.inference.predictor import Predictor
from noisystudent.report import build
from noisystudent.run.files import read_json
from noisystudent.run.rundir import ModelDir, RunDir, model_name


class NotFitted(InputError, NotFittedError):
    """`fit` was not called; scikit-learn expects its NotFittedError."""


class NoisyStudent(Parameters):
    """Self-training for image classification.

    An estimator in the manner of scikit-learn, which takes images in any form. `NoisyStudentClassifier` takes
    arrays `X, y`, for grid searches and cross-validation.

    A fitted estimator holds the weights of one model: of the last student, unless val shows that another
    model of the run is better. Its probabilities have the temperature that was fitted on val. The estimator
    can be pickled and used in another process, on another machine too, and without its run directory.

    Args:
        recipe: name of a recipe, a YAML file, or a `Config`.
        out: run directory. An existing run is resumed. None: a temporary directory, which is deleted together
            with the object.
        verbose: print the progress; in a notebook with a bar that moves.
        **overrides: fields of the configuration, with two underscores for each dot:
            `teacher__train__epochs=30`.

    Attributes:
        classes_: (K,) class names, in the order of the columns of `predict_proba`.
        verdict_: content of verdict.json: whether the last student is better than teacher and control, with
            intervals and p-values.
        scores_: {"teacher", "student-1", …, "control-n": {"val" | "test": {top1, top5, nll, ece, brier}}}.
        transduction_: (N,) int64, class of each pool image that was kept in the last iteration, -1 for all
            others. Row i belongs to row i of the array `unlabeled`, or for a pool on disk to pool row i of
            data/manifest.parquet.
        labeled_iter_: (N,) int64, of the same rows: the iteration since which the image is kept without a
            break, -1 if the last iteration did not keep it. (Every iteration labels the whole pool again.
            In scikit-learn's SelfTrainingClassifier a label stays, and this is the iteration that gave it.)
        n_iter_: number of students trained.
        termination_condition_: what the last iteration left of the pool, in the words of scikit-learn's
            SelfTrainingClassifier. "all_labeled": every image is kept, or there is no pool; "no_change": the
            same images with the same classes as in the iteration before; otherwise "max_iter". All students
            of the recipe are trained in any case.
        run_: the run directory. After unpickling it may not exist any more.
        report_: its report: a path, which a notebook shows as the page.

    Example:
        >>> from noisystudent import NoisyStudent
        >>> model = NoisyStudent("demo", teacher__train__steps=20, students=0)  # doctest: +SKIP
        >>> model.fit((images, labels), pool).predict(new_images)  # doctest: +SKIP
    """

    transduction_: Rows
    labeled_iter_: Rows

    def fit(
        self,
        labeled: Labeled,
        unlabeled: Images | None = None,
        *,
        val: Labeled | None = None,
        test: Labeled | None = None,
    ) -> NoisyStudent:
        """Train the teacher, the students and the control, evaluate them, and write the report.

        Args:
            labeled: `(images, labels)` with images (N, H, W) or (N, H, W, 3) uint8; or folders, tar shards or
                files.
            unlabeled: the pool, as images, folders, tar shards or files. None: there is none, so the recipe
                must have no students (`students=0`: supervised training only).
            val: labelled images for choices such as the learning curve. None: a part of `labeled`.
            test: labelled images for the verdict. None: the verdict is made on val.

        Returns:
            The estimator itself.

        Raises:
            InputError: the arguments are wrong, or the images cannot be used.
            RunError: the run cannot continue. Its files so far are in `run_`.
        """
        self.__dict__.pop("verdict_", None)  # a fit that fails leaves no model of an earlier one
        self.run_ = self._run_directory()
        sources = Sources(
            labeled=open_labeled(labeled),
            unlabeled=None if unlabeled is None else open_images(unlabeled, labeled=False),
            val=None if val is None else open_labeled(val),
            test=None if test is None else open_labeled(test),
        )
        config = _with_images(self._config(), labeled, unlabeled, val, test)
        if config.data.given_labels:
            raise InputError(
                f"data.given_labels is {', '.join(config.data.given_labels)}; give `fit` the images with"
                " these labels"
            )
        progress = printed_progress() if self.verbose else Progress()
        self_training.self_train(config, self.run_, sources=sources, progress=progress)
        build(self.run_)
        self._read_results(config)
        if isinstance(sources.unlabeled, ArraySource):
            count = len(sources.unlabeled)
            self.transduction_ = self._rows_of_array(count, self.transduction_)
            self.labeled_iter_ = self._rows_of_array(count, self.labeled_iter_)
        return self

    @classmethod
    def load(cls, run: str | Path) -> NoisyStudent:
        """Return the fitted estimator of a finished run, which `fit` or the command line made.

        Row i of `transduction_` belongs to pool row i of data/manifest.parquet, also if the pool was an
        array.

        Args:
            run: run directory.

        Raises:
            InputError: `run` is not a finished run.
            RunError: a file of the run is damaged.
        """
        folder = RunDir(Path(run).expanduser())
        if not folder.config.is_file():
            raise InputError(
                f"{run} is not a run (it has no config.yaml); give a folder that `fit` or `run` wrote"
            )
        config = recipes.load(str(folder.config))
        if not folder.verdict.is_file():
            arrays = "call `fit` again with the same arrays"  # which config.yaml does not name
            again = f"run `noisystudent run --out {run}`" if config.data.labeled else arrays
            raise InputError(f"{run} is not a finished run (it has no verdict.json); to finish it, {again}")
        model = cls(config, out=run)
        model.run_ = folder.path
        model._read_results(config)
        return model

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Class probabilities (N, K) of the model.

        Raises:
            InputError: `fit` was not called, or an image cannot be read.
        """
        predictions = predict(self._predictor(), images)
        if predictions.bad:
            name, reason = predictions.bad[0]
            raise InputError(
                f"{len(predictions.bad)} of the images cannot be read, the first is {name}: {reason}"
            )
        return predictions.probs

    def predict(self, images: Images) -> NDArray[np.str_]:
        """Predicted class names (N,) of the model.

        Raises:
            InputError: see `predict_proba`.
        """
        best = self.predict_proba(images).argmax(axis=1)
        names: NDArray[np.str_] = self.classes_[best]
        return names

    def score(self, labeled: Labeled) -> float:
        """Share of right predictions on labelled images, in any of the forms of `fit`.

        Raises:
            InputError: `fit` was not called, a class is unknown, or no image can be read.
        """
        values, _ = score(self._predictor(), labeled)
        return values["top1"]

    def _run_directory(self) -> Path:
        """The run directory: `out`, or a new temporary one that is deleted with this object."""
        if self.out is not None:
            return Path(self.out).expanduser()
        # Not a TemporaryDirectory, because that would warn when the object is deleted.
        folder = tempfile.mkdtemp(prefix="noisystudent-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder) / "run"

    def _predictor(self) -> Predictor:
        """The model, from the weights that this object holds."""
        if not hasattr(self, "verdict_"):
            raise NotFitted("this NoisyStudent is not fitted yet; call fit(labeled, unlabeled) first")
        with tempfile.TemporaryDirectory(prefix="noisystudent-") as folder:
            weights = ModelDir(Path(folder)).weights
            weights.write_bytes(self._weights)
            return load_predictor(weights)

    def _read_results(self, config: Config) -> None:
        """Set the attributes whose names end in an underscore, and the weights."""
        run = RunDir(self.run_)
        self._weights = find_model(self.run_).read_bytes()
        self.report_ = Report(run.report)
        dataset = read_json(run.data.dataset)
        self.classes_ = np.array(dataset["classes"])
        self.n_iter_ = len(config.students)
        self.scores_: dict[str, dict[str, dict[str, float]]] = {}
        for index in range(self.n_iter_ + 1):
            models = read_json(run.iteration(index).evaluation)["models"]
            for role, sets in models.items():
                self.scores_[model_name(index, role)] = sets
        kept = [kept_classes(run.iteration(index + 1).selection) for index in range(self.n_iter_)]
        self.transduction_ = kept[-1] if kept else np.empty(0, dtype=np.int64)
        self.labeled_iter_ = labeled_iterations(kept)
        self.termination_condition_ = termination_condition(kept, dataset["counts"].get("pool", 0))
        self.verdict_ = read_json(run.verdict)  # last: it marks a fitted estimator

    def _rows_of_array(self, count: int, values: Rows) -> Rows:
        """The values of pool rows as values of the `count` rows of the array that was the pool."""
        rows = np.full(count, -1, dtype=np.int64)
        if self.n_iter_:
            # Copies and leaks were removed from the pool, so pool rows are not rows of the array. The offset
            # of a pool row in the manifest is its row in the array.
            manifest = RunDir(self.run_).data.manifest
            pool = pq.read_table(manifest, columns=["offset"], filters=[("set", "=", "pool")])
            rows[pool.column("offset").to_numpy()] = values
        return rows


def _with_images(config: Config, *given: Labeled | None) -> Config:
    """The configuration with the images of `fit` in place of its own: labelled ones, pool, val and test.

    A run on paths alone names them, so that other commands open it. Images in memory have no name.
    """
    paths = [() if images is None else paths_of(images) for images in given]
    named = [() if None in paths else path or () for path in paths]
    labeled, unlabeled, val, test = named
    return replace(
        config, data=replace(config.data, labeled=labeled, unlabeled=unlabeled, val=val, test=test)
    )
