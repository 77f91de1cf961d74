"""A form in a real browser: rated by keyboard, reloaded half way, finished, imported; hostile answers stay text."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.human import ratings_of
from harness.human._keys import known_forms
from harness.store import Store
from tests.store.scenario import SCRIPT, SWEEP

_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_SHOWN = "() => document.querySelector('[aria-label=\"Prompt\"] .text').textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((p for n in ("chromium", "google-chrome", "chromium-browser") if (p := shutil.which(n))), None)
    if found is None:
        pytest.skip("no chromium or google-chrome on the path: the form is not opened in a browser")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e .[dev])")
    with sync.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield instance
        instance.close()


def _opened(context: Any, path: Path, trouble: list[str]) -> Any:
    page = context.new_page()
    page.on("console", lambda m: trouble.append(f"console {m.type}: {m.text}"))
    page.on("pageerror", lambda e: trouble.append(f"error: {e}"))
    page.on("dialog", lambda d: (trouble.append(f"dialog: {d.message}"), d.dismiss()))
    page.on("request", lambda r: r.url.startswith(("file:", "blob:")) or trouble.append(f"asked {r.url}"))
    page.goto(path.as_uri())
    page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'")
    return page


def _rate(page: Any, form: dict[str, Any], items: dict[str, Any], wanted: Callable[[str], int]) -> None:
    """The item on the page, by keyboard alone."""
    prompt = page.evaluate(_SHOWN)
    item = next(i for i in form["items"] if i["prompt"] == prompt)
    mine = items[item["item"]]
    if mine["kind"] == "check":
        marks = [mine["asked"] or 6] * len(item["answers"])
        marks[mine["target"]] = mine["asked"] or 1
    else:
        marks = [wanted(a["recipe"]) for a in mine["answers"]]
    for mark in marks:
        page.keyboard.press(str(mark))
        page.keyboard.press(str(mark))
    for a, b in form["pairs"]:
        page.keyboard.press(str(min(7, max(1, 4 + marks[b] - marks[a]))))


def test_a_form_is_rated_reloaded_finished_and_imported(
    browser: Any,
    store: Store,
    forms: list[dict[str, Any]],
    human: Callable[[Sequence[object]], int],
    tmp_path: Path,
) -> None:
    trouble: list[str] = []
    wanted = {"base": 2, "dpo": 5, "ppo": 6}
    files = []
    for number, form in enumerate(forms, start=1):
        items = known_forms(store.results)[form["digest"]].items
        context = browser.new_context(accept_downloads=True)
        page = _opened(context, tmp_path / f"forms/rater-{number}.html", trouble)
        page.keyboard.press("Tab")
        page.keyboard.type(f"rater né {number}")
        page.keyboard.press("Enter")
        half = len(form["items"]) // 2
        for place in range(len(form["items"])):
            _rate(page, form, items, wanted.__getitem__)
            if place == 0:
                page.keyboard.press("c")
                page.keyboard.type("Quite </script> 😀 good")
                page.keyboard.press("Escape")
            if place == half:
                page.reload()
                page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'")
                assert page.evaluate(_SHOWN) == form["items"][half]["prompt"]
                assert page.locator("fieldset:has(:checked)").count() == 6 + 2
                page.locator("input:checked").first.focus()
            page.keyboard.press("Enter")
        assert page.locator("h1").text_content() == "All answered"
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        files.append(tmp_path / f"back-{number}.json")
        download.value.save_as(files[-1])
        context.close()
    assert not trouble
    assert human(["import", *files, "--results", store.results]) == 0
    store.ingest()
    mine = "raw.human_ratings WHERE rater LIKE 'rater%'"
    means = store.query(
        f"SELECT recipe, avg(score), min(score) FROM {mine} AND kind = 'rating' GROUP BY ALL ORDER BY ALL"
    )
    assert means.rows() == [("base", 2.0, 2), ("dpo", 5.0, 5), ("ppo", 6.0, 6)]
    assert store.query(f"SELECT DISTINCT passed FROM {mine} AND kind = 'check'").rows() == [(True,)]
    # Each is preferred by as much as it was rated higher, whichever stood first.
    better = f"SELECT DISTINCT recipe, other_recipe, preference FROM {mine} AND kind = 'preference'"
    for recipe, other, preference in store.query(better).rows():
        assert preference == max(-3, min(3, wanted[recipe] - wanted[other]))
    comments = store.query(f"SELECT DISTINCT comment FROM {mine} AND comment IS NOT NULL").rows()
    assert comments == [("Quite </script> 😀 good",)]
    figures = ratings_of(store, SWEEP)
    assert figures is not None
    assert {r.rater for r in figures.raters} >= {"rater né 1", "rater né 2"}


def test_open_questions_are_named_and_nothing_is_saved(
    browser: Any, forms: list[dict[str, Any]], tmp_path: Path
) -> None:
    trouble: list[str] = []
    context = browser.new_context(viewport={"width": 375, "height": 700}, color_scheme="dark")
    page = _opened(context, tmp_path / "forms/rater-1.html", trouble)
    page.fill("#rater", "ann")
    page.click("text=Begin")
    page.keyboard.press("5")
    # Enter goes to what is open instead of leaving it.
    page.keyboard.press("Enter")
    assert "questions of this item are open" in page.locator("#status").text_content()
    for _ in forms[0]["items"]:
        page.click(".bar .first")
    assert page.locator("#finish").is_disabled()
    assert page.locator(".opens button").count() == len(forms[0]["items"])
    page.locator(".opens button").first.click()
    assert page.evaluate(_SHOWN) == forms[0]["items"][0]["prompt"]
    assert page.locator("input:checked").count() == 1
    # Nothing is wider than a phone, and every scale is named for those who do not see it.
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert page.get_by_role("radio").first.get_attribute("aria-label") == "1, no help at all"
    assert page.get_by_role("group").count() == 8
    page.keyboard.press("PageUp")
    assert page.locator("#rater").input_value() == "ann"
    assert not trouble
    context.close()


def test_a_hostile_answer_is_shown_and_does_not_run(
    browser: Any, store: Store, forms: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert any(SCRIPT in text for item in forms[0]["items"] for text in item["answers"])
    source = (tmp_path / "forms/rater-1.html").read_text()
    assert SCRIPT not in source
    trouble: list[str] = []
    context = browser.new_context()
    page = _opened(context, tmp_path / "forms/rater-1.html", trouble)
    page.fill("#rater", SCRIPT)
    page.click("text=Begin")
    seen = []
    for _ in forms[0]["items"]:
        seen += page.locator("article .text").all_text_contents()
        page.click(".bar .first")
    assert any(SCRIPT in text for text in seen)
    assert not trouble
    # A script that has got into the page after all is refused.
    page.evaluate(
        "() => document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    )
    assert page.evaluate("() => window.ran") is None
    context.close()


def test_what_a_page_signs_is_what_is_checked(browser: Any, forms: list[dict[str, Any]], tmp_path: Path) -> None:
    """Texts that two languages could write otherwise, in a file that the page itself has saved."""
    context = browser.new_context(accept_downloads=True)
    page = _opened(context, tmp_path / "forms/rater-2.html", [])
    form = forms[1]
    hard = 'a\u2028b\u007f\u00e9\\ "q" \t\n/ 😀 </script> ' + "x" * 200
    state = {
        "rater": "né",
        "at": len(form["items"]),
        "given": [
            {
                "scores": [[3, 4]] * len(i["answers"]),
                "preferences": [4] * len(form["pairs"]),
                "comment": hard,
                "ms": 1499,
            }
            for i in form["items"]
        ],
    }
    page.evaluate(
        "([place, state]) => localStorage.setItem(place, state)",
        [f"harness-ratings-{form['digest']}", json.dumps(state)],
    )
    # Leaving the page writes what it has: the state is set where it begins.
    page.evaluate("() => { Storage.prototype.setItem = () => {}; }")
    page.reload()
    page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'")
    with page.expect_download() as download:
        page.click("#finish")
    content = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    rest = {k: v for k, v in content.items() if k != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert content["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert content["items"][0]["comment"] == hard
    assert content["items"][0]["seconds"] == 1
    context.close()
