"""Noisy Student self-training, Algorithm 1 of Xie et al. (CVPR 2020), as a sequence of stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from noisystudent.config import Config
from noisystudent.console import Logged, Progress
from noisystudent.data.listing import list_sets
from noisystudent.data.prepare import open_dataset, prepare
from noisystudent.data.sources import Sources, listing_fingerprint, open_sources
from noisystudent.distributed import group
from noisystudent.errors import RunError
from noisystudent.inference.existing import fingerprints
from noisystudent.metrics.power import too_small
from noisystudent.run.build import build_graph
from noisystudent.run.files import remove, temporary_folder
from noisystudent.run.graph import Graph, Iteration
from noisystudent.run.lock import lock
from noisystudent.run.record import valid_record
from noisystudent.run.rundir import CONTROLS, DataDir, ModelDir, RunDir
from noisystudent.run.stages import Stage, run_stage, supersede, supersede_stale
from noisystudent.runtime import resolve_device
from noisystudent.self_training import environment, pool, schedule
from noisystudent.self_training.checks import check_config
from noisystudent.self_training.context import Context
from noisystudent.self_training.embed_stage import embed_images
from noisystudent.self_training.existing import read_existing
from noisystudent.self_training.first_teachers import Teachers, labeling, only
from noisystudent.self_training.folds import predict_out_of_fold
from noisystudent.self_training.judge import judge
from noisystudent.self_training.labels import label_pool, put_doubtful_aside
from noisystudent.self_training.readable import put_others_aside
from noisystudent.self_training.train_stage import finetune_model, train_model, train_unchecked

__all__ = ["audit", "self_train"]

TakeOver = Callable[[Graph, Progress], object]
"""Brings finished stages into a run."""

_SETS = ("labeled", "val", "test", "pool")


def self_train(
    config: Config,
    out: Path,
    *,
    sources: Sources | None = None,
    others: Sequence[Path] = (),
    take_over: TakeOver | None = None,
    progress: Progress | None = None,
) -> None:
    """Train a teacher and then all students of `config`, evaluate them, and write everything into `out`.

    Each iteration labels the pool with the teacher, selects pool images, and trains a student with noise. The
    student is the next teacher. Another call on the same directory skips finished stages, resumes an
    interrupted stage, and repeats the stages whose inputs have changed.

    Args:
        config: configuration of the run.
        out: run directory; made if it does not exist.
        sources: labelled images, pool, val and test; None: those that `config.data` names.
        others: run directories whose cached features of the same images are copied.
        take_over: called before the first stage, after old files are moved away. None: nothing is brought.
        progress: receives lines and progress, and stops the run. None: nothing is printed.

    Raises:
        InputError: the configuration or the images cannot be used, or `out` is in use or holds other files.
        RunError: a teacher is at chance level, a model has collapsed to few classes, or the disk is full.
        Stopped: a signal was received. Another call resumes the run.
    """
    everyone = group()  # checks come before `out` is made and images are decoded, which can take hours
    sources = everyone.first(lambda: open_sources(config.data)) if sources is None else sources
    everyone.lead(partial(check_config, config, pool=sources.unlabeled is not None, processes=everyone.size))
    with lock(out):
        context = _prepare(config, sources, RunDir(out), progress, others=others, take_over=take_over)
        embed_images(context)
        read_existing(context)
        _label_by_filter(context)
        initial = _pretrained(context)
        context = predict_out_of_fold(context, initial)
        _first_teachers(context, initial)
        teachers, iterations = labeling(context), context.graph.iterations
        # Alg. 1: label with the noise-free teacher (2), train a noised student (3), make it the teacher (4).
        for before, iteration in zip([None, *iterations], iterations, strict=False):
            label_pool(context, iteration.labels, teachers, iteration.config.pseudo_label)
            _select_images(context, iteration, before, teachers)
            student = pool.student(context, iteration, teachers)
            train_model(context, iteration.student.training, student)
            student = finetune_model(context, iteration.student, student)
            _train_controls(context, iteration)
            teachers = only(student)
        judge(context)


def audit(
    config: Config, sources: Sources, out: Path | None, *, progress: Progress | None = None
) -> list[str]:
    """Scan every image without training, and write manifest.parquet, ledger.csv and leaks.csv into `out`.

    Args:
        config: its `data` and `seed` are used.
        sources: labelled images, pool, val and test.
        out: folder for the files, which hold the decoded images too; made if it does not exist. None: a
            temporary folder, which is removed in the end, also if this process is killed.
        progress: receives the progress, and stops the scan. None: nothing is printed.

    Returns:
        Lines of text: notes, images in each set, labels in each class, and the paths of the lists of
            unreadable files, duplicates and leaks, if `out` is given.

    Raises:
        InputError: the images cannot be used, or `out` is in use or holds other files.
        RunError: too many images are unreadable, or the disk is full.
        Stopped: a signal was received.
    """
    progress = progress or Progress()
    if out is None:
        with temporary_folder() as folder:
            lines = _audit(config, sources, DataDir(folder), progress, kept=False)
        return [*lines, "ledger.csv and leaks.csv are not kept; give --out FOLDER to keep them"]
    data = DataDir(out)
    lines = _audit(config, sources, data, progress, kept=True)
    return [*lines, f"unreadable: {data.ledger}", f"duplicates and leaks: {data.leaks}"]


def _audit(config: Config, sources: Sources, data: DataDir, progress: Progress, *, kept: bool) -> list[str]:
    """The lines of `audit` without the paths."""
    with lock(data.path, "check"):
        prepare(config.data, sources, data, config.seed, progress, kept=kept)
        dataset = open_dataset(data, config.data, sources)
    lines = [*dataset.notes]
    for name in _SETS:
        images = getattr(dataset, name)
        if images is not None:
            lines.append(f"{name}: {len(images):,} images")
    counts = np.bincount(dataset.labeled.labels, minlength=len(dataset.classes))
    named = zip(dataset.classes, counts, strict=True)
    return [*lines, *(f"  {name}: {count:,} labels" for name, count in named)]


def _prepare(
    config: Config,
    sources: Sources,
    run: RunDir,
    progress: Progress | None,
    *,
    others: Sequence[Path],
    take_over: TakeOver | None,
) -> Context:
    everyone = group()
    everyone.lead(partial(_describe_new, config, run))
    progress = Logged(progress or Progress(), run.log_of(everyone.rank))
    progress.say(f"run: {run.path}")
    if everyone.size > 1:
        progress.say(f"{everyone.size} processes; the lines of process {everyone.rank}")
    graph = everyone.lead(partial(_scan, config, sources, run, progress, take_over=take_over))
    dataset = open_dataset(run.data, config.data, sources)
    everyone.lead(partial(put_others_aside, config, graph, run, dataset, progress))
    for note in dataset.notes:
        progress.say(note if note.startswith("warning: ") else f"note: {note}")
    small = too_small(len(dataset.val), config.evaluate.level, folds=config.folds is not None)
    if small is not None:
        progress.say(f"warning: {small}")
    if len(dataset.labeled) == 0:
        raise RunError("no labelled image is left to train on; add images to data.labeled")
    device = resolve_device(config.device, deterministic=config.deterministic)
    if config.deterministic and device.type == "cuda":
        progress.say("deterministic: kernels that give the same bits each time are used; they are slower")
    dataset = dataset.to_device(device)
    context = Context(
        config=config,
        run=run,
        graph=graph,
        dataset=dataset,
        device=device,
        progress=progress,
        others=others,
    )
    schedule.announce(context)
    return context


def _describe_new(config: Config, run: RunDir) -> None:
    """Describe a new run at once, for `status` and for workers; a changed one is described in `_scan`."""
    if not run.config.is_file():
        environment.describe(run, config)


def _scan(
    config: Config, sources: Sources, run: RunDir, progress: Progress, *, take_over: TakeOver | None
) -> Graph:
    """List and scan the images unless this was done, and return the graph of stages."""
    data = run.data
    remove(run.listings)  # a killed run may have left them
    try:
        # One walk over the folders gives the listings of a first scan and their fingerprint.
        first = not data.dataset.is_file()
        listings = list_sets(sources, run.listings, config.data, progress) if first else None
        graph = build_graph(config, listing_fingerprint(sources), run, fingerprints(config))
        # The verdict first, see `supersede_stale`. A fine-tuning before the folder of its model, which would
        # take it along, and bring it back.
        supersede_stale([graph.judgement], progress)
        _supersede_removed(graph, run, progress)
        supersede_stale(graph.stages(), progress)
        put_doubtful_aside(graph, progress)
        # After that, so that config.yaml never stands beside files of another configuration.
        environment.describe(run, config)
        if take_over is not None:
            take_over(graph, progress)

        def work() -> None:
            prepare(config.data, sources, data, config.seed, progress, listings=listings)

        run_stage(graph.data, work, progress)
    finally:
        remove(run.listings)
    return graph


def _supersede_removed(graph: Graph, run: RunDir, progress: Progress) -> None:
    """Move fine-tunings and controls that the configuration no longer has to `superseded/`.

    Other commands would use the files of a fine-tuning if they were left in place.
    """
    configured = {stage.path for stage in graph.stages()}
    for iteration in reversed(run.iterations()):
        finetunings = [ModelDir(folder).finetune.path for folder in sorted(iteration.path.glob("*"))]
        controls = [iteration.model(role).path for role in CONTROLS.values()]
        for path in (*finetunings, *controls):
            if path not in configured and ModelDir(path).record.is_file():
                # Its inputs are unknown here; to move a stage, its name and path are enough.
                record = valid_record(ModelDir(path).record) or {"name": path.name}
                removed = Stage(record["name"], path, "", {})
                progress.say(
                    f"{removed.name}: not in the configuration any more; kept in {supersede(removed)}"
                )


def _label_by_filter(context: Context) -> None:
    """Train the filter and label the pool with it, if there is one.

    §3.1: a smaller model (EfficientNet-B0) filters the pool in place of the teacher.
    """
    graph, config = context.graph, context.config
    if graph.filter is not None and graph.filter_labels is not None and config.filter is not None:
        filtering = context.training(config.filter, ModelDir(graph.filter.path), "filter")
        train_model(context, graph.filter, filtering)
        label_pool(context, graph.filter_labels, only(filtering), config.students[0].pseudo_label)


def _pretrained(context: Context) -> ModelDir | None:
    """Train a model on the folder names of the pool if this is configured, and return its folder."""
    stage, config = context.graph.pretraining, context.config.pretrain
    if stage is None or config is None:
        return None
    pretraining = context.on_pool_folders(config, ModelDir(stage.path))
    train_unchecked(context, stage, pretraining)
    return pretraining.folder


def _first_teachers(context: Context, initial: ModelDir | None) -> None:
    """Train the first teachers that are not trained elsewhere.

    They start from the weights in the folder `initial`, if it is not None.
    """
    for model in context.graph.teachers:
        if model.role == "teacher":
            training, _ = context.trainings(model)
            # The pretraining has other classes, so its classifier cannot be used.
            training = replace(training, initial=initial, new_head=initial is not None)
            train_model(context, model.training, training)
            finetune_model(context, model, training)


def _select_images(
    context: Context, iteration: Iteration, before: Iteration | None, teachers: Teachers
) -> None:
    pool.select_images(context, iteration, before, teachers)
    schedule.update(context)  # which the selection may give the length of a training


def _train_controls(context: Context, iteration: Iteration) -> None:
    """Train the controls of an iteration.

    Not in the paper: the same training on the labelled images alone shows what the pool adds.
    """
    teacher = context.graph.teacher
    first = None if teacher is None else context.trainings(teacher)[1]
    for model in iteration.controls:
        control = pool.control(context, iteration, model, first)
        train_model(context, model.training, control)
        finetune_model(context, model, control)
