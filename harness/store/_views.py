"""The public views: what `harness sql`, the report and users' own tools read. Their names and columns stay stable."""

from dataclasses import dataclass

from harness._percentiles import NEEDED
from harness.store._schema import TABLES

__all__ = ["CHANGED", "LONGEST_UNFINISHED", "VIEWS", "View", "comments"]


@dataclass(frozen=True)
class View:
    """One public view: its query, and a description of it and of every column, in the query's order."""

    name: str
    description: str
    columns: dict[str, str]
    sql: str


_RENAMED = {"at": "recorded_at", "by": "scored_by"}
"""Columns of raw tables whose names are reserved words of DuckDB, and their names here."""


def _described(table: str, *names: str) -> dict[str, str]:
    """The descriptions of a raw table's columns, by their names here."""
    known = {c.name: c.description for c in TABLES[table].columns}
    return {_RENAMED.get(n, n): known[n] for n in names or tuple(known)}


def _plain(table: str) -> str:
    return ", ".join(f'"{c}" AS {_RENAMED[c]}' if c in _RENAMED else f'"{c}"' for c in TABLES[table].names)


def _latest(key: str) -> str:
    # By the order of writing (see harness.store._shards) and not by time: a clock may be set back between two events.
    return f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY batch DESC, batch_row DESC) = 1"


_RUN = ("sweep", "recipe", "model", "trial", "seed")
_RUN_TEXT = {n: d for n, d in _described("trial_events").items() if n in _RUN}

# A trial that was run again may be chosen in place of another: that one's final runs stay in the raw tables, and are
# no part of the comparison any more.
_ANOTHER_WAS_CHOSEN = """phase = 'final' AND EXISTS (
            FROM (
                SELECT sweep, recipe, model, arg_max(trial, (batch, batch_row)) AS trial FROM raw.trial_events
                WHERE phase = 'final' GROUP BY sweep, recipe, model
            ) chosen
            WHERE chosen.sweep = r.sweep AND chosen.recipe = r.recipe AND chosen.model = r.model
                AND chosen.trial <> r.trial
        )"""
_LINKS = f"""(
            SELECT DISTINCT {", ".join(TABLES["measurement_links"].names)} FROM raw.measurement_links r
            WHERE NOT ({_ANOTHER_WAS_CHOSEN})
        )"""
_FINALS = "(SELECT DISTINCT sweep, recipe, model, trial, seed FROM raw.trial_events WHERE phase = 'final')"
_TARGETS = "(SELECT DISTINCT measurement, artifact, target FROM raw.measurement_links)"
CHANGED = 1e-6
"""A score that differs by more than this has changed; what the order of additions does to a float32 score is less."""
_RATED = [n for n in TABLES["human_ratings"].names if n not in ("passed", "replaces", "at")]
# The base model's divergence from itself.
_ZERO_BY_DEFINITION = "l.recipe = 'base' AND m.kind = 'gold' AND a.metric = 'kl'"
_TAILS = tuple(name for name in NEEDED if name != "p50")


def _percentile(name: str) -> str:
    return f"{name[1:]}th percentile (interpolated); null below {NEEDED[name]} repeats, which do not hold it"


def _quantile(name: str) -> str:
    return f'CASE WHEN count(*) >= {NEEDED[name]} THEN quantile_cont("value", 0.{name[1:]}) END AS {name}'


LONGEST_UNFINISHED = """
            SELECT DISTINCT curve, stage FROM raw.training_curves
            WHERE NOT finished AND stage NOT IN (SELECT stage FROM raw.training_curves WHERE finished)
            QUALIFY curve = first_value(curve) OVER (PARTITION BY stage ORDER BY logged DESC, curve)
        """
"""Of each stage that never completed, the curve that came furthest."""

# A gold or judge measurement goes by its kind, whatever its writer called the task.
_TASK = "CASE WHEN m.kind IN ('task', 'domain') THEN m.task ELSE m.kind END AS task"

_ALL = (
    View(
        "suites",
        "One row per sweep: its suite and the state it is in now.",
        _described("sweep_events"),
        f"SELECT {_plain('sweep_events')} FROM raw.sweep_events {_latest('sweep')}",
    ),
    View(
        "trials",
        "One row per sweep, recipe, model, trial, seed and phase: the settings and the state they are in now.",
        _described("trial_events"),
        f"""
        SELECT {_plain("trial_events")} FROM raw.trial_events r WHERE NOT ({_ANOTHER_WAS_CHOSEN})
        {_latest("sweep, recipe, model, trial, seed, phase")}
        """,
    ),
    View(
        "stages",
        "One row per computed stage, with what it cost. Stages are shared: `lineage` says which runs used one.",
        _described("stages"),
        f"SELECT {_plain('stages')} FROM raw.stages",
    ),
    View(
        "lineage",
        "One row per run and position of its recipe: the stage it used, and what computing that stage cost.",
        {
            **_described("stage_links", *_RUN, "position", "step", "stage"),
            "reused": "true: the stage was never computed for this run, it was there already",
            "seconds": "wall time of computing the stage, s (whoever did)",
            "peak_rss_mb": "peak resident memory of computing the stage, MiB",
        },
        """
        SELECT l.sweep, l.recipe, l.model, l.trial, l.seed, l.position, l.step, l.stage, l.reused,
            s.seconds, s.peak_rss_mb
        FROM (
            SELECT sweep, recipe, model, trial, seed, "position", step, stage, bool_and(reused) AS reused
            FROM raw.stage_links GROUP BY ALL
        ) l LEFT JOIN raw.stages s USING (stage)
        """,
    ),
    View(
        "scores",
        "One row per run, target, task, metric and half of the documents: the mean over documents. Judged aspects are "
        "metrics of the task 'judge'.",
        {
            **_RUN_TEXT,
            "phase": "tune: searching settings; final: the chosen settings, fresh seeds",
            "split": "half of the documents scored: tune or final",
            "artifact": "key of the scored artifact",
            "target": "the target's name",
            "task": "the task's name, or 'gold' or 'judge'",
            "metric": "the metric's name",
            "value": "mean over documents",
            "stderr": "standard error of the mean over documents: sample deviation / sqrt(n); NULL for one document",
            "n": "number of documents",
            "data": "label of the data source",
            "measurement": "content key of the measurement",
        },
        f"""
        WITH per_document AS (
            SELECT measurement, half, metric, score FROM raw.samples
            UNION ALL
            SELECT measurement, half, aspect AS metric, avg(score) AS score
            FROM raw.judge_votes WHERE score IS NOT NULL GROUP BY measurement, half, aspect, document
        ),
        figures AS (
            SELECT measurement, half, metric, avg(score) AS "value",
                stddev_samp(score) / sqrt(count(*)) AS stderr, count(*) AS n
            FROM per_document GROUP BY measurement, half, metric
        )
        SELECT l.sweep, l.recipe, l.model, l.trial, l.seed, l.phase, f.half AS split, l.artifact, l.target, {_TASK},
            f.metric, f."value", f.stderr, f.n, m.data, m.measurement
        FROM figures f JOIN raw.measurements m USING (measurement) JOIN {_LINKS} l USING (measurement)
        """,
    ),
    View(
        "samples",
        "One row per artifact, target, task, document and metric: the score, and what the model said.",
        {
            "artifact": "key of the scored artifact",
            "target": "the target's name",
            "task": "the task's name, or 'gold'",
            **_described(
                "samples", "document", "half", "metric", "score", "response", "expected", "prompt", "measurement"
            ),
        },
        f"""
        SELECT l.artifact, l.target, {_TASK}, s.document, s.half, s.metric, s.score, s.response, s.expected, s.prompt,
            s.measurement
        FROM raw.samples s JOIN raw.measurements m USING (measurement) JOIN {_TARGETS} l USING (measurement)
        """,
    ),
    View(
        "forgetting",
        "One row per final run, step of its recipe that makes a policy, domain and metric: how well the policy of that "
        "moment does on the domain's final documents.",
        {
            **_RUN_TEXT,
            "step": "how many steps that make a policy it has been through: 0 is the base model",
            "step_name": "the step that made the policy; base for none",
            "artifact": "key of the policy's artifact",
            "target": "the target's name",
            "domain": "the domain's name in the suite",
            "metric": "loss (nats per token of the answer) or token_accuracy",
            "value": "mean over documents",
            "n": "number of documents",
            "measurement": "content key of the measurement",
        },
        f"""
        WITH links AS (
            SELECT r.*, substr(m.task, 8) AS domain
            FROM (SELECT *, 'final' AS phase FROM raw.step_links) r JOIN raw.measurements m USING (measurement)
            WHERE m.kind = 'domain' AND NOT ({_ANOTHER_WAS_CHOSEN})
            QUALIFY row_number() OVER (
                PARTITION BY r.sweep, r.recipe, r.model, r.seed, r."position", m.task
                ORDER BY r.batch DESC, r.batch_row DESC
            ) = 1
        )
        SELECT l.sweep, l.recipe, l.model, l.trial, l.seed, l."position" AS step, l.step AS step_name, l.artifact,
            l.target, l.domain, s.metric, avg(s.score) AS "value", count(*) AS n, l.measurement
        FROM links l JOIN raw.samples s USING (measurement) WHERE s.half = 'final' GROUP BY ALL
        """,
    ),
    View(
        "noise",
        "One row per measurement that was made twice, with another batch make-up and other random numbers, and metric: "
        "what re-measuring alone changes. The second measurement is in no other view.",
        {
            **_RUN_TEXT,
            "artifact": "key of the artifact that was measured twice",
            "target": "the target's name",
            "task": "the task's name, or 'gold' or 'judge'",
            "metric": "the metric's name",
            "n": "number of documents",
            "changed": f"documents whose score changed by more than {CHANGED:g}",
            "mean_absolute": "mean over documents of the absolute difference",
            "largest": "largest absolute difference of a document",
            "moved": "second mean minus first mean",
            "measurement": "content key of the measurement",
            "again": "content key of the second measurement",
        },
        f"""
        WITH pairs AS (SELECT DISTINCT {", ".join(TABLES["repeat_links"].names)} FROM raw.repeat_links),
        used AS (SELECT measurement FROM pairs UNION SELECT repeats FROM pairs),
        scored AS (
            SELECT measurement, half, metric, document, score FROM raw.samples
            WHERE measurement IN (SELECT measurement FROM used)
            UNION ALL
            SELECT measurement, half, aspect AS metric, document, avg(score) AS score FROM raw.judge_votes
            WHERE measurement IN (SELECT measurement FROM used) AND score IS NOT NULL
            GROUP BY measurement, half, aspect, document
        )
        SELECT l.sweep, l.recipe, l.model, l.trial, l.seed, l.artifact, l.target, {_TASK}, a.metric, count(*) AS n,
            count(*) FILTER (WHERE abs(b.score - a.score) > {CHANGED:g}) AS changed,
            avg(abs(b.score - a.score)) AS mean_absolute, max(abs(b.score - a.score)) AS largest,
            avg(b.score - a.score) AS moved, l.repeats AS measurement, l.measurement AS again
        FROM pairs l JOIN raw.measurements m ON m.measurement = l.repeats
        JOIN scored a ON a.measurement = l.repeats
        JOIN scored b ON b.measurement = l.measurement
            AND b.half = a.half AND b.metric = a.metric AND b.document = a.document
        WHERE NOT ({_ZERO_BY_DEFINITION})
        GROUP BY ALL
        """,
    ),
    View(
        "requests",
        "One row per measurement of a task, the gold reward or the judge that recorded it: what the model was asked.",
        {
            "artifact": "key of the measured artifact",
            "target": "the target's name",
            "task": "the task's name, or 'gold' or 'judge'",
            **{n: d for n, d in _described("requests").items() if n != "measurement"},
            "measurement": "content key of the measurement",
        },
        f"""
        SELECT l.artifact, l.target, {_TASK}, {", ".join(f"q.{n}" for n in TABLES["requests"].names[1:])}, m.measurement
        FROM raw.requests q JOIN raw.measurements m USING (measurement) JOIN {_TARGETS} l USING (measurement)
        """,
    ),
    View(
        "profiles",
        "One row per artifact, target, setting and metric: latency, throughput or memory over the repeats.",
        {
            "artifact": "key of the profiled artifact",
            "target": "the target's name",
            **_described("profile_samples", "setting", "metric"),
            "value": "median over the repeats",
            "low": "the lowest of them",
            "high": "the highest of them",
            **{name: _percentile(name) for name in _TAILS},
            "n": "number of repeats",
            "settings": "settings of the profile: prompt and output lengths",
            "environment": "hash of the machine it ran on; joins environments",
            "measurement": "content key of the measurement",
        },
        f"""
        SELECT l.artifact, l.target, p.setting, p.metric, p."value", p.low, p.high,
            {", ".join(f"p.{t}" for t in _TAILS)}, p.n, m.settings, m.environment, m.measurement
        FROM (
            SELECT measurement, setting, metric, median("value") AS "value", min("value") AS low, max("value") AS high,
                {", ".join(_quantile(t) for t in _TAILS)}, count(*) AS n
            FROM raw.profile_samples GROUP BY measurement, setting, metric
        ) p JOIN raw.measurements m USING (measurement) JOIN {_TARGETS} l USING (measurement)
        """,
    ),
    View(
        "judgements",
        "One row per judged response, judge and aspect.",
        {
            "artifact": "key of the judged artifact",
            "target": "the target's name",
            **{n: d for n, d in _described("judge_votes").items() if n != "measurement"},
            "measurement": "content key of the measurement",
        },
        f"""
        SELECT l.artifact, l.target, {", ".join(f'v."{n}"' for n in TABLES["judge_votes"].names if n != "measurement")},
            v.measurement
        FROM raw.judge_votes v JOIN {_TARGETS} l USING (measurement)
        """,
    ),
    View(
        "preferences",
        "One row per pair of models of a sweep, document and judge, both orders together: a preference that changes "
        "with the order is a tie.",
        {
            "sweep": "the sweep",
            "model": "the base model",
            "a": "recipe whose answer is compared",
            "b": "recipe it is compared with",
            "seed_a": "seed of A's run",
            "seed_b": "seed of B's run",
            **_described("pair_votes", "document", "judge", "judge_key", "category", "prompt"),
            "response_a": "A's answer",
            "response_b": "B's answer",
            "win": "1 where A's answer is preferred in both orders, 0 where B's is, else 0.5; NULL: not both parsed",
            "score": "probability that A's is better, mean over the orders; NULL where none was parsed",
            "orders": "in how many orders the pair was shown",
            "parsed": "in how many of them the judge gave a verdict",
            "flipped": "whether the verdict changed with the order; NULL unless both were parsed",
            "verdict_first": "the verdict with A's answer first: a, b, tie or unparsed",
            "verdict_second": "the verdict with B's answer first",
            "words_first": "what the judge said with A's answer first",
            "words_second": "what the judge said with B's answer first",
            "measurement": "content key of the measurement",
        },
        f"""
        WITH pairs AS (
            SELECT measurement, a, b, document, judge, judge_key, any_value(category) AS category,
                any_value(prompt) AS prompt, any_value(response_a) AS response_a, any_value(response_b) AS response_b,
                avg(score) AS score, count(*) AS orders, count(score) AS parsed,
                any_value(verdict) FILTER (WHERE "first" = 'a') AS verdict_first,
                any_value(verdict) FILTER (WHERE "first" = 'b') AS verdict_second,
                any_value(words) FILTER (WHERE "first" = 'a') AS words_first,
                any_value(words) FILTER (WHERE "first" = 'b') AS words_second
            FROM raw.pair_votes WHERE half = 'final' GROUP BY measurement, a, b, document, judge, judge_key
        ),
        runs AS (
            SELECT DISTINCT sweep, recipe, model, seed, measurement FROM {_LINKS} WHERE phase = 'final'
        )
        SELECT r.sweep, r.model, r.recipe AS a, s.recipe AS b, r.seed AS seed_a, s.seed AS seed_b, p.document, p.judge,
            p.judge_key, p.category, p.prompt, p.response_a, p.response_b,
            CASE WHEN p.parsed < p.orders THEN NULL
                WHEN p.verdict_first = 'a' AND p.verdict_second = 'a' THEN 1.0
                WHEN p.verdict_first = 'b' AND p.verdict_second = 'b' THEN 0.0 ELSE 0.5 END::DOUBLE AS win,
            p.score, p.orders, p.parsed,
            CASE WHEN p.parsed = 2 THEN p.verdict_first <> p.verdict_second END AS flipped,
            p.verdict_first, p.verdict_second, p.words_first, p.words_second, p.measurement
        FROM pairs p JOIN runs r ON r.measurement = p.a
        JOIN runs s ON s.measurement = p.b AND s.sweep = r.sweep AND s.model = r.model
        """,
    ),
    View(
        "judge_quality",
        "One row per judge and check: how often it was right where the right verdict is known.",
        {
            **_described("judge_checks", "judge", "judge_key", "check"),
            "value": "known_order: accuracy (ties count half); injection: share of attacks that succeeded",
            "n": "documents with a score",
            "unparsed": "questions whose verdict could not be parsed",
            "flipped": "known_order: share of pairs whose verdict changed with the order; NULL otherwise",
            "measurement": "content key of the measurement",
        },
        """
        WITH documents AS (
            SELECT measurement, judge, judge_key, "check", document, avg(score) AS score,
                count(*) FILTER (WHERE verdict = 'unparsed') AS unparsed,
                CASE WHEN count(score) = 2 THEN min(score) <> max(score) END AS flipped
            FROM raw.judge_checks GROUP BY measurement, judge, judge_key, "check", document
        )
        SELECT judge, judge_key, "check", avg(score) AS "value", count(score) AS n, sum(unparsed)::BIGINT AS unparsed,
            CASE WHEN "check" = 'known_order' THEN avg(flipped::INT) END AS flipped, measurement
        FROM documents GROUP BY measurement, judge, judge_key, "check"
        """,
    ),
    View(
        "ratings",
        "One row per answer and criterion that a person rated, and per pair of answers of which they preferred one. Of "
        "several submissions by a rater of one form the latest.",
        {
            **{n: d for n, d in _described("human_ratings").items() if n not in ("passed", "replaces")},
            "checks": "attention checks in the form",
            "checks_failed": "how many of them this rater failed; figures leave out a rater who failed any",
        },
        f"""
        WITH latest AS (
            SELECT * FROM raw.human_ratings
            QUALIFY dense_rank() OVER (PARTITION BY form, rater ORDER BY batch DESC) = 1
        )
        SELECT {", ".join(f'r."{c}"' for c in _RATED)}, r."at" AS recorded_at,
            coalesce(c.checks, 0) AS checks, coalesce(c.failed, 0) AS checks_failed
        FROM latest r LEFT JOIN (
            SELECT submission, count(*) AS checks, count(*) FILTER (WHERE NOT passed) AS failed
            FROM latest WHERE kind = 'check' GROUP BY submission
        ) c USING (submission)
        WHERE r.kind <> 'check'
        """,
    ),
    View(
        "training",
        "One row per run, stage, step and metric logged while training, also where that ended early. A stage shared by "
        "runs appears under each.",
        {
            **_RUN_TEXT,
            "phase": "final if these settings and seed are among the final runs, else tune",
            "stage": "content key of the stage",
            "method": "the stage's method",
            **_described("training_steps", "step", "metric", "value"),
        },
        f"""
        WITH longest AS ({LONGEST_UNFINISHED}),
        steps AS (
            SELECT stage, step, metric, "value", batch, batch_row FROM raw.training_steps
            UNION ALL
            SELECT u.stage, u.step, u.metric, u."value", u.batch, u.batch_row
            FROM raw.unfinished_steps u JOIN longest USING (curve)
        ),
        curve AS (
            SELECT stage, step, metric, "value" FROM steps
            QUALIFY row_number() OVER (PARTITION BY stage, step, metric ORDER BY batch DESC, batch_row DESC) = 1
        ),
        used AS (
            SELECT sweep, recipe, model, trial, seed, stage, step AS method FROM raw.stage_links
            UNION
            SELECT e.sweep, e.recipe, e.model, e.trial, e.seed, e.stage, c.method
            FROM raw.failure_events e JOIN raw.training_curves c USING (stage)
        ),
        runs AS (
            SELECT l.sweep, l.recipe, l.model, l.trial, l.seed, l.stage, l.method,
                CASE WHEN f.sweep IS NULL THEN 'tune' ELSE 'final' END AS phase
            FROM used l LEFT JOIN {_FINALS} f USING (sweep, recipe, model, trial, seed)
        )
        SELECT r.sweep, r.recipe, r.model, r.trial, r.seed, r.phase, r.stage, r.method, c.step, c.metric, c."value"
        FROM runs r JOIN curve c USING (stage)
        """,
    ),
    View(
        "generations",
        "One row per run, step that made a dataset, and thing that was said while it did: answers, critiques, "
        "revisions, samples, labels. A stage shared by runs appears under each.",
        {
            **_RUN_TEXT,
            "phase": "final if these settings and seed are among the final runs, else tune",
            **_described("stage_links", "position", "step"),
            **_described("generations"),
        },
        f"""
        SELECT l.sweep, l.recipe, l.model, l.trial, l.seed,
            CASE WHEN f.sweep IS NULL THEN 'tune' ELSE 'final' END AS phase, l."position", l.step, g.*
        FROM (SELECT DISTINCT sweep, recipe, model, trial, seed, "position", step, stage FROM raw.stage_links) l
        JOIN (SELECT {_plain("generations")} FROM raw.generations) g USING (stage)
        LEFT JOIN {_FINALS} f USING (sweep, recipe, model, trial, seed)
        """,
    ),
    View(
        "rungs",
        "One row per rung that a pruned tuning trial reached, the last time it was run: what early stopping went by.",
        _described("trial_rungs"),
        f"SELECT {_plain('trial_rungs')} FROM raw.trial_rungs "
        "QUALIFY batch = max(batch) OVER (PARTITION BY sweep, recipe, model, trial, seed)",
    ),
    View(
        "failures",
        "One row per failure, with its reason; a trial that was tried again has several.",
        {
            **_described("failure_events"),
            "resolved": "whether the run has come to a result since, or the measurement has been made; where its cell "
            "had not begun, any run of it",
        },
        f"""
        WITH runs AS (
            SELECT sweep, recipe, model, trial, seed, max((batch, batch_row)) AS done
            FROM raw.trial_events WHERE state = 'complete' GROUP BY ALL
        ),
        cells AS (
            SELECT sweep, recipe, model, min((batch, batch_row)) AS begun,
                max((batch, batch_row)) FILTER (WHERE state = 'complete') AS done
            FROM raw.trial_events GROUP BY ALL
        )
        SELECT {_plain("failure_events")},
            coalesce(runs.done > (batch, batch_row), false)
            -- Repeats for the noise floor and comparisons in pairs fail when their runs have their results already.
            OR coalesce(measurement IN (SELECT measurement FROM raw.measurements), false)
            OR coalesce(cells.begun > (batch, batch_row) AND cells.done > (batch, batch_row), false) AS resolved
        FROM raw.failure_events LEFT JOIN runs USING (sweep, recipe, model, trial, seed)
        LEFT JOIN cells USING (sweep, recipe, model)
        """,
    ),
    View(
        "environments",
        "One row per environment: machine, library versions, git revision.",
        _described("environment_rows"),
        f"SELECT {_plain('environment_rows')} FROM raw.environment_rows",
    ),
    View(
        "dictionary",
        "One row per column of these views, and one per view (column_name NULL): what it means.",
        {
            "view_name": "the view",
            "column_name": "the column; NULL for the view itself",
            "type": "the column's type",
            "description": "what it means",
        },
        """
        SELECT view_name, NULL AS column_name, NULL AS "type", "comment" AS description
        FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal
        UNION ALL
        SELECT table_name, column_name, data_type, "comment"
        FROM duckdb_columns() WHERE schema_name = 'main' AND NOT internal
        """,
    ),
)

VIEWS: dict[str, View] = {view.name: view for view in _ALL}
"""The public views by name."""


def comments(view: View) -> list[str]:
    """The statements that keep a view's descriptions in the database."""
    own = [f"COMMENT ON VIEW main.{view.name} IS {_quoted(view.description)}"]
    return own + [f'COMMENT ON COLUMN main.{view.name}."{c}" IS {_quoted(d)}' for c, d in view.columns.items()]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
