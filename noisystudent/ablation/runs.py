"""Make one run of a matrix, taking over the stages that other runs have finished."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from noisystudent.config import Config
from noisystudent.console import Prefixed, Progress, append_log
from noisystudent.errors import NoisyStudentError, Stopped
from noisystudent.run import reuse
from noisystudent.run.graph import Graph
from noisystudent.run.lock import MARKER
from noisystudent.run.rundir import RECORD, ModelDir, RunDir, SetName
from noisystudent.run.stages import Status, state


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run directory of a matrix."""

    name: str
    config: Config
    folder: RunDir
    graph: Graph

    @property
    def judged(self) -> SetName:
        """Name of the set that the models are compared on."""
        return "test" if self.config.data.test else "val"

    @property
    def done(self) -> bool:
        """True if every stage is done, and the predictions of its models are there, which no stage owns."""
        done = all(state(stage).status is Status.DONE for stage in self.graph.stages())
        models = self.graph.models()
        return done and all(ModelDir(m.last.path).predictions(self.judged).is_file() for m in models)


@dataclass(frozen=True, slots=True)
class Library:
    """The run directories of a matrix, which share finished stages.

    Attributes:
        out: folder that contains them as `<cell>/seed-<n>`.
    """

    out: Path
    # Stages that were seen finished, for each run directory, so that they are looked up on disk only once.
    _known: dict[Path, set[tuple[str, str]]] = field(default_factory=dict)

    def missing(self, run: Run) -> set[tuple[str, str]]:
        """(name, fingerprint) of the stages of `run` that no run directory has finished."""
        known = self._known.setdefault(run.folder.path, set())
        others = _folders(self.out)
        left = [stage for stage in run.graph.stages() if (stage.name, stage.fingerprint) not in known]
        missing = {(s.name, s.fingerprint) for s in left if reuse.find(s, run.folder.path, others) is None}
        known |= {(stage.name, stage.fingerprint) for stage in left} - missing
        return missing


def _folders(out: Path) -> list[Path]:
    """Every run directory in `out`, also those that an earlier version of the matrix left there."""
    return sorted(folder for folder in out.glob("*/seed-*") if RunDir(folder).config.is_file())


def attempt(name: str, config: Config, folder: RunDir, out: Path, progress: Progress) -> str | None:
    """Make one run.

    Args:
        name: of the run, which is put in front of its lines.
        config: of the run.
        folder: run directory.
        out: folder of all runs, from which finished stages are taken over.
        progress: receives the lines and bars.

    Returns:
        Why the run failed, in one line. None: it did not fail.

    Raises:
        Stopped: a signal came.
    """
    from noisystudent.self_training import self_train  # imports torch and timm, which a plan does not need

    progress = Prefixed(progress, name)
    try:
        take_over = partial(_take_over, folder.path, out)
        self_train(config, folder.path, others=_with_features(out), take_over=take_over, progress=progress)
    except Stopped:
        raise
    except NoisyStudentError as error:
        # A signal to the process group also ends the decoding processes, which looks like a failure here.
        progress.check()
        return _failed(str(error), folder, progress)
    except Exception as error:  # any other error, a bug included, must not stop the other runs
        return _failed(f"{type(error).__name__}: {error}", folder, progress, traceback.format_exc())
    return None


def _failed(reason: str, folder: RunDir, progress: Progress, details: str = "") -> str:
    """Print why a run failed, and append it to the log if the folder already is a run directory."""
    reason = " ".join(reason.split())
    progress.say(f"failed: {reason}")
    if (folder.path / MARKER).is_file():
        append_log(folder.log, f"failed: {reason}\n{details}".rstrip())
    return reason


def _take_over(folder: Path, out: Path, graph: Graph, progress: Progress) -> None:
    """Take over the stages that other runs have finished."""
    lenders = _lenders(graph, folder, out)
    taken: dict[Path, list[str]] = {}  # run directory: names of its stages
    for stage in graph.stages():
        progress.check()
        lender = reuse.take_over(stage, folder, lenders)
        if lender is not None:
            taken.setdefault(lender, []).append(stage.name)
    for lender, names in taken.items():
        progress.say(f"{', '.join(names)}: taken over from {lender.relative_to(out)}")


def _with_features(out: Path) -> list[Path]:
    """Run directories of this ablation and of those beside it, which may have features of the same images."""
    return sorted(path.parent.parent for path in out.parent.glob(f"*/*/seed-*/embeddings*/{RECORD}"))


def _lenders(graph: Graph, folder: Path, out: Path) -> list[Path]:
    """The other run directories: first those that evaluated the same models, then those with any evaluation.

    Test results of a model are kept beside its weights. A stage taken over from an evaluated run brings them
    along, so that they are not computed again.
    """

    def rank(other: Path) -> tuple[bool, bool]:
        same = reuse.find(graph.judgement, folder, [other]) is not None
        return not same, not RunDir(other).verdict.exists()

    return sorted((other for other in _folders(out) if other != folder), key=rank)
