"""Pages in a headless Chromium, and what the browser says while it shows them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser that is installed. Playwright's own ones are not needed."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        yield browser


@contextmanager
def opened(
    browser: Browser, file: Path, *, width: int = 1280, dark: bool = False, policy: bool = True
) -> Iterator[tuple[Page, list[str]]]:
    """A file as a page, with all its details unfolded.

    Args:
        browser: the browser.
        file: HTML file.
        width: of the window, in pixels.
        dark: whether the reader prefers dark colours.
        policy: False: the Content-Security-Policy of the page is ignored.

    Yields:
        The page, and what must not happen on it: requests, lines of the console, script errors, dialogs.
    """
    scheme: Any = "dark" if dark else "light"
    heard: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        heard.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    with browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=not policy
    ) as context:
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", dismiss)
        page.on("request", lambda request: heard.append(f"request: {request.url}"))
        page.goto(file.as_uri())
        heard.remove(f"request: {file.as_uri()}")
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        yield page, heard


def serious(page: Page) -> list[tuple[str, str, str]]:
    """What axe-core finds that is serious or critical: the rule, the element and the reason."""
    return [
        (rule["id"], node["target"][0], node["failureSummary"])
        for rule in Axe().run(page).response["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
