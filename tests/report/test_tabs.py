"""Panels as markup: whole without a script, and addressed by their titles."""

import re

import pytest

from harness.report._html import tag
from harness.report._tabs import tabs


def test_every_panel_stands_under_its_title_and_without_content_there_is_none() -> None:
    made = tabs("views", [("By task", tag("p", "one")), ("Nothing", None), ("By subject", tag("p", "two"))], level=4)
    assert made.startswith('<div class="tabs" id="views">')
    assert re.findall(r"<h4 [^>]*>([^<]*)</h4>(<p>\w+</p>)", made) == [
        ("By task", "<p>one</p>"),
        ("By subject", "<p>two</p>"),
    ]
    assert re.findall(r' id="([^"]*)"', made) == ["views", "views--by-task", "views--by-subject"]
    # Hidden is only what the script hides.
    assert "hidden" not in made
    assert tabs("views", [("Nothing", None)]) == ""


def test_titles_alike_have_identifiers_of_their_own() -> None:
    same = ["A/B", "a b", "a–b", "…", "?!", "x" * 90, "x" * 91]
    made = tabs("v", [(title, tag("p", "text")) for title in same])
    found = re.findall(r'<section class="panel" id="([^"]*)"', made)
    assert found[:5] == ["v--a-b", "v--a-b-2", "v--a-b-3", "v--panel", "v--panel-2"]
    assert len(set(found)) == len(same)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and len(name) < 50 for name in found)


@pytest.mark.parametrize("title", ['"><script>alert(1)</script>', "' onclick='x"])
def test_a_title_is_text(title: str) -> None:
    made = tabs("v", [(title, tag("p", "text"))])
    assert "<script" not in made
    assert set(re.findall(r"<(\w+)", made)) == {"div", "section", "h3", "p"}
    assert not re.search(r"<[^>]*\son\w+=[^>]*>", re.sub(r'"[^"]*"', '""', made))
