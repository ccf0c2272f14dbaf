"""A second scan of the images of a run, which have changed or can be read otherwise."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

from noisystudent.data.sources.folder import FolderSource
from noisystudent.errors import Stopped
from noisystudent.self_training import schedule, self_train


def stop(*_: object) -> None:
    raise Stopped("a signal")


class StoppedAtOnce(tiny.Remembered):
    """A signal comes after the first images."""

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        raise Stopped(f"a signal at {done} of {total} of {task}{note}")


def test_a_scan_that_was_stopped_is_begun_again_with_other_images(images: Path, tmp_path: Path) -> None:
    given = shutil.copytree(images, tmp_path / "images")
    config, scanning = tiny.config(given, ("students", 0)), StoppedAtOnce()
    with pytest.raises(Stopped):
        self_train(config, tmp_path / "run", progress=scanning)
    (given / "pool" / "blue" / "00.png").unlink()
    with pytest.raises(Stopped):
        self_train(config, tmp_path / "run", progress=scanning)
    assert "data: made from other inputs" in scanning.lines[-1]


def test_what_was_trained_on_labelled_images_that_cannot_be_read_now_is_not_kept(
    images: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, out = shutil.copytree(images, tmp_path / "images"), shutil.copytree(finished, tmp_path / "run")
    (more / "pool" / "blue" / "01.png").unlink()  # so that the images are scanned again
    read = FolderSource.read

    def fail(source: FolderSource, *place: Any) -> Any:
        if place[-1] == "blue/00.png":
            raise OSError(errno.EIO, "Input/output error")
        return read(source, *place)

    monkeypatch.setattr(FolderSource, "read", fail)
    monkeypatch.setattr(schedule, "announce", stop)
    with pytest.raises(Stopped):
        tiny.run(tiny.config(more, ("data.max_bad_fraction", 0.5)), out)
    assert not list(out.glob("iteration-*/*/model.safetensors"))
    aside = out / "superseded" / "damaged" / "iteration-0" / "teacher" / "model.safetensors"
    assert tiny.digest(aside) == tiny.digest(finished / "iteration-0" / "teacher" / "model.safetensors")
