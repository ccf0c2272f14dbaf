"""DuckDB decides by its surroundings whether it draws a bar: here it never does, and never fails for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = """
import sys, types
kernel = types.SimpleNamespace(config={"IPKernelApp": {}})
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


# A program that is given with -c has no `__main__.__file__`, from which DuckDB takes it for interactive.
@pytest.mark.parametrize("session", ["import sys", NOTEBOOK], ids=["interactive", "notebook"])
def test_no_session_has_a_bar_of_duckdb(session: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", session + QUERY, str(tmp_path / "selection.parquet")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "[(False,)]\n", result.stderr
