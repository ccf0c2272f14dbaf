"""The end of a run: every model on val and, once, on test; did it help; the files the report is made of."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from noisystudent import rundir
from noisystudent.data.imageset import ImageSet
from noisystudent.evaluate import suite, verdict
from noisystudent.evaluate.reasons import Context as Circumstances
from noisystudent.evaluate.suite import Predictions
from noisystudent.graph import Model
from noisystudent.self_training import learner, pool, robustness
from noisystudent.self_training.context import Context
from noisystudent.self_training.learner import Lesson
from noisystudent.self_training.teaching import finetuned
from noisystudent.stages import run_stage

BEFORE = " before finetuning"
"""Marks the scores of a model as it was before its second training."""

Found = dict[tuple[int, str, str], Predictions]


def judge(context: Context) -> None:
    """Evaluate every model, write `evaluation.json` of each iteration, `metrics.jsonl` and `verdict.json`."""

    def work() -> None:
        found: Found = {}
        lessons = {(model.iteration, model.role): _lesson(context, model) for model in context.graph.models()}
        for model in context.graph.models():
            first = lessons[model.iteration, model.role]
            last = finetuned(first, model)
            asked = [(model.role, last)] + ([(f"{model.role}{BEFORE}", first)] if last is not first else [])
            for (role, lesson), (name, images) in itertools.product(asked, _sets(context).items()):
                found[model.iteration, role, name] = _predictions(context, lesson, name, images)
        # as in the paper, on the models before the finetuning: a higher resolution costs robustness
        _write_evaluations(context, found, robustness.measure(context, lessons))
        rundir.write_json(context.run / "verdict.json", _verdict(context, found))

    run_stage(context.graph.judgement, work, context.voice.say)


def _sets(context: Context) -> dict[str, ImageSet]:
    sets = {"val": context.dataset.val}
    if context.dataset.test is not None:
        sets["test"] = context.dataset.test
    return sets


def _lesson(context: Context, model: Model) -> Lesson:
    """Its first training."""
    students = context.config.students
    config = context.config.teacher if model.role == "teacher" else students[model.iteration - 1]
    return context.lesson(config, model.training.path, f"iteration-{model.iteration}")


def _predictions(context: Context, lesson: Lesson, name: str, images: ImageSet) -> Predictions:
    """Read from disk where the training left them (val), else made now."""
    path = lesson.folder / f"predictions-{name}.npz"
    if name == "val" and path.is_file():
        return suite.load_predictions(path)
    context.stop.check()
    probs = learner.probabilities(learner.load(lesson), lesson, images)
    suite.save_predictions(path, probs, images.labels)
    return Predictions(probs, images.labels)


def _write_evaluations(context: Context, found: Found, robust: robustness.Columns) -> None:
    bins = context.config.evaluate.ece_bins
    lines: list[dict[str, Any]] = []
    for index in range(len(context.graph.iterations) + 1):
        folder = context.run / f"iteration-{index}"
        models: dict[str, dict[str, dict[str, float]]] = {}
        for (iteration, role, name), said in found.items():
            if iteration == index:
                scores = suite.score(said.probs, said.labels, bins)
                models.setdefault(role, {})[name] = scores
                lines.append({"iteration": iteration, "model": role, "set": name, **scores})
        content: dict[str, Any] = {"models": models}
        own = {role: column for (iteration, role), column in robust.items() if iteration == index}
        if own:
            content["robustness"] = own
        if index > 0:
            turn = context.graph.iterations[index - 1]
            content |= pool.summary(context, turn)
            rundir.write_json(folder / "gallery.json", pool.pictures(context, turn))
        rundir.write_json(folder / "evaluation.json", content)
    rundir.write_text(context.run / "metrics.jsonl", rundir.json_lines(lines))


def _verdict(context: Context, found: Found) -> dict[str, Any]:
    test = "val" if context.dataset.test is None else "test"
    last = len(context.graph.iterations)
    if last == 0:
        top1 = suite.score(*found[0, "teacher", test])["top1"]
        sentence = f"No student was asked for: the supervised model is right on {top1:.2%} of {test}."
        return {"set": test, "improved": None, "sentence": sentence, "reasons": [], "comparisons": {}}
    student, teacher = found[last, "student", test], found[0, "teacher", test]
    twin = found.get((last, "control", test))
    return verdict.judge(
        student.probs,
        teacher.probs,
        twin.probs if twin is not None else None,
        student.labels,
        context=_circumstances(context, last),
        config=context.config.evaluate,
        seed=context.config.seed,
    )


def _circumstances(context: Context, last: int) -> Circumstances:
    said = rundir.read_json(context.run / f"iteration-{last}" / "evaluation.json")
    kept = np.zeros(len(context.dataset.classes), dtype=np.int64)
    for row in said["selection"]["classes"]:
        kept[row["label"]] = row["kept"]
    return Circumstances(
        test="val" if context.dataset.test is None else "test",
        classes=context.dataset.classes,
        num_labeled=len(context.dataset.labeled),
        pool_size=len(context.dataset.pool),
        kept=tuple(int(n) for n in kept),
        pseudo_accuracy=said["pseudo_labels"].get("kept_accuracy"),
    )
