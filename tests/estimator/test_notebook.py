"""A notebook: the bar moves while the cell runs, with and without widgets, and the report is shown in it."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
import tiny

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

FIT = """\
import sys
{without}
from noisystudent import NoisyStudent
model = NoisyStudent({recipe!r}, out={out!r}, verbose=True, students=0)
model.fit({labeled!r}, val={val!r});
"""


@pytest.mark.filterwarnings("ignore")  # of zmq and of asyncio
@pytest.mark.parametrize(
    "without",
    ["", pytest.param('sys.modules["ipywidgets"] = None', marks=pytest.mark.slow)],
    ids=["widgets", "no widgets"],
)
def test_a_bar_moves_and_the_report_is_inline(without: str, images: Path, tmp_path: Path) -> None:
    import nbformat

    movements: list[str] = []

    class Client(nbclient.NotebookClient):  # type: ignore[name-defined]
        def process_message(self, message: dict[str, Any], *arguments: Any) -> Any:
            if message["msg_type"] == "update_display_data":
                movements.append(message["content"]["data"]["text/html"])
            return super().process_message(message, *arguments)

    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    fields = {"recipe": str(recipe), "out": str(tmp_path / "run"), "without": without}
    folders = {name: str(images / name) for name in ("labeled", "val")}
    cells = [FIT.format(**fields, **folders), "model.report_", "model"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    Client(notebook, kernel_name="python3", timeout=300).execute()
    fit, report, model = (cell.outputs for cell in notebook.cells)

    steps = [re.findall(r'value="(\d+)" max="12"', text) for text in movements]
    assert len({step for found in steps for step in found}) > 1, "the bar of 12 steps moved"
    (bar,) = (output for output in fit if output.output_type == "display_data")
    assert bar.data["text/html"] == movements[-1] and "<progress" in bar.data["text/html"]
    lines = "".join(output.text for output in fit if output.output_type == "stream")
    assert "teacher: val top-1" in lines
    (page,) = re.findall(r'srcdoc="([^"]*)"', report[0].data["text/html"])
    assert html.unescape(page) == (tmp_path / "run" / "report.html").read_text()
    assert "NoisyStudent" in model[0].data["text/plain"]
