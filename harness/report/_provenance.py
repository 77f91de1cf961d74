"""Where every number came from: the suite, the data, the machines, the stages, and what failed."""

import json

from harness.report._html import Html, Table, join, table, tag
from harness.report._plot import empty
from harness.report._queries import Facts

__all__ = ["failures", "provenance"]

_KEY = 12
_STAGES = 400


def _json(text: object) -> object:
    return json.loads(text) if isinstance(text, str) else text


def _flat(value: object, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [
            (prefix, "unknown" if value is None else "yes" if value is True else "no" if value is False else str(value))
        ]
    return [pair for k, v in value.items() for pair in _flat(v, f"{prefix} {k}".strip())]


def _box(text: str) -> Html:
    return tag("div", tag("pre", text), class_="box", tabindex="0")


def failures(facts: Facts) -> Html:
    """Every failure with its reason and its traceback."""
    if facts.failures.is_empty():
        return tag("p", "None was recorded.", class_="empty")
    parts: list[Html] = []
    for row in facts.failures.iter_rows(named=True):
        where = f"{row['label']}, trial {row['trial']}, seed {row['seed']}"
        summary = tag("summary", f"{row['kind']}: {where}: {row['message']}")
        at = f"{row['recorded_at']:%Y-%m-%d %H:%M:%S} UTC"
        keys = ", ".join(f"{n} {row[n]}" for n in ("stage", "measurement") if row[n])
        figures = [f"at step {row['step']}"] if row["step"] is not None else []
        figures += [f"peak memory {row['peak_mb']:.0f} MiB"] if row["peak_mb"] is not None else []
        parts.append(
            tag(
                "details",
                summary,
                tag("p", "; ".join([at, *([keys] if keys else []), *figures]), class_="fine"),
                tag("p", "Run it again alone: ", tag("code", row["command"]), class_="fine")
                if row["command"]
                else None,
                _box(row["traceback"] or "no traceback"),
            )
        )
    return join(*parts)


def _stages(facts: Facts) -> Html:
    import polars as pl

    if facts.stages.is_empty():
        return empty("Stages", "No stage has been computed yet.")
    users = {str(stage): sorted(set(part["label"].to_list())) for (stage,), part in facts.lineage.group_by("stage")}
    rows: list[list[object]] = []
    for row in facts.stages.head(_STAGES).iter_rows(named=True):
        inputs = _json(row["inputs"])
        shown = (
            ", ".join(f"{role} {str(key)[:_KEY]}" for role, key in inputs.items() if key)
            if isinstance(inputs, dict)
            else ""
        )
        params = tag(
            "details", tag("summary", "settings"), tag("code", json.dumps(_json(row["params"]), sort_keys=True))
        )
        dataset = " ".join(p for p in (row["dataset"], (row["dataset_fingerprint"] or "")[:_KEY]) if p)
        rows.append(
            [
                tag("code", row["stage"][:_KEY], title=row["stage"]),
                f"{row['method']} v{row['method_version']}",
                ", ".join(users.get(row["stage"], [])),
                row["seed"],
                dataset or None,
                shown,
                row["precision"],
                float(row["seconds"]),
                float(row["peak_rss_mb"]),
                params,
            ]
        )
    headers = ["key", "method", "used by", "seed", "dataset", "inputs", "precision", "seconds", "peak MiB", ""]
    more = facts.lineage.filter(pl.col("seconds").is_null())["stage"].n_unique()
    note = f"{facts.stages.height} computed stages" + (
        f", {min(_STAGES, facts.stages.height)} shown" if facts.stages.height > _STAGES else ""
    )
    note += f"; {more} begun and not finished." if more else "."
    return join(
        tag("h3", "Stages"),
        tag(
            "p",
            f"{note} Keys are shortened; each stands for the method, its settings, inputs, data, seed and library "
            "versions.",
        ),
        tag("details", tag("summary", "The stages"), table(Table(headers, rows))),
    )


def provenance(facts: Facts) -> Html:
    """Suite, data, environments and stages."""
    environments = []
    for row in facts.environments.iter_rows(named=True):
        here = " (the sweep's own)" if row["environment"] == facts.environment else ""
        listed = [[name, value] for name, value in _flat(_json(row["json"]))]
        summary = tag("summary", f"Environment {row['environment'][:_KEY]}{here}")
        environments.append(tag("details", summary, table(Table(["", ""], listed))))
    sources = sorted({str(d) for d in facts.scores["data"].drop_nulls()} | {facts.data})
    return join(
        tag("h3", "Data sources"),
        tag("p", "; ".join(sources)),
        *(
            tag("p", f"{r['label']}: benchmarks scored in plain batches, since {r['reason']}.")
            for r in facts.fallbacks.sort("label").iter_rows(named=True)
        ),
        tag("h3", "Environments"),
        tag("p", "Models were allowed to run Python code of their own (--trust-remote-code).")
        if any(("remote code allowed", "yes") in _flat(_json(text)) for text in facts.environments["json"])
        else None,
        *(environments or [tag("p", "None was recorded.", class_="empty")]),
        _stages(facts),
        tag("h3", "The suite"),
        tag("details", tag("summary", "The YAML as it was read"), _box(facts.yaml)),
    )
