"""The browser of verdicts: two answers to a prompt, what a judge said in both orders, as data for `judges.js`."""

from typing import TYPE_CHECKING

from harness.report._browsing import browser
from harness.report._html import Html, join, json_script, tag
from harness.report._judges_quality import known
from harness.report._plot import empty
from harness.report._queries import Facts
from harness.report._samples import Texts

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["verdict_browser"]

_BYTES = 800_000
"""Of texts in the page at most, beside those of the samples."""
_FILTERS = (("Judge", "judge"), ("Compared", "pair"), ("Verdict", "kind"))

# One comparison of each pair of runs; those that were flipped or unparsed first, as they say most of a judge, and the
# rest by a hash, so that no recipe or prompt is preferred.
_SHOWN = """
    WITH once AS (
        SELECT model, a, b, seed_a, seed_b, judge, document, category, prompt, response_a, response_b, win, flipped,
            verdict_first, verdict_second, words_first, words_second
        FROM preferences WHERE sweep = $sweep
        QUALIFY row_number() OVER (
            PARTITION BY measurement, model, a, b, judge, judge_key, document ORDER BY seed_a, seed_b
        ) = 1
    ), kinds AS (
        SELECT *, CASE WHEN win IS NULL THEN 'unparsed' WHEN flipped THEN 'flipped' WHEN win = 1 THEN 'a'
            WHEN win = 0 THEN 'b' ELSE 'tie' END AS kind
        FROM once
    )
    SELECT * FROM kinds
    ORDER BY row_number() OVER (PARTITION BY judge, a, b, kind ORDER BY hash(document), seed_a, seed_b),
        judge, a, b, kind
    LIMIT $limit
"""


def verdict_browser(store: "Store", facts: Facts, limit: int) -> Html:
    """At most `limit` comparisons, of every judge, pair of recipes and kind of verdict about as many."""
    rows = (
        [] if facts.preferences.is_empty() else store.query(_SHOWN, {"sweep": facts.sweep, "limit": limit}).to_dicts()
    )
    if not rows:
        return empty(None, "No two answers have been compared yet.")
    names = {(c.recipe, c.model): c.label for c in facts.contenders}
    judges = sorted({str(row["judge"]) for row in rows})
    texts = Texts()
    shown = [
        {
            "id": row["document"],
            "kind": row["kind"],
            "judge": judges.index(row["judge"]),
            "a": names.get((row["a"], row["model"]), row["a"]),
            "b": names.get((row["b"], row["model"]), row["b"]),
            "category": row["category"],
            "verdicts": [row["verdict_first"], row["verdict_second"]],
            "prompt": texts.place(row["prompt"]),
            "responses": [texts.place(row["response_a"]), texts.place(row["response_b"])],
            "words": [texts.place(row["words_first"]), texts.place(row["words_second"])],
        }
        for row in rows
    ]
    whole, length = texts.cut(_BYTES)
    data = {"judges": [{"name": j, "line": known(facts)[j].line()} for j in judges], "texts": whole, "pairs": shown}
    cut = "" if length is None else f" Texts are cut to {length:,} characters."
    note = (
        f"{len(shown):,} of {facts.preferences.height:,} comparisons, of every judge, pair of recipes and kind of "
        f"verdict about as many: shares among them are not the win rates.{cut} The store's view "
        "preferences has all of them."
    )
    return join(
        tag("p", note, class_="fine"), browser("verdict", _FILTERS, "Comparison"), json_script("verdict-data", data)
    )
