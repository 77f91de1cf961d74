"""What can be rated: the final answers of a sweep's recipes to prompts that tuning never saw, from the store."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness._spaces import suggestion
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["Answer", "Prompt", "Source", "read_prompts"]

Source = Literal["judge", "gold"]

_RUNS = """
    WITH runs AS (
        SELECT DISTINCT recipe, model, seed, target, measurement, artifact FROM scores
        WHERE sweep = $sweep AND phase = 'final' AND split = 'final' AND task = $task
    )
"""
# Of a conversation the first turn, which stands alone; its second turn rests on an answer that differs by recipe.
_QUERIES: dict[Source, str] = {
    "judge": f"""{_RUNS}
        SELECT r.*, j.document, j.aspect, any_value(j.category) AS category, any_value(j.prompt) AS prompt,
            any_value(j.response) AS response, avg(j.score) AS score
        FROM runs r JOIN judgements j USING (measurement, target)
        WHERE j.half = 'final' AND coalesce(j.turn, 1) = 1 GROUP BY ALL ORDER BY ALL
    """,
    "gold": f"""{_RUNS}
        SELECT r.*, s.document, 'gold' AS aspect, NULL AS category, s.prompt, s.response, s.score
        FROM runs r JOIN samples s USING (measurement, target)
        WHERE s.half = 'final' AND s.task = 'gold' AND s.metric = 'gold_reward'
            AND s.prompt IS NOT NULL AND s.response IS NOT NULL ORDER BY ALL
    """,
}


@dataclass(frozen=True)
class Answer:
    """What one run of a recipe said, and where the store has it."""

    recipe: str
    model: str
    seed: int
    artifact: str
    measurement: str
    text: str

    def origin(self) -> dict[str, object]:
        """Whose it is: what must never stand in a form."""
        return {
            "recipe": self.recipe,
            "model": self.model,
            "seed": self.seed,
            "artifact": self.artifact,
            "measurement": self.measurement,
        }


@dataclass(frozen=True)
class Prompt:
    """A prompt with the answers of every recipe, one for each seed.

    `stratum` is its category with what its answers are judged for; `spread` how far apart the recipes' scores are, as
    a share of the range of all scores.
    """

    document: str
    text: str
    stratum: str
    spread: float
    answers: dict[str, tuple[Answer, ...]] = field(repr=False)


def read_prompts(
    store: "Store", sweep: str, recipes: Sequence[str], *, source: Source | None = None, model: str | None = None
) -> list[Prompt]:
    """The prompts of a sweep that all of these recipes have answered, sorted by document.

    Args:
        store: ingested already.
        recipes: none: all of the sweep.
        source: answers to the judge's prompts, or to those of the gold reward; None: the judge's where there are any.
        model: the base model, where the sweep has several.

    Raises:
        UserError: no such recipe or model, several models, or no prompt that all of them have answered.
    """
    for place in (source,) if source else ("judge", "gold"):
        rows = store.query(_QUERIES[place], {"sweep": sweep, "task": place}).to_dicts()
        if rows:
            break
    else:
        raise UserError(
            f"{sweep} has no final answers{f' of measure.{source}' if source else ''} to be rated: its suite needs "
            "measure.judge or measure.gold, and its final runs to be done"
        )
    rows = _of_model(rows, model)
    wanted = list(recipes) or sorted({row["recipe"] for row in rows})
    for recipe in wanted:
        if recipe not in {row["recipe"] for row in rows}:
            known = sorted({row["recipe"] for row in rows})
            raise UserError(f"recipes: {recipe} has no final answers in {sweep}{suggestion(recipe, known)}")
    targets = _targets(rows, wanted)
    found = _prompts([row for row in rows if targets.get(row["recipe"]) == row["target"]], wanted)
    if not found:
        raise UserError(f"{sweep} has no prompt that all of {', '.join(wanted)} have answered: name fewer recipes")
    return found


def _of_model(rows: list[dict[str, Any]], model: str | None) -> list[dict[str, Any]]:
    models = sorted({row["model"] for row in rows})
    if model is None and len(models) > 1:
        raise UserError(f"the sweep has several base models, name one with --model: {', '.join(models)}")
    if model is not None and model not in models:
        raise UserError(f"--model: no final answers of {model}{suggestion(model, models)}")
    return [row for row in rows if row["model"] == (model or models[0])]


def _targets(rows: Sequence[dict[str, Any]], recipes: Sequence[str]) -> dict[str, str]:
    """The target whose answers count for each recipe: the one that most recipes ran on, or else its own first."""
    by_target: dict[str, set[str]] = {}
    for row in rows:
        by_target.setdefault(row["target"], set()).add(row["recipe"])
    order = sorted(by_target, key=lambda target: (-len(by_target[target] & set(recipes)), target))
    return {recipe: next(target for target in order if recipe in by_target[target]) for recipe in recipes}


def _prompts(rows: Sequence[dict[str, Any]], recipes: Sequence[str]) -> list[Prompt]:
    scores: dict[str, list[float]] = {}
    by_document: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_document.setdefault(row["document"], []).append(row)
        if row["score"] is not None:
            scores.setdefault(row["aspect"], []).append(row["score"])
    ranges = {aspect: max(values) - min(values) for aspect, values in scores.items()}
    found = []
    for document, mine in sorted(by_document.items()):
        answers = {
            recipe: tuple(
                {
                    row["seed"]: Answer(
                        recipe, row["model"], row["seed"], row["artifact"], row["measurement"], row["response"]
                    )
                    for row in mine
                    if row["recipe"] == recipe
                }.values()
            )
            for recipe in recipes
        }
        if all(answers.values()):
            aspects = "+".join(sorted({row["aspect"] for row in mine}))
            stratum = f"{mine[0]['category'] or ''}/{aspects}"
            found.append(Prompt(document, mine[0]["prompt"], stratum, _spread(mine, ranges), answers))
    return found


def _spread(rows: Sequence[dict[str, Any]], ranges: dict[str, float]) -> float:
    widest = 0.0
    for aspect, whole in ranges.items():
        by_recipe: dict[str, list[float]] = {}
        for row in rows:
            if row["aspect"] == aspect and row["score"] is not None:
                by_recipe.setdefault(row["recipe"], []).append(row["score"])
        means = [sum(values) / len(values) for values in by_recipe.values()]
        if whole > 0 and means:
            widest = max(widest, (max(means) - min(means)) / whole)
    return widest
