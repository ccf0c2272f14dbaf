"""Runs that nothing interrupts: what all struck runs must end with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import sets
from engine import Box, Call, Outcome, Strike, Zygote
from results import results


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Attributes:
        words: arguments of `run`, without --out.
        run: its run directory. Not to be changed: copy it.
        results: {file: digest}.
        operations: file operations in the run directory.
        seconds: duration.
        size: bytes of all its files.
    """

    words: tuple[str, ...]
    run: Path
    results: dict[str, str]
    operations: int
    seconds: float
    size: int


class References:
    """Uninterrupted runs by the name of their configuration; each is made at its first use."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self.zygote, self._folder = zygote, folder
        self._runs: dict[str, Reference] = {}
        self._interrupted: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Reference:
        if name not in self._runs:
            box = Box(self._folder / str(len(self._runs))).make()
            words, run = sets.write(name, box.user), box.path / "run"
            outcome = self._run(words, run, box, None)
            assert outcome.code == 0, outcome
            size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
            self._runs[name] = Reference(words, run, results(run), outcome.operations, outcome.seconds, size)
        return self._runs[name]

    def interrupted(self, name: str) -> Path:
        """Return a run that was killed while the third snapshot of its first student was written."""
        if name not in self._interrupted:
            reference = self[name]
            box = Box(self._folder / f"interrupted-{len(self._interrupted)}").make()
            run = box.path / "run"
            # The third snapshot is half written.
            below = f"{run}/iteration-1/student/checkpoint/.step-00000015.partial"
            outcome = self._run(reference.words, run, box, Strike(operation=2), below)
            assert outcome.strikes == 1, outcome
            self._interrupted[name] = run
        return self._interrupted[name]

    def _run(
        self, words: tuple[str, ...], run: Path, box: Box, strike: Strike | None, below: str = ""
    ) -> Outcome:
        call = Call((*words, "--out", str(run)), strike, below=below or str(run), seconds=600)
        return self.zygote.run(call, box)


def copied(run: Path, box: Box) -> Path:
    """Return a copy of a run directory in the folder of an attack."""
    return Path(shutil.copytree(run, box.path / "run", symlinks=True))


def again(
    zygote: Zygote, reference: Reference, box: Box, strike: Strike | None = None
) -> tuple[Call, Outcome]:
    """Call `run` into the run directory of the attack; returns the call and its outcome."""
    run = box.path / "run"
    call = Call((*reference.words, "--out", str(run)), strike, below=str(run), seconds=600)
    return call, zygote.run(call, box)
