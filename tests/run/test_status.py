"""What `status` says of a run that is finished, killed, at work or damaged."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny
from tiny import Capture, output, table

from noisystudent.run.lock import lock
from noisystudent.run.record import read_record, write_record
from noisystudent.run.rundir import RunDir
from noisystudent.run.status import recorded


def test_status_lists_where_a_run_stands(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    text = output(capsys, "status", finished)
    assert text.endswith("\n")
    rows = table(text)
    assert rows.popitem() == ("finished:", "judgement; 36 of 36 steps in all (100%)")
    assert list(rows) == ["data", "teacher", "labels-1", "selection-1", "student-1", "control-1", "judgement"]
    assert all(row.startswith("done") for row in rows.values())
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    record = out / "iteration-1" / "student" / "stage.json"
    write_record(record, (read_record(record) or {}) | {"status": "running"})
    (out / "verdict.stage.json").unlink()
    rows = table(output(capsys, "status", out))
    assert rows["student-1"].startswith("interrupted") and "judgement" not in rows, "no process has the lock"
    with lock(out):
        assert table(output(capsys, "status", out))["student-1"].startswith("running")


def test_watch_shows_the_run_until_it_ends(
    finished: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    record = out / "iteration-1" / "student" / "stage.json"
    done = read_record(record) or {}
    seen: list[str] = []
    write_record(record, done | {"status": "running", "seconds": None})
    lines = (record.parent / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if '"loss"' in line][-1]
    with ExitStack() as working:
        working.enter_context(lock(out))

        def wait(_: float) -> None:
            seen.extend(row[1] for row in recorded(RunDir(out)) if row[0] == "student-1")
            write_record(record, done)
            working.close()

        monkeypatch.setattr("noisystudent.cli.loop.time.sleep", wait)
        rows = table(output(capsys, "status", out, "--watch"))
    assert seen == [f"running: step {last['step']:,}, loss {last['loss']:.3f}"]
    assert rows.popitem()[0] == "finished:"
    assert all(row.startswith("done") for row in rows.values())


@pytest.mark.parametrize("text", ['{"hello": 1}', "[1, 2]", '{"status": "running"}', '"done"'])
@pytest.mark.parametrize("command", ["status", "predict"])
def test_a_foreign_record_of_a_stage_is_named(
    finished: Path, images: Path, tmp_path: Path, capsys: Capture, command: str, text: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    record = tmp_path / "run" / "iteration-1" / "student" / "stage.json"
    record.write_text(text)
    words = (images / "test",) if command == "predict" else ()
    message = tiny.refused(capsys, 1, command, tmp_path / "run", *words)
    assert f"{record} is not the record of a stage" in message
