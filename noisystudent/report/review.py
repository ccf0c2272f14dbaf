"""Build the HTML page of the images that are worth a look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisystudent.report.templates import environment
from noisystudent.run.files import write_text


def write_page(content: Mapping[str, Any], out: Path) -> None:
    """Write the page. It has no script and loads nothing.

    Args:
        content: name, csv, command (which uses the labels), notes, and groups with title, note, total and
            images.
        out: HTML file to write.

    Raises:
        RunError: the file cannot be written.
    """
    page = environment().get_template("review.html").render(content=content)
    # Lone surrogates, from names that are not valid UTF-8 on disk, cannot be written to a UTF-8 file.
    write_text(out, page.encode("utf-8", "replace").decode("utf-8"))
