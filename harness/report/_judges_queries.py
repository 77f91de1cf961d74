"""What the page of judges is made from: votes, preferences, checks and costs, without their texts."""

__all__ = ["CHECKS", "PREFERENCES", "RUNS", "SPENT", "VOTES"]

# The final runs whose answers were judged, one seed where several share a measurement, as the base model's do. Not from
# the view of scores: a measurement of which no vote was a verdict has none.
RUNS = """
    SELECT recipe, model, min(seed) AS seed, target, measurement FROM raw.measurement_links
    WHERE sweep = $sweep AND phase = 'final' GROUP BY recipe, model, target, measurement
"""
VOTES = f"""
    WITH runs AS ({RUNS})
    SELECT r.recipe, r.model, r.seed, r.target, v.aspect, v.judge, coalesce(v.judge_key, v.judge) AS judge_key,
        coalesce(v.turn, 1) AS turn, v.category, v.document, v.score, length(v.response) AS length, r.measurement
    FROM runs r JOIN raw.judge_votes v USING (measurement) WHERE v.half = 'final'
    ORDER BY ALL
"""
# The view has a row for every seed of the base model, of which there is one.
PREFERENCES = """
    SELECT model, a, b, seed_a, seed_b, judge, judge_key, document, category, win, score, orders, parsed, flipped,
        verdict_first, verdict_second, length(response_a) AS length_a, length(response_b) AS length_b, measurement
    FROM preferences WHERE sweep = $sweep
    QUALIFY row_number() OVER (
        PARTITION BY measurement, model, a, b, judge, judge_key, document,
            CASE WHEN a <> 'base' THEN seed_a END, CASE WHEN b <> 'base' THEN seed_b END
        ORDER BY seed_a, seed_b
    ) = 1
    ORDER BY ALL
"""
_OWN = """
    SELECT measurement FROM raw.measurement_links WHERE sweep = $sweep
"""
_JUDGES = f"""
    SELECT DISTINCT coalesce(judge_key, judge) AS judge_key, judge FROM raw.judge_votes WHERE measurement IN ({_OWN})
    UNION
    SELECT DISTINCT judge_key, judge FROM raw.pair_votes WHERE a IN ({_OWN}) AND b IN ({_OWN})
"""
# Each judge's last check, the sweep's own if it has one: others may have asked of other pairs.
CHECKS = f"""
    WITH judges AS ({_JUDGES}),
    known AS (
        SELECT measurement, judge_key, bool_or(measurement IN ({_OWN})) AS own, max(batch) AS batch
        FROM raw.judge_checks WHERE judge_key IN (SELECT judge_key FROM judges) GROUP BY measurement, judge_key
    ),
    latest AS (
        SELECT measurement, judge_key FROM known
        QUALIFY row_number() OVER (PARTITION BY judge_key ORDER BY own DESC, batch DESC, measurement) = 1
    )
    SELECT j.judge, c.judge_key, c."check", c.document, c."first", c.attack, c.verdict, c.score, c.cost
    FROM raw.judge_checks c JOIN latest USING (measurement, judge_key) JOIN judges j USING (judge_key)
    ORDER BY ALL
"""
# Of all phases: tuning is paid for too. A vote counts once, whichever of the sweep's runs share it.
SPENT = f"""
    SELECT judge, 'ratings' AS kind, count(*) AS votes, count(*) FILTER (WHERE score IS NULL) AS unparsed,
        sum(cost) AS cost
    FROM raw.judge_votes WHERE measurement IN ({_OWN}) GROUP BY judge
    UNION ALL
    SELECT judge, 'pairs', count(*), count(*) FILTER (WHERE score IS NULL), sum(cost)
    FROM raw.pair_votes WHERE a IN ({_OWN}) AND b IN ({_OWN}) GROUP BY judge
    ORDER BY ALL
"""
