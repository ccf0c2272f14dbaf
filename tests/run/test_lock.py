"""Lock of a run directory: one process holds it, and one that has ended does not."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny

from noisystudent.errors import InputError, RunError
from noisystudent.run.lock import check_usable, is_locked, lock

HOLD = """
import os, sys, time
from pathlib import Path
from noisystudent.run.lock import lock
with lock(Path(sys.argv[1])):
    child = os.fork() if sys.argv[2] == "fork" else 1
    if child:
        print("held", flush=True)
    time.sleep(60)
"""


def holder(run: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(run), mode]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("mode", ["alone", "fork"])
def test_another_process_holds_the_lock_until_it_dies(tmp_path: Path, mode: str) -> None:
    process = holder(tmp_path / "run", mode)
    try:
        expected = rf"in use by process {process.pid}; choose another --out"
        with pytest.raises(InputError, match=expected), lock(tmp_path / "run"):
            raise AssertionError("two runs hold the lock of one directory")
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while True:
            try:
                with lock(tmp_path / "run"):
                    assert (
                        tmp_path / "run" / ".noisystudent"
                    ).read_text() == f"run {os.getpid()} {socket.gethostname()}\n"
                break
            except InputError:
                assert time.monotonic() < deadline, "the lock of an ended process still blocks"
                time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if mode == "fork" else process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_lock_is_free_again_after_the_block_even_when_it_raises(tmp_path: Path) -> None:
    with pytest.raises(RunError), lock(tmp_path):
        raise RunError("broken")
    with lock(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()}"), lock(tmp_path):
        raise AssertionError("locked twice")
    with lock(tmp_path):
        pass


def test_a_look_at_a_folder_refuses_nobody(tmp_path: Path) -> None:
    with lock(tmp_path):
        pass
    shared = os.open(tmp_path / ".noisystudent", os.O_RDONLY)
    fcntl.flock(shared, fcntl.LOCK_SH)  # as `is_locked` in another process
    threading.Timer(0.2, os.close, [shared]).start()
    with lock(tmp_path):
        assert is_locked(tmp_path)


def test_a_run_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--out .*file.* cannot be used"), lock(tmp_path / "file" / "run"):
        raise AssertionError("locked a file")


def test_a_new_folder_is_not_kept_unless_another_process_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mine = tmp_path / "run", tmp_path / "run" / "mine"
    check_usable(folder)
    assert not folder.exists()
    locks = fcntl.flock

    def shared(descriptor: int, how: int) -> None:
        locks(descriptor, how)
        mine.write_text("of another process")

    monkeypatch.setattr(fcntl, "flock", shared)
    check_usable(folder)
    assert mine.read_text() == "of another process"


def test_one_process_labels_into_a_folder(finished: Path, images: Path, tmp_path: Path) -> None:
    words = ("label", finished, "--unlabeled", images / "val", "--out", tmp_path / "labels")
    with lock(tmp_path / "labels", "labelling"):
        assert tiny.call(*words) == 2
    assert list((tmp_path / "labels").glob("[!.]*")) == []
    assert tiny.call(*words) == 0
