"""Output that is closed, broken or of another encoding, and names that would act on the terminal."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tiny import Capture, refused

from noisystudent.console import Logged
from noisystudent.terminal import _SILENT_SECONDS, Terminal

ESCAPES = "\x1b[31mred\x07\n\u202e\x9b2J"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command, in which `$N` is the command line of this package."""
    program = f"{sys.executable} -m noisystudent"
    return subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"N": program, "PYTHONUNBUFFERED": ""} | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_a_closed_standard_output_is_one_line() -> None:
    done = shell("$N fields >&-")
    assert done.returncode == 2
    assert done.stderr == (
        "noisystudent: standard output is closed; redirect it, for example with > /dev/null\n"
    )


def test_a_closed_standard_error_does_not_go_to_standard_output() -> None:
    done = shell("$N recipes nothing 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("command", ["fields", "recipes demo", "--help"])
def test_a_broken_pipe_is_one_line(command: str) -> None:
    done = shell(f"$N {command} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 1
    assert done.stderr == (
        "noisystudent: standard output was closed by the program that reads it (broken pipe)\n"
    )


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    done = shell("$N recipes demo > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "noisystudent: standard output cannot be written: No space left on device\n"


def test_an_ascii_terminal_shows_escapes() -> None:
    done = shell("$N fields", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "rand-m9-n2-mstd0.5, \\u2026" in done.stdout
    done = shell("$N recipes ärger", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "no recipe or YAML file '\\xe4rger'" in done.stderr


def test_names_are_escaped_where_lines_are_printed(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / f"{ESCAPES}.jpg").write_text("no image")
    shutil.copy(images / "test" / "red" / "00.png", tmp_path / "good.png")
    assert tiny.call("predict", finished, tmp_path) == 0
    lines = capsys.readouterr().err.splitlines()
    model, bad = lines  # exactly two
    assert model.startswith("noisystudent: the model is student-1")
    assert r"\x1b[31mred\x07\n\u202e\x9b2J.jpg: not an image" in bad
    assert model.isprintable() and bad.isprintable()
    assert r"no field 'teacher.\x1b[31mred'" in refused(capsys, 2, "run", "--teacher.\x1b[31mred", "1")
    assert r"/\x1b[31m" in refused(capsys, 2, "run", "--labeled", "/\x1b[31m")


def test_names_are_escaped_in_progress_tables_and_log(tmp_path: Path, capsys: Capture) -> None:
    from noisystudent.cli import screen

    progress = Logged(Terminal(), tmp_path / "run.log")
    progress.say(f"note: class folder '{ESCAPES}'")
    screen.table(("a", "b"), [(ESCAPES, "[bold]")])
    for text in (capsys.readouterr().out, (tmp_path / "run.log").read_text(encoding="utf-8")):
        assert r"\x1b[31mred\x07\n\u202e\x9b2J" in text
        assert all(line.isprintable() for line in text.splitlines())


def test_a_bar_has_rate_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(10**6))
    monkeypatch.setattr("noisystudent.terminal.time.monotonic", lambda: float(next(seconds)))
    shown, terminal = io.StringIO(), Terminal()
    terminal._console = Console(file=shown, force_terminal=True, width=120)
    terminal.advance("teacher", 10, 40, "loss 1.500")
    terminal.advance("teacher", 14, 40, "[loss] 0.250")
    terminal.close()
    text = shown.getvalue()
    assert "4.0/s  [loss] 0.250" in text and "14/40" in text


def test_work_that_begins_again_under_the_same_name_has_a_rate_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Robustness is measured once for each resolution of the models."""
    clock, printed = [0.0], list[str]()
    monkeypatch.setattr("noisystudent.terminal.time.monotonic", lambda: clock[0])
    terminal = Terminal()
    monkeypatch.setattr(terminal._console, "print", printed.append)
    for done in (0, 100, 0, 10):
        terminal.advance("robustness", done, 100)
        clock[0] += 100
    assert printed[-1] == "  robustness: 10 of 100, 0.1 per second, 900 s left"


def test_a_watched_table_shows_its_end_on_a_low_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from noisystudent.cli import screen

    monkeypatch.setenv("TERM", "xterm")
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=40, height=6, highlight=False)
    monkeypatch.setattr(screen, "_console", lambda: console)
    rows = [(f"stage-{number:02}",) for number in range(20)]
    with screen.changing_table(("stage",)) as show:
        show(rows, "running: stage-19")
        text = shown.getvalue()
        assert "running: stage-19" in text and "stage-18" in text and "stage-03" not in text
    assert all(stage in shown.getvalue() for (stage,) in rows)


@settings(max_examples=50, deadline=None)
@given(gaps=st.lists(st.floats(0.01, 200), min_size=1, max_size=30))
def test_plain_lines_are_never_more_than_a_minute_apart(gaps: list[float]) -> None:
    """Work that reports after these gaps; the thread wakes a little after the time that it waits for."""
    clock, terminal, printed = [1000.0], Terminal(), [1000.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noisystudent.terminal.time.monotonic", lambda: clock[0])
        patch.setattr(terminal._console, "print", lambda _: printed.append(clock[0]))
        terminal._printed = clock[0]
        for done, gap in enumerate(gaps):
            after = clock[0] + gap
            while (woken := terminal._printed + _SILENT_SECONDS + 0.1) <= after:
                clock[0] = woken
                terminal._beat(clock[0])
            clock[0] = after
            terminal.advance("teacher", done, 100, "loss 1.0")
    assert max(later - before for before, later in pairwise([*printed, clock[0]])) <= 60


def test_work_without_a_word_is_still_heard_of(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("noisystudent.terminal._SILENT_SECONDS", 0.02)
    terminal = Terminal()
    terminal.say("selection-1: begins")
    with terminal.heartbeat():
        time.sleep(0.3)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "selection-1: begins" and others
    assert all("s ago: selection-1: begins" in line for line in others)
    time.sleep(0.1)
    assert capsys.readouterr().out == "", "the thread has ended with the block"


def test_a_terminal_shows_predictions_escaped_and_a_program_reads_them_as_they_are(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(images / "test" / "red" / "00.png", tmp_path / "\x1b[31m.png")
    assert "\x1b[31m.png" in tiny.output(capsys, "predict", finished, tmp_path)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert tiny.call("predict", finished, tmp_path) == 0
    assert r"\x1b[31m.png" in capsys.readouterr().out


def test_an_argument_that_is_not_utf8_is_one_line(capsys: Capture) -> None:
    for words in (("run", "--teacher.model.name", "\udcff"), ("evaluate", "\udcff", "--data", "x")):
        assert "'\\udcff' is not UTF-8" in refused(capsys, 2, *words)


def test_a_long_name_is_printed_without_its_middle(capsys: Capture) -> None:
    for words in (("recipes", "x" * 100_000), ("predict", "run", "/x" * 50_000), ("run", "--" + "x" * 9000)):
        assert len(refused(capsys, 2, *words)) < 2000
