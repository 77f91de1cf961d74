"""The browser of samples: what each recipe said to the same prompt, side by side, as data for `page.js`."""

from typing import TYPE_CHECKING

from harness.report._html import Html, join, json_script, number, tag
from harness.report._plot import empty
from harness.report._queries import Facts

if TYPE_CHECKING:
    import polars as pl

    from harness.store import Store

__all__ = ["sample_browser"]

_TEXT = 4_000
_LABEL = 70

# One seed's answers of each recipe; the final half only: nobody should look at tuning answers for the result.
_TEXTS = """
    WITH runs AS (
        SELECT DISTINCT recipe, model, seed, target, task, measurement FROM scores
        WHERE sweep = $sweep AND phase = 'final' AND split = 'final'
    )
    SELECT r.recipe, r.model, r.seed, r.target, s.task, s.document, s.metric, s.score, s.response, s.expected, s.prompt
    FROM runs r JOIN samples s USING (measurement, target, task) WHERE s.half = 'final'
    UNION ALL
    SELECT r.recipe, r.model, r.seed, r.target, 'judge' AS task, j.document, j.aspect AS metric, avg(j.score) AS score,
        min(j.response) AS response, NULL AS expected, min(j.prompt) AS prompt
    FROM runs r JOIN judgements j USING (measurement, target) WHERE r.task = 'judge' AND j.half = 'final'
    GROUP BY r.recipe, r.model, r.seed, r.target, j.document, j.aspect
"""


def _cut(text: object) -> str | None:
    if text is None:
        return None
    whole = str(text)
    return (
        whole if len(whole) <= _TEXT else f"{whole[:_TEXT]}… ({len(whole) - _TEXT:,} more characters are in the store)"
    )


def _line(prompt: object, document: object, place: int) -> str:
    text = " ".join(str(prompt or document).split())
    return f"{place}. {text[:_LABEL]}{'…' if len(text) > _LABEL else ''}"


def _document(facts: Facts, rows: "pl.DataFrame", place: int) -> dict[str, object]:
    import polars as pl

    first = rows.row(0, named=True)
    responses = []
    of: dict[tuple[str, str], list[tuple[int, str, float, str | None]]] = {}
    # As Python's rows, not a frame for each recipe: a hundred recipes are ten thousand small frames a page.
    one = rows.filter(pl.col("seed") == pl.col("seed").min().over("recipe", "model")).sort(
        "metric", maintain_order=True
    )
    for recipe, model, *row in one.select("recipe", "model", "seed", "metric", "score", "response").iter_rows():
        of.setdefault((recipe, model), []).append(tuple(row))
    for who in facts.contenders:
        if (mine := of.get((who.recipe, who.model))) is None:
            continue
        name = who.label if who.is_base else f"{who.label}, seed {mine[0][0]}"
        scores = [f"{metric} {number(score)}" for _, metric, score, _ in mine]
        text = next((response for *_, response in mine if response is not None), None)
        responses.append({"who": name, "scores": scores, "text": _cut(text)})
    return {
        "label": _line(first["prompt"], first["document"], place),
        "prompt": _cut(first["prompt"]),
        "expected": _cut(first["expected"]),
        "responses": responses,
    }


def sample_browser(store: "Store", facts: Facts, limit: int) -> Html:
    """At most `limit` documents, shared evenly between the tasks; those on which the recipes differ most come first."""
    import polars as pl

    if not facts.target:
        return empty(None, "No final run has stored a sample yet.")
    own = pl.DataFrame(
        [{"recipe": c.recipe, "model": c.model, "target": facts.target_of(c)} for c in facts.contenders],
        schema=dict.fromkeys(("recipe", "model", "target"), pl.String),
    )
    # Each recipe as it is compared: on the common target, or where it does not run there on its own.
    rows = store.query(_TEXTS, {"sweep": facts.sweep}).join(own, on=["recipe", "model", "target"], how="semi")
    if rows.is_empty():
        return empty(None, "No final run has stored a sample yet.")
    tasks = sorted(rows["task"].unique().to_list(), key=lambda t: (t != "gold", t != "judge", t))
    share = max(1, limit // len(tasks))
    shown, data = 0, []
    for task in tasks[:limit]:
        mine = rows.filter(pl.col("task") == task)
        lead = "gold_reward" if task == "gold" else mine["metric"].min()
        per_recipe = (
            mine.filter(pl.col("metric") == lead).group_by("document", "recipe", "model").agg(pl.col("score").mean())
        )
        spread = per_recipe.group_by("document").agg((pl.col("score").max() - pl.col("score").min()).alias("spread"))
        order = spread.sort(["spread", "document"], descending=[True, False])["document"].to_list()[:share]
        parts = {str(d): part for (d,), part in mine.filter(pl.col("document").is_in(order)).group_by("document")}
        data.append({"name": task, "documents": [_document(facts, parts[d], i) for i, d in enumerate(order, start=1)]})
        shown += len(order)
    total = rows.select("task", "document").n_unique()
    note = (
        f"{shown:,} of {total:,} documents of the final half, on {facts.target}; those on which the recipes differ "
        "most come first. The store's view samples has all of them."
    )
    controls = tag(
        "div",
        tag("label", "Task", tag("select", id="sample-task")),
        tag("label", "Document", tag("select", id="sample-document")),
        tag("button", "Previous", id="sample-previous", type="button"),
        tag("button", "Next", id="sample-next", type="button"),
        tag("span", id="sample-position"),
        class_="controls",
    )
    place = tag("div", id="sample-view", aria_live="polite")
    return join(
        tag("p", note, class_="lead"),
        tag("div", controls, place, id="sample-browser"),
        json_script("sample-data", data),
    )
