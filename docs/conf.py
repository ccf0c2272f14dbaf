"""Configuration of Sphinx for these pages: `make docs`."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # for the module below

import generated

project = "noisystudent"
author = "the authors of noisystudent"
release = metadata.version("noisystudent")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"noisystudent {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["style.css"]

myst_heading_anchors = 4

default_role = "code"  # docstrings have single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # a union of all forms of images is ten lines; the docstrings say what is taken
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False


def fill(_app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the line `% generated` of a page by the text that `generated` makes for it."""
    if page in generated.PAGES:
        source[0] = source[0].replace("% generated\n", generated.PAGES[page]())


def setup(app: Sphinx) -> None:
    """Connect `fill`; Sphinx calls this function."""
    app.connect("source-read", fill)
