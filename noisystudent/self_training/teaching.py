"""Train one model as a stage, look at it on val, and stop the run when it is of no use."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.tensorboard import SummaryWriter

from noisystudent import rundir
from noisystudent.config import TeacherConfig
from noisystudent.errors import RunError
from noisystudent.evaluate import guards, suite
from noisystudent.graph import Model
from noisystudent.self_training import learner
from noisystudent.self_training.context import Context
from noisystudent.self_training.learner import Lesson
from noisystudent.self_training.pool import TARGETS
from noisystudent.stages import Stage, run_stage
from noisystudent.train import checkpoint
from noisystudent.train.journal import kept


def teach(
    context: Context, stage: Stage, lesson: Lesson, study: Callable[[Lesson], Lesson] | None = None
) -> None:
    """Train `lesson` unless it is done; then guard the run.

    Args:
        context: the run.
        stage: of the training.
        lesson: what is trained.
        study: adds pool images to the lesson; not called when there is nothing to train.

    Raises:
        RunError: a teacher that guesses, or a model that collapsed to few classes.
    """

    def work() -> None:
        _train(context, stage, lesson if study is None else study(lesson))
        val = lesson.dataset.val
        probs = learner.probabilities(learner.load(lesson), lesson, val)
        suite.save_predictions(stage.path / "predictions-val.npz", probs, val.labels)
        rundir.remove(stage.path / TARGETS)

    run_stage(stage, work, context.voice.say)
    _guard(context, stage)


def pretrain(context: Context, stage: Stage, lesson: Lesson) -> None:
    """Train `lesson`, which knows none of the classes, unless it is done."""
    run_stage(stage, lambda: _train(context, stage, lesson), context.voice.say)


def finetune(context: Context, model: Model, lesson: Lesson) -> Lesson:
    """Train the model of `lesson` a second time where its configuration says so; returns what speaks."""
    second = finetuned(lesson, model)
    if model.finetuning is not None:
        teach(context, model.finetuning, second)
    return second


def finetuned(lesson: Lesson, model: Model) -> Lesson:
    """The last lesson of a model: `lesson`, or the second training after it."""
    config = lesson.learner
    if model.finetuning is None or not isinstance(config, TeacherConfig) or config.finetune is None:
        return lesson
    return learner.finetuning(lesson, config.finetune, model.finetuning.path)


def _train(context: Context, stage: Stage, lesson: Lesson) -> None:
    context.voice.say(_announcement(stage, lesson))
    with SummaryWriter(str(context.run / "tensorboard" / stage.name), purge_step=0) as board:

        def draw(line: dict[str, float]) -> None:
            for name, value in line.items():
                if name != "step":
                    board.add_scalar(name, value, int(line["step"]))

        def on_log(line: dict[str, float]) -> None:
            draw(line)
            context.voice.progress(stage.name, int(line["step"]), lesson.total_steps)

        # a killed training drew more than it can go on from, and lost some of it: all is drawn again
        for line in kept(
            lesson.folder / "metrics.jsonl", checkpoint.saved_step(lesson.folder / "checkpoint")
        ):
            draw(line)
        learner.train(lesson, context.stop, context.voice.say, on_log)


def _announcement(stage: Stage, lesson: Lesson) -> str:
    labeled, pool = lesson.rows
    return (
        f"{stage.name}: {lesson.learner.model.name}, {lesson.total_steps:,} steps of {labeled:,} labelled"
        f" and {pool:,} pool images, {lesson.resolution} pixels"
    )


def _guard(context: Context, stage: Stage) -> None:
    found = suite.load_predictions(stage.path / "predictions-val.npz")
    top1 = suite.score(found.probs, found.labels)["top1"]
    context.voice.say(f"{stage.name}: val top-1 {top1:.1%} of {len(found.labels):,} images")
    if stage.name.startswith("control-"):
        return  # nothing is learnt from the control
    iterations = context.graph.iterations
    last = iterations[-1].student if iterations else None  # the last student teaches nobody
    speaks = last is not None and stage not in (last.training, last.finetuning)
    able, sentence = guards.teacher_above_chance(found.labels, found.probs)
    if not able and speaks:
        raise RunError(f"{stage.name}: {sentence}; the run stops before it labels anything with it")
    fallen = guards.collapsed(found.probs, found.labels)
    if fallen is not None:
        raise RunError(f"{stage.name}: {fallen}")
