"""The formats of others on the pages, and in memory."""

import html
import re
import weakref
from pathlib import Path

import polars as pl
import pytest

from harness.publish import publish, verify
from harness.publish._spool import Samples, Spool
from harness.store import Store
from tests.publish.conftest import NOW
from tests.store.scenario import SWEEP


def test_every_page_offers_its_entry_in_all_formats(export: Path) -> None:
    pages = sorted((export / "entries").glob("*.html"))
    offered = set()
    for page in pages:
        text = html.unescape(page.read_text(encoding="utf-8"))
        links = re.findall(r'href="\.\./((?:every-eval-ever|hub|lm-eval)/[^"]+)"', text[text.index('id="downloads"') :])
        assert {link.partition("/")[0] for link in links} == {"every-eval-ever", "hub", "lm-eval"}
        offered |= set(links)
    there = {p.relative_to(export).as_posix() for p in export.rglob("*") if p.is_file()}
    there = {n for n in there if n.startswith(("every-eval-ever", "hub", "lm-eval"))}
    assert offered == there
    # Two recipes on two targets with two seeds, and the untouched model on two targets; four tasks each.
    assert sum(n.startswith("lm-eval") for n in there) == 10 * 5
    index = (export / "index.html").read_text(encoding="utf-8")
    assert 'href="croissant.json"' in index
    assert "Every Eval Ever" in index


def test_one_entry_is_in_memory_at_a_time(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[weakref.ref[pl.DataFrame]] = []
    counts = []
    read = Samples.frame

    def counted(self: Samples) -> pl.DataFrame:
        frame = read(self)
        frames.append(weakref.ref(frame))
        counts.append(sum(f() is not None for f in frames))
        return frame

    monkeypatch.setattr(Samples, "frame", counted)
    publish(store, [SWEEP], tmp_path / "site", now=NOW)
    assert verify(tmp_path / "site") == []
    assert len(counts) > 20
    # The next one is read before the last one goes.
    assert max(counts) <= 2


def test_what_waits_goes_when_nobody_refers_to_it() -> None:
    spool = Spool()
    kept = spool.keep(pl.DataFrame({"task": ["a"], "score": [1.0]}))
    written = spool.write([b"a", b"bc"])
    assert (written.path.read_bytes(), written.size) == (b"abc", 3)
    folder = kept.path.parent
    del spool
    assert kept.frame()["score"][0] == 1.0
    del kept, written
    assert not folder.exists()
