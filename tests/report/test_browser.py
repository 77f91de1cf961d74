"""The page in a real browser: tabs, filters and samples do what they say, nothing is logged and nothing asked for."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.report import write_report
from harness.report._document import document, navigation, part
from harness.report._filter import recipe_filter
from harness.report._html import Table, json_script, table, tag
from harness.report._plot import Figure, Point, Series, bars, checked, render
from harness.report._tabs import tabs
from harness.store import Store
from tests.report.generations import made_store, revised, sampled
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

    def __init__(
        self, browser: Any, path: Path, width: int, height: int = 900, scheme: str = "light", at: str = ""
    ) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.trouble: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.trouble.append(f"console {m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.trouble.append(f"error: {e}"))
        self.page.on("requestfailed", lambda r: self.trouble.append(f"failed: {r.url[:200]}"))
        self.page.on("dialog", lambda d: (self.trouble.append(f"dialog: {d.message}"), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(path.as_uri() + at)
        self.page.wait_for_function("() => document.documentElement.dataset.ready === 'yes'", timeout=60_000)

    def texts(self, selector: str) -> list[str]:
        return list(self.page.eval_on_selector_all(selector, "found => found.map((n) => n.textContent)"))

    def visible(self, selector: str) -> list[str]:
        """The texts of what is seen of the elements."""
        script = (
            "found => found.filter((n) => n.checkVisibility({contentVisibilityAuto: true})).map((n) => n.textContent)"
        )
        return list(self.page.eval_on_selector_all(selector, script))

    def figures(self) -> list[str]:
        return list(self.page.eval_on_selector_all(".plot", "boxes => boxes.map((b) => b.id)"))

    def choices(self, identifier: str) -> list[str]:
        return list(self.page.eval_on_selector_all(f"#{identifier}-variant option", "o => o.map((x) => x.value)"))


_RECIPES = ["base", "dpo", "ppo", 'a − "b" <i>&amp;', "dpo − ppo"]


def _bench(folder: Path) -> Path:
    """A page of the parts that a report is made of, with names that are hard to handle."""

    def figure(name: str, recipes: list[str]) -> Figure:
        series = [Series(r, i, [Point("x", 1.0 + i, [r]), Point("y", 2.0, [r])]) for i, r in enumerate(recipes)]
        drawings = [bars(series, "score", "one"), bars(series[::-1], "score", "two")]
        return Figure(name, f"Figure {name}", "What is seen here.", drawings, Table(["recipe"], [[r] for r in recipes]))

    figures = [figure("early", _RECIPES), figure("late", _RECIPES), figure("within", ["ppo"])]
    early, late, within = map(render, figures)
    seconds = ["90 s", "1.6 min", "–", "2.0 h", "3 s"]
    values: list[object] = [0.5, -2.0, None, 1_234_567.0, 0.00002]
    rows = [[_RECIPES[i % 5], values[i % 5], seconds[i % 5], f"row {i}"] for i in range(20)]
    pairs = [[f"{a} − {b}", 1.0] for i, a in enumerate(_RECIPES) for b in _RECIPES[i + 1 :]]
    inner = tabs("inner", [("In one", tag("p", "text")), ("In two", tag("p", within, id="deep"))], level=4)
    views = tabs(
        "views",
        [
            ("Early", early),
            ("Long table", table(Table(["recipe", "score", "time", "what"], rows))),
            ("Nothing", None),
            ("Late <b>", late),
            ("Within", inner),
        ],
    )
    parts = [
        part("tabs", "Tabs", None, views),
        part("pairs", "Pairs", None, table(Table(["first − second", "difference"], pairs))),
        part("columns", "Columns", None, table(Table(["", *_RECIPES], [["kl", *_RECIPES], ["n", *range(5)]]))),
        part(
            "matrix", "Matrix", None, table(Table(["", *_RECIPES], [[tag("strong", r), *range(5)] for r in _RECIPES]))
        ),
    ]
    chooser = recipe_filter(_RECIPES)
    assert chooser is not None
    bar = [navigation([("tabs", "Tabs"), ("pairs", "Pairs"), ("deep", "Deep")]), chooser]
    data = json_script("figure-data", {f.identifier: [checked(v) for v in f.variants] for f in figures})
    path = folder / "bench.html"
    text = "<!doctype html>\n" + document("Bench", [tag("h1", "Bench")], parts, data, "foot", bar=bar)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bench(tmp_path_factory.mktemp("bench"))


def _selected(page: Any, of: str = "#views") -> list[str]:
    return list(page.eval_on_selector_all(f"{of} > .tablist [aria-selected=true]", "t => t.map((x) => x.textContent)"))


def test_tabs_show_one_panel_and_are_worked_by_keyboard(browser: Any, bench: Path) -> None:
    watched = _Watched(browser, bench, 1280)
    page = watched.page
    assert watched.texts("#views > .tablist [role=tab]") == ["Early", "Long table", "Late <b>", "Within"]
    assert watched.visible("#views > .panel > .panel-title") == ["Early"]
    assert page.evaluate(_MARKS, "early")["marks"] == 10
    # What is hidden is not drawn before it is looked at.
    assert page.evaluate(_MARKS, "late")["marks"] == 0
    page.click("#views > .tablist >> text=Early")
    for key, expected in (
        ("ArrowLeft", "Within"),
        ("ArrowLeft", "Late <b>"),
        ("Home", "Early"),
        ("ArrowRight", "Long table"),
        ("End", "Within"),
        ("ArrowRight", "Early"),
    ):
        page.keyboard.press(key)
        assert _selected(page) == [expected] == watched.visible("#views > .panel > .panel-title")
        assert page.evaluate("document.activeElement.textContent") == expected
        assert page.locator("#views > .tablist [tabindex='0']").count() == 1
    page.click("text=Late <b>")
    assert page.evaluate(_MARKS, "late")["marks"] == 10
    assert page.evaluate("document.querySelector('#late .main-svg').clientWidth") > 800
    page.wait_for_function("() => location.hash === '#views--late-b'")
    # Drawn for the window it was opened in, and for another when it is opened again.
    page.click("#views > .tablist >> text=Early")
    page.set_viewport_size({"width": 700, "height": 900})
    page.click("text=Late <b>")
    page.wait_for_function("() => document.querySelector('#late .main-svg').clientWidth < 700")
    assert watched.trouble == []


def test_an_address_opens_what_it_names(browser: Any, bench: Path) -> None:
    watched = _Watched(browser, bench, 1280, at="#deep")
    page = watched.page
    assert (_selected(page), _selected(page, "#inner")) == (["Within"], ["In two"])
    assert page.evaluate(_MARKS, "within")["marks"] == 2
    page.evaluate("location.hash = '#views--long-table'")
    page.wait_for_function("() => document.getElementById('views--long-table').checkVisibility()")
    assert _selected(page) == ["Long table"]
    page.click("nav >> text=Deep")
    page.wait_for_function("() => document.getElementById('within').checkVisibility()")
    page.click("#views > .tablist >> text=Early")
    page.click("nav >> text=Deep")
    page.wait_for_function("() => document.getElementById('within').checkVisibility()")
    assert page.evaluate("document.getElementById('deep').getBoundingClientRect().top") < 500
    assert watched.trouble == []


def test_without_scripts_and_in_print_every_panel_is_there(browser: Any, bench: Path) -> None:
    titles = ["Early", "Long table", "Late <b>", "Within"]
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(bench.as_uri())
    assert [plain.locator(f"#views > .panel > h3 >> text={t}").is_visible() for t in titles] == [True] * 4
    assert not plain.is_visible("#recipe-filter")
    context.close()
    watched = _Watched(browser, bench, 1280)
    page = watched.page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("() => document.querySelectorAll('#late .point path').length === 10")
    assert watched.visible("#views > .panel > .panel-title") == titles
    assert watched.visible(".tablist, nav, .modebar, .filter summary, .table-tools") == []
    for identifier in watched.figures():
        assert page.evaluate(_MARKS, identifier)["marks"] > 0
        assert page.evaluate("(id) => document.querySelector(`#${id} .main-svg`).clientWidth", identifier) == 680
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert watched.visible("#views > .panel > .panel-title") == ["Early"]
    page.wait_for_function("() => document.querySelector('#early .main-svg').clientWidth > 900")
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert watched.trouble == []


def _rows(watched: _Watched, part: str) -> list[str]:
    return watched.visible(f"#{part} tbody tr > td:first-child")


def test_choosing_recipes_hides_rows_columns_and_traces_of_others(browser: Any, bench: Path) -> None:
    watched = _Watched(browser, bench, 1280)
    page = watched.page
    legend = "#early .legendtext"
    assert set(watched.texts(legend)) == set(_RECIPES)
    assert page.inner_text("#recipe-count") == "all 5 shown"
    page.click("#recipe-filter summary")
    page.check("#recipe-filter input[value=dpo]")
    page.wait_for_function("() => document.querySelectorAll('#early .legendtext').length === 1")
    assert watched.texts(legend) == ["dpo"]
    assert page.inner_text("#recipe-count") == "1 of 5 shown: dpo"
    # All that dpo is one of; where a name reads like a pair, the pairs are still told apart.
    assert _rows(watched, "pairs") == ["base − dpo", "dpo − ppo", f"dpo − {_RECIPES[3]}", "dpo − dpo − ppo"]
    assert watched.visible("#columns th") == ["", "dpo"]
    assert watched.visible("#columns td") == ["kl", "dpo", "n", "1"]
    assert (_rows(watched, "matrix"), watched.visible("#matrix th")) == (["dpo"], ["", "dpo"])
    page.check("#recipe-filter input[value=base]")
    assert _rows(watched, "pairs") == ["base − dpo"]
    page.wait_for_function(
        "() => location.hash === '#recipe=dpo&recipe=base' || location.hash === '#recipe=base&recipe=dpo'"
    )
    # A figure of none of them says so.
    page.evaluate("location.hash = '#deep'")
    page.wait_for_selector("#within .annotation-text")
    assert "Nothing here is of a chosen recipe" in page.text_content("#within .annotation-text")
    # Anchors come and go, what is chosen stays in the address.
    page.wait_for_function("() => location.hash.startsWith('#deep&recipe=')")
    page.fill("#recipe-search", "PP")
    assert watched.visible("#recipe-filter .pick") == ["ppo", "dpo − ppo"]
    page.click("#recipe-all")
    assert page.inner_text("#recipe-count") == "all 5 shown"
    assert len(_rows(watched, "pairs")) == 10
    page.keyboard.press("Escape")
    assert not page.is_visible("#recipe-search")
    page.wait_for_function("() => !location.hash.includes('recipe')")
    assert watched.trouble == []
    again = _Watched(browser, bench, 1280, at="#pairs&recipe=ppo&recipe=nobody")
    assert _rows(again, "pairs")[0] == "base − ppo"
    assert again.page.inner_text("#recipe-count") == "1 of 5 shown: ppo"


def test_tables_are_sorted_and_searched(browser: Any, bench: Path) -> None:
    watched = _Watched(browser, bench, 1280, at="#views--long-table")
    page = watched.page
    place = "#views--long-table"
    cells = f"{place} tbody td:nth-child({{}})"
    count = f"{place} .table-tools .count"
    assert page.inner_text(count) == "20 rows"
    page.click(f"{place} th >> text=score")
    assert page.get_attribute(f"{place} th:nth-child(2)", "aria-sort") == "ascending"
    assert watched.texts(cells.format(2))[::4] == ["−2.000", "2.0e−05", "0.500", "1,234,567", "–"]
    page.keyboard.press("Enter")
    assert page.get_attribute(f"{place} th:nth-child(2)", "aria-sort") == "descending"
    assert watched.texts(cells.format(2))[::4] == ["1,234,567", "0.500", "2.0e−05", "−2.000", "–"]
    page.click(f"{place} th >> text=time")
    assert page.get_attribute(f"{place} th:nth-child(2)", "aria-sort") is None
    assert watched.texts(cells.format(3))[::4] == ["3 s", "90 s", "1.6 min", "2.0 h", "–"]
    page.click(f"{place} th >> text=what")
    assert watched.texts(cells.format(4))[:4] == ["row 0", "row 1", "row 2", "row 3"]
    for _ in range(2):
        page.click(f"{place} th >> text=what")
    assert page.get_attribute(f"{place} th:nth-child(4)", "aria-sort") is None
    page.fill(f"{place} input", "ROW 1 ppo")
    assert watched.visible(cells.format(4)) == ["row 12", "row 14", "row 17", "row 19"]
    assert page.inner_text(count) == "4 of 20 rows"
    page.click("#recipe-filter summary")
    page.check("#recipe-filter input[value=ppo]")
    assert watched.visible(cells.format(4)) == ["row 12", "row 17"]
    assert page.inner_text(count) == "2 of 20 rows"
    # A short table has no field, and one whose rows are of different kinds is not sorted.
    assert page.locator("#pairs .table-tools").count() == 0
    assert page.locator("#pairs button.sort").count() == 2
    assert page.locator("#columns button.sort").count() == 0
    assert watched.trouble == []


def test_every_control_of_the_report_works(browser: Any, page: Path) -> None:
    watched = _Watched(browser, page, 1280)
    drawn = watched.page
    # Every tab, also those within others; then every fold, so that everything is in sight once.
    for tab in drawn.query_selector_all(".tab"):
        if tab.is_visible():
            tab.click()
            assert tab.get_attribute("aria-selected") == "true"
            assert drawn.is_visible(f"[id='{tab.get_attribute('aria-controls')}']")
    figures = watched.figures()
    assert len(figures) >= 9
    for identifier in figures:
        drawn.evaluate("(id) => report.reveal(document.getElementById(id))", identifier)
        for choice in watched.choices(identifier) or [None]:
            if choice is not None:
                drawn.select_option(f"#{identifier}-variant", choice)
            drawn.wait_for_function(f"() => 'drawn' in document.getElementById('{identifier}').dataset")
            found = drawn.evaluate(_MARKS, identifier)
            assert found["marks"] > 0, (identifier, choice)
            assert found["cloud"] == 0
    drawn.evaluate("for (const fold of document.querySelectorAll('main details')) fold.open = true")
    for button in drawn.query_selector_all("main button.sort"):
        if button.is_visible():
            button.evaluate("(b) => { b.click(); b.click(); }")
            assert button.evaluate("(b) => b.closest('th').getAttribute('aria-sort')") == "descending"
    for field in drawn.query_selector_all(".table-tools input"):
        if field.is_visible():
            field.fill("no row has this")
            assert field.evaluate("(f) => f.closest('.table-tools').querySelector('.count').textContent").startswith(
                "0 of"
            )
            field.fill("")
    for tick in drawn.query_selector_all("#recipe-filter input[type=checkbox]"):
        for _ in range(2):
            tick.evaluate("(t) => t.click()")
    assert watched.trouble == []
    assert {url.partition("#")[0] for url in watched.asked} == {page.as_uri()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction(browser: Any, page: Path, bench: Path, scheme: str) -> None:
    for path in (page, bench):
        watched = _Watched(browser, path, 375, 700, scheme=scheme)
        drawn = watched.page
        width = "document.documentElement.scrollWidth"
        assert drawn.evaluate(width) <= 375
        for tab in drawn.query_selector_all(".tab"):
            if tab.is_visible():
                tab.click()
                assert drawn.evaluate(width) <= 375, tab.text_content()
        for identifier in watched.figures():
            drawn.evaluate("(id) => report.reveal(document.getElementById(id))", identifier)
            drawn.wait_for_function(f"() => 'drawn' in document.getElementById('{identifier}').dataset")
            assert drawn.evaluate(_MARKS, identifier)["marks"] > 0
        drawn.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        assert drawn.evaluate(width) <= 375
        assert watched.trouble == []


def test_dark_and_print_are_readable(browser: Any, page: Path) -> None:
    watched = _Watched(browser, page, 1280, scheme="dark")
    watched.page.evaluate("report.reveal(document.getElementById('frontier'))")
    colour = "getComputedStyle(document.querySelector('#frontier .xtick text')).fill"
    watched.page.wait_for_function(f"() => {colour} === 'rgb(231, 234, 238)'")
    watched.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    watched.page.wait_for_function(f"() => {colour} === 'rgb(27, 31, 36)'")
    watched.page.evaluate("dispatchEvent(new Event('afterprint'))")
    watched.page.wait_for_function(f"() => {colour} === 'rgb(231, 234, 238)'")
    assert watched.trouble == []


def test_the_keyboard_reaches_the_content_and_shows_where_it_is(browser: Any, page: Path) -> None:
    watched = _Watched(browser, page, 1280)
    keyboard = watched.page.keyboard
    keyboard.press("Tab")
    assert watched.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert watched.page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    keyboard.press("Enter")
    keyboard.press("Tab")
    assert watched.page.evaluate("document.activeElement.closest('main') !== null")
    for _ in range(12):
        outline = watched.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", watched.page.evaluate("document.activeElement.outerHTML.slice(0, 80)")
        keyboard.press("Tab")
    assert watched.trouble == []


@pytest.fixture(scope="module")
def samples(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report with every document in it."""
    return write_report(store, SWEEP, tmp_path_factory.mktemp("samples"), samples=1_000)


@pytest.fixture(scope="module")
def opened(browser: Any, samples: Path) -> _Watched:
    return _Watched(browser, samples, 1280, at="#sample-browser")


_PAIRS = """
    SELECT a.document FROM ({0}) a JOIN ({1}) b USING (document) WHERE {2} ORDER BY ALL
"""
_SCORES = """
    SELECT DISTINCT s.document, s.score FROM scores c JOIN samples s USING (measurement, target, task)
    WHERE c.sweep = '{sweep}' AND c.recipe = '{recipe}' AND c.phase = 'final' AND c.seed = 0 AND s.half = 'final'
    AND s.target = 'cpu-fp32' AND s.task = '{task}' AND s.metric = '{metric}'
"""


def _expected(store: Store, recipes: tuple[str, str], task: str, metric: str, condition: str) -> set[str]:
    scores = [_SCORES.format(sweep=SWEEP, recipe=recipe, task=task, metric=metric) for recipe in recipes]
    return set(store.query(_PAIRS.format(*scores, condition))["document"])


def _shown(watched: _Watched) -> set[str]:
    """The documents that one comes by with the key j."""
    count = len(watched.texts("#sample-document option"))
    found = set()
    watched.page.focus("#sample-view")
    for _ in range(count):
        found.add(watched.page.inner_text("#sample-view .sample-title").rpartition(" ")[2])
        watched.page.keyboard.press("j")
    return found


@pytest.mark.parametrize(
    ("a", "b", "task", "metric", "pick", "condition"),
    [
        ("base", "ppo", "gsm8k", "exact_match_flexible", "a-only", "a.score = 1 AND b.score = 0"),
        ("dpo", "ppo", "gsm8k", "exact_match_strict", "differ", "a.score <> b.score"),
        ("ppo", "base", "mmlu", "acc", "neither", "a.score = 0 AND b.score = 0"),
        ("ppo", "base", "mmlu", "acc", "both", "a.score = 1 AND b.score = 1"),
        ("ppo", "base", "gold", "gold_reward", "better", "a.score > b.score"),
        ("base", "dpo", "gold", "kl", "better", "a.score < b.score"),
    ],
)
def test_samples_are_filtered_by_what_two_recipes_scored(
    opened: _Watched, store: Store, a: str, b: str, task: str, metric: str, pick: str, condition: str
) -> None:
    watched = opened
    # As a link that was sent: what it names is chosen.
    watched.page.evaluate(f"location.hash = '#sample-browser&task={task}&metric={metric}&a={a}&b={b}&pick={pick}'")
    named = (
        "['task', 'metric', 'a', 'b'].map((n) => document.getElementById(`sample-${n}`).selectedOptions[0].textContent)"
    )
    said = " ".join([f"{task} (40)", f"{metric}{', right or wrong' if task != 'gold' else ''}", a, b])
    watched.page.wait_for_function(f"() => {named}.join(' ') === '{said}'")
    wanted = _expected(store, (a, b), task, metric, condition)
    assert wanted
    assert watched.page.input_value("#sample-pick") == pick
    assert _shown(watched) == wanted
    assert watched.page.inner_text("#sample-count") == f"{len(wanted)} of the 40 documents in this page match"
    # The other way round it is asked the other way round.
    watched.page.click("#sample-swap")
    turned = _expected(store, (b, a), task, metric, condition)
    assert watched.page.inner_text("#sample-count").startswith(f"{len(turned)} of the 40")
    assert watched.trouble == []


def test_samples_are_browsed_searched_and_linked(browser: Any, samples: Path) -> None:
    watched = _Watched(browser, samples, 1280, at="#sample-browser")
    page = watched.page
    shown = "#sample-view .response"
    assert page.locator(shown).count() == 3
    first = page.inner_text("#sample-view")
    page.click("#sample-next")
    assert page.inner_text("#sample-position").startswith("2 of")
    assert page.inner_text("#sample-view") != first
    page.keyboard.press("k")
    page.keyboard.press("ArrowLeft")
    last = page.inner_text("#sample-position").split()
    assert last[0] == last[2]
    # In a field, the keys are letters.
    page.focus("#sample-find")
    page.keyboard.type("j WHAT says")
    assert page.inner_text("#sample-position") == "none"
    assert "No document in this page fits" in page.inner_text("#sample-view")
    page.select_option("#sample-task", label="judge (12)")
    page.fill("#sample-find", "WHAT ppo says")
    assert page.inner_text("#sample-count") == "12 of the 12 documents in this page match"
    assert "helpfulness" in page.inner_text("#sample-view")
    # The scenario's script is shown as the text it is.
    assert "<script>alert(1)</script>" in page.inner_text("#sample-view")
    page.select_option("#sample-task", label="gsm8k (40)")
    page.fill("#sample-find", "")
    page.select_option("#sample-pick", "a-only")
    page.click("#sample-next")
    here = page.inner_text("#sample-view .sample-title")
    page.wait_for_function("() => location.hash.includes('pick=a-only') && location.hash.includes('document=')")
    page.wait_for_timeout(200)
    again = _Watched(browser, samples, 1280, at=page.evaluate("location.hash"))
    assert again.page.inner_text("#sample-view .sample-title") == here
    assert again.page.input_value("#sample-pick") == "a-only"
    assert again.visible("#sample-view .letter") == ["A", "B"]
    assert watched.trouble + again.trouble == []


def test_hostile_text_runs_nothing(browser: Any, hostile: Path) -> None:
    watched = _Watched(browser, hostile, 1280)
    for identifier in watched.figures():
        watched.page.evaluate("(id) => report.reveal(document.getElementById(id))", identifier)
        watched.page.wait_for_function(f"() => 'drawn' in document.getElementById('{identifier}').dataset")
        assert watched.page.evaluate(_MARKS, identifier)["marks"] > 0
    watched.page.evaluate("report.reveal(document.getElementById('sample-browser'))")
    assert "<img src=x onerror=alert(1)>" in watched.page.inner_text("#sample-view")
    assert watched.page.locator("main img").count() == 0
    # The name is shown literally in the legend too, where Plotly knows a small HTML of its own.
    legend = watched.page.locator("#frontier .legendtext").all_text_contents()
    assert any('<b onmouseover="alert(1)">%{x}' in text for text in legend)
    for name in ("a", "b", "task", "metric", "pick"):
        for place in range(watched.page.locator(f"#sample-{name} option").count()):
            watched.page.select_option(f"#sample-{name}", index=place)
    assert watched.trouble == []
    assert {url.partition("#")[0] for url in watched.asked} == {hostile.as_uri()}


def test_an_empty_sweep_opens_without_complaint(browser: Any, store: Store, tmp_path: Path) -> None:
    import polars as pl

    empty = dict.fromkeys(("trial_events", "measurement_links", "stage_links", "failure_events"), pl.DataFrame.clear)
    path = write_report(derive(store, tmp_path / "results", empty), SWEEP, tmp_path)
    watched = _Watched(browser, path, 1280)
    assert watched.figures() == []
    assert watched.trouble == []


def test_verdicts_are_filtered_and_worked_by_keyboard(opened: _Watched) -> None:
    page = opened.page
    page.evaluate("location.hash = '#verdict-browser'")
    page.wait_for_selector("#verdict-view .sample-title")
    page.select_option("#verdict-kind", "unparsed")
    assert page.inner_text("#verdict-count").startswith("1 of the ")
    shown = page.inner_text("#verdict-view")
    assert "no verdict" in shown
    assert "Both are fine" in shown
    # What a judge or a model says is text, and what the judge is worth stands beside it.
    assert "<script>alert(1)</script>" in shown
    assert "of known pairs" in shown
    page.select_option("#verdict-kind", "flipped")
    first = page.input_value("#verdict-chosen")
    page.focus("#verdict-view")
    page.keyboard.press("j")
    assert page.input_value("#verdict-chosen") != first
    page.keyboard.press("k")
    assert page.input_value("#verdict-chosen") == first
    page.fill("#verdict-find", "no such words")
    assert page.inner_text("#verdict-count").startswith("0 of the ")
    assert page.is_disabled("#verdict-next")
    assert opened.trouble == []


def test_made_data_is_filtered_and_worked_by_keyboard(browser: Any, store: Store, tmp_path: Path) -> None:
    said = [("dpo", "sft", 0, revised(8)), ("ppo", "ppo", 0, sampled(6, 3))]
    path = write_report(made_store(store, tmp_path / "results", said), SWEEP, tmp_path)
    watched = _Watched(browser, path, 1280, at="#made")
    page = watched.page
    assert page.inner_text("#made-count") == "14 of the 14 prompts in this page match"
    shown = page.inner_text("#made-view")
    assert "Choose the answer that is kinder. <script>alert(1)</script>" in shown
    assert watched.texts("#made-view header strong") == ["answer", "critique", "revision"]
    # The critique's own prompt stands with it; the others answer the one above.
    assert page.locator("#made-view .asked").count() == 1
    page.select_option("#made-kind", "dropped")
    assert page.inner_text("#made-count").startswith("4 of the 14")
    assert watched.texts("#made-view .chip") == ["not kept"]
    page.select_option("#made-kind", "sample")
    assert page.inner_text("#made-count").startswith("6 of the 14")
    assert watched.texts("#made-view .chip.right") == ["✓ kept"]
    assert "reward 2" in page.inner_text("#made-view")
    page.select_option("#made-recipe", "dpo")
    assert "No prompt in this page fits" in page.inner_text("#made-view")
    assert page.is_disabled("#made-next")
    page.select_option("#made-kind", "")
    # The step that both recipes share is in either's.
    assert page.inner_text("#made-count").startswith("8 of the 14")
    assert page.inner_text("#made-view .sample-title").startswith("dpo, ppo: 1. sft, seed 0, prompt 0")
    page.focus("#made-view")
    page.keyboard.press("j")
    assert page.inner_text("#made-view .sample-title").endswith("prompt 1")
    page.fill("#made-find", "NUMBER 5 rude")
    assert page.inner_text("#made-count").startswith("1 of the 14")
    assert page.inner_text("#made-view .sample-title").endswith("prompt 5")
    page.fill("#made-find", "")
    page.select_option("#made-recipe", "")
    page.evaluate("document.querySelector('#recipe-filter details').open = true")
    page.check("#recipe-filter input[value=dpo]")
    assert page.inner_text("#made-count").startswith("8 of the 14")
    assert watched.trouble == []
