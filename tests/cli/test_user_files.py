"""Files of the user are never changed: no folder of photographs, and no file at the place of an output."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import tiny
from tiny import Capture, call, refused

from noisystudent.errors import InputError
from noisystudent.run.files import check_out
from noisystudent.run.lock import lock

FILES = (
    "ledger.csv",
    "leaks.csv",
    "manifest.parquet",
    "config.yaml",
    "environment.json",
    "run.log",
    "notes.txt",
)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def shop(given: Path) -> Path:
    """A folder of the user with photographs and files under names that a run also uses."""
    given.rename(given.with_name("store"))
    shop = given.with_name("shop")
    shop.mkdir()
    shutil.move(given.with_name("store"), shop / "store")
    for name in FILES:
        (shop / name).write_text("mine")
    return shop


def test_check_writes_into_no_folder_of_the_user(shop: Path, capsys: Capture) -> None:
    before = snapshot(shop)
    line = refused(capsys, 2, "check", *tiny.flags(shop / "store"), "--out", shop)
    assert line.endswith(
        f"--out {shop} holds files that are not of a run ('config.yaml', 'environment.json', 'leaks.csv', …);"
        " choose a new or an empty folder"
    )
    assert snapshot(shop) == before


@pytest.mark.parametrize("command", ["run", "train"])
def test_run_writes_into_no_folder_of_the_user(
    shop: Path, recipe: Path, capsys: Capture, command: str
) -> None:
    before = snapshot(shop)
    flags = tiny.flags(shop / "store")
    labels = [
        word for at in range(0, len(flags), 2) if flags[at] != "--unlabeled" for word in flags[at : at + 2]
    ]
    code = call(command, recipe, *(labels if command == "train" else flags), "--out", shop)
    assert code == 2
    assert "choose a new or an empty folder" in capsys.readouterr().err
    assert snapshot(shop) == before


def test_ablate_writes_into_no_folder_of_the_user(shop: Path, capsys: Capture) -> None:
    before = snapshot(shop)
    code = call("ablate", "ablation-noise", *tiny.flags(shop / "store"), "--out", shop)
    assert code == 2 and "choose a new or an empty folder" in capsys.readouterr().err
    assert snapshot(shop) == before


def test_a_folder_is_of_one_kind(tmp_path: Path) -> None:
    with lock(tmp_path / "run"):
        pass
    (tmp_path / "run" / "config.yaml").write_text("")
    with lock(tmp_path / "run"):
        pass
    with (
        pytest.raises(InputError, match="is the folder of a run, not of a check"),
        lock(tmp_path / "run", "check"),
    ):
        raise AssertionError("a check in the folder of a run")


def test_the_marker_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    (tmp_path / "run").mkdir()
    os.symlink(tmp_path / "photo.jpg", tmp_path / "run" / ".noisystudent")
    with pytest.raises(InputError, match="cannot be used"), lock(tmp_path / "run"):
        raise AssertionError("locked a link")
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"


def commands(run: Path, images: Path) -> dict[str, tuple[list[object], str]]:
    """For each command that writes a file: its arguments, and the ending of the file."""
    labels = run / "iteration-1" / "labels"
    return {
        "predict": (["predict", run, images / "test" / "red" / "00.png"], ".csv"),
        "evaluate": (["evaluate", run, "--data", images / "test"], ".json"),
        "select": (["select", labels], ".parquet"),
        "export": (["export", run], ".safetensors"),
    }


@pytest.mark.parametrize("name", ["predict", "evaluate", "select", "export"])
def test_a_file_is_replaced_only_with_overwrite(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    words, suffix = commands(finished, images)[name]
    out = tmp_path / f"mine{suffix}"
    out.write_text("mine")
    line = refused(capsys, 2, *words, "--out", out)
    assert line.endswith(f"--out is {out}, which exists; name another file, or give --overwrite")
    assert out.read_text() == "mine"
    assert call(*words, "--out", out, "--overwrite") == 0
    assert out.read_bytes() != b"mine"


@pytest.mark.parametrize("name", ["predict", "evaluate", "select", "export"])
def test_an_unknown_ending_is_refused(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    """`predict RUN a.jpg --out a.jpg` is a mistake; CSV must not replace the photograph."""
    words, suffix = commands(finished, images)[name]
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"mine")
    for more in ([], ["--overwrite"]):
        line = refused(capsys, 2, *words, "--out", photo, *more)
        assert f"--out is {photo}; the file must end in " in line and suffix in line
    assert photo.read_bytes() == b"mine"


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    """So does /dev/stdout, which root could replace by a file."""
    os.mkfifo(tmp_path / "rows.csv")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"rows.csv, which is a device, a pipe or a socket; name a file"):
            check_out(tmp_path / "rows.csv", overwrite=overwrite)
    assert (tmp_path / "rows.csv").is_fifo()


def test_a_report_replaces_no_file_but_its_own(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert call("report", run) == 0  # the run's own report may be replaced
    (run / ".noisystudent").unlink()
    (run / "report.html").write_text("mine")
    assert "give --overwrite" in refused(capsys, 2, "report", run)
    assert (run / "report.html").read_text() == "mine"
    assert call("report", run, "--overwrite") == 0


@pytest.mark.parametrize(
    "words", [("run", "--labeled", ""), ("check", "--labeled="), ("predict", "run", ""), ("run", "--out", "")]
)
def test_an_empty_value_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "empty" in refused(capsys, 2, *words)
    assert not list(tmp_path.iterdir())
