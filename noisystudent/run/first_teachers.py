"""The first teachers of a run: their names, and what the labels of the pool depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from noisystudent.config import Config, TeacherConfig
from noisystudent.config.run import first_teachers, is_trained, labeling_teachers
from noisystudent.config.weights import normalized
from noisystudent.errors import require
from noisystudent.run.inputs import inputs_of


@dataclass(frozen=True, slots=True)
class FirstTeacher:
    """A first teacher, before its stage is made.

    Attributes:
        role: teacher if the run trains it, otherwise existing.
        name: name of its folder and of its stage.
        config: its section of the configuration.
        inputs: further inputs of its stage.
    """

    role: str
    name: str
    config: TeacherConfig
    inputs: dict[str, object]


def named_teachers(config: Config, existing: Sequence[str]) -> Iterator[FirstTeacher]:
    """Yield the first teachers in the order of the configuration.

    Trained and existing ones are numbered separately, so that another existing one repeats no training.

    Args:
        config: configuration of the run.
        existing: fingerprint of each teacher that is not trained.
    """
    trained, read = 0, iter(existing)
    for number, teacher in enumerate(first_teachers(config), start=1):
        if is_trained(teacher):
            trained += 1
            # The first has no number, so that it is the same stage with and without others.
            name, inputs = ("teacher", {}) if trained == 1 else (f"teacher-{trained}", {"number": trained})
            yield FirstTeacher("teacher", name, teacher, dict[str, object](inputs))
        else:
            origin = next(read, None)
            require(origin is not None, "the graph needs a fingerprint of each teacher that is not trained")
            about: dict[str, object] = {"origin": origin, "model": inputs_of(teacher.model)}
            yield FirstTeacher("existing", f"existing-{number - trained}", teacher, about)


def labels_of(config: Config, teachers: Sequence[str]) -> dict[str, object]:
    """Return what the labels of the pool depend on, from fingerprints of first teachers or of a student.

    With one teacher there are no weights, and equal ones are as none.
    """
    if len(teachers) == 1:
        return {"model": teachers[0]}
    places, weights = labeling_teachers(config), normalized(config.teacher_weights, len(teachers))
    labeling = [teachers[place] for place in places]
    if len(labeling) == 1:
        return {"model": labeling[0]}
    if weights is None:
        return {"model": labeling, "weights": "val"}
    own = [weights[place] for place in places]
    return {"model": labeling} if len(set(own)) == 1 else {"model": labeling, "weights": own}
