"""`check` audits images, and keeps what it was asked to keep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
from tiny import Capture, output, refused

from noisystudent import self_training
from noisystudent.console import Progress
from noisystudent.data.sources import open_sources
from noisystudent.errors import Stopped


def test_check_audits_and_trains_nothing(images: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(images, tmp_path / "images")
    given = tmp_path / "images"
    shutil.copy(given / "val" / "red" / "00.png", given / "pool" / "red" / "leak.png")
    shutil.copy(given / "pool" / "red" / "00.png", given / "pool" / "red" / "twin.png")
    out = tmp_path / "audit"
    lines = output(capsys, "check", *tiny.flags(given), "--out", out, "--data.resolution", "16").splitlines()
    for line in ("labeled: 18 images", "val: 12 images", "pool: 42 images", "  red: 6 labels"):
        assert line in lines
    leaks = (out / "leaks.csv").read_text()
    assert "pool,red/leak.png,val,red/00.png" in leaks and "pool,red/twin.png,pool,red/00.png" in leaks
    assert not list(out.glob("iteration-*"))


def test_check_without_out_keeps_nothing(
    images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels of all images are among what it would keep."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    words = ("check", *tiny.flags(images), "--data.resolution", "16")
    kept = output(capsys, *words, "-o", tmp_path / "kept").splitlines()
    assert (tmp_path / "kept" / "ledger.csv").is_file()
    lines = output(capsys, *words).splitlines()
    assert lines == [*kept[:-2], "ledger.csv and leaks.csv are not kept; give --out FOLDER to keep them"]

    class StoppedEarly(Progress):
        def advance(self, *_: object) -> None:
            assert list((tmp_path / "temporary").iterdir())
            self.stop.signal = "SIGTERM"

    config = tiny.config(images)
    with pytest.raises(Stopped):
        self_training.audit(config, open_sources(config.data), None, progress=StoppedEarly())
    assert [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()] == []


def test_a_message_names_no_list_that_is_gone(images: Path, tmp_path: Path, capsys: Capture) -> None:
    given = Path(shutil.copytree(images, tmp_path / "images"))
    out, words = tmp_path / "out", ("check", *tiny.flags(given), "--data.resolution", "16")
    shutil.rmtree(given / "pool")
    shutil.copytree(given / "val", given / "pool")
    for name in ("leaks", "ledger"):
        line = refused(capsys, 2, *words, "--out", out)
        assert line.endswith(f"; all are in {out}/{name}.csv") and (out / f"{name}.csv").is_file()
        gone = refused(capsys, 2, *words)
        assert gone == line.replace(f"all are in {out}/{name}.csv", "give --out FOLDER to keep the list")
        for file in given.glob("val/*/*.png"):
            file.write_bytes(b"garbage")
