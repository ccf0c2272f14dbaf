"""Paths of all files in a run directory, whose names no other module contains."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from noisystudent.config.parse import parse, read_text
from noisystudent.errors import InputError, RunError

RECORD = "stage.json"
"""Name of the file in the folder of a stage that records its inputs, its status and its checksums."""

CHECKSUMS = "checksums.json"
"""Name of the file with the checksums of the other files of a folder."""

CONTROLS = {"same_steps": "control", "same_compute": "control-compute", "linear_probe": "control-probe"}
"""Value of the field `control` -> role of the model, which is also the name of its folder."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in the folder of a model, ours or one of the hub; the first that is there counts."""

SetName = Literal["val", "test"]
"""Sets of labelled images that models are judged on."""

TEACHERS = "teachers"
"""Role of the average of several first teachers, which has scores and no folder."""

ROLES = ("teacher", "student", *CONTROLS.values())
"""Roles of the models that are evaluated: the teacher of iteration 0, and those of the other iterations."""

_Directory: TypeAlias = "ModelDir | IndexedDir | EmbeddingsDir | IterationDir | DataDir | RunDir"
_PART = re.compile(r"part-\d{5,}")


class _Child:
    """Descriptor: the path of the file or folder `name` in the directory object that has the attribute."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, directory: _Directory, _: type) -> Path:
        return directory.path / self._name


@dataclass(frozen=True, slots=True)
class ModelDir:
    """The folder of one trained network."""

    path: Path

    weights = _Child("model.safetensors")  # weights of the moving average, under timm's names
    record = _Child(RECORD)  # inputs and status of the stage
    metrics = _Child("metrics.jsonl")  # one line per measurement of the training
    checkpoints = _Child("checkpoint")  # folder of the snapshots of an unfinished training
    targets = _Child("targets.npy")  # pseudo-labels of the selected images, while a student trains
    probs = _Child("probs.npy")  # of the pool (N, K), of a first teacher with `labels_from`
    robustness = _Child("robustness.npz")  # results for each image, corrupted, perturbed or attacked

    @property
    def finetune(self) -> ModelDir:
        """Folder of the fine-tuning of the same network."""
        return ModelDir(self.path / "finetune")

    def predictions(self, images: str) -> Path:
        """File with the probabilities (N, K) and labels (N,) of the set `images`, "val" or "test"."""
        return self.path / f"predictions-{images}.npz"


LABELS_FORMAT = "noisystudent.pseudo_labels/2"
"""Format of pseudo-labels. Another one labels all pools again. 2: the confidence has temperature 1."""


@dataclass(frozen=True, slots=True)
class IndexedDir:
    """A folder of parts that several processes may make."""

    path: Path
    suffix: ClassVar[str]
    index = _Child("parts.json")  # what the parts have in common, and their checksums
    shared = _Child(".shared.partial")  # until all are made: their leases, and a folder of each process

    def index_of(self, rank: int) -> Path:
        """Path of the index of the parts that one of several processes has made, until all are made."""
        return self.path / f"parts.rank-{rank}.json" if rank else self.index

    def indices(self) -> list[Path]:
        """Return the existing indices: parts.json first, then those of single processes."""
        indices: list[Path] = []
        # parts.json is looked for last: a process that has written it deletes the others, and their folder.
        for pattern in (f"{self.shared.name}/*/parts.json", "parts.rank-*.json", "parts.json"):
            with suppress(FileNotFoundError):
                indices = [*sorted(self.path.glob(pattern)), *indices]
        return indices

    def part(self, index: int) -> Path:
        """Path of part `index`."""
        return self.path / f"part-{index:05d}.{self.suffix}"

    def parts(self) -> list[Path]:
        """Return the existing parts in order of their names. A copy under another name is not a part."""
        return sorted(path for path in self.path.glob(f"part-*.{self.suffix}") if _PART.fullmatch(path.stem))


@dataclass(frozen=True, slots=True)
class LabelsDir(IndexedDir):
    """A folder of pseudo-labels."""

    suffix = "parquet"
    energies = _Child("energies.npy")  # of the val images (N,), under the same teachers


@dataclass(frozen=True, slots=True)
class PartsDir(IndexedDir):
    """A folder of cached features of one set of images."""

    suffix = "npy"
    images = _Child("images.parquet")  # id and content hash of each row, if `embed` wrote the folder


@dataclass(frozen=True, slots=True)
class EmbeddingsDir:
    """The folder of a frozen backbone and its features of all images of a run."""

    path: Path

    backbone = _Child("backbone.safetensors")  # the network, with a classifier that is not trained

    def features(self, images: str) -> PartsDir:
        """Folder of the features of a set of images: labeled, val, test or pool."""
        return PartsDir(self.path / images)


@dataclass(frozen=True, slots=True)
class IterationDir:
    """The folder of one iteration: labels, selection, student and controls; in iteration 0 the teachers."""

    path: Path
    index: int

    labels = _Child("labels")  # folder of the teacher's pseudo-labels
    filter_labels = _Child("filter-labels")  # folder of the filter's pseudo-labels
    selection = _Child("selection.parquet")  # which pool images the student trains on, and how often
    selection_record = _Child(f"selection.{RECORD}")  # of the stage that wrote it
    filter_selection = _Child("filter-selection.parquet")  # the same images under the labels of the filter
    out_of_fold = _Child("out-of-fold.npz")  # predictions for the labelled images, see `fold`
    evaluation = _Child("evaluation.json")  # scores of the models, and summaries of labels and selection
    gallery = _Child("gallery.json")  # thumbnails of the pool

    def model(self, role: str) -> ModelDir:
        """Folder of the model `role`: one of `ROLES`, filter or pretraining."""
        return ModelDir(self.path / role)

    def fold(self, number: int) -> ModelDir:
        """Folder of the teacher, from 1 on, that is trained without one part of the labelled images."""
        return self.model(f"fold-{number}")

    def records(self) -> list[Path]:
        """Return the existing stage records in the order in which the stages run."""
        teachers = [ModelDir(folder) for folder in sorted(self.path.glob("teacher*"))]
        existing = [ModelDir(folder) for folder in sorted(self.path.glob("existing-*"))]
        numbers = (folder.name.removeprefix("fold-") for folder in self.path.glob("fold-*"))
        folds = [self.fold(number) for number in sorted(int(name) for name in numbers if name.isdecimal())]
        before = [*existing, self.model("filter"), self.model("pretraining"), *folds]
        after = [self.model(role) for role in ROLES[1:]]
        pool = [self.filter_labels / RECORD, self.labels / RECORD, self.selection_record]
        records = [
            *_records(before),
            self.out_of_fold.with_suffix(f".{RECORD}"),
            *_records(teachers),
            *pool,
            *_records(after),
        ]
        return [path for path in records if path.is_file()]


def _records(models: list[ModelDir]) -> list[Path]:
    """Two records of each model: of the training and of the fine-tuning."""
    return [record for model in models for record in (model.record, model.finetune.record)]


@dataclass(frozen=True, slots=True)
class DataDir:
    """The folder of the scanned images."""

    path: Path

    manifest = _Child("manifest.parquet")  # one row per image in use
    ledger = _Child("ledger.csv")  # images that cannot be used, and why
    leaks = _Child("leaks.csv")  # copies and near copies that were removed, and those that stay
    dataset = _Child("dataset.json")  # classes, sets and notes; written last
    store = _Child("store")  # folder of the columns and the decoded pixels


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run directory."""

    path: Path

    config = _Child("config.yaml")  # the resolved configuration
    environment = _Child("environment.json")  # versions and hardware
    listings = _Child(".listings.partial")  # image names during a scan; not in `data`, which may be moved
    images = _Child("images.json")  # which labelled images the scan could read
    schedule = _Child("schedule.json")  # all stages and their steps, see `self_training.schedule`
    log = _Child("run.log")  # every line the run printed
    metrics = _Child("metrics.jsonl")  # one line per model and set
    verdict = _Child("verdict.json")  # whether the pool helped
    report = _Child("report.html")  # the HTML report
    wandb = _Child("wandb")  # folder of what `wandb sync` uploads

    @property
    def data(self) -> DataDir:
        """Folder of the scanned images."""
        return DataDir(self.path / "data")

    def log_of(self, rank: int) -> Path:
        """File with every line of one of several processes; that of process 0 is `log`."""
        return self.path / f"run.rank-{rank}.log" if rank else self.log

    def embeddings(self, number: int) -> EmbeddingsDir:
        """Folder of the features of a frozen backbone; the backbones are numbered from 1 on."""
        return EmbeddingsDir(self.path / ("embeddings" if number == 1 else f"embeddings-{number}"))

    def tensorboard(self, stage: str) -> Path:
        """Folder of the TensorBoard curves of the training `stage`."""
        return self.path / "tensorboard" / stage

    def superseded(self, stage: str, digest: str) -> Path:
        """Folder of the old files of a stage; `digest`: 8 digits of the fingerprint they were made with."""
        return self.path / "superseded" / f"{stage}-{digest}"

    @property
    def damaged(self) -> Path:
        """Folder that keeps damaged files, under their paths in the run."""
        return self.path / "superseded" / "damaged"

    def iteration(self, index: int) -> IterationDir:
        """Folder of an iteration. Iteration 0 trains the teacher, iteration n the n-th student."""
        return IterationDir(self.path / f"iteration-{index}", index)

    def iterations(self) -> list[IterationDir]:
        """Return the iterations that have a folder, in order of their numbers."""
        names = (folder.name.removeprefix("iteration-") for folder in self.path.glob("iteration-*"))
        indices = sorted(int(name) for name in names if name.isdecimal())
        return [self.iteration(index) for index in indices if self.iteration(index).path.is_dir()]

    def student_count(self) -> int | None:
        """Return the number of students in config.yaml; None if it has no list of students.

        The number of folders can be larger: a run that had more students before keeps their folders.

        Raises:
            RunError: config.yaml is damaged.
        """
        students = self.read_config().get("students")
        return len(students) if isinstance(students, list) else None

    def read_config(self) -> dict[str, Any]:
        """Return the content of config.yaml as a dict, not checked; empty if there is no such file.

        Raises:
            RunError: config.yaml is not valid YAML (see `parse`).
        """
        if not self.config.is_file():
            return {}
        try:
            content = parse(read_text(self.config), str(self.config))
        except InputError as error:
            raise RunError(f"{error}; run its recipe again to write a new one") from error
        return content if isinstance(content, dict) else {}


def model_name(iteration: int, role: str) -> str:
    """Name of a model in a run, for example teacher or student-2."""
    return role if iteration == 0 else f"{role}-{iteration}"


def place_in_run(weights: Path) -> tuple[RunDir, IterationDir, str] | None:
    """Return the run that has this weights file, the iteration, and the role of the model.

    None if the file is not in a run.
    """
    model = ModelDir(weights.absolute().parent)
    if model.path.name == ModelDir(model.path.parent).finetune.path.name:
        model = ModelDir(model.path.parent)
    iteration, number = model.path.parent, model.path.parent.name.removeprefix("iteration-")
    run = RunDir(iteration.parent)
    if not number.isdecimal() or run.iteration(int(number)).path != iteration or not run.config.is_file():
        return None
    return run, run.iteration(int(number)), model.path.name


def weights_file(path: Path) -> Path | None:
    """Return the weights that a path names: the file itself, or that in a folder; None if there is none."""
    files = [path / name for name in WEIGHT_FILES] if path.is_dir() else [path]
    return next((file for file in files if file.is_file()), None)
