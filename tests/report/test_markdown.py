"""The report for a pull request: the figures of the page, and nothing that names or texts could smuggle in."""

import webbrowser
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from harness.cli import main
from harness.gates import Checked, Flag
from harness.report import _markdown, report_markdown
from harness.report._compare import compare_recipes
from harness.report._queries import read_facts
from harness.report._rank import places
from harness.report._words import difference_text, words
from harness.store import Store
from tests.report.stores import derive
from tests.store.scenario import SWEEP

_HOSTILE = "<img src=x onerror=alert(1)> | @someone [a](http://evil.example) `b` **c** http://evil.example"


def _tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or []


def _shown(text: str) -> str:
    return " ".join(t.content for t in _tokens(text) if t.type == "text")


def test_holds_the_answer_and_the_comparisons_of_the_page(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    text = report_markdown(store, SWEEP)
    shown = _shown(text)
    for sentence in words(facts).verdicts:
        assert sentence in shown
    for found in compare_recipes(facts, "gold_reward"):
        assert f"| {found.a.label} − {found.b.label} | gold\\_reward | {difference_text(found)} |" in text
    assert sum(t.type == "table_open" for t in _tokens(text)) == 5


def test_names_and_texts_stay_text(store: Store, tmp_path: Path) -> None:
    def renamed(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(
            pl.when(pl.col("recipe") == "dpo").then(pl.lit(_HOSTILE)).otherwise(pl.col("recipe")).alias("recipe")
        )

    tables = ("trial_events", "stage_links", "measurement_links", "failure_events")
    hostile = derive(store, tmp_path / "results", dict.fromkeys(tables, renamed))
    found = Checked([Flag("at chance", "invalid", _HOSTILE, "m", "mmlu", 0, f"line\n# title\n{_HOSTILE}")], [])
    text = report_markdown(hostile, SWEEP, found=found)
    kinds = {t.type for t in _tokens(text)}
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "code_inline"}
    assert "onerror=alert(1)" in _shown(text)
    # Where Markdown is rendered with extras, @name mentions people and a bare address becomes a link.
    assert "@" not in text
    assert "http://" not in text
    assert sum(t.type == "heading_open" for t in _tokens(text)) == 1


def test_long_tables_are_cut_and_say_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_markdown, "_ROWS", 1)
    text = report_markdown(store, SWEEP)
    assert "more rows are in the page" in text
    assert len(text) < len(_full(store, monkeypatch))


def _full(store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.undo()
    return report_markdown(store, SWEEP)


def test_a_place_contradicts_no_verdict(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    found = places(facts, "gold_reward")
    assert set(found) == {"dpo", "ppo"}
    pair = next(iter(compare_recipes(facts, "gold_reward")))
    assert pair.verdict == "higher"
    assert (found[pair.a.label].low, found[pair.a.label].rank, found[pair.a.label].high) == (1, 1, 1)
    assert found[pair.b.label].text() == "2 [2, 2] of 2"


def test_the_command_writes_only_markdown_and_opens_only_pages(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places_ = ["--results", str(store.results), "--reports", str(tmp_path)]
    assert main(["report", SWEEP, "--format", "md", *places_]) == 0
    assert capsys.readouterr().out.startswith("### ")
    assert list(tmp_path.iterdir()) == []
    assert main(["report", SWEEP, "--format", "md", "--open", *places_]) == 2
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)))
    assert main(["report", SWEEP, "--open", *places_]) == 0
    page = next(tmp_path.glob("*.html"))
    assert opened == [page.resolve().as_uri()]
    # Nothing opened it: the user is told where it is.
    assert f"open {page} yourself" in capsys.readouterr().err
