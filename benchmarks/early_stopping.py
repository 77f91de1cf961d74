"""How often early stopping ends the best of N trials, and what it saves: a simulation of the decisions alone.

    python -m benchmarks.early_stopping [--sweeps 500]

Training: a trial's worth is drawn, its metric at a rung is that worth plus noise of which more is left the earlier the
rung, so that it agrees with the final order by the correlation shown. Documents: a trial has a true accuracy, documents
have a difficulty, each answer is right or wrong. Both at the defaults of a suite, the trials in random order and the
best one anywhere among them. The decisions are the harness's own (`harness.rungs`); no model is run.
"""

import argparse
import math
import random
from collections.abc import Callable, Sequence

from harness.rungs import HopelessError, MeasureRungs, Point, StageRungs, judge_curve, judge_scores, rung_values, split
from harness.suite import EarlyStopping

__all__ = ["main"]

_STEPS = 20
_EARLY = EarlyStopping.model_validate({"training": {"metric": "loss"}, "documents": {}})


def _curve(worth: float, agreement: float, draw: random.Random) -> list[Point]:
    """A falling loss; at a quarter of the steps its correlation with the final one is `agreement`, at the end 1."""
    spread = math.sqrt(1 / agreement**2 - 1)
    early = draw.gauss(0, 1)
    return [
        Point(s, _STEPS, -worth + 3 * (1 - s / _STEPS) + early * spread * (1 - s / _STEPS) / 0.75)
        for s in range(1, _STEPS + 1)
    ]


def training_sweep(trials: int, batch: int, agreement: float, draw: random.Random) -> tuple[bool, float]:
    """Whether the best trial was stopped, and the share of all steps that was not run."""
    asked = _EARLY.training
    if asked is None:
        raise RuntimeError("the schema has training rungs")
    worths = [draw.gauss(0, 1) for _ in range(trials)]
    best, stopped, saved = worths.index(max(worths)), set[int](), 0
    past: list[list[float | None]] = []
    for start in range(0, trials, batch):
        seen = [list(values) for values in past]
        for number in range(start, min(start + batch, trials)):
            curve = _curve(worths[number], agreement, draw)
            rivals = tuple(tuple(v[i] for v in seen if len(v) > i) for i in range(len(asked.rungs)))
            rungs = StageRungs(
                at=tuple(asked.rungs),
                direction="minimize",
                metric="loss",
                keep=asked.keep,
                after=asked.after,
                rivals=rivals,
            )
            try:
                judge_curve(rungs, curve)
            except HopelessError as error:
                curve = [p for p in curve if p.step <= (error.step or 0)]
                saved += _STEPS - len(curve)
                stopped.add(number)
            past.append(rung_values(curve, asked.rungs))
    return best in stopped, saved / (trials * _STEPS)


def document_sweep(trials: int, documents: int, spread: float, draw: random.Random) -> tuple[bool, float]:
    """The same for documents: trials' accuracies have this standard deviation around 0.5."""
    asked = _EARLY.documents
    if asked is None:
        raise RuntimeError("the schema has document rungs")
    truths = [min(0.95, max(0.05, draw.gauss(0.5, spread))) for _ in range(trials)]
    names = [f"{draw.getrandbits(64):016x}" for _ in range(documents)]
    easy = [draw.gauss(0, 1) for _ in names]
    best, stopped, saved = truths.index(max(truths)), set[int](), 0
    leader: tuple[int, dict[str, float]] | None = None
    for number, truth in enumerate(truths):
        shift = math.log(truth / (1 - truth))
        own = {
            n: float(draw.random() < 1 / (1 + math.exp(-(shift + 1.5 * e)))) for n, e in zip(names, easy, strict=True)
        }
        if leader is not None:
            rungs = MeasureRungs(
                at=tuple(asked.rungs),
                direction="maximize",
                p=asked.p,
                metrics={"m": "acc"},
                tasks={"m": "t"},
                rival={"m": leader[1]},
                against=leader[0],
            )
            try:
                judge_scores(rungs, {"m": own})
            except HopelessError as error:
                ran = sum(map(len, split(names, asked.rungs)[: max(error.reached)]))
                saved += documents - ran
                stopped.add(number)
                continue
        if leader is None or sum(own.values()) > sum(leader[1].values()):
            leader = (number, own)
    return best in stopped, saved / (trials * documents)


def _table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Sequence[object], Callable[[random.Random], tuple[bool, float]]]],
    sweeps: int,
) -> None:
    print(title)
    print("  ".join(f"{c:>12}" for c in (*columns, "best stopped", "saved")))
    for cells, sweep in rows:
        draw = random.Random(str(cells))
        found = [sweep(draw) for _ in range(sweeps)]
        lost = sum(stopped for stopped, _ in found) / sweeps
        saved = sum(share for _, share in found) / sweeps
        print("  ".join([*(f"{c!s:>12}" for c in cells), f"{lost:>12.1%}", f"{saved:>12.1%}"]))
    print()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sweeps", type=int, default=500, help="simulated sweeps of each row")
    sweeps = parser.parse_args().sweeps
    _table(
        f"Training rungs at {_EARLY.training.rungs if _EARLY.training else ''}, {sweeps} sweeps a row",
        ("trials", "batch", "agreement"),
        [
            ((n, b, a), lambda draw, n=n, b=b, a=a: training_sweep(n, b, a, draw))  # type: ignore[misc]  # mypy has no type for a lambda's default
            for n, b in ((8, 1), (16, 1), (16, 4), (32, 4))
            for a in (0.5, 0.7, 0.9)
        ],
        sweeps,
    )
    _table(
        f"Document rungs at {_EARLY.documents.rungs if _EARLY.documents else ''}, {max(1, sweeps // 2)} sweeps a row",
        ("trials", "documents", "spread"),
        [
            ((n, d, s), lambda draw, n=n, d=d, s=s: document_sweep(n, d, s, draw))  # type: ignore[misc]  # mypy has no type for a lambda's default
            for n in (16,)
            for d in (32, 100, 400)
            for s in (0.02, 0.05, 0.1)
        ],
        max(1, sweeps // 2),
    )


if __name__ == "__main__":
    main()
