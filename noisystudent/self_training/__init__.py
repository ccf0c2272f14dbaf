"""The algorithm, readable as Algorithm 1 of Xie et al. (CVPR 2020): the only place where all parts meet."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from noisystudent import rundir
from noisystudent.config import Config
from noisystudent.data.prepare import open_dataset, prepare
from noisystudent.data.sources import Sources, listing_fingerprint
from noisystudent.errors import RunError
from noisystudent.graph import Iteration, build_graph
from noisystudent.rundir import lock
from noisystudent.runtime import StopFlag, Voice, resolve_device
from noisystudent.self_training import environment, judgement, pool
from noisystudent.self_training.context import Context
from noisystudent.self_training.learner import WEIGHTS, Lesson
from noisystudent.self_training.teaching import finetune, pretrain, teach
from noisystudent.stages import Stage, run_stage, supersede

__all__ = ["audit", "self_train"]

_SETS = ("labeled", "val", "test", "pool")


def self_train(config: Config, sources: Sources, run: Path, *, stop: StopFlag, voice: Voice) -> None:
    """Teacher → pseudo-labels → selection → noised student, again and again; then the verdict; all in `run`.

    Running it again on the same directory redoes only what changed, and resumes what was interrupted.

    Raises:
        InputError: bad images, or `run` is in use.
        RunError: a teacher at chance level, a collapsed student, a full disk.
        Stopped: a signal came; run again to go on.
    """
    with lock(run):
        context = _prepare(config, sources, run, stop, voice)
        graph = context.graph
        _put_away(context)
        if graph.filter is not None and graph.filter_labels is not None and config.filter is not None:
            filtering = context.lesson(config.filter, graph.filter.path, "filter")
            teach(context, graph.filter, filtering)
            pool.label(context, graph.filter_labels, [filtering], config.students[0].pseudo_label)
        teachers = _first_teachers(context)
        before: Iteration | None = None
        for turn in graph.iterations:
            pool.label(context, turn.labels, teachers, turn.config.pseudo_label)
            pool.select(context, turn, before)
            student = pool.student(context, turn, teachers[0])
            teach(context, turn.student.training, student, partial(pool.study, context, turn, teachers))
            student = finetune(context, turn.student, student)
            if turn.control is not None:
                control = pool.control(context, turn, teachers[0])
                teach(context, turn.control.training, control)
                finetune(context, turn.control, control)
            teachers, before = [student], turn
        judgement.judge(context)


def _put_away(context: Context) -> None:
    """Second trainings and controls that are not asked for any more, lest they pass for the run's."""
    asked_for = {stage.path for stage in context.graph.stages()}
    for pattern in (f"iteration-*/*/{rundir.FINETUNE}", "iteration-*/control"):
        for path in sorted(context.run.glob(pattern)):
            if path not in asked_for and (path / "stage.json").is_file():
                gone = Stage(rundir.read_json(path / "stage.json")["name"], path, "", {})
                context.voice.say(f"{gone.name}: not asked for any more; kept in {supersede(gone)}")


def _first_teachers(context: Context) -> list[Lesson]:
    """One, or several alike but for their seed, which start from the pretrained weights if there are any."""
    graph, config = context.graph, context.config
    initial = None
    if graph.pretraining is not None and config.pretrain is not None:
        pretraining = context.tagged(config.pretrain, graph.pretraining.path)
        pretrain(context, graph.pretraining, pretraining)
        initial = pretraining.folder / WEIGHTS
    found = []
    for number, model in enumerate((graph.teacher, *graph.companions), start=1):
        stream = "iteration-0" if number == 1 else f"iteration-0/{number}"
        lesson = context.lesson(config.teacher, model.training.path, stream)
        lesson = replace(lesson, initial=initial, new_head=initial is not None)
        teach(context, model.training, lesson)
        found.append(finetune(context, model, lesson))
    return found


def audit(config: Config, sources: Sources, out: Path, *, stop: StopFlag, voice: Voice) -> list[str]:
    """Scan every image and say what is there: counts, unreadable files, duplicates, leaks. Trains nothing.

    `out` receives manifest.parquet, ledger.csv and leaks.csv.
    """
    with lock(out, "check"):
        dataset = prepare(config.data, sources, out, config.seed, stop, progress=voice.progress)
    lines = [*dataset.notes]
    for name in _SETS:
        images = getattr(dataset, name)
        if images is not None:
            lines.append(f"{name}: {len(images):,} images")
    counts = np.bincount(dataset.labeled.labels, minlength=len(dataset.classes))
    lines += [f"  {name}: {count:,} labels" for name, count in zip(dataset.classes, counts, strict=True)]
    return [*lines, f"unreadable: {out / 'ledger.csv'}", f"duplicates and leaks: {out / 'leaks.csv'}"]


def _prepare(config: Config, sources: Sources, run: Path, stop: StopFlag, voice: Voice) -> Context:
    graph = build_graph(config, listing_fingerprint(sources), run)
    environment.describe(run, config)

    def scan() -> None:
        prepare(config.data, sources, graph.data.path, config.seed, stop, progress=voice.progress)

    run_stage(graph.data, scan, voice.say)
    dataset = open_dataset(graph.data.path, config.data, sources)
    for note in dataset.notes:
        voice.say(f"note: {note}")
    if len(dataset.labeled) == 0:
        raise RunError("no labelled image is left to train on")
    device = resolve_device(config.device)
    dataset = dataset.to_device(device)
    return Context(
        config=config, run=run, graph=graph, dataset=dataset, device=device, stop=stop, voice=voice
    )
