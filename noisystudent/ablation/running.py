"""The runs of a matrix, one after the other or side by side, each taking over what another has made."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from noisystudent import sharing
from noisystudent.ablation.matrix import Matrix
from noisystudent.config import Config, DataConfig
from noisystudent.console import note
from noisystudent.data.sources import listing_fingerprint, open_sources
from noisystudent.errors import InputError, NoisyStudentError, Stopped
from noisystudent.graph import Graph, build_graph
from noisystudent.rundir import lock
from noisystudent.runtime import StopFlag, Voice
from noisystudent.stages import Status, state

Ended = Callable[["Run", str | None], None]
"""Told of each run that ends, and why it failed; None: it did not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run directory of a matrix."""

    name: str
    config: Config
    folder: Path
    graph: Graph

    @property
    def done(self) -> bool:
        """Nothing is left to do."""
        return all(state(stage).status is Status.DONE for stage in self.graph.stages())


@dataclass(frozen=True, slots=True)
class Library:
    """The run directories of a matrix, which lend each other stages.

    Attributes:
        out: the folder they are in: `<cell>/seed-<n>`.
    """

    out: Path
    _known: dict[Path, set[tuple[str, str]]] = field(default_factory=dict)

    def missing(self, run: Run) -> set[tuple[str, str]]:
        """(name, fingerprint) of the stages that `run` would have to make itself."""
        known = self._known.setdefault(run.folder, set())
        others = _folders(self.out)
        left = [stage for stage in run.graph.stages() if (stage.name, stage.fingerprint) not in known]
        gone = {(s.name, s.fingerprint) for s in left if sharing.find(s, run.folder, others) is None}
        known |= {(stage.name, stage.fingerprint) for stage in left} - gone
        return gone


def _folders(out: Path) -> list[Path]:
    """Every run directory in `out`, of this matrix or of what it was before."""
    return sorted(file.parent for file in out.glob("*/seed-*/config.yaml"))


def plan(matrix: Matrix, out: Path) -> list[Run]:
    """Every run of the matrix with its stages, in the order in which they should start.

    Raises:
        InputError: images that are not there; names the run.
    """
    listings: dict[DataConfig, str] = {}
    runs: list[Run] = []
    for name, folder, seed in matrix.runs():
        config, where = matrix.config(folder, seed), out / name
        if config.data not in listings:
            try:
                listings[config.data] = listing_fingerprint(open_sources(config.data))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        graph = build_graph(config, listings[config.data], where)
        runs.append(Run(name=name, config=config, folder=where, graph=graph))
    return runs


def run_all(
    runs: list[Run], out: Path, ended: Ended, *, processes: int, stop: StopFlag, voice: Voice
) -> None:
    """Make every run that is not done; one that fails does not keep the others from being made.

    Args:
        runs: from `plan`.
        out: the folder of the matrix, owned by the caller.
        ended: called after each run that was not done before.
        processes: how many at a time; one is this process itself.
        stop: of this process.
        voice: told what every run says.

    Raises:
        Stopped: a signal came; what is done stays.
    """
    left = [run for run in runs if not run.done]
    if processes == 1:
        for run in left:
            ended(run, attempt(run.name, run.config, run.folder, out, stop, voice))
    else:
        from noisystudent.ablation.processes import side_by_side

        side_by_side(left, Library(out), ended, processes=processes, stop=stop, voice=voice)


def attempt(name: str, config: Config, folder: Path, out: Path, stop: StopFlag, voice: Voice) -> str | None:
    """Make one run; returns why it failed, in one line, or None.

    Raises:
        Stopped: a signal came.
    """
    from noisystudent.self_training import self_train

    said = _Told(name, folder, voice)
    try:
        sources = open_sources(config.data)
        graph = build_graph(config, listing_fingerprint(sources), folder)
        with lock(folder):
            for lender, taken in _take_over(graph, folder, out, stop).items():
                said.say(f"{', '.join(taken)}: taken over from {lender.relative_to(out)}")
        self_train(config, sources, folder, stop=stop, voice=said)
    except Stopped:
        raise
    except NoisyStudentError as error:
        stop.check()  # a signal to the whole group of processes ends this one's workers, too
        reason = str(error)
    except Exception as error:  # the other cells stand, whatever befell this one
        reason = f"{type(error).__name__}: {error}"
        note(folder / "run.log", traceback.format_exc())
    else:
        return None
    reason = " ".join(reason.split())
    said.say(f"failed: {reason}")
    return reason


def _take_over(graph: Graph, folder: Path, out: Path, stop: StopFlag) -> dict[Path, list[str]]:
    """Take what others have made of a run; returns run to stages."""
    lenders = _lenders(graph, folder, out)
    taken: dict[Path, list[str]] = {}
    for stage in graph.stages():
        stop.check()
        lender = sharing.take_over(stage, folder, lenders)
        if lender is not None:
            taken.setdefault(lender, []).append(stage.name)
    return taken


def _lenders(graph: Graph, folder: Path, out: Path) -> list[Path]:
    """The other runs, first one that judged the same models, then those that judged any.

    What a model did on the tests is kept beside its weights, and need not be done again either.
    """

    def rank(other: Path) -> tuple[bool, bool]:
        same = sharing.find(graph.judgement, folder, [other]) is not None
        return not same, not (other / graph.judgement.path.name).exists()

    return sorted((other for other in _folders(out) if other != folder), key=rank)


class _Told:
    """The voice of one run: its name before every line, and the lines in its run.log too."""

    def __init__(self, name: str, folder: Path, voice: Voice) -> None:
        self._name, self._log, self._voice = name, folder / "run.log", voice

    def say(self, line: str) -> None:
        self._voice.say(f"{self._name}: {line}")
        note(self._log, line)

    def progress(self, task: str, done: int, total: int) -> None:
        self._voice.progress(f"{self._name}: {task}", done, total)
