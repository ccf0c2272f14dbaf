"""The algorithm, readable as Algorithm 1 of Xie et al. (CVPR 2020): the only place where all parts meet."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from noisystudent.config import Config
from noisystudent.data.prepare import open_dataset, prepare
from noisystudent.data.sources import Sources, listing_fingerprint
from noisystudent.errors import RunError
from noisystudent.graph import Iteration, build_graph
from noisystudent.runtime import StopFlag, Voice, resolve_device
from noisystudent.self_training import environment, judgement, pool
from noisystudent.self_training.context import Context
from noisystudent.self_training.teaching import teach
from noisystudent.stages import lock, run_stage

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
        if graph.filter is not None and graph.filter_labels is not None and config.filter is not None:
            filtering = context.lesson(config.filter, graph.filter.path, 0, "filter")
            teach(context, graph.filter, filtering)
            pool.label(context, graph.filter_labels, filtering, config.students[0].pseudo_label)
        teacher = context.lesson(config.teacher, graph.teacher.path, 0, "teacher")
        teach(context, graph.teacher, teacher)
        before: Iteration | None = None
        for turn in graph.iterations:
            pool.label(context, turn.labels, teacher, turn.config.pseudo_label)
            pool.select(context, turn, before)
            student = pool.student(context, turn, teacher)
            teach(context, turn.student, student, partial(pool.study, context, turn))
            if turn.control is not None:
                teach(context, turn.control, pool.control(context, turn, teacher))
            teacher, before = student, turn
        judgement.judge(context)


def audit(config: Config, sources: Sources, out: Path, *, stop: StopFlag, voice: Voice) -> list[str]:
    """Scan every image and say what is there: counts, unreadable files, duplicates, leaks. Trains nothing.

    `out` receives manifest.parquet, ledger.csv and leaks.csv.
    """
    with lock(out):
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
