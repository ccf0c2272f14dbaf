"""DuckDB decides by the session whether it draws a bar. This package draws its own, in every session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = """
import sys, types
kernel = types.ModuleType("ipykernel.zmqshell")
kernel.config = {"IPKernelApp": {}}
kernel.__module__ = "ipykernel.zmqshell"
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: kernel
sys.modules["ipywidgets"] = None
"""
QUERY = """
import pathlib
from noisystudent.selection.database import database
with database(pathlib.Path(sys.argv[1]), "1GB", 1) as connection:
    print(connection.execute("SELECT current_setting('enable_progress_bar')").fetchall())
"""


RUN = """
import tiny, pathlib
tiny.run(tiny.config(pathlib.Path(sys.argv[1]), ("student.train.steps", 2)), pathlib.Path(sys.argv[2]))
"""


# A program that is given with -c has no `__main__.__file__`, from which DuckDB takes it for interactive.
@pytest.mark.parametrize("session", ["import sys", NOTEBOOK], ids=["interactive", "notebook"])
def test_no_session_has_a_bar_of_duckdb(session: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", session + QUERY, str(tmp_path / "selection.parquet")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "[(False,)]\n", result.stderr


@pytest.mark.slow
def test_a_notebook_without_ipywidgets_makes_a_whole_run(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NOTEBOOK + RUN, str(images), str(tmp_path / "run")]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | paths)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "verdict.json").is_file()
