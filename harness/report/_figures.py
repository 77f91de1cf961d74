"""The page's figures of quality and cost: gold reward against KL and reward model, benchmarks, latency and memory."""

from typing import TYPE_CHECKING

from harness._percentiles import NEEDED
from harness.report._compare import aspects, bounds_of, estimate, main_metrics
from harness.report._direction import direction
from harness.report._html import Html, Table, number
from harness.report._judges_quality import quality_lines
from harness.report._plot import Estimate, Figure, Point, Series, bars, empty, scatter
from harness.report._queries import Contender, Facts

if TYPE_CHECKING:
    import polars as pl

__all__ = ["benchmarks", "frontier", "overoptimisation", "profiles", "ratings"]

_TAILS = tuple(name for name in NEEDED if name != "p50")
_PROFILE_NAMES = {
    "ttft_ms": "time to first token, ms",
    "tpot_ms": "time per further token, ms",
    "e2e_ms": "end-to-end latency, ms",
    "tokens_per_s": "generated tokens per second",
    "prefill_tokens_per_s": "prompt tokens per second",
    "itl_ms": "inter-token latency, ms",
    "peak_rss_mb": "peak resident memory, MiB",
    "peak_cuda_mb": "peak GPU memory allocated, MiB",
    "peak_cuda_reserved_mb": "peak GPU memory reserved, MiB",
    "weight_mb": "weights in memory, MiB",
    "weight_disk_mb": "weights on disk, MiB",
    "load_ms": "load time, ms",
    "compile_ms": "first request with compilation, ms",
    "energy_cpu_j": "energy of a request, CPU packages, J",
    "energy_gpu_j": "energy of a request, GPUs, J",
    "outliers": "repeats far apart from the rest",
    "other_load": "other load just before, % of all cores",
    "cpu_mhz": "CPU clock, MHz",
    "gpu_mhz": "GPU clock, MHz",
}


def _wide(facts: Facts, metrics: tuple[str, str]) -> "pl.DataFrame":
    """One row per run and half of the documents with both gold metrics' means."""
    import polars as pl

    own = {c.label: facts.target_of(c) for c in facts.contenders}
    rows = facts.scores.filter(
        (pl.col("task") == "gold")
        & pl.col("metric").is_in(list(metrics))
        & (pl.col("target") == pl.col("label").replace_strict(own, default=facts.target))
    )
    if rows.is_empty():
        return rows
    # Tuning shows the tuning half, final runs the other: the two are never mixed.
    rows = rows.filter(pl.col("phase") == pl.col("split"))
    wide = rows.pivot(
        "metric",
        index=["label", "trial", "seed", "phase"],
        values="value",
        aggregate_function="mean",
        sort_columns=True,
    )
    return wide.drop_nulls() if set(metrics) <= set(wide.columns) else wide.clear()


def _plane(facts: Facts, x: str, y: str, units: dict[str, str]) -> tuple[list[Series], list[list[object]]]:
    """Tuning trials (hollow), final runs (small) and each contender's final mean with intervals (large)."""
    import polars as pl

    wide = _wide(facts, (x, y))
    series: list[Series] = []
    rows: list[list[object]] = []
    for who in facts.contenders:
        mine = wide.filter(pl.col("label") == who.label) if not wide.is_empty() else wide
        if mine.is_empty():
            continue
        mean_x, mean_y = estimate(facts, who, "gold", x), estimate(facts, who, "gold", y)
        for phase, size, hollow in (("tune", 8, True), ("final", 7, False)):
            points = []
            for run in mine.filter(pl.col("phase") == phase).sort("trial", "seed").iter_rows(named=True):
                what = f"trial {run['trial']}, seed {run['seed']}" + (
                    ", tuning half" if phase == "tune" else ", final half"
                )
                lines = [f"{who.label}: {what}", f"{units[y]} {number(run[y])}", f"{units[x]} {number(run[x])}"]
                points.append(Point(run[x], run[y], lines))
                rows.append([who.label, what, float(run[x]), float(run[y])])
            if points:
                legend = mean_x is None and not any(s.name == who.label for s in series)
                series.append(Series(who.label, who.index, points, size, 0.6, hollow, legend=legend))
        if mean_x is not None and mean_y is not None:
            lines = [
                f"{who.label}: mean of the final runs",
                f"{units[y]} {_span(mean_y)}",
                f"{units[x]} {_span(mean_x)}",
            ]
            spreads = ((mean_x.low, mean_x.high), (mean_y.low, mean_y.high))
            series.append(Series(who.label, who.index, [Point(mean_x.value, mean_y.value, lines, *spreads)], 14))
            rows.append([who.label, "mean of the final runs, 95 % interval", _span(mean_x), _span(mean_y)])
    return series, rows


def _span(value: Estimate) -> str:
    return f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"


def frontier(facts: Facts) -> Figure | Html:
    """Gold reward against KL from the base model: what each recipe bought, and how far it moved for it."""
    title = "Gold reward against KL from the base model"
    series, rows = _plane(facts, "kl", "gold_reward", {"kl": "KL", "gold_reward": "gold reward"})
    if not series:
        return empty(title, "No run has both a gold reward and a KL yet (the suite's measure needs gold).")
    caption = (
        "Higher and further left is better: more gold reward for less movement from the base model. Large marks are "
        "the chosen settings, mean over seeds with 95 % intervals; small filled marks their single seeds (final "
        "half of the documents); hollow marks are tuning trials (tuning half). KL is the sequence KL to the base "
        "model, summed over the response's tokens, in nats, estimated from sampled responses: single estimates may "
        "be below zero."
    )
    drawing = scatter(series, "KL from base, nats", "gold reward")
    return Figure("frontier", title, caption, [drawing], Table(["recipe", "run", "KL, nats", "gold reward"], rows))


def overoptimisation(facts: Facts) -> Figure | Html:
    """Gold reward against the learned reward: the two part where a policy over-optimises its reward model."""
    title = "Gold reward against the reward model's reward"
    series, rows = _plane(
        facts, "rm_reward", "gold_reward", {"rm_reward": "reward model", "gold_reward": "gold reward"}
    )
    if not series:
        return empty(
            title, "No run was scored by a reward model so far: without one, over-optimisation cannot be seen."
        )
    without = [c.label for c in facts.contenders if c.label not in {s.name for s in series}]
    caption = (
        "A policy that moves right without moving up pleases its reward model and not the truth (reward "
        "over-optimisation, Gao et al. 2023). Marks as above. A reward model's scale is its own: each seed trains "
        "another one, so compare directions, not values."
    )
    if without:
        caption += f" Not scored by a reward model: {', '.join(without)}."
    drawing = scatter(series, "reward model's reward", "gold reward")
    return Figure(
        "overoptimisation", title, caption, [drawing], Table(["recipe", "run", "reward model", "gold reward"], rows)
    )


def _estimated(facts: Facts, who: Contender, pairs: list[tuple[str, str]]) -> tuple[Series | None, list[list[object]]]:
    points, rows = [], []
    for task, metric in pairs:
        found = estimate(facts, who, task, metric)
        if found is not None:
            lines = [f"{who.label}: {task}, {metric}", _span(found), f"{found.n} documents"]
            points.append(Point(task, found.value, lines, spread_y=(found.low, found.high)))
            rows.append([task, metric, who.label, found.value, found.low, found.high, found.n])
    return (Series(who.label, who.index, points) if points else None), rows


_HEADERS = ["task", "metric", "recipe", "mean", "95 % from", "to", "documents"]


def benchmarks(facts: Facts) -> Figure | Html:
    """The benchmarks' main metrics, grouped by task."""
    title = "Benchmarks"
    pairs = main_metrics(facts)
    if not pairs:
        return empty(title, facts.why_none("tasks", "benchmark scores"))
    found = [_estimated(facts, who, pairs) for who in facts.contenders]
    metrics = ", ".join(f"{task} {metric}" for task, metric in pairs)
    caption = (
        f"Mean over the final half of the documents and all seeds, with 95 % intervals ({metrics}; target "
        f"{facts.target}). Data: {facts.data}. Overlapping intervals do not mean no difference: the paired "
        "comparison above is the one to go by."
    )
    rows = sorted((r for _, part in found for r in part), key=lambda r: [t for t, _ in pairs].index(str(r[0])))
    return Figure("benchmarks", title, caption, [bars([s for s, _ in found if s], "score")], Table(_HEADERS, rows))


def ratings(facts: Facts) -> Figure | Html:
    """What the judge said of each recipe, one aspect at a time: they have different scales."""
    title = "Judged quality"
    judged = aspects(facts)
    if not judged:
        return empty(title, facts.why_none("judge", "been judged"))
    variants, rows = [], []
    for aspect in judged:
        found = [_estimated(facts, who, [("judge", aspect)]) for who in facts.contenders]
        renamed = [
            Series(s.name, s.colour, [Point(s.name, p.y, p.lines, None, p.spread_y) for p in s.points])
            for s, _ in found
            if s
        ]
        scale = "{:.0f} to {:.0f}".format(*bounds_of(aspect))
        less = ", less is better" if direction(aspect) == "lower" else ""
        variants.append(bars(renamed, f"{aspect}, {scale}{less}", aspect, showlegend=False, barmode="overlay"))
        rows += [r for _, part in found for r in part]
    caption = (
        "Expectation of the judges' ratings over their probabilities, else what they say; mean "
        "over the final half of the prompts and all seeds, with 95 % intervals. A judge is a model with its own "
        "taste: it is evidence, not the truth."
    )
    rated = sorted(facts.votes["judge"].unique()) if not facts.votes.is_empty() else []
    caption = " ".join([caption, *(f"{line[0].upper()}{line[1:]}" for line in quality_lines(facts, rated))])
    return Figure("ratings", title, caption, variants, Table(_HEADERS, rows), "Aspect", "wide-short")


def profiles(facts: Facts) -> Figure | Html:
    """Latency, throughput and memory by target and batch size."""
    import polars as pl

    title = "Latency and memory by target"
    if facts.profiles.is_empty():
        return empty(None, facts.why_none("profile", "been profiled"))
    # One of the seeds stands for all: they have the same shape, so the same speed; the repeats are what varies.
    first = facts.profiles.sort("seed").unique(
        ["label", "target", "setting", "metric"], keep="first", maintain_order=True
    )
    known = [m for m in _PROFILE_NAMES if m in set(first["metric"])]
    metrics = known + sorted(set(first["metric"]) - set(known))
    variants, rows = [], []
    for metric in metrics:
        here = first.filter(pl.col("metric") == metric).sort("target", "setting")
        series = []
        for who in facts.contenders:
            points = []
            for row in here.filter(pl.col("label") == who.label).iter_rows(named=True):
                lines = [
                    f"{who.label} on {row['target']}, {row['setting']}",
                    f"median {number(row['value'])}, {number(row['low'])} to {number(row['high'])}",
                    *(f"{name} {number(row[name])}" for name in _TAILS if row[name] is not None),
                    f"{row['n']} repeats",
                ]
                place = f"{row['target']}, {row['setting']}"
                points.append(Point(place, row["value"], lines, spread_y=(row["low"], row["high"])))
                label = _PROFILE_NAMES.get(metric, metric)
                tails = [row[name] for name in _TAILS]
                span = [row["value"], row["low"], row["high"]]
                rows.append([label, row["target"], row["setting"], who.label, *span, *tails, row["n"]])
            if points:
                series.append(Series(who.label, who.index, points))
        named = _PROFILE_NAMES.get(str(metric), str(metric))
        variants.append(bars(series, named, named))
    caption = (
        "Median over the repeats, from the lowest to the highest, at the suite's fixed prompt and output lengths, "
        "one seed of each recipe. Models of one architecture, with tensors of the same shapes and types, are profiled "
        "once and share their figures. A percentile stands where the repeats hold it: p90 from "
        f"{NEEDED['p90']}, p95 from {NEEDED['p95']}, p99 from {NEEDED['p99']} (docs/profiles.md)."
    )
    headers = ["what", "target", "setting", "recipe", "median", "lowest", "highest", *_TAILS, "repeats"]
    return Figure("profiles", title, caption, variants, Table(headers, rows), "What")
