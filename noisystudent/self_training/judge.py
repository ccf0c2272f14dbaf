"""The last stage of a run: evaluation of every model on val and test, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from noisystudent.config.controls import linear_probe, probe_is_teacher
from noisystudent.inference.load import stored_temperature
from noisystudent.metrics import classification, scores, temperature, verdict
from noisystudent.metrics.best import best
from noisystudent.metrics.reasons import RunFacts
from noisystudent.metrics.scores import Predictions
from noisystudent.run.files import json_lines, read_json, write_json, write_text
from noisystudent.run.graph import BEFORE
from noisystudent.run.rundir import CONTROLS, TEACHERS, SetName, model_name
from noisystudent.run.stages import run_stage
from noisystudent.self_training import expected, gallery, pool, robustness
from noisystudent.self_training.context import Context
from noisystudent.self_training.existing import labeled_sets
from noisystudent.self_training.first_teachers import judged
from noisystudent.self_training.predict import predictions
from noisystudent.self_training.training import Training

AllPredictions = dict[tuple[int, str, SetName], Predictions]
"""(iteration, role, name of the set) -> predictions at temperature 1."""


def judge(context: Context) -> None:
    """Evaluate every model, unless this was done, and compare the last student with teacher and control.

    Writes `evaluation.json` and `gallery.json` of each iteration, `metrics.jsonl` and `verdict.json`.

    Raises:
        RunError: the disk is full.
        Stopped: a signal was received. Another call resumes.
    """
    # Outside the stage: lost or damaged predictions of a finished run are made again too.
    all_predictions = {
        (*key, name): predictions(training, name, context.progress)
        for key, training, name in _evaluated(context)
    }
    role = _first_role(context)
    if (0, role, "val") not in all_predictions:
        all_predictions |= {(0, role, name): judged(context, name) for name in labeled_sets(context)}

    def work() -> None:
        firsts = {
            (model.iteration, model.role): context.trainings(model)[0] for model in context.graph.models()
        }
        # Robustness is measured before fine-tuning, as in §3.3 (footnote 3): a higher resolution lowers it.
        _write_evaluations(context, all_predictions, robustness.measure(context, firsts))
        write_json(context.run.verdict, _verdict(context, all_predictions) | _best(context, all_predictions))

    run_stage(context.graph.judgement, work, context.progress)


def _first_role(context: Context) -> str:
    """Role of the teacher that the student is compared with: the average of several first teachers."""
    return TEACHERS if len(context.graph.teachers) > 1 else "teacher"


def _evaluated(context: Context) -> Iterator[tuple[robustness.Key, Training, SetName]]:
    """Yield ((iteration, role), training, name of the set) of all that is evaluated."""
    for model in context.graph.models():
        first, last = context.trainings(model)
        roles = {model.role: last} | ({f"{model.role}{BEFORE}": first} if last is not first else {})
        for role, training in roles.items():
            for name in labeled_sets(context):
                yield (model.iteration, role), training, name


def _write_evaluations(
    context: Context, all_predictions: AllPredictions, robust: robustness.Summaries
) -> None:
    bins = context.config.evaluate.ece_bins
    temperatures = {
        key: stored_temperature(training.folder.weights) for key, training, *_ in _evaluated(context)
    }
    lines: list[dict[str, Any]] = []
    for index in range(len(context.graph.iterations) + 1):
        folder = context.run.iteration(index)
        models: dict[str, dict[str, dict[str, float]]] = {}
        calibrated: dict[str, dict[str, Any]] = {}
        for (number, role, name), (probs, labels) in all_predictions.items():
            if number == index:
                values = scores.score(probs, labels, bins)
                models.setdefault(role, {})[name] = values
                if (number, role) in temperatures:  # not of an average, nor of what was not trained here
                    fitted = temperatures[number, role]
                    scaled = scores.score(temperature.scaled(probs, fitted), labels, bins)
                    calibrated.setdefault(role, {"temperature": fitted})[name] = {
                        measure: scaled[measure] for measure in ("nll", "ece", "brier")
                    }
                lines.append({"iteration": index, "model": role, "set": name, **values})
        content: dict[str, Any] = {"models": models, "calibrated": calibrated}
        own = {role: summary for (number, role), summary in robust.items() if number == index}
        if own:
            content["robustness"] = own
        if index > 0:
            iteration = context.graph.iterations[index - 1]
            content |= pool.summary(context, iteration)
            shown = pool.thumbnails(context, iteration)
            if index == len(context.graph.iterations):
                shown |= {"mistakes": _mistakes(context, all_predictions, index)}
                student, _ = context.trainings(iteration.student)
                shown |= {"corruptions": robustness.thumbnails(context, student)}
            write_json(folder.gallery, shown)
        write_json(folder.evaluation, content)
    write_text(context.run.metrics, json_lines(lines))


def _mistakes(context: Context, all_predictions: AllPredictions, last: int) -> dict[str, Any]:
    """Return {"set", "total", "images"}: what the last student gets wrong, see `gallery.mistakes`."""
    test, images = context.judged
    compared = {"teacher": (0, _first_role(context)), "student": (last, "student")}
    compared |= {role: (last, role) for role in CONTROLS.values()}
    known = {
        role: all_predictions[*key, test] for role, key in compared.items() if (*key, test) in all_predictions
    }
    probs = {role: predicted.probs for role, predicted in known.items()}
    return {"set": test} | gallery.mistakes(images, known["student"].labels, probs, context.dataset.classes)


def _verdict(context: Context, all_predictions: AllPredictions) -> dict[str, Any]:
    test, _ = context.judged
    last, config = len(context.graph.iterations), context.config
    # Only the last student is judged, against the first teacher, or the average of several ones, which labels
    # the pool: the whole run is one experiment.
    first = _first_role(context)
    if last == 0:
        top1 = scores.score(*all_predictions[0, first, test], config.evaluate.ece_bins)["top1"]
        sentence = f"No student was trained: the supervised model is right on {top1:.2%} of {test}."
        return {
            "set": test,
            "improved": None,
            "state": None,
            "sentence": sentence,
            "reasons": [],
            "comparisons": {},
        }
    student, teacher = all_predictions[last, "student", test], all_predictions[0, first, test]
    controls = {
        role: all_predictions[last, role, test].probs
        for role in CONTROLS.values()
        if (last, role, test) in all_predictions
    }
    return verdict.judge(
        student.probs,
        teacher.probs,
        controls.get(CONTROLS["same_steps"]),
        student.labels,
        same_compute=controls.get(CONTROLS["same_compute"]),
        linear_probe=controls.get(CONTROLS["linear_probe"]),
        facts=_facts(context, last),
        config=config.evaluate,
        seed=config.seed,
    )


def _best(context: Context, all_predictions: AllPredictions) -> dict[str, Any]:
    """Return {"best": the model that `predict` and `export` use, and why}, for verdict.json.

    Those commands choose it themselves, so that they can also use an unfinished run.
    """
    hits = {
        model_name(model.iteration, model.role): classification.correct(
            *all_predictions[model.iteration, model.role, "val"]
        )
        for model in context.graph.models()
    }
    last = len(context.graph.iterations)
    default = model_name(last, "student" if last else "teacher")
    name, reason = best(hits, default, context.config.evaluate, context.config.seed)
    return {"best": {"model": name, "reason": reason}}


def _facts(context: Context, last: int) -> RunFacts:
    probe = CONTROLS["linear_probe"] if linear_probe(context.config) else None
    evaluation = read_json(context.run.iteration(last).evaluation)
    kept, selection = np.zeros(len(context.dataset.classes), dtype=np.int64), evaluation["selection"]
    for row in selection["classes"]:
        kept[row["label"]] = row["kept"]
    iteration = context.graph.iterations[last - 1]
    stored = iteration.config.pseudo_label.teacher != "ema"  # what it labels in the step is not known
    return RunFacts(
        test=context.judged[0],
        classes=context.dataset.classes,
        num_labeled=len(context.dataset.labeled),
        pool_size=len(context.dataset.pool),
        kept=tuple(int(n) for n in kept),
        pseudo_accuracy=evaluation["pseudo_labels"].get("kept_accuracy") if stored else None,
        expected=expected.precision(context, iteration) if stored else None,
        by_threshold=expected.other_thresholds(iteration),
        adaptive=iteration.config.selection.mode == "adaptive",
        selects=stored and iteration.config.selection.mode != "all",
        teachers=len(context.graph.teachers),
        junk=(selection["junk"], selection["junk_kept"]),
        junk_rejection=iteration.config.selection.junk_rejection,
        probe="teacher" if probe_is_teacher(context.config) else probe,
    )
