"""A worker: it labels the pool of a run together with the run itself and with other workers."""

from __future__ import annotations

from pathlib import Path

from noisystudent.config import Config, PseudoLabelConfig
from noisystudent.console import Progress
from noisystudent.data.prepare import open_dataset
from noisystudent.data.sources import listing_fingerprint, open_sources
from noisystudent.errors import Stopped
from noisystudent.inference.existing import fingerprints
from noisystudent.run.build import build_graph
from noisystudent.run.graph import Graph
from noisystudent.run.rundir import ModelDir, RunDir
from noisystudent.run.stages import Stage, Status, state
from noisystudent.runtime import resolve_device
from noisystudent.self_training.context import Context
from noisystudent.self_training.first_teachers import Teachers, labeling, only
from noisystudent.self_training.folds import with_choices
from noisystudent.self_training.labels import write_labels


def label_as_worker(config: Config, out: Path, *, progress: Progress | None = None) -> bool:
    """Label parts of the pool in the run directory `out`, if that is what the run has to do next.

    The run has begun the labelling, and may be labelling too, or have been killed. The call ends when every
    part is labelled. It writes nothing but parts, and needs no lock of the run.

    Args:
        config: configuration of the run, as in its config.yaml.
        out: run directory.
        progress: receives the progress, and stops the work. None: nothing is printed.

    Returns:
        False if nothing is left to label in this run.

    Raises:
        Stopped: a signal was received, the run is not ready or damaged, or it will label again for a later
            student. The same command may label later.
        InputError: the images cannot be used.
        RunError: the logits are not finite, or the disk is full.
    """
    progress, run, sources = progress or Progress(), RunDir(out), open_sources(config.data)
    graph = build_graph(config, listing_fingerprint(sources), run, fingerprints(config))
    stage = _next_labels(graph, out)
    if stage is None:
        return False
    if damage := graph.damage_before(stage):
        raise _not_ready(out, damage)
    device = resolve_device(config.device, deterministic=config.deterministic)
    context = Context(
        config=config,
        run=run,
        graph=graph,
        dataset=open_dataset(run.data, config.data, sources).to_device(device),
        device=device,
        progress=progress,
    )
    if stage != graph.filter_labels:  # the filter labels before there are predictions out of fold
        context = with_choices(context)
    teachers, labels = _teachers(context, stage)

    def join() -> None:
        # When the weights are loaded: neither they nor the folder are of other inputs.
        if _next_labels(graph, out) != stage:
            raise _not_ready(out, f"{stage.name} has ended")

    write_labels(context, stage, teachers, labels, join)
    _require_last(graph, stage)
    return True


def _require_last(graph: Graph, stage: Stage) -> None:
    every = graph.labelings()
    if stage != every[-1]:
        later = every[every.index(stage) + 1].name
        raise Stopped(f"{stage.name} is labelled, and {later} comes later; start this command again")


def _next_labels(graph: Graph, out: Path) -> Stage | None:
    """The next stage of a run, which is a labelling that has begun; None if all labellings are done.

    Raises:
        Stopped: the next stage is another one, or has not begun.
    """
    labels = graph.labelings()
    left = [(stage, status) for stage in graph.stages() if (status := state(stage).status) != Status.DONE]
    if not any(stage in labels for stage, _ in left):
        return None
    stage, status = left[0]
    if stage not in labels:
        raise _not_ready(out, f"{stage.name} comes first")
    if status is not Status.PARTIAL:
        raise _not_ready(out, f"{stage.name} has not begun")
    return stage


def _not_ready(out: Path, why: str) -> Stopped:
    return Stopped(f"{out} has nothing to label now: {why}; start `run`, and this command again later")


def _teachers(context: Context, stage: Stage) -> tuple[Teachers, PseudoLabelConfig]:
    """The teachers of a labelling, and its settings."""
    graph, config = context.graph, context.config
    if graph.filter is not None and config.filter is not None and stage == graph.filter_labels:
        filtering = context.training(config.filter, ModelDir(graph.filter.path), "filter")
        return only(filtering), config.students[0].pseudo_label
    number = [iteration.labels for iteration in graph.iterations].index(stage)
    labels = graph.iterations[number].config.pseudo_label
    if number == 0:
        return labeling(context), labels
    return only(context.trainings(graph.iterations[number - 1].student)[1]), labels
