"""The site in a real browser: filters, an entry, a phone; nothing is logged and nothing asked for elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from tests.report.test_browser import _Watched, browser

__all__ = ["browser"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_filters_and_opens_an_entry(browser: Any, export: Path, width: int, scheme: str) -> None:
    watched = _Watched(browser, export / "index.html", width, scheme=scheme)
    page = watched.page
    shown = "#board tbody tr:not([hidden])"
    assert page.locator(shown).count() == 6
    assert page.inner_text("#count") == "6 of 6 entries"
    page.select_option("#filter-task", "mmlu acc")
    assert set(page.eval_on_selector_all(shown, "r => r.map((x) => x.dataset.task)")) == {"mmlu acc"}
    # With the keyboard: the select takes the focus and its next choice.
    page.focus("#filter-target")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"document.querySelectorAll('{shown}').length === 3")
    page.select_option("#filter-method", "sft → dpo")
    assert page.inner_text("#count") == "1 of 6 entries"
    assert "task=mmlu+acc" in page.url
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#tradeoff .scatterlayer .point").count() == 6
    page.click(f"{shown} a")
    page.wait_for_selector("h1")
    assert "dpo" in page.inner_text("h1")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#samples details summary")
    assert page.locator("#samples details[open] pre").count() > 0
    assert watched.trouble == []
    assert all(url.startswith(export.as_uri()) for url in watched.asked)


def test_no_entry_fits_is_said(browser: Any, export: Path) -> None:
    page = _Watched(browser, export / "index.html", 1280).page
    page.select_option("#filter-task", "rm_reward")
    page.select_option("#filter-method", "sft → dpo")
    assert page.is_visible("#none")
    assert page.inner_text("#count") == "0 of 6 entries"
    # An address that someone was sent says what is chosen.
    page.evaluate("location.hash = 'task=kl&method=sft+%E2%86%92+dpo&model=none'")
    page.wait_for_function("document.getElementById('filter-task').value === 'kl'")
    assert page.inner_text("#count") == "2 of 6 entries"
