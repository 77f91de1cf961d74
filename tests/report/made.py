"""Facts of sweeps that no store need hold: any number of recipes, tasks, seeds and documents, with chosen scores."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from harness.report._queries import BASE, Contender, Facts

Score = Callable[[str, str, int, int], float]
"""Recipe, task, seed and number of the document → its score."""


def made_facts(
    recipes: Sequence[str],
    tasks: Mapping[str, Sequence[str]],
    score: Score,
    *,
    seeds: int = 2,
    documents: int = 20,
    models: Sequence[str] = ("m",),
    metric: str = "acc",
    objectives: Mapping[str, str] | None = None,
) -> Facts:
    """A finished sweep of these recipes, and of the base model with one seed.

    Args:
        recipes: their names.
        tasks: benchmark → its tasks, itself or its subjects.
        score: every score, the base's under its own name.
        seeds: of each recipe.
        documents: of each task.
        models: each has every recipe.
        metric: the one of every task.
        objectives: "score" to be maximised, unless given.
    """
    contenders = [
        Contender(f"{r} · {m}" if len(models) > 1 else r, r, m, i)
        for m in models
        for i, r in enumerate([BASE, *recipes])
    ]
    rows = [
        (c.label, c.recipe, c.model, seed, group, task, f"{d:03}", score(c.recipe, task, seed, d))
        for c in contenders
        for seed in range(1 if c.is_base else seeds)
        for group, own in tasks.items()
        for task in own
        for d in range(documents)
    ]
    names = ["label", "recipe", "model", "seed", "group", "task", "document", "score"]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        pl.lit(metric).alias("metric"),
        pl.lit("cpu").alias("target"),
        pl.concat_str("label", "seed", "task", separator="/").alias("measurement"),
    )
    settings = {"objectives": dict(objectives or {"score": "maximize"}), "measure": {"tasks": {t: {} for t in tasks}}}
    values: dict[str, object] = {
        "sweep": "made-1",
        "suite": "made",
        "state": "complete",
        "settings": settings,
        "contenders": tuple(contenders),
        "documents": frame,
    }
    for one in dataclasses.fields(Facts):
        if one.name in values or one.default is not dataclasses.MISSING:
            continue
        if one.default_factory is dataclasses.MISSING:
            values[one.name] = "" if one.type is str or one.type == "str" else pl.DataFrame()
    # The target is looked for among the scores too.
    values["scores"] = frame.select("target")
    return Facts(**values)  # type: ignore[arg-type]  # each by the field's own name
