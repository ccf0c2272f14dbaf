"""What the output of a stage depends on, in the configuration and elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from noisystudent.config import (
    Config,
    FirstTeacherConfig,
    ModelConfig,
    PseudoLabelConfig,
    StudentConfig,
    TeacherConfig,
)
from noisystudent.config.fields import is_absent, is_neutral, is_of_student
from noisystudent.config.run import chooses_decay, first_teachers, is_trained, labeling_teachers, learners
from noisystudent.run.checksums import checksum
from noisystudent.run.described import normalization_beside
from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.rundir import LABELS_FORMAT, weights_file
from noisystudent.run.stages import Stage

# Part of every fingerprint. Increase it when the meaning of a stage's files changes: older runs then make
# their stages again.
_FORMAT = 1

# Fields of `data` that change only the pool.
_OF_POOL = ("near_duplicates", "pool_near_duplicates", "pool_tags")


def inputs_of(section: Any, *, of_student: bool = False) -> Mapping[str, object]:
    """Return the fields of a section of the configuration that the output of a stage depends on.

    Args:
        section: instance of a configuration dataclass.
        of_student: True: only the fields that change the student's training alone; False: only the others.
    """
    names = {
        field.name
        for field in dataclasses.fields(section)
        if not is_neutral(field)
        and is_of_student(field) == of_student
        and not is_absent(field, getattr(section, field.name))
    }
    values = {key: value for key, value in dataclasses.asdict(section).items() if key in names}
    if isinstance(section, ModelConfig):
        values["pretrained"] = _weights(section.pretrained)
    return values


def labeled_inputs(config: Config) -> Mapping[str, object]:
    """Return the fields of `data` that the labelled images, val and test depend on."""
    return {name: value for name, value in inputs_of(config.data).items() if name not in _OF_POOL}


def _weights(pretrained: bool | str) -> object:
    """What `model.pretrained` names; a file is its content, and mean and std beside it, wherever it is."""
    file = None if isinstance(pretrained, bool) else weights_file(Path(pretrained))
    if file is None:
        return pretrained
    about, beside = file.stat(), normalization_beside(file)
    content = _checksum(file, about.st_size, about.st_mtime_ns)
    return [content, beside] if beside else content


# A graph asks for it once for each network and each of its stages, and the file may be large.
@lru_cache(maxsize=32)
def _checksum(file: Path, _size: int, _written: int) -> object:
    return checksum(file)


def compute_of(config: Config) -> Mapping[str, object]:
    """Return what the image passes of a whole run depend on, besides the images."""
    trainings: dict[str, object] = {}
    for name, learner in learners(config).items():
        views = [learner.augment.flip, learner.augment.views] if learner.train.features else None
        parts: dict[str, object] = {"train": inputs_of(learner.train), "views": views}
        if isinstance(learner, TeacherConfig) and learner.finetune is not None:
            parts["finetune"] = inputs_of(learner.finetune)
        if isinstance(learner, StudentConfig):
            parts |= {"ratio": learner.unlabeled_ratio, "joint": learner.joint}
            labels = learner.pseudo_label
            parts["labels"] = [inputs_of(labels), inputs_of(labels, of_student=True)]
        trainings[name] = parts
    firsts = first_teachers(config)
    made_elsewhere = [isinstance(one, FirstTeacherConfig) and bool(one.labels_from) for one in firsts]
    return {
        "trainings": trainings,
        "folds": [config.folds, chooses_decay(config)],
        "teachers": [list(map(is_trained, firsts)), made_elsewhere, labeling_teachers(config)],
    }


def make_stage(name: str, path: Path, **inputs: object) -> Stage:
    """Return a stage with the fingerprint of its inputs."""
    # A digest of each input, so that `state` can name those that have changed.
    digests = {key: fingerprint(value) for key, value in inputs.items()}
    return Stage(name, path, fingerprint(_FORMAT, name, digests), digests)


def labels_stage(name: str, path: Path, data: Stage, config: PseudoLabelConfig, **inputs: object) -> Stage:
    """Return the stage of a labelling of the pool, which the scan `data` has listed."""
    if config.noise:  # it is drawn for a batch
        inputs["batch_size"] = config.batch_size
    about = {"data": data.fingerprint, "config": inputs_of(config), "format": LABELS_FORMAT}
    return make_stage(name, path, **about, **inputs)
