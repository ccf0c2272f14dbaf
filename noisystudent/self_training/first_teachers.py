"""The teachers of an iteration: one, or several first ones whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from noisystudent.config import PseudoLabelConfig
from noisystudent.config.weights import normalized
from noisystudent.inference.joint import JointPredictor, Member, Stream
from noisystudent.inference.predictor import Predictor
from noisystudent.metrics import classification
from noisystudent.metrics.scores import Predictions
from noisystudent.metrics.stacking import agreement, average, stacked
from noisystudent.run.rundir import SetName
from noisystudent.self_training.context import Context
from noisystudent.self_training.existing import Existing, existing, known
from noisystudent.self_training.predict import label_val as label_val_alone
from noisystudent.self_training.predict import noised_views, predictions, with_transforms, with_views
from noisystudent.self_training.predict import val_energies as val_energies_alone
from noisystudent.self_training.training import Training, predictor_of_sets

Teacher = Training | Existing


@dataclass(frozen=True, slots=True)
class Teachers:
    """The teachers that label the pool in one iteration.

    Attributes:
        members: the teachers.
        weights: weight of each in the average; they sum to 1.
        initial: training whose weights a student with `init: teacher` starts from; None: there is none.
    """

    members: tuple[Teacher, ...]
    weights: tuple[float, ...]
    initial: Training | None

    @property
    def single(self) -> Training | None:
        """The only teacher, if this run has trained it; otherwise None."""
        first, *others = self.members
        return first if isinstance(first, Training) and not others else None


class Averaged(NamedTuple):
    """What teachers predict together for labelled images.

    Attributes:
        probs: (N, K) their average.
        labels: (N,) labels.
        agreement: (N,) share of them that predict the most likely class.
    """

    probs: NDArray[np.float32]
    labels: NDArray[np.int64]
    agreement: NDArray[np.float32]


def only(training: Training) -> Teachers:
    """Return a student as the only teacher."""
    return Teachers((training,), (1.0,), training)


def all_first(context: Context) -> list[Teacher]:
    """Return all first teachers in the order of the configuration; their stages are done."""
    return [
        existing(model) if model.role == "existing" else context.trainings(model)[1]
        for model in context.graph.teachers
    ]


def labeling(context: Context) -> Teachers:
    """Return the first teachers that label the pool, with their weights: not those of weight 0.

    Weights that are chosen on val may be 0, too.
    """
    teachers = all_first(context)
    weights = _weights(context, teachers)
    places = [place for place, weight in enumerate(weights) if weight > 0]
    first = context.graph.teacher
    return Teachers(
        tuple(teachers[place] for place in places),
        tuple(weights[place] for place in places),
        None if first is None else context.trainings(first)[1],
    )


def _weights(context: Context, teachers: Sequence[Teacher]) -> tuple[float, ...]:
    given = normalized(context.config.teacher_weights, len(teachers))
    if given is not None:
        return given
    predicted = [predict(context, teacher, "val") for teacher in teachers]  # `read_existing` has checked it
    return stacked([each.probs for each in predicted if each is not None], context.dataset.val.labels)


def predict(context: Context, teacher: Teacher, name: SetName) -> Predictions | None:
    """Return what a teacher predicts for a set, "val" or "test", without transforms; None if it cannot."""
    if isinstance(teacher, Existing):
        return known(teacher, name)
    return predictions(teacher, name, context.progress)


def judged(context: Context, name: SetName) -> Predictions:
    """Return what the first teachers predict for a set, "val" or "test": the teacher of the verdict.

    Those that cannot predict the set are left out. If only teachers of weight 0 can, they count equally.
    """
    teachers = all_first(context)
    weights = _weights(context, teachers)
    able = [
        (each, weight)
        for teacher, weight in zip(teachers, weights, strict=True)
        if (each := predict(context, teacher, name)) is not None
    ]
    positive = [pair for pair in able if pair[1] > 0] or [(each, 1.0) for each, _ in able]
    (first, _), *_ = positive
    return Predictions(
        average([each.probs for each, _ in positive], [weight for _, weight in positive]), first.labels
    )


def teacher_rows(context: Context) -> list[dict[str, object]]:
    """Return name, model or file, weight, and top-1 and NLL on val, of each first teacher.

    The scores are None for a teacher that cannot predict val.
    """
    teachers = all_first(context)
    weights = _weights(context, teachers)
    rows: list[dict[str, object]] = []
    for model, teacher, weight in zip(context.graph.teachers, teachers, weights, strict=True):
        val = predict(context, teacher, "val")
        scores: dict[str, float | None] = {"top1": None, "nll": None}
        if val is not None:
            scores = {"top1": classification.top_k(*val, 1), "nll": classification.nll(*val)}
        what = teacher.config.existing if isinstance(teacher, Existing) else teacher.learner.model.name
        rows.append({"name": model.training.name, "what": what, "weight": weight, **scores})
    return rows


def label_val(context: Context, teachers: Teachers, config: PseudoLabelConfig) -> Averaged | None:
    """Return what the teachers predict for val in the way in which they label the pool, without noise.

    Returns:
        None if one of them cannot predict val.
    """
    val = context.dataset.val
    probs = [_transformed(context, teacher, config) for teacher in teachers.members]
    able = [each for each in probs if each is not None]
    if len(able) < len(probs):
        return None
    mean = average(able, teachers.weights)
    return Averaged(mean, val.labels, agreement(able, mean))


def _transformed(context: Context, teacher: Teacher, config: PseudoLabelConfig) -> NDArray[np.float32] | None:
    val = context.dataset.val
    if isinstance(teacher, Training):
        return label_val_alone(teacher, config, context.progress).probs
    transforms = config.flip or config.scales != (1.0,)
    if teacher.config.labels_from is not None or not transforms:
        saved = known(teacher, "val")
        return None if saved is None else saved.probs
    model, order = _prepared(context, teacher, config)
    return model.probs(val)[:, list(order)]


def val_energies(
    context: Context, teachers: Teachers, config: PseudoLabelConfig
) -> NDArray[np.float32] | None:
    """Return the energies (N,) of val under the teachers that label the pool; None if none has logits."""
    energies: list[NDArray[np.float32]] = []
    for teacher in teachers.members:
        if isinstance(teacher, Training):
            energies.append(val_energies_alone(teacher, config, context.progress))
        elif teacher.config.labels_from is None:
            energies.append(_prepared(context, teacher, config)[0].energies(context.dataset.val))
    return np.mean(energies, axis=0, dtype=np.float32) if energies else None


def _prepared(
    context: Context, teacher: Existing, config: PseudoLabelConfig
) -> tuple[Predictor, tuple[int, ...]]:
    model, order = teacher.predictor(context)
    return with_transforms(model, config).prepared(len(context.dataset.val), progress=context.progress)[
        0
    ], order


def labeler(model: Predictor, teacher: Training, config: PseudoLabelConfig) -> tuple[Predictor, Stream]:
    """Return a predictor of a teacher as it labels the pool, and its stream of views of the pool."""
    model, pool = with_transforms(model, config), with_views(teacher.sets.pool, config)
    if not config.noise:
        return model, partial(model.requested_views, pool)
    # Masks of another batch would be in other memory than a CUDA graph reads.
    model = replace(model, eager=True)
    return model, partial(noised_views, teacher, model, pool)


def joint_predictor(
    context: Context,
    teachers: Teachers,
    config: PseudoLabelConfig,
    of: Callable[[Training], Predictor] = predictor_of_sets,
) -> tuple[JointPredictor, list[Stream]]:
    """Return several teachers as one, and their streams of views of the pool.

    Teachers that are given equal views share a stream: pixels of one resolution, or features of one backbone.
    With `config.noise` each has a stream of its own, with the noise of its training.

    Args:
        context: the run.
        teachers: the teachers.
        config: settings of the labelling.
        of: `predictor` for images, `predictor_of_sets` for those of `Training.sets`.
    """
    members: list[Member] = []
    streams: list[Stream] = []
    shared: dict[tuple[Path | None, int], int] = {}  # backbone, resolution -> number of the stream
    for teacher in teachers.members:
        if isinstance(teacher, Existing) and teacher.config.labels_from is not None:
            members.append(Member(np.load(teacher.folder.probs, mmap_mode="r")))
            continue
        cache, order = None, None
        if isinstance(teacher, Training):
            (model, views), cache = labeler(of(teacher), teacher, config), teacher.cache
        else:
            model, order = teacher.predictor(context)
            model = with_transforms(model, config)
            views = partial(model.requested_views, context.dataset.pool)
        stream = len(streams)
        if not config.noise:
            stream = shared.setdefault((None if cache is None else cache.path, model.resolution), stream)
        if stream == len(streams):
            streams.append(views)
        places = None if order is None else torch.tensor(order, device=context.device)
        members.append(Member(model, stream, places))
    models = [member.model for member in members if isinstance(member.model, Predictor)]
    size = min([config.batch_size, *(model.limited(config.batch_size).size for model in models)])
    joint = JointPredictor(
        members=tuple(members), weights=teachers.weights, device=context.device, batch_size=size
    )
    return joint, streams
