"""From a store's sweep to entries: a card and its samples for each recipe, base model and target, cleaned."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.data import DataSource
from harness.errors import UserError
from harness.human import People, read_people
from harness.measure.tasks import task_datasets
from harness.publish._aggregates import PROFILE
from harness.publish._cards import SAMPLES, Budget, Card, Condition, Failure, Stage, digest_of, identity
from harness.publish._command import command_of
from harness.publish._names import is_hub_id
from harness.publish._said import left_out, people_samples, qualities
from harness.publish._scrub import Scrubber
from harness.publish._spool import Samples, Spool
from harness.report._queries import Contender, Facts, mapping, read_facts
from harness.report._words import cost_of

if TYPE_CHECKING:
    import polars as pl

    from harness.store import Store

__all__ = ["Part", "gather"]

Part = tuple[Card, Samples]
"""An entry: its card, and its samples."""

_TEXTS = """
    SELECT measurement, document, metric, response, prompt, expected FROM raw.samples
    WHERE half = 'final' AND list_contains($keys, measurement)
    UNION ALL
    SELECT measurement, document, aspect AS metric, min(response) AS response, min(prompt) AS prompt,
        NULL AS expected
    FROM raw.judge_votes WHERE half = 'final' AND list_contains($keys, measurement)
    GROUP BY measurement, document, aspect
"""
_REPEATS = """
    SELECT measurement, metric, setting, repeat, "value" AS score FROM raw.profile_samples
    WHERE list_contains($keys, measurement)
"""
_CONDITIONS = """
    SELECT measurement, task, settings FROM raw.measurements WHERE kind = 'task' AND list_contains($keys, measurement)
"""
_ANSWERED = """
    SELECT DISTINCT recipe, model, target, measurement FROM raw.measurement_links
    WHERE sweep = $sweep AND phase = 'final'
"""
_MEASURING = """
    SELECT l.recipe, l.model, sum(m.seconds) AS seconds FROM (
        SELECT DISTINCT recipe, model, measurement FROM raw.measurement_links WHERE sweep = $sweep
    ) l JOIN raw.measurements m USING (measurement) GROUP BY l.recipe, l.model
"""


def gather(store: "Store", sweep: str, scrub: Scrubber, *, texts: bool) -> list[Part]:
    """The entries of a sweep that have final scores, the base model of each first.

    Args:
        store: ingested already.
        sweep: its id.
        scrub: what cleans every text.
        texts: with responses and prompts.

    Raises:
        UserError: no such sweep.
    """
    return _Gatherer(store, read_facts(store, sweep), read_people(store, sweep), scrub, texts, Spool()).parts()


@dataclass(frozen=True)
class _Gatherer:
    store: "Store"
    facts: Facts
    people: People | None
    scrub: Scrubber
    texts: bool
    spool: Spool

    def parts(self) -> list[Part]:
        facts = self.facts
        shared = self._shared()
        measuring = {(r, m): s for r, m, s in self.store.query(_MEASURING, {"sweep": facts.sweep}).rows()}
        answered = self._answered()
        names: dict[tuple[str, ...], int] = {}
        bases: dict[tuple[str, str], str] = {}
        parts: list[Part] = []
        for who in sorted(facts.contenders, key=lambda c: not c.is_base):
            for target in self._targets(who):
                keys, samples = self._samples(who, target, answered.get((who.recipe, who.model, target), set()))
                model = self._model(who.model)
                own = (self.scrub.clean(facts.sweep), self.scrub.clean(who.recipe), model, self.scrub.clean(target))
                # Two folders of one name are two models all the same.
                names[own] = again = names.get(own, 0) + 1
                if again > 1:
                    own = (*own[:2], f"{model} ({again})", own[3])
                entry = identity(*own)
                digest = digest_of(entry, samples)
                if who.is_base:
                    bases[who.model, target] = digest
                own_facts = self._own(who, target, keys, float(measuring.get((who.recipe, who.model)) or 0.0))
                card = Card(
                    id=entry,
                    digest=digest,
                    base=None if who.is_base else bases.get((who.model, target)),
                    sweep=own[0],
                    recipe=own[1],
                    model=own[2],
                    target=own[3],
                    **{**shared, **own_facts, "notes": [*shared["notes"], *own_facts["notes"]]},
                )
                parts.append((card, self.spool.keep(samples)))
        return parts

    def _answered(self) -> dict[tuple[str, str, str], set[str]]:
        """(Recipe, base model, target) → the measurements that answered there, also where no judge gave a verdict."""
        found: dict[tuple[str, str, str], set[str]] = {}
        for *own, measurement in self.store.query(_ANSWERED, {"sweep": self.facts.sweep}).rows():
            found.setdefault((own[0], own[1], own[2]), set()).add(measurement)
        return found

    def _model(self, name: str) -> str:
        return self.scrub.name(name) or "model"

    def _targets(self, who: Contender) -> list[str]:
        rows = self.facts.documents.filter(self.facts.documents["label"] == who.label)
        return sorted(rows["target"].unique().to_list())

    def _shared(self) -> dict[str, Any]:
        """What all entries of the sweep say."""
        facts, clean = self.facts, self.scrub.clean
        command, notes = command_of(facts)
        yaml = self.scrub.yaml(facts.yaml)
        shown = self.scrub.servers(command)
        if yaml != facts.yaml or shown != command:
            notes.append(
                "Paths on the machine of the sweep were cut to their last part, and names, secrets and servers taken "
                "out: put your own in their place before you repeat it."
            )
        environments = [
            (str(row["environment"]), self.scrub.value(mapping(row["json"])))
            for row in facts.environments.sort("environment").iter_rows(named=True)
        ]
        notes += [clean(f"Left out there: {what}: {why}.") for what, why in facts.left_out().items()]
        notes += [clean(f"Not done: {line}.") for line in facts.not_done()]
        notes += left_out(self.people)
        return {
            "suite": clean(facts.suite),
            "question": clean(facts.question),
            "state": facts.state,
            "recorded_at": facts.recorded_at,
            "data": self.scrub.name(facts.data),
            "objectives": {clean(k): v for k, v in facts.objectives.items()},
            "batch": facts.first_batch(),
            "command": shown,
            "yaml": yaml,
            "scrubbed": yaml != facts.yaml,
            "environment": environments,
            "judges": list(qualities(facts, self.scrub)),
            "notes": notes,
        }

    def _own(self, who: Contender, target: str, keys: list[tuple[str, str]], measuring: float) -> dict[str, Any]:
        import polars as pl

        facts, clean = self.facts, self.scrub.clean
        trials = facts.trials.filter(pl.col("label") == who.label)
        finals = trials.filter(pl.col("phase") == "final").sort("seed")
        failures = facts.failures.filter(pl.col("label") == who.label)
        cost = cost_of(facts, who)
        settings = mapping(finals["settings"][0]) if finals.height else {}
        runs = facts.lineage.filter(pl.col("label") == who.label).join(
            finals.select("trial", "seed"), on=["trial", "seed"], how="semi"
        )
        steps = runs.unique(["position", "step"]).sort("position")["step"].unique(maintain_order=True).to_list()
        stages = facts.stages.filter(pl.col("stage").is_in(runs["stage"].unique().to_list()))
        fallbacks = facts.fallbacks.filter(pl.col("label") == who.label)
        return {
            "steps": [clean(s) for s in steps],
            "settings": self.scrub.value(settings),
            "chosen_trial": int(finals["trial"][0]) if finals.height and not who.is_base else None,
            "budget": Budget(
                tuning_trials=_states(trials.filter(pl.col("phase") == "tune")),
                final_runs=_states(finals),
                training_seconds=cost.whole or 0.0,
                measuring_seconds=measuring,
                failed_seconds=float(failures["seconds"].drop_nulls().sum() or 0.0),
                peak_mb=cost.peak_mb,
            ),
            "stages": [self._stage(row) for row in stages.sort("seed", "stage").iter_rows(named=True)],
            "artifacts": {str(s): a for s, a in finals.select("seed", "artifact").iter_rows() if a},
            "measurements": [(clean(task), key) for task, key in keys],
            **self._conditions(keys),
            "failures": [self._failure(row) for row in failures.iter_rows(named=True)],
            "notes": [clean(f"Benchmarks were scored in plain batches, since {r}.") for r in fallbacks["reason"]],
        }

    def _conditions(self, keys: list[tuple[str, str]]) -> dict[str, Any]:
        clean = self.scrub.clean
        rows = self.store.query(_CONDITIONS, {"keys": [key for _, key in keys]})
        tasks = {key: task for task, key in keys}
        conditions, datasets = [], dict[str, list[str]]()
        for key, leaf, text in sorted(rows.iter_rows()):
            settings = mapping(text)
            told = settings.get("dataset_path")
            found = [told] if isinstance(told, str) else []
            if not found and self.facts.data == DataSource("hub").label():
                found = _datasets(tasks[key])
            mine = datasets.setdefault(clean(tasks[key]), [])
            mine += [d for d in found if is_hub_id(d) and d not in mine]
            cleaned = {"task": clean(tasks[key]), "leaf": clean(leaf), "settings": self.scrub.value(settings)}
            condition = Condition.model_validate(cleaned)
            # Each seed has its own measurement, under the same conditions.
            if condition not in conditions:
                conditions.append(condition)
        return {"conditions": conditions, "datasets": {task: own for task, own in datasets.items() if own}}

    def _stage(self, row: Mapping[str, Any]) -> Stage:
        clean = self.scrub.clean
        inputs = mapping(row["inputs"])
        return Stage(
            key=row["stage"],
            method=clean(row["method"]),
            version=row["method_version"],
            seed=row["seed"],
            dataset=None if row["dataset"] is None else self.scrub.name(row["dataset"]),
            fingerprint=row["dataset_fingerprint"],
            inputs={clean(k): None if v is None else self.scrub.name(str(v)) for k, v in inputs.items()},
            params=json.dumps(self.scrub.value(mapping(row["params"])), sort_keys=True),
            precision=row["precision"],
            seconds=float(row["seconds"]),
            peak_mb=float(row["peak_rss_mb"]),
        )

    def _failure(self, row: Mapping[str, Any]) -> Failure:
        clean = self.scrub.clean
        return Failure(
            trial=row["trial"],
            seed=row["seed"],
            kind=row["kind"],
            message=clean(row["message"]),
            traceback=clean(row["traceback"] or ""),
            command=clean(row["command"]) if row["command"] else None,
        )

    def _samples(self, who: Contender, target: str, answered: set[str]) -> tuple[list[tuple[str, str]], "pl.DataFrame"]:
        """The measurements behind an entry, by task, and its samples; people may have rated what it `answered`."""
        import polars as pl

        mine = self.facts.documents.filter((pl.col("label") == who.label) & (pl.col("target") == target))
        kept, seen = [], set[tuple[str, str, str]]()
        for (group, metric, _), part in mine.group_by("group", "metric", "seed", maintain_order=True):
            # The base model's one measurement stands under every seed; it is one, not several.
            own = {(str(group), str(metric), m) for m in part["measurement"].unique()}
            if not own <= seen:
                kept.append(part)
            seen |= own
        rows = pl.concat(kept).with_columns(
            pl.concat_str("task", pl.lit("/"), "document").alias("place"), pl.col("group").alias("named")
        )
        keys = sorted({(str(g), str(m)) for g, m in rows.select("group", "measurement").iter_rows()})
        found = self._texts(sorted({m for _, m in keys}))
        samples = rows.join(found, on=["measurement", "document", "metric"], how="left").select(
            pl.col("named").alias("task"),
            "metric",
            "seed",
            pl.col("place").alias("document"),
            "score",
            "response",
            "prompt",
            "expected",
        )
        more, profiles = self._repeats(who, target)
        columns = [pl.col(name).cast(getattr(pl, kind)) for name, kind in SAMPLES.items()]
        said = people_samples(self.people, who, answered)
        whole = pl.concat([samples.select(columns), profiles.select(columns), said.select(columns)])
        return keys + more, _mapped(whole, self.scrub)

    def _texts(self, keys: list[str]) -> "pl.DataFrame":
        import polars as pl

        found = self.store.query(_TEXTS, {"keys": keys})
        if self.texts:
            return found.unique(["measurement", "document", "metric"], keep="first", maintain_order=True)
        return found.clear().with_columns(pl.lit(None, pl.String).alias(c) for c in ("response", "prompt", "expected"))

    def _repeats(self, who: Contender, target: str) -> tuple[list[tuple[str, str]], "pl.DataFrame"]:
        import polars as pl

        # One of the seeds stands for all, as in the report: they have the same shape, so the same speed.
        first = (
            self.facts.profiles.filter((pl.col("label") == who.label) & (pl.col("target") == target))
            .sort("seed")
            .unique(["setting", "metric"], keep="first", maintain_order=True)
            .select("seed", "setting", "metric", "measurement")
        )
        keys = sorted(first["measurement"].unique().to_list())
        rows = self.store.query(_REPEATS, {"keys": keys or [""]})
        joined = first.join(rows, on=["measurement", "setting", "metric"])
        return [(PROFILE, key) for key in keys], joined.select(
            pl.lit(PROFILE).alias("task"),
            pl.concat_str("metric", pl.lit(" ("), "setting", pl.lit(")")).alias("metric"),
            "seed",
            pl.concat_str("setting", pl.lit("/"), "repeat").alias("document"),
            "score",
            pl.lit(None, pl.String).alias("response"),
            pl.lit(None, pl.String).alias("prompt"),
            pl.lit(None, pl.String).alias("expected"),
        )


def _datasets(task: str) -> list[str]:
    try:
        return task_datasets(task)
    except UserError:
        # A task of another version of lm-eval than the one here: whose documents it had is not known.
        return []


def _states(trials: "pl.DataFrame") -> dict[str, int]:
    return {str(state): n for state, n in trials.group_by("state").len().sort("state").iter_rows()}


def _mapped(samples: "pl.DataFrame", scrub: Scrubber) -> "pl.DataFrame":
    """The same rows with clean texts; each different text is cleaned once."""
    import polars as pl

    columns = []
    for name in ("task", "metric", "document", "response", "prompt", "expected"):
        texts = samples[name].drop_nulls().unique().sort().to_list()
        clean = dict(zip(texts, scrub.clean_all(texts), strict=True))
        columns.append(pl.Series(name, [None if t is None else clean[t] for t in samples[name]], dtype=pl.String))
    return samples.with_columns(columns).sort("task", "metric", "seed", "document", maintain_order=True)
