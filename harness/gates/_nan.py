"""NaN: a model whose training diverged, scores that are no numbers, and runs that ended for either reason.

A NaN score is refused where it is made and again by the store, so what this finds is mostly what it cost: training
curves that broke, and runs that have no figure for that reason.
"""

from collections.abc import Iterator

from harness.gates._evidence import Evidence
from harness.gates._types import Flag

__all__ = ["not_a_number"]

_GATE = "NaN"
_WORDS = r"\b(nan|inf|infinite|infinity)\b"

# A stage's curve stands under each run that uses it, teachers' and used recipes' included.
_CURVES = """
    SELECT recipe, model, seed, method, metric, count(*) FILTER (WHERE NOT isfinite("value")) AS broken,
        count(*) AS logged, min(step) FILTER (WHERE NOT isfinite("value")) AS first,
        NOT isfinite(arg_max("value", step)) AS ends
    FROM training WHERE sweep = $sweep AND phase = 'final' GROUP BY ALL HAVING broken > 0 ORDER BY ALL
"""
# Of the runs that are without a result now: one that was run again since has its figures.
_FAILED = """
    SELECT t.recipe, t.model, t.seed, t.phase = 'final' AS final, arg_max(f.message, (f.batch, f.batch_row)) AS message
    FROM trials t JOIN raw.failure_events f USING (sweep, recipe, model, trial, seed)
    WHERE t.sweep = $sweep AND t.state IN ('failed', 'infeasible')
    GROUP BY t.recipe, t.model, t.trial, t.seed, t.phase HAVING regexp_matches(lower(message), $words)
    ORDER BY ALL
"""
_TRIALS = """
    SELECT recipe, model, count(*) AS n FROM trials WHERE sweep = $sweep AND phase = 'tune' GROUP BY ALL
"""


def not_a_number(evidence: Evidence) -> Iterator[Flag]:
    """Flag curves that broke (invalid where they end so), scores that are no numbers, and runs lost to either."""
    store, sweep = evidence.store, {"sweep": evidence.sweep}
    for recipe, model, seed, method, metric, broken, logged, first, ends in store.query(_CURVES, sweep).iter_rows():
        rest = "and it ends so: its weights are not to be trusted" if ends else "and it recovered"
        message = (
            f"{metric} of {method} is NaN or infinite in {broken} of {logged} logged steps, from step {first} on, "
            f"{rest}. Lower the learning rate or clip gradients, and train again."
        )
        figures = {"broken": float(broken), "logged": float(logged), "first_step": float(first)}
        yield Flag(_GATE, "invalid" if ends else "warning", recipe, model, "", seed, message, figures)
    for one in evidence.asked:
        for seed, rows in one.seeds.items():
            wrong = rows.filter(~rows["score"].is_finite())
            if not wrong.is_empty():
                message = (
                    f"{wrong.height} of {rows.height} scores{evidence.on(one)} are NaN or infinite. They did not come "
                    "through this store's checks: measure again."
                )
                figures = {"broken": float(wrong.height), "scores": float(rows.height)}
                yield one.flag(_GATE, "invalid", message, figures, seed)
    yield from _lost(evidence)


def _lost(evidence: Evidence) -> Iterator[Flag]:
    """Final runs without a figure, a flag each; tuning trials counted by recipe."""
    tuning: dict[tuple[str, str], list[str]] = {}
    for recipe, model, seed, final, message in evidence.store.query(
        _FAILED, {"sweep": evidence.sweep, "words": _WORDS}
    ).iter_rows():
        if final:
            said = f"No figure of this run: {message}. Lower the learning rate, then `harness retry`."
            yield Flag(_GATE, "invalid", recipe, model, "", seed, said)
        else:
            tuning.setdefault((recipe, model), []).append(message)
    trials = {(r, m): int(n) for r, m, n in evidence.store.query(_TRIALS, {"sweep": evidence.sweep}).iter_rows()}
    for (recipe, model), messages in tuning.items():
        of = trials.get((recipe, model), len(messages))
        said = (
            f"{len(messages)} of {of} tuning trials ended with NaN or infinity ({messages[0]}). The search has learned "
            "from them; if they are many, narrow its ranges."
        )
        yield Flag(_GATE, "warning", recipe, model, "", None, said, {"lost": len(messages), "trials": of})
