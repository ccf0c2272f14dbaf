"""Stages whose work writes a few letters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from noisystudent.run.fingerprint import fingerprint
from noisystudent.run.stages import Stage

Work = Callable[[], dict[str, object] | None]


def forbidden() -> None:
    raise AssertionError("this work was done before")


def make(run: Path, kind: str, version: str) -> tuple[Stage, Work]:
    """A stage of `version` and the work that makes it."""
    inputs = {"config": fingerprint(version), "data": fingerprint("same")}
    path = run / "iteration-1" / ("chosen.parquet" if kind == "file" else "labels")
    beside = path.with_name("chosen.json")
    stage = Stage(kind, path, fingerprint(kind, inputs), inputs, also=(beside,) if kind == "file" else ())

    def work() -> dict[str, object]:
        if kind == "file":
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(version)
            path.write_text(version)
        else:
            for part in ("a", "b"):
                (path / part).write_text(version)
        return {"version": version}

    return stage, work


def content(stage: Stage) -> set[str]:
    files = [stage.path, *stage.also] if stage.path.suffix else [stage.path / "a", stage.path / "b"]
    return {file.read_text() for file in files}
