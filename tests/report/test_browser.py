"""The page in a real browser: nothing is logged, nothing is asked for, and every figure has marks."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.report import write_report
from harness.store import Store
from tests.report.stores import derive
from tests.report.test_page import hostile
from tests.store.scenario import SWEEP

__all__ = ["hostile"]

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
_MARKS = """(id) => {
    const box = document.getElementById(id);
    const marks = [...box.querySelectorAll('.scatterlayer .point, .scatterlayer .js-line, .barlayer .point path')];
    const visible = marks.filter((m) => { const r = m.getBoundingClientRect(); return r.width + r.height > 0; });
    return {marks: visible.length, cloud: box.querySelectorAll('[data-title*="loud"], .plotlyjsicon').length};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((p for n in ("chromium", "google-chrome", "chromium-browser") if (p := shutil.which(n))), None)
    if found is None:
        pytest.skip("no chromium or google-chrome on the path: the report is not opened in a browser")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e .[dev])")
    with sync.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield instance
        instance.close()


class _Watched:
    """A page that remembers everything that should not have happened."""

    def __init__(self, browser: Any, path: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.trouble: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.trouble.append(f"console {m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.trouble.append(f"error: {e}"))
        self.page.on("requestfailed", lambda r: self.trouble.append(f"failed: {r.url[:200]}"))
        self.page.on("dialog", lambda d: (self.trouble.append(f"dialog: {d.message}"), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.ready === 'yes'", timeout=60_000)

    def figures(self) -> list[str]:
        return list(self.page.eval_on_selector_all(".plot", "boxes => boxes.map((b) => b.id)"))

    def choices(self, identifier: str) -> list[str]:
        return list(self.page.eval_on_selector_all(f"#{identifier}-variant option", "o => o.map((x) => x.value)"))


def test_every_figure_is_drawn_and_nothing_is_logged(browser: Any, page: Path) -> None:
    watched = _Watched(browser, page, 1280)
    assert len(watched.figures()) == 9
    for identifier in watched.figures():
        for choice in watched.choices(identifier) or [None]:
            if choice is not None:
                watched.page.select_option(f"#{identifier}-variant", choice)
                watched.page.wait_for_function(f"'drawn' in document.getElementById('{identifier}').dataset")
            found = watched.page.evaluate(_MARKS, identifier)
            assert found["marks"] > 0, (identifier, choice)
            assert found["cloud"] == 0
    assert watched.trouble == []
    assert watched.asked == [page.as_uri()]


def test_a_phone_scrolls_in_one_direction(browser: Any, page: Path) -> None:
    watched = _Watched(browser, page, 400, 800)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 400
    for identifier in watched.figures():
        assert watched.page.evaluate(_MARKS, identifier)["marks"] > 0
    assert watched.trouble == []


def test_dark_and_print_are_readable(browser: Any, page: Path) -> None:
    watched = _Watched(browser, page, 1280, scheme="dark")
    colour = "getComputedStyle(document.querySelector('#frontier .xtick text')).fill"
    assert watched.page.evaluate(colour) == "rgb(231, 234, 238)"
    watched.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    watched.page.wait_for_function(f"{colour} === 'rgb(27, 31, 36)'")
    watched.page.evaluate("dispatchEvent(new Event('afterprint'))")
    watched.page.wait_for_function(f"{colour} === 'rgb(231, 234, 238)'")
    assert watched.trouble == []


def test_samples_are_browsed(browser: Any, page: Path) -> None:
    watched = _Watched(browser, page, 1280)
    shown = "#sample-view .response"
    assert watched.page.locator(shown).count() == 3
    first = watched.page.inner_text("#sample-view")
    watched.page.click("#sample-next")
    assert watched.page.inner_text("#sample-position").startswith("2 of")
    assert watched.page.inner_text("#sample-view") != first
    watched.page.click("#sample-previous")
    watched.page.click("#sample-previous")
    last = watched.page.inner_text("#sample-position").split()
    assert last[0] == last[2]
    watched.page.select_option("#sample-task", label="judge")
    assert "helpfulness" in watched.page.inner_text("#sample-view")
    # The scenario's script is shown as the text it is.
    assert "<script>alert(1)</script>" in watched.page.inner_text("#sample-view")
    assert watched.trouble == []


def test_hostile_text_runs_nothing(browser: Any, hostile: Path) -> None:
    watched = _Watched(browser, hostile, 1280)
    for identifier in watched.figures():
        assert watched.page.evaluate(_MARKS, identifier)["marks"] > 0
    assert "<img src=x onerror=alert(1)>" in watched.page.inner_text("#sample-view")
    assert watched.page.locator("main img").count() == 0
    # The name is shown literally in the legend too, where Plotly knows a small HTML of its own.
    legend = watched.page.locator("#frontier .legendtext").all_text_contents()
    assert any('<b onmouseover="alert(1)">%{x}' in text for text in legend)
    assert watched.trouble == []
    assert watched.asked == [hostile.as_uri()]


def test_an_empty_sweep_opens_without_complaint(browser: Any, store: Store, tmp_path: Path) -> None:
    import polars as pl

    empty = dict.fromkeys(("trial_events", "measurement_links", "stage_links", "failure_events"), pl.DataFrame.clear)
    path = write_report(derive(store, tmp_path / "results", empty), SWEEP, tmp_path)
    watched = _Watched(browser, path, 1280)
    assert watched.figures() == []
    assert watched.trouble == []
