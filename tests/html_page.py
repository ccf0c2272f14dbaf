"""The report as a test reads it: its tags, its visible text, its scripts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from noisystudent.report import build

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting; gathers the attributes of every tag, the visible text and the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]

    @property
    def content(self) -> dict[str, Any]:
        """What the page's script reads."""
        (content,) = (script for script in self.scripts if script.startswith("{"))
        return dict(json.loads(content))

    @property
    def figures(self) -> dict[str, Any]:
        return dict(self.content["plots"])


def page(run: Path) -> Page:
    return Page(build(run).read_text(encoding="utf-8"))


def section(run: Path, name: str) -> Page:
    """One section of the report alone."""
    found = re.search(
        rf'<section id="{name}">.*?</section>', build(run).read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert found, f"no section {name}"
    return Page(found[0])
