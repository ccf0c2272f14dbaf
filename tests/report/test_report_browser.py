"""The report in a browser: of a run on real photographs, and of made-up runs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import browser
import fake_run
import numpy as np
import photographs
import pytest
from html_page import page as parsed
from PIL import Image
from playwright.sync_api import Browser, Page

from noisystudent.config import SelectionConfig
from noisystudent.metrics.precision import GRID
from noisystudent.records import PseudoLabels
from noisystudent.report import build
from noisystudent.report.page import TITLES
from noisystudent.run.rundir import RunDir
from noisystudent.selection import select, summary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="neither chromium nor google-chrome is installed"),
]
FORMS = {"desktop": (1280, False), "phone": (390, False), "dark": (1280, True), "dark phone": (390, True)}
K = len(photographs.CLASSES)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.launched() as launched:
        yield launched


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not photographs.DATA.is_dir():
        pytest.skip("needs shared/data/tinyimagenet")
    return photographs.write_run(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module", params=FORMS)
def shown(request: pytest.FixtureRequest, run: Path, chromium: Browser) -> Iterator[tuple[Page, list[str]]]:
    """The report of the run in one of the forms, and what the browser said; and a picture of it."""
    width, dark = FORMS[request.param]
    with browser.opened(chromium, run / "report.html", width=width, dark=dark) as opened:
        opened[0].screenshot(path=run.parent / f"report {request.param}.png", full_page=True)
        yield opened


def test_the_report_of_a_real_run_has_every_section_and_is_small(run: Path) -> None:
    assert parsed(run).sections == list(TITLES)
    assert (run / "report.html").stat().st_size < 8e6


def test_every_figure_and_image_is_drawn_without_a_request_or_an_error(
    run: Path, shown: tuple[Page, list[str]]
) -> None:
    page, heard = shown
    assert page.locator(".plot > .plot-container").count() == len(parsed(run).figures)
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert heard == []


def test_nothing_is_wider_than_the_window(shown: tuple[Page, list[str]]) -> None:
    page, _ = shown
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_is_dark_where_the_reader_prefers_it(shown: tuple[Page, list[str]]) -> None:
    page, _ = shown
    grey = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert np.median(grey) < 40 if dark else np.median(grey) > 215


def test_axe_finds_nothing_serious(shown: tuple[Page, list[str]]) -> None:
    assert browser.serious(shown[0]) == []


def test_the_explorer_shows_what_duckdb_selects(run: Path, chromium: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = PseudoLabels(RunDir(run).iteration(photographs.RECIPE["students"]).labels, K)
    with browser.opened(chromium, run / "report.html") as (page, heard):
        most = int(page.get_attribute("#explorer-form [name=quota]", "max") or 0)
        for draw in range(10):
            at, quota = int(rng.integers(0, 60)), int(rng.integers(1, most + 1)) if draw % 3 else None
            duplicate = bool(rng.integers(0, 2))
            config = SelectionConfig(threshold=GRID[at], per_class=quota, duplicate=duplicate, junk="off")
            out = tmp_path / f"{draw}.parquet"
            counts = summary(select(labels, config, seed=0, out=out, threads=1))
            page.fill("#explorer-form [name=threshold]", str(at))
            page.set_checked("#explorer-form [name=duplicate]", duplicate)
            page.set_checked("#explorer-form [name=mean]", quota is None)
            if quota is not None:
                page.fill("#explorer-form [name=quota]", str(quota))
            assert numbers(page, "kept") == [counts["kept"]]
            assert numbers(page, "total") == [counts["total"]]
            # Two decimals, which Python and JavaScript round differently at a half.
            assert numbers(page, "duplication") == pytest.approx(
                [counts["total"] / counts["kept"]], abs=0.006
            )
            shares = np.array([row["total"] for row in counts["classes"] if row["total"]]) / counts["total"]
            assert numbers(page, "classes") == [len(shares), K]
            entropy = -float((shares * np.log(shares)).sum())
            assert numbers(page, "balance") == pytest.approx([np.exp(entropy)], abs=0.06)
            kept = [text.partition(" ")[0] for text in page.locator("#explorer-bars small").all_inner_texts()]
            assert kept == [f"{row['kept']:,}" for row in counts["classes"]]
        assert heard == []


def numbers(page: Page, name: str) -> list[float]:
    """The numbers that the explorer shows at a place."""
    text = page.inner_text(f"#explorer-{name}").replace(",", "")
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_the_explorer_and_the_gallery_of_a_made_up_run(chromium: Browser, tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path / "run", images=120)
    above = int((fake_run.write_selection(run, 3, 400) > 0.6).sum())
    with browser.opened(chromium, build(run)) as (page, heard):
        page.fill("#explorer-form [name=threshold]", "60")
        page.fill("#explorer-form [name=quota]", "7")
        assert numbers(page, "kept") == [10 * min(7, above // 10)]
        page.select_option("#gallery-form [name=class]", "bird")
        page.fill("#gallery-form [name=high]", "0.5")
        # Of the 12 images of bird in each of 3 iterations, 5 have a confidence of at most 0.5.
        assert page.inner_text("#gallery-form output") == "15 images"
        assert heard == []


def test_scripts_in_names_stay_text(chromium: Browser, tmp_path: Path) -> None:
    run = fake_run.write_hostile_run(tmp_path / "run")
    # With its policy the page would run no script of others, so this would not show whether there is one.
    with browser.opened(chromium, build(run), policy=False) as (page, heard):
        page.wait_for_selector("#explorer-bars small")
        assert page.title() == "run – Noisy Student report"
        assert page.evaluate("document.scripts.length") == 3
        assert page.locator("#explorer-bars span", has_text=fake_run.HOSTILE).count() == 1
        assert not [line for line in heard if not line.startswith("console: ")]


def test_bars_that_are_left_out_are_announced(chromium: Browser, tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(60)]
    run = fake_run.write_run(tmp_path / "run", names, images=120)
    fake_run.write_selection(run, 3, 400)
    with browser.opened(chromium, build(run)) as (page, heard):
        page.wait_for_selector("#explorer-bars small")
        assert page.locator("#explorer-bars small").count() == 50
        assert "The first 50 of 60 classes are drawn" in page.inner_text("#explorer figcaption")
        assert heard == []
