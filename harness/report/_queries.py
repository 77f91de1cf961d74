"""Everything the page is made from, read from the store's public views in a few queries."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from harness.errors import UserError
from harness.report._judges_queries import CHECKS, PREFERENCES, SPENT, VOTES

if TYPE_CHECKING:
    import polars as pl

    from harness.store import Store

__all__ = ["BASE", "TUNING_CURVES", "Contender", "Facts", "mapping", "read_facts"]

T = TypeVar("T")

BASE = "base"
TUNING_CURVES = 60
"""Of each method's tuning runs, the training curves that are shown."""

# A final run's scored measurements; `final` are the documents that tuning never saw.
_FINAL_RUNS = """
    SELECT DISTINCT recipe, model, trial, seed, target, task, measurement FROM scores
    WHERE sweep = $sweep AND phase = 'final' AND split = 'final'
"""
_DOCUMENTS = f"""
    WITH runs AS ({_FINAL_RUNS})
    SELECT r.recipe, r.model, r.trial, r.seed, r.target, s.task, s.metric, s.document, s.score, s.measurement
    FROM runs r JOIN samples s USING (measurement, target, task) WHERE s.half = 'final'
    UNION ALL
    SELECT r.recipe, r.model, r.trial, r.seed, r.target, 'judge' AS task, j.aspect AS metric, j.document,
        avg(j.score) AS score, r.measurement
    FROM runs r JOIN judgements j USING (measurement, target)
    WHERE j.half = 'final' AND r.task = 'judge' AND j.score IS NOT NULL
    GROUP BY ALL
"""
_PROFILES = """
    SELECT DISTINCT t.recipe, t.model, t.trial, t.seed, p.target, p.setting, p.metric, p."value", p.low, p.high,
        p.p90, p.p95, p.p99, p.n, p.settings, p.environment, p.measurement
    FROM trials t JOIN profiles p USING (artifact) WHERE t.sweep = $sweep AND t.phase = 'final'
    AND (p.measurement, p.target) IN (SELECT (measurement, target) FROM raw.measurement_links WHERE sweep = $sweep)
"""
_REPEATS = """
    SELECT DISTINCT t.recipe, t.model, t.trial, t.seed, l.target, p.setting, p.metric, p.repeat, p."value"
    FROM trials t JOIN (
        SELECT DISTINCT measurement, artifact, target FROM raw.measurement_links WHERE sweep = $sweep
    ) l USING (artifact)
    JOIN raw.profile_samples p USING (measurement)
    WHERE t.sweep = $sweep AND t.phase = 'final' AND p.metric IN
        ('e2e_ms', 'ttft_ms', 'tpot_ms', 'peak_rss_mb', 'peak_cuda_mb', 'weight_mb', 'weight_disk_mb')
"""
# Curves of all final runs, but only some of each method's tuning runs: no page could show those of 10,000 trials. A
# stage's key is a hash, so the first of them by key are a random few.
_TRAINING = f"""
    WITH used AS (
        SELECT recipe, model, trial, seed, stage, step AS method FROM raw.stage_links WHERE sweep = $sweep
        UNION
        SELECT e.recipe, e.model, e.trial, e.seed, e.stage, c.method
        FROM raw.failure_events e JOIN raw.training_curves c USING (stage) WHERE e.sweep = $sweep
    ),
    finals AS (
        SELECT DISTINCT recipe, model, trial, seed, true AS final FROM raw.trial_events
        WHERE sweep = $sweep AND phase = 'final'
    ),
    stages AS (
        SELECT stage, method, bool_or(coalesce(final, false)) AS final
        FROM used LEFT JOIN finals USING (recipe, model, trial, seed) GROUP BY stage, method
    ),
    shown AS (
        SELECT stage FROM stages
        QUALIFY final OR row_number() OVER (PARTITION BY method, final ORDER BY stage) <= {TUNING_CURVES}
    )
    SELECT * FROM training WHERE sweep = $sweep AND stage IN (SELECT stage FROM shown)
    ORDER BY method, metric, recipe, model, trial, seed, step
"""
# What measuring each tuning trial took, whoever measured it.
_MEASURING = """
    SELECT l.recipe, l.model, l.trial, l.seed, sum(m.seconds) AS seconds
    FROM (
        SELECT DISTINCT recipe, model, trial, seed, measurement FROM raw.measurement_links
        WHERE sweep = $sweep AND phase = 'tune'
    ) l JOIN raw.measurements m USING (measurement)
    GROUP BY ALL
"""
_FALLBACKS = """
    SELECT DISTINCT l.recipe, l.model, json_extract_string(m.settings, '$.scorer_fallback') AS reason
    FROM raw.measurement_links l JOIN raw.measurements m USING (measurement)
    WHERE l.sweep = $sweep AND json_extract_string(m.settings, '$.scorer_fallback') IS NOT NULL
"""


@dataclass(frozen=True)
class Contender:
    """A recipe on one base model, as the page names it; `index` decides its colour, 0 being the base model."""

    label: str
    recipe: str
    model: str
    index: int

    @property
    def is_base(self) -> bool:
        """Whether this is the untouched base model."""
        return self.recipe == BASE


@dataclass(frozen=True, eq=False)
class Facts:
    """One sweep.

    Every frame of runs has a column `label`, the contender's, and every frame of scores a column `group`: the name
    under which the suite asked for the task (`mmlu` for each of its subjects). `documents` holds final
    scores, a row per document.
    """

    sweep: str
    suite: str
    question: str
    state: str
    yaml: str
    data: str
    recorded_at: str
    environment: str
    settings: Mapping[str, object]
    contenders: tuple[Contender, ...]
    trials: "pl.DataFrame"
    scores: "pl.DataFrame"
    documents: "pl.DataFrame"
    profiles: "pl.DataFrame"
    repeats: "pl.DataFrame"
    """The single repeats behind the latency and memory of `profiles`."""
    training: "pl.DataFrame"
    """Of all final runs, and of some of the tuning runs (`TUNING_CURVES`)."""
    lineage: "pl.DataFrame"
    stages: "pl.DataFrame"
    measuring: "pl.DataFrame"
    """The seconds that measuring each tuning trial took."""
    failures: "pl.DataFrame"
    environments: "pl.DataFrame"
    fallbacks: "pl.DataFrame"
    """Models whose benchmark scores were computed in plain batches, and why."""
    votes: "pl.DataFrame"
    """The judges' ratings of final answers, one that was no verdict with no score."""
    preferences: "pl.DataFrame"
    """What the judges preferred of final answers, `label_a` against `label_b`, both orders of a pair together."""
    checks: "pl.DataFrame"
    """What the judges said where the right verdict is known."""
    spent: "pl.DataFrame"
    """How many votes each judge gave, of each kind, how many were none, and what they cost."""
    plan: Mapping[str, object] = field(default_factory=dict)
    """What the sweep was planned as: its cells, and the targets and recipes left out on its machine."""
    on: str = ""
    """The target whose scores are compared, where a part of the page asks for another than the suite's."""
    cache: dict[object, object] = field(default_factory=dict, repr=False)
    """Intervals that several parts of the page show, computed once."""

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` gives for this key, computed once for the page and the paragraph."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]  # type: ignore[return-value]  # one key stands for one kind

    @property
    def objectives(self) -> dict[str, str]:
        """Objective → maximize or minimize, in the suite's order."""
        found = self.settings.get("objectives")
        if isinstance(found, dict) and found:
            return {str(k): str(v) for k, v in found.items()}
        # An older row without objectives: what its trials reached.
        reached = (mapping(text) for text in self.trials["objectives"].drop_nulls())
        return dict.fromkeys((name for one in reached for name in one), "maximize")

    @property
    def target(self) -> str:
        """The target whose scores are compared: the suite's for quality, else its first measured; "" for none."""
        if self.on:
            return self.on
        return self.once("target", self._own_target)

    def _own_target(self) -> str:
        measured = {*self.documents["target"].unique(), *self.scores["target"].unique()}
        measure, listed = self.settings.get("measure"), self.settings.get("targets")
        wanted = [measure.get("quality_target")] if isinstance(measure, dict) else []
        wanted += [t.get("name") for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
        # Without a suite's order, the one where most was measured; ties by name.
        counts = {t: self.scores.filter(self.scores["target"] == t).height for t in sorted(measured)}
        return next((str(t) for t in wanted if t in measured), max(counts, key=lambda t: counts[t], default=""))

    def target_of(self, who: Contender) -> str:
        """The target whose scores of a contender are compared: `target`, or where it does not run there its own."""
        if self.on or not self.target:
            return self.on
        key = ("target_of", who.label)
        return self.once(key, lambda: self._target_of(who))

    def _target_of(self, who: Contender) -> str:
        measured = set(self.documents.filter(self.documents["label"] == who.label)["target"].unique())
        listed = self.settings.get("targets")
        order = [str(t.get("name")) for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
        return next((t for t in (self.target, *order, *sorted(measured)) if t in measured), self.target)

    def origin_of(self, contender: Contender) -> Contender | None:
        """The contender that this one begins with: the recipe it uses, or the untouched model."""
        recipes = self.settings.get("recipes")
        steps = recipes.get(contender.recipe) if isinstance(recipes, dict) else None
        first = steps[0] if isinstance(steps, list) and steps else None
        used = first.get("use") if isinstance(first, dict) else None
        own = (c for c in self.contenders if c.model == contender.model and c.recipe == (used or BASE))
        return None if contender.is_base else next(own, None)

    def first_batch(self) -> str:
        """The setting of profiles that stands for the others: the suite's first batch size."""
        measure = self.settings.get("measure")
        profile = measure.get("profile") if isinstance(measure, dict) else None
        sizes = profile.get("batch_sizes") if isinstance(profile, dict) else None
        return f"batch={sizes[0]}" if isinstance(sizes, list) and sizes else "batch=1"

    def left_out(self) -> dict[str, str]:
        """Target or recipe that this sweep left out on its machine → why."""
        skipped, unmeasured = self.plan.get("skipped"), self.plan.get("unmeasured")
        found = {f"target {k}": str(v) for k, v in skipped.items()} if isinstance(skipped, dict) else {}
        recipes = unmeasured if isinstance(unmeasured, list) else []
        return {**found, **{f"recipe {r}": "no target left that runs what it leaves" for r in recipes}}

    def not_done(self) -> list[str]:
        """What a bound of the budget left out, a line for each cell."""
        found = self.plan.get("not_done")
        return [str(line) for line in found] if isinstance(found, list) else []

    def on_target(self, name: str) -> "Facts":
        """The same sweep, with the scores of another target compared."""
        return replace(self, on=name, cache={})

    def why_none(self, part: str, what: str) -> str:
        """Why a part of the measures shows nothing: the suite has none of it, or no final run has got to it."""
        measure = self.settings.get("measure")
        if isinstance(measure, dict):
            return f"No final run has {what} yet." if measure.get(part) else f"The suite's measures name no {part}."
        return f"The suite's measures name no {part}, or no final run has {what} yet."

    def base_of(self, contender: Contender) -> Contender | None:
        """The untouched model this contender started from, if it was measured."""
        return next((c for c in self.contenders if c.is_base and c.model == contender.model), None)

    def recipes(self) -> tuple[Contender, ...]:
        """The contenders that are not a base model."""
        return tuple(c for c in self.contenders if not c.is_base)


def mapping(text: object) -> dict[str, object]:
    """A stored JSON object, as text or parsed already; {} for anything else."""
    parsed = json.loads(text) if isinstance(text, str) else text
    return parsed if isinstance(parsed, dict) else {}


def _group(task: str, asked: list[str]) -> str:
    whole = [a for a in asked if task == a or task.startswith(f"{a}_")]
    return max(whole, key=len, default=task)


def _names(value: object) -> list[str]:
    if isinstance(value, dict):
        return [str(k) for k in value]
    return [str(v) for v in value] if isinstance(value, list) else []


def _contenders(settings: Mapping[str, object], trials: "pl.DataFrame") -> tuple[Contender, ...]:
    seen = {(str(r), str(m)) for r, m in trials.select("recipe", "model").unique().iter_rows()}
    recipe_order, model_order = [BASE, *_names(settings.get("recipes"))], _names(settings.get("models"))
    recipes = recipe_order + sorted({r for r, _ in seen} - set(recipe_order))
    models = model_order + sorted({m for _, m in seen} - set(model_order))
    several = len({m for _, m in seen}) > 1
    found: list[Contender] = []
    for model in models:
        for recipe in recipes:
            if (recipe, model) in seen:
                # The first base model is grey; one recipe keeps one colour and each further model shifts the symbols.
                shift = 7 * sum(1 for m in models[: models.index(model)] if any(s[1] == m for s in seen))
                index = recipes.index(recipe) + shift if recipe != BASE or shift else 0
                found.append(Contender(f"{recipe} · {model}" if several else recipe, recipe, model, index))
    return tuple(found)


def read_facts(store: "Store", sweep: str) -> Facts:
    """Read one sweep, finished or not.

    Args:
        store: ingested already.
        sweep: the sweep's id.

    Raises:
        UserError: the store knows no such sweep (with those it knows), or nothing was measured at all.
    """
    with store.reading():
        return _facts(store, sweep)


def _facts(store: "Store", sweep: str) -> Facts:
    import polars as pl

    suites = store.query("SELECT * FROM suites")
    mine = suites.filter(pl.col("sweep") == sweep)
    if mine.is_empty():
        known = ", ".join(sorted(suites["sweep"].to_list())) or "none"
        raise UserError(f"no sweep {sweep!r} in {store.results}; it knows: {known}. Run `harness sweep SUITE` first")
    event = mine.row(0, named=True)
    settings = mapping(event["suite_json"])
    trials = store.query(
        "SELECT * FROM trials WHERE sweep = $sweep ORDER BY recipe, model, phase, trial, seed", {"sweep": sweep}
    )
    contenders = _contenders(settings, trials)

    def labelled(frame: pl.DataFrame, recipe: str = "recipe", label: str = "label") -> pl.DataFrame:
        names = {(c.recipe, c.model): c.label for c in contenders}
        pairs = zip(frame[recipe], frame["model"], strict=True)
        # A row may name a run of which no event was stored yet; it still belongs to a recipe.
        return frame.with_columns(pl.Series(label, [names.get((r, m), str(r)) for r, m in pairs], dtype=pl.String))

    def preferred(frame: pl.DataFrame) -> pl.DataFrame:
        return labelled(labelled(frame, "a", "label_a"), "b", "label_b")

    def of_sweep(sql: str) -> pl.DataFrame:
        return labelled(store.query(sql, {"sweep": sweep}))

    measure = settings.get("measure")
    asked = _names(measure.get("tasks")) if isinstance(measure, dict) else []

    def grouped(frame: pl.DataFrame) -> pl.DataFrame:
        groups = [_group(str(t), asked) for t in frame["task"]]
        return frame.with_columns(pl.Series("group", groups, dtype=pl.String))

    lineage = of_sweep("SELECT * FROM lineage WHERE sweep = $sweep ORDER BY recipe, model, trial, seed, position")
    stages = store.query(
        "SELECT * FROM stages WHERE stage IN (SELECT stage FROM lineage WHERE sweep = $sweep) ORDER BY recorded_at, "
        "stage",
        {"sweep": sweep},
    )
    documents = grouped(of_sweep(_DOCUMENTS))
    scores = grouped(
        of_sweep("SELECT * FROM scores WHERE sweep = $sweep ORDER BY recipe, model, trial, seed, task, metric")
    )
    profiles = of_sweep(_PROFILES)
    used = {str(event["environment"]), *stages["environment"].to_list(), *profiles["environment"].to_list()}
    environments = store.query("SELECT * FROM environments ORDER BY environment")
    return Facts(
        sweep=sweep,
        suite=str(event["suite"]),
        question=str(event["question"]),
        state=str(event["state"]),
        yaml=str(event["yaml"]),
        data=str(event["data"]),
        recorded_at=str(event["recorded_at"]),
        environment=str(event["environment"]),
        settings=settings,
        contenders=contenders,
        trials=labelled(trials),
        scores=scores,
        documents=documents.sort("label", "target", "task", "metric", "seed", "document"),
        profiles=profiles.sort("label", "target", "setting", "metric", "seed"),
        repeats=of_sweep(_REPEATS).sort("label", "target", "setting", "metric", "seed", "repeat"),
        training=of_sweep(_TRAINING),
        lineage=lineage,
        stages=stages,
        measuring=of_sweep(_MEASURING),
        failures=of_sweep("SELECT * FROM failures WHERE sweep = $sweep ORDER BY recorded_at"),
        environments=environments.filter(pl.col("environment").is_in(list(used))),
        fallbacks=of_sweep(_FALLBACKS),
        votes=of_sweep(VOTES),
        preferences=preferred(store.query(PREFERENCES, {"sweep": sweep})),
        checks=store.query(CHECKS, {"sweep": sweep}),
        spent=store.query(SPENT, {"sweep": sweep}),
        plan=mapping(event["plan_json"]),
    )
